//! A second real registry: Debian's docker-registry as a mirror of the one of `hack/registry`, with the locks on its door
//! that a test wants.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use super::authority::Pair;

/// The user whom [`Lock::Password`] lets in.
pub(crate) const USER: (&str, &str) = ("anna", "s3cret");
/// The user, as htpasswd has it.
const HTPASSWD: &str = "anna:$2y$04$d1v7bqWMBsm80Q4/JkXzLexHhKN0ilo1YHuQBvF9GSAp.fZNaHm96\n";

/// Who may ask.
#[derive(Debug)]
pub(crate) enum Lock {
    None,
    /// [`USER`] alone.
    Password,
    /// Whoever has a token of this server, signed by the key of this certificate.
    Token {
        server: String,
        certificate: PathBuf,
    },
}

/// A registry's process, gone when dropped.
pub(crate) struct Distribution {
    address: SocketAddr,
    scheme: &'static str,
    _process: Child,
    _log: AbortOnDropHandle<()>,
}

impl Distribution {
    /// Starts one with its files in a new directory; with a certificate it speaks TLS alone, and with a file of
    /// authorities it wants clients that these know.
    pub(crate) async fn start(dir: &Path, lock: &Lock, tls: Option<&Pair>, clients: Option<&Path>) -> Self {
        fs::create_dir(dir).expect("the registry's directory is new");
        let config = dir.join("config.yml");
        fs::write(&config, configuration(dir, lock, tls, clients)).expect("its configuration is written");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("hack/test installs docker-registry");
        let mut lines = BufReader::new(process.stderr.take().expect("a pipe")).lines();
        let mut told = String::new();
        let address = loop {
            let Some(line) = lines.next_line().await.expect("the registry's log") else {
                panic!("docker-registry ended at its start:\n{told}");
            };
            if let Some((_, rest)) = line.split_once("listening on ") {
                let address = rest.split(['"', ',', ' ']).next().unwrap_or_default();
                break address.parse().expect("an address");
            }
            told += &(line + "\n");
        };
        // Its log is read to the end, so that it never waits for that.
        let rest = async move { drop(lines.into_inner().read_to_end(&mut Vec::new()).await) };
        let scheme = if tls.is_some() { "https" } else { "http" };
        Self { address, scheme, _process: process, _log: AbortOnDropHandle::new(tokio::spawn(rest)) }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }
}

fn configuration(dir: &Path, lock: &Lock, tls: Option<&Pair>, clients: Option<&Path>) -> String {
    let original = std::env::var("PODWRIGHT_TEST_REGISTRY").expect("hack/test sets it");
    let mut text = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}/storage}}}}\nproxy: {{remoteurl: \"http://{original}\"}}\n\
         http:\n  addr: \"127.0.0.1:0\"\n",
        dir.display()
    );
    if let Some(Pair { certificate, key }) = tls {
        let _ = writeln!(text, "  tls:\n    certificate: {}\n    key: {}", certificate.display(), key.display());
    }
    if let Some(clients) = clients {
        let _ = writeln!(text, "    clientcas: [{}]", clients.display());
    }
    match lock {
        Lock::None => {}
        Lock::Password => {
            let users = dir.join("htpasswd");
            fs::write(&users, HTPASSWD).expect("the users are written");
            let _ = writeln!(text, "auth: {{htpasswd: {{realm: lab, path: {}}}}}", users.display());
        }
        Lock::Token { server, certificate } => {
            let (service, certificate) = (super::tokens::SERVICE, certificate.display());
            let _ = writeln!(
                text,
                "auth: {{token: {{realm: \"{server}\", service: {service}, issuer: {service}, rootcertbundle: {certificate}}}}}"
            );
        }
    }
    text
}
