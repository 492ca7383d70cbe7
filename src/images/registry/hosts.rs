//! Where a registry is reached: containerd's `<host>/hosts.toml` trees, read at each pull.
//!
//! For `host:port` the directories `host_port_`, `host:port` and `_default` are looked for, the first that exists
//! decides. A directory without the file only brings certificates, as Docker's `certs.d` does: authorities (`*.crt`) and
//! this node's own (`*.cert`, with its key in `*.key` or in the same file).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;
use toml::Table;

use crate::hosts_file::File;
use crate::reference::DOCKER_HUB;

/// Where Docker Hub's registry answers.
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";

/// One base URL that blobs or manifests can be had from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Ends in `/v2/`, or in what `override_path` puts in its place.
    pub base: Url,
    /// May turn a tag into a digest.
    pub resolve: bool,
    /// May serve blobs, and manifests by digest.
    pub pull: bool,
    /// May list what refers to an image.
    pub referrers: bool,
    /// How both sides prove who they are.
    pub tls: Tls,
    /// Sent with each request; they may hold secrets and are never printed.
    pub headers: HeaderMap,
    /// How long a connection may take to come about; unset: the client's own bound.
    pub dial_timeout: Option<Duration>,
    /// The registry of the reference itself, not a mirror of it.
    pub is_upstream: bool,
    /// Only tried when the endpoint before it turned out not to speak TLS.
    pub is_plain_fallback: bool,
}

/// How both sides of a connection prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Any certificate of the server's does.
    pub skip_verify: bool,
    /// PEM bundles trusted beside the system's.
    pub authorities: Vec<Vec<u8>>,
    /// Who this node is to the server.
    pub identity: Option<Identity>,
}

/// A client certificate and its private key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Both, one after the other.
    pub(crate) pem: Vec<u8>,
    /// Where they are from.
    pub(crate) path: PathBuf,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads a certificate and its key, which is in the same file when it has none of its own.
    pub(crate) fn read(certificate: &Path, key: Option<&Path>) -> Result<Self, HostsError> {
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        Ok(Self { pem, path: certificate.to_owned() })
    }
}

/// Why a host's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostsError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML. The line itself is not shown: it may hold a secret.
    #[error("{}: line {line}: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The parser's words.
        problem: String,
    },
    /// A key has a value that it cannot have.
    #[error("{}: {key}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The reference's registry makes no URL.
    #[error("the registry {0:?} makes no URL")]
    Registry(String),
}

/// Returns the endpoints of a registry, in the order in which they are tried.
///
/// # Errors
/// When a file of the tree cannot be read or does not say what it should.
pub fn endpoints(config_path: &Path, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let directory = directories(config_path, registry).into_iter().find(|directory| directory.is_dir());
    let Some(directory) = directory else { return default_endpoints(registry) };
    let path = directory.join("hosts.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(HostsError::Read { path, source }),
    };
    if text.is_empty() {
        return with_certificates(default_endpoints(registry)?, &directory);
    }
    let table = text.parse::<Table>().map_err(|error| {
        let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or_default());
        let line = before.matches('\n').count() + 1;
        HostsError::Parse { path: path.clone(), line, problem: error.message().to_owned() }
    })?;
    File { path, directory }.endpoints(&table, registry)
}

fn directories(config_path: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && !port.ends_with(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names.iter().map(|name| config_path.join(name)).collect()
}

/// A registry on this host may speak plain HTTP: it is asked in TLS first.
pub(crate) fn default_endpoints(registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let host = if registry == DOCKER_HUB { DOCKER_HUB_SERVER } else { registry };
    let base = Url::parse(&format!("https://{host}/v2/")).map_err(|_| HostsError::Registry(registry.to_owned()))?;
    let is_local = is_loopback(&base);
    let endpoint = Endpoint {
        base,
        resolve: true,
        pull: true,
        referrers: true,
        tls: Tls::default(),
        headers: HeaderMap::new(),
        dial_timeout: None,
        is_upstream: true,
        is_plain_fallback: false,
    };
    Ok(if is_local { with_plain_fallback(endpoint) } else { vec![endpoint] })
}

/// Has an HTTPS endpoint asked in plain HTTP too, once it turned out not to speak TLS.
pub(crate) fn with_plain_fallback(secure: Endpoint) -> Vec<Endpoint> {
    let mut plain = Endpoint { is_plain_fallback: true, ..secure.clone() };
    // The change between the two schemes is always possible.
    let _ = plain.base.set_scheme("http");
    vec![secure, plain]
}

/// Has an endpoint asked as each of its identities in turn.
pub(crate) fn with_identities(endpoint: Endpoint, identities: Vec<Identity>) -> Vec<Endpoint> {
    if identities.is_empty() {
        return vec![endpoint];
    }
    let as_one = |identity| {
        let mut endpoint = endpoint.clone();
        endpoint.tls.identity = Some(identity);
        endpoint
    };
    identities.into_iter().map(as_one).collect()
}

/// Tells whether a URL's host is this one.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Adds the certificates of a directory in Docker's style.
fn with_certificates(endpoints: Vec<Endpoint>, directory: &Path) -> Result<Vec<Endpoint>, HostsError> {
    let unreadable = |source| HostsError::Read { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    let (mut authorities, mut identities) = (Vec::new(), Vec::new());
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => authorities.push(read(path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                identities.push(Identity::read(path, key.exists().then_some(&key))?);
            }
            _ => {}
        }
    }
    let certified = endpoints.into_iter().flat_map(|mut endpoint| {
        endpoint.tls.authorities.clone_from(&authorities);
        // A fallback follows its own TLS endpoint, and has no use for certificates.
        let identities = if endpoint.is_plain_fallback { Vec::new() } else { identities.clone() };
        with_identities(endpoint, identities)
    });
    Ok(certified.collect())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, HostsError> {
    fs::read(path).map_err(|source| HostsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, host: &str, text: &str) {
        fs::create_dir_all(dir.join(host)).unwrap();
        fs::write(dir.join(host).join("hosts.toml"), text).unwrap();
    }

    fn bases(dir: &Path, registry: &str) -> Vec<String> {
        endpoints(dir, registry).unwrap().iter().map(|endpoint| endpoint.base.to_string()).collect()
    }

    #[test]
    fn without_a_tree_the_registry_itself_is_asked() {
        let none = Path::new("/nonexistent");
        assert_eq!(bases(none, "docker.io"), ["https://registry-1.docker.io/v2/"]);
        assert_eq!(bases(none, "r.io:5000"), ["https://r.io:5000/v2/"]);
        assert_eq!(bases(none, "127.0.0.1:5000"), ["https://127.0.0.1:5000/v2/", "http://127.0.0.1:5000/v2/"]);
        assert_eq!(bases(none, "[::1]:5000"), ["https://[::1]:5000/v2/", "http://[::1]:5000/v2/"]);
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"
            server = "http://up.example:81"
            [host."https://z.example/sub"]
            capabilities = ["pull"]
            [host."a.example:444"]
            skip_verify = true
            ca = "ca.pem"
            [host."https://m.example/v2/proxy"]
            override_path = true
        "#;
        write(dir.path(), "docker.io", text);
        fs::write(dir.path().join("docker.io/ca.pem"), "PEM").unwrap();
        let found = endpoints(dir.path(), "docker.io").unwrap();
        let bases: Vec<&str> = found.iter().map(|endpoint| endpoint.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://z.example/sub/v2/",
                "https://a.example:444/v2/",
                "https://m.example/v2/proxy/",
                "http://up.example:81/v2/"
            ]
        );
        assert_eq!((found[0].resolve, found[0].pull), (false, true));
        assert_eq!(found[1].tls, Tls { skip_verify: true, authorities: vec![b"PEM".to_vec()], identity: None });
        assert_eq!(found.iter().filter(|endpoint| endpoint.is_upstream).count(), 1);
    }

    #[test]
    fn directories_are_found_as_containerd_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "_default", "[host.\"https://all.example\"]");
        assert_eq!(bases(dir.path(), "r.io"), ["https://all.example/v2/", "https://r.io/v2/"]);
        write(dir.path(), "r.io:5000", "server = \"https://colon\"");
        assert_eq!(bases(dir.path(), "r.io:5000"), ["https://colon/v2/"]);
        write(dir.path(), "r.io_5000_", "server = \"https://underscore\"");
        assert_eq!(bases(dir.path(), "r.io:5000"), ["https://underscore/v2/"]);
    }

    #[test]
    fn a_directory_of_certificates_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("r.io")).unwrap();
        for (name, text) in
            [("own.crt", "PEM"), ("a.cert", "A"), ("a.key", "K"), ("b.cert", "BOTH"), ("hosts.toml", "")]
        {
            fs::write(dir.path().join("r.io").join(name), text).unwrap();
        }
        let found = endpoints(dir.path(), "r.io").unwrap();
        assert!(found.iter().all(|endpoint| endpoint.tls.authorities == [b"PEM".to_vec()]));
        let pem = |endpoint: &Endpoint| endpoint.tls.identity.as_ref().unwrap().pem.clone();
        assert_eq!(found.iter().map(pem).collect::<Vec<_>>(), [b"A\nK".to_vec(), b"BOTH".to_vec()]);
        assert!(!format!("{found:?}").contains("BOTH"));
    }

    #[test]
    fn bad_values_name_file_and_key() {
        let dir = tempfile::tempdir().unwrap();
        for (text, word) in [
            ("server = 1", "server"),
            ("server = \"ftp://x\"", "server"),
            ("[host.\"https://x\"]\nskip_verify = \"yes\"", "skip_verify"),
            ("[host.\"https://x\"]\nca = 3", "ca"),
            ("ca = \"missing.pem\"", "missing.pem"),
            ("[host.\"https://x\"]\ncapabilities = \"pull\"", "capabilities"),
            ("host = [", "hosts.toml: line 1"),
        ] {
            write(dir.path(), "r.io", text);
            let error = endpoints(dir.path(), "r.io").unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
