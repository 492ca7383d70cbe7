//! Docker's credential helpers: `docker-credential-<name> get` takes a registry on its standard input and answers with a
//! user and a secret.
//!
//! What a helper prints may be the secret: nothing of it is shown or logged, whatever goes wrong.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::credentials::{Credentials, DOCKER_HUB_KEY};
use crate::reference::DOCKER_HUB;

/// Helpers that ask a cloud's servers take a second or two.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bound on an answer; tokens of clouds have some kilobytes.
const LONGEST_ANSWER: u64 = 256 << 10;
/// The user name that says the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// How every helper says that it has nothing.
const NOT_FOUND: &[u8] = b"credentials not found";

/// Why a helper gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// The configuration has a name that is none.
    #[error("it is no name of a helper: it takes letters, digits, dots, dashes and underscores")]
    Name,
    /// It cannot be run.
    #[error("run docker-credential-{name}, which is looked for in the daemon's PATH")]
    Run {
        /// The helper.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It does not end.
    #[error("docker-credential-{name} has not answered in {seconds}s")]
    Late {
        /// The helper.
        name: String,
        /// How long it had.
        seconds: u64,
    },
    /// It says that it failed.
    #[error("`docker-credential-{name} get` failed ({status}); run it by hand with {server} on its standard input")]
    Failed {
        /// The helper.
        name: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it was asked for.
        server: String,
    },
    /// Its answer is too long, or not what helpers answer.
    #[error("docker-credential-{name} answers with no credentials that can be read")]
    Answer {
        /// The helper.
        name: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Asks a helper for a registry's credentials.
pub(crate) async fn get(name: &str, registry: &str) -> Result<Option<Credentials>, HelperError> {
    let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || !name.chars().all(is_known) {
        return Err(HelperError::Name);
    }
    run(Command::new(format!("docker-credential-{name}")), name, registry, PATIENCE).await
}

async fn run(
    mut command: Command,
    name: &str,
    registry: &str,
    patience: Duration,
) -> Result<Option<Credentials>, HelperError> {
    let failed = |source| HelperError::Run { name: name.to_owned(), source };
    let server = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    // Dropping the child kills it.
    let asked = tokio::time::timeout(patience, ask(&mut child, server)).await;
    let late = |_| HelperError::Late { name: name.to_owned(), seconds: patience.as_secs() };
    let (output, status) = asked.map_err(late)?.map_err(failed)?;
    if !status.success() {
        if output.windows(NOT_FOUND.len()).any(|part| part == NOT_FOUND) {
            return Ok(None);
        }
        return Err(HelperError::Failed { name: name.to_owned(), status, server: server.to_owned() });
    }
    let unreadable = || HelperError::Answer { name: name.to_owned() };
    if output.len() as u64 > LONGEST_ANSWER {
        return Err(unreadable());
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| unreadable())?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(match answer.username.as_str() {
        TOKEN_USER => Credentials { identity_token: answer.secret, ..Credentials::default() },
        _ => Credentials { username: answer.username, password: answer.secret, ..Credentials::default() },
    }))
}

async fn ask(child: &mut Child, server: &str) -> io::Result<(Vec<u8>, std::process::ExitStatus)> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(server.as_bytes()).await {
            // A helper that has one answer for all need not read the question.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LONGEST_ANSWER + 1).read_to_end(&mut output).await?;
    }
    Ok((output, child.wait().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn script(script: &str) -> Result<Option<Credentials>, HelperError> {
        run(shell(script), "lab", "r.io", PATIENCE).await
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]);
        command
    }

    #[tokio::test]
    async fn answers_are_users_or_tokens() {
        let found = script(r#"printf '{"ServerURL":"x","Username":"anna","Secret":"%s"}' "$(cat)""#).await.unwrap();
        let found = found.unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("anna", "r.io"));
        let found = script(r#"echo '{"Username":"<token>","Secret":"t"}'"#).await.unwrap().unwrap();
        assert_eq!((found.username.as_str(), found.identity_token.as_str()), ("", "t"));
        assert_eq!(script("echo 'credentials not found in native keychain'; exit 1").await.unwrap(), None);
    }

    #[tokio::test]
    async fn failures_name_the_helper_and_show_nothing_it_said() {
        for (body, word) in [
            ("echo s3cret; exit 3", "exit status: 3"),
            ("echo s3cret", "no credentials that can be read"),
            ("yes s3cret", "docker-credential-lab"),
        ] {
            let error = podwright_base::chain(&script(body).await.unwrap_err());
            assert!(error.contains("docker-credential-lab") && error.contains(word), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
        let error = get("no-such-helper-here", "r.io").await.unwrap_err();
        assert!(podwright_base::chain(&error).contains("docker-credential-no-such-helper-here"), "{error}");
        assert!(matches!(get("../sh", "r.io").await, Err(HelperError::Name)));
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_given_up() {
        let hangs = run(shell("exec sleep 1000"), "lab", "r.io", Duration::from_millis(20)).await;
        assert!(matches!(hangs, Err(HelperError::Late { .. })), "{hangs:?}");
    }
}
