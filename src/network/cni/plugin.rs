//! One execution of one plugin: found, fed, bounded, and its outcome understood (CNI specification, section 2).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// What a plugin may write before it is taken for broken.
const OUTPUT_LIMIT: u64 = 1 << 20;
/// Bytes of a plugin's last words that its error repeats.
const WORDS_LIMIT: usize = 2048;
/// How long the output of a plugin that has ended may be held open by what it left running.
const LINGER_LIMIT: Duration = Duration::from_secs(1);
/// The first pause before a file that is being written is executed once more.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// What a plugin is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Attach a pod.
    Add,
    /// Detach a pod.
    Del,
    /// Look whether a pod is still attached.
    Check,
    /// Say whether pods can be attached.
    Status,
    /// Remove what belongs to no pod.
    Gc,
    /// Say which versions it speaks.
    Version,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// Why a plugin did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[error("CNI network {network}: plugin {plugin}, {operation}")]
pub struct PluginError {
    /// The network.
    pub network: String,
    /// The plugin's type.
    pub plugin: String,
    /// What it was told to do.
    pub operation: Operation,
    /// What came of it.
    #[source]
    pub failure: Failure,
}

/// What came of a plugin that failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no such plugin.
    #[error("no executable file {name} in {dirs}: install the plugin, or set network.cni_bin_dirs")]
    Missing {
        /// The plugin's type.
        name: String,
        /// Where it was looked for.
        dirs: String,
    },
    /// What it is told has no JSON form.
    #[error("encode its configuration")]
    Encode(#[source] serde_json::Error),
    /// It cannot be executed.
    #[error("execute {}", path.display())]
    Execute {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its output cannot be read.
    #[error("read its output")]
    Output(#[source] io::Error),
    /// It did not end in time, and was killed.
    #[error("it had not ended after {}s and was killed{words}", limit.as_secs_f32().round())]
    Timeout {
        /// How long it had.
        limit: Duration,
        /// What it last said.
        words: Words,
    },
    /// It would not stop talking, and was killed.
    #[error("it wrote more than 1 MiB and was killed")]
    TooMuchOutput,
    /// It says what is wrong.
    #[error("{0}")]
    Told(Told),
    /// It failed and does not say why.
    #[error("it ended with {status} and no error of CNI{words}")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// What it last said.
        words: Words,
    },
    /// What it says is no result.
    #[error("it succeeded, but what it wrote is no result{words}")]
    Garbage {
        /// What it said.
        words: Words,
        /// What is wrong with that.
        source: serde_json::Error,
    },
}

/// An error that a plugin tells (CNI specification, section 5).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Told {
    /// Below 100: the specification's.
    pub code: u32,
    /// What is wrong.
    #[serde(default)]
    pub msg: String,
    /// More of it.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg.trim(), self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details.trim()) }
    }
}

/// The end of what a plugin wrote, on one line; shown behind a colon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words(pub String);

impl Words {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let tail = &bytes[bytes.len().saturating_sub(WORDS_LIMIT)..];
        let text = String::from_utf8_lossy(tail);
        Self(text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | "))
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Where plugins are, and how long each may take.
#[derive(Debug, Clone)]
pub(crate) struct Executor {
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) limit: Duration,
}

impl Executor {
    /// Finds a plugin's file.
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf, Failure> {
        let executable =
            |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
        self.dirs.iter().map(|dir| dir.join(name)).find(executable).ok_or_else(|| {
            let dirs = self.dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
            Failure::Missing { name: name.to_owned(), dirs }
        })
    }

    /// Executes a plugin with a configuration on its standard input; what it wrote. It has the executor's limit, and
    /// no longer than a deadline.
    pub(crate) async fn run(
        &self,
        name: &str,
        operation: Operation,
        parameters: &[(&str, &str)],
        input: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Failure> {
        let path = self.find(name)?;
        let begun = Instant::now();
        let deadline = deadline.min(begun + self.limit);
        let mut plugin = Running(Some(self.spawn(&path, operation, parameters, deadline).await?));
        let mut output = Output::default();
        let ended = timeout_at(deadline, plugin.talk(input, &mut output)).await;
        let errors = || Words::of(&output.stderr.0);
        match ended {
            Err(_) => {
                plugin.kill().await;
                Err(Failure::Timeout { limit: deadline - begun, words: errors() })
            }
            Ok(Err(failure)) => {
                plugin.kill().await;
                Err(failure)
            }
            Ok(Ok(status)) => {
                plugin.0 = None;
                let words = errors();
                if status.success() {
                    if !words.0.is_empty() {
                        tracing::debug!(cni.plugin = name, cni.operation = %operation, %words, "a plugin wrote to stderr");
                    }
                    return Ok(output.stdout.0);
                }
                match serde_json::from_slice::<Told>(&output.stdout.0) {
                    Ok(told) => Err(Failure::Told(told)),
                    Err(_) if words.0.is_empty() => Err(Failure::Died { status, words: Words::of(&output.stdout.0) }),
                    Err(_) => Err(Failure::Died { status, words }),
                }
            }
        }
    }

    async fn spawn(
        &self,
        path: &Path,
        operation: Operation,
        parameters: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Child, Failure> {
        let mut command = Command::new(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A group of its own, to be killed with all that the plugin starts.
        command.process_group(0);
        // What the daemon was itself told by is not for plugins.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CNI_") || name == "NOTIFY_SOCKET" {
                command.env_remove(name);
            }
        }
        let dirs: Vec<OsString> = self.dirs.iter().map(|dir| dir.clone().into_os_string()).collect();
        command.env("CNI_COMMAND", operation.to_string()).env("CNI_PATH", dirs.join(":".as_ref()));
        command.envs(parameters.iter().copied());
        let mut pause = BUSY_PAUSE;
        loop {
            match command.spawn() {
                // Somebody is installing it.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() + pause < deadline =>
                {
                    sleep(pause).await;
                    pause *= 2;
                }
                result => return result.map_err(|source| Failure::Execute { path: path.to_owned(), source }),
            }
        }
    }
}

/// What a plugin has written so far.
#[derive(Default)]
struct Output {
    stdout: Pipe,
    stderr: Pipe,
}

#[derive(Default)]
struct Pipe(Vec<u8>);

impl Pipe {
    /// Reads to the end, all of it or `OUTPUT_LIMIT`.
    async fn read(&mut self, from: Option<impl AsyncRead + Unpin>) -> Result<(), Failure> {
        let Some(from) = from else { return Ok(()) };
        from.take(OUTPUT_LIMIT + 1).read_to_end(&mut self.0).await.map_err(Failure::Output)?;
        if self.0.len() as u64 > OUTPUT_LIMIT { Err(Failure::TooMuchOutput) } else { Ok(()) }
    }
}

/// A plugin that has not been waited for: it is killed with its group when nobody waits for it any more.
struct Running(Option<Child>);

impl Running {
    /// Feeds it, reads what it writes, and waits for its end.
    async fn talk(&mut self, input: Vec<u8>, output: &mut Output) -> Result<ExitStatus, Failure> {
        let Some(child) = &mut self.0 else { return Err(Failure::Output(io::ErrorKind::NotFound.into())) };
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // One that does not read its input is judged by what it does.
                let _ = stdin.write_all(&input).await;
            }
        };
        let read = async { tokio::try_join!(output.stdout.read(stdout), output.stderr.read(stderr)) };
        let (wait, talk) = (child.wait(), async { tokio::join!(feed, read).1 });
        tokio::pin!(wait, talk);
        let status = tokio::select! {
            status = &mut wait => status.map_err(Failure::Output)?,
            all = &mut talk => {
                all?;
                return wait.await.map_err(Failure::Output);
            }
        };
        // What it left running may hold its output open for ever: what has been read by then counts.
        if let Ok(all) = timeout(LINGER_LIMIT, talk).await {
            all?;
        }
        Ok(status)
    }

    async fn kill(&mut self) {
        self.kill_group();
        if let Some(mut child) = self.0.take() {
            // A process in an uninterruptible wait dies later; tokio reaps it then.
            if timeout(LINGER_LIMIT, child.wait()).await.is_err() {
                tracing::warn!(pid = child.id(), "a CNI plugin has not died of SIGKILL yet");
            }
        }
    }

    fn kill_group(&self) {
        let pid = self.0.as_ref().and_then(Child::id).and_then(|id| Pid::from_raw(id.cast_signed()));
        // The id is that of a child that has not been reaped, so the group is still its own.
        if let Some(Err(error)) = pid.map(|pid| kill_process_group(pid, Signal::KILL))
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(%error, "a CNI plugin could not be killed");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}
