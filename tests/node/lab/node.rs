//! A daemon under test: its directories, its configuration, its process.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use podwright_base::Layout;
use tempfile::TempDir;
use tokio::net::{UnixDatagram, UnixStream};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use super::residue;

/// The host name that every node maps to the registry of `hack/registry`.
pub(crate) const REGISTRY: &str = "lab.test";
/// How long a daemon may take to say that it is ready, or to go.
const DAEMON_DEADLINE: Duration = Duration::from_secs(20);
/// The CRI's message limit, which clients raise to.
const MESSAGE_LIMIT: usize = 16 << 20;

/// The reference of one of the images that `hack/images` makes.
pub(crate) fn image(name: &str) -> String {
    format!("{REGISTRY}/{name}:latest")
}

/// The program under test: `podwright`, with `podwright-shim` beside it.
pub(crate) fn program() -> PathBuf {
    let program = std::env::var_os("PODWRIGHT_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/podwright/podwright"), PathBuf::from);
    assert!(program.is_file(), "{} is missing: run hack/test, or hack/build --debug", program.display());
    program
}

/// What a test may want to be different.
#[derive(Debug, Default)]
pub(crate) struct Setup<'a> {
    /// Puts the root directory on a tmpfs of this many bytes.
    pub(crate) root_size: Option<u64>,
    /// Goes into the configuration file; `{dir}` stands for the node's directory.
    pub(crate) config: &'static str,
    /// Goes into its table of the network likewise.
    pub(crate) network: &'a str,
    /// Gives the daemon a network namespace of its own for a host, for plugins that leave things in theirs. No registry is
    /// reached from there. A daemon that is started again has a new one, as after a reboot.
    pub(crate) own_network: bool,
}

/// A daemon with directories, a bridge and names of its own. Whoever starts one ends it with [`Node::finish`].
pub(crate) struct Node {
    dir: TempDir,
    layout: Layout,
    bridge: String,
    tmpfs: bool,
    own_network: bool,
    daemon: Mutex<Option<Child>>,
    channel: Channel,
    /// The CRI's runtime service.
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// The CRI's image service.
    pub(crate) images: ImageServiceClient<Channel>,
}

impl Node {
    /// Starts a daemon and waits until it says that it is ready.
    pub(crate) async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    /// Starts a daemon that differs from the usual.
    pub(crate) async fn start_with(setup: Setup<'_>) -> Self {
        let dir = tempfile::Builder::new().prefix("pw-").tempdir().expect("a temporary directory");
        let layout = Layout::new(dir.path().join("root"), dir.path().join("state"));
        let bridge = format!("pwt{}", layout.instance().expect("the state directory is not the default one"));
        fs::create_dir(layout.root()).expect("the root directory is new");
        fs::create_dir(dir.path().join("logs")).expect("the log directory is new");
        fs::create_dir(dir.path().join("cni")).expect("the CNI directory is new");
        if let Some(size) = setup.root_size {
            let size = format!("size={size}");
            nix::mount::mount(
                Some("podwright-test"),
                layout.root(),
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                Some(size.as_str()),
            )
            .expect("a tmpfs for the root directory");
        }
        let socket = layout.socket();
        let channel = Endpoint::from_static("http://podwright.invalid").connect_with_connector_lazy(tower::service_fn(
            move |_: tonic::transport::Uri| {
                let socket = socket.clone();
                async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
            },
        ));
        let node = Self {
            dir,
            layout,
            bridge,
            tmpfs: setup.root_size.is_some(),
            own_network: setup.own_network,
            daemon: Mutex::new(None),
            channel: channel.clone(),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
        };
        let registry = std::env::var("PODWRIGHT_TEST_REGISTRY")
            .expect("PODWRIGHT_TEST_REGISTRY holds what `hack/registry start DIR` prints; hack/test sets it");
        node.map_host(REGISTRY, &format!("http://{registry}"));
        node.write_config(setup.network, setup.config);
        node.launch().await;
        node
    }

    /// Starts a daemon and pulls images of `hack/images` into it.
    pub(crate) async fn start_with_images(names: &[&str]) -> Self {
        let node = Self::start().await;
        for name in names {
            node.pull(&image(name)).await.expect("the registry has the image");
        }
        node
    }

    /// The daemon's own files.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The daemon's socket, for clients of other bindings.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The name of its bridge.
    pub(crate) fn bridge(&self) -> &str {
        &self.bridge
    }

    /// A directory of the test's own, gone with the node.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory below which pods log.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.lock().expect("no holder panics").as_ref().and_then(Child::id).expect("the daemon runs")
    }

    fn take_daemon(&self) -> Child {
        self.daemon.lock().expect("no holder panics").take().expect("the daemon runs")
    }

    /// Makes the node fetch images of a registry host from `server`.
    pub(crate) fn map_host(&self, host: &str, server: &str) {
        let text = format!("server = \"{server}\"\n[host.\"{server}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        self.hosts(host, &text);
    }

    /// Writes the `hosts.toml` of a registry host.
    pub(crate) fn hosts(&self, host: &str, text: &str) {
        let dir = self.dir.path().join("registries.d").join(host);
        fs::create_dir_all(&dir).expect("a directory for the host");
        fs::write(dir.join("hosts.toml"), text).expect("the host's file is written");
    }

    /// One of the client commands (`podwright run`, `ps`, …) against this daemon.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--address").arg(self.layout.socket()).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Kills the daemon as a crash would, and starts it again.
    pub(crate) async fn crash(&self) {
        self.kill().await;
        self.launch().await;
    }

    /// Starts the daemon anew with more of `[registry]` in its configuration and with these variables.
    pub(crate) async fn restart_with(&self, registry: &str, environment: &[(&str, &str)]) {
        self.kill().await;
        self.write_config("", registry);
        self.launch_in(environment).await;
    }

    /// Kills the daemon as a crash would; [`Node::launch`] starts it again.
    pub(crate) async fn kill(&self) {
        let mut daemon = self.take_daemon();
        daemon.kill().await.expect("the daemon can be killed");
    }

    /// Asserts that no pod left anything, ends the daemon in an orderly way and asserts the same again.
    pub(crate) async fn finish(self) {
        self.assert_clean();
        let mut daemon = self.take_daemon();
        let pid = nix::unistd::Pid::from_raw(daemon.id().expect("the daemon runs").cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("the daemon can be signalled");
        let status = tokio::time::timeout(DAEMON_DEADLINE, daemon.wait()).await;
        let status = status.expect("the daemon drains on SIGTERM").expect("the daemon's status");
        assert!(status.success(), "the daemon ended with {status} on SIGTERM");
        let left = residue::of(&self.layout, &self.bridge, None);
        assert!(left.is_empty(), "left after the daemon went:\n{}", left.join("\n"));
    }

    /// Asserts that no pod left anything on the host.
    pub(crate) fn assert_clean(&self) {
        let left = residue::of(&self.layout, &self.bridge, Some(self.pid()));
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }

    fn write_config(&self, network: &str, more: &str) {
        let dir = self.dir.path().display();
        let mut text = String::new();
        let _ = writeln!(text, "root = {:?}\nstate = {:?}", self.layout.root(), self.layout.state());
        let _ = writeln!(text, "[log]\nlevel = \"debug,h2=info,hyper=info,tower=info\"");
        let _ = writeln!(text, "[network]\ncni_conf_dir = \"{dir}/cni\"\nbridge = \"{}\"", self.bridge);
        let _ = writeln!(text, "{}", network.replace("{dir}", &dir.to_string()));
        let more = more.replace("{dir}", &dir.to_string());
        let _ = writeln!(text, "[registry]\nconfig_path = \"{dir}/registries.d\"\nattempts = 2\n{more}");
        fs::write(self.config(), text).expect("the configuration is written");
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    fn daemon_log(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// Starts the daemon's process and waits for its readiness notification, as systemd does.
    pub(crate) async fn launch(&self) {
        self.launch_in(&[]).await;
    }

    async fn launch_in(&self, environment: &[(&str, &str)]) {
        let notify = self.dir.path().join("notify");
        let _ = fs::remove_file(&notify);
        let ready = UnixDatagram::bind(&notify).expect("a notification socket");
        let log = fs::File::options().create(true).append(true).open(self.daemon_log()).expect("the daemon's log file");
        let mut command = Command::new(program());
        if self.own_network {
            command = Command::new("unshare");
            command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(program());
        }
        let mut daemon = command
            .arg("serve")
            .arg("--config")
            .arg(self.config())
            .env("NOTIFY_SOCKET", &notify)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file can be shared"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the daemon can be started");
        let notified = async {
            let mut buffer = [0; 512];
            loop {
                let length = ready.recv(&mut buffer).await.expect("a notification");
                if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "READY=1") {
                    break;
                }
            }
        };
        tokio::select! {
            () = notified => {}
            status = daemon.wait() => panic!("the daemon ended at its start: {status:?}\n{}", self.log_tail()),
            () = tokio::time::sleep(DAEMON_DEADLINE) => panic!("the daemon does not get ready:\n{}", self.log_tail()),
        }
        *self.daemon.lock().expect("no holder panics") = Some(daemon);
    }

    fn log_tail(&self) -> String {
        let text = fs::read(self.daemon_log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Node {
    /// Takes away what a failed test left, so that the next run finds a host as clean as this one did.
    #[expect(clippy::print_stderr, reason = "a failed test shows it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the daemon's last lines ({})\n{}", self.daemon_log().display(), self.log_tail());
        }
        if let Some(mut daemon) = self.daemon.get_mut().expect("no holder panics").take() {
            let _ = daemon.start_kill();
        }
        residue::clear(&self.layout, &self.bridge);
        if self.tmpfs {
            let _ = nix::mount::umount2(self.layout.root(), nix::mount::MntFlags::MNT_DETACH);
        }
        if std::env::var_os("PODWRIGHT_TEST_KEEP").is_some() {
            self.dir.disable_cleanup(true);
        }
    }
}
