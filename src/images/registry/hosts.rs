//! Where a registry is reached: containerd's `<host>/hosts.toml` trees, read at each pull.
//!
//! For `host:port` the directories `host_port_`, `host:port` and `_default` are looked for, the first that exists
//! decides. Its `[host."URL"]` tables are mirrors, tried in the file's order; `server` (else the registry itself) comes
//! last. A directory without the file only brings CA certificates (`*.crt`), as Docker's `certs.d` does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::Url;
use toml::{Table, Value};

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
    /// How it proves who it is.
    pub tls: Tls,
    /// The registry of the reference itself, not a mirror of it.
    pub is_upstream: bool,
    /// Only tried when the endpoint before it turned out not to speak TLS.
    pub is_plain_fallback: bool,
}

/// How a server proves who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Any certificate does.
    pub skip_verify: bool,
    /// PEM bundles trusted beside the system's.
    pub authorities: Vec<Vec<u8>>,
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
    /// The file is no TOML.
    #[error("parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where.
        source: Box<toml::de::Error>,
    },
    /// A key has a value that it cannot have.
    #[error("{}: {key}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut endpoints = default_endpoints(registry)?;
            let authorities = certificates(&directory)?;
            for endpoint in &mut endpoints {
                endpoint.tls.authorities.clone_from(&authorities);
            }
            return Ok(endpoints);
        }
        Err(source) => return Err(HostsError::Read { path, source }),
    };
    let table =
        text.parse::<Table>().map_err(|source| HostsError::Parse { path: path.clone(), source: Box::new(source) })?;
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
fn default_endpoints(registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let endpoint = |scheme: &str| {
        let base = upstream(scheme, registry)?;
        Ok(Endpoint {
            base,
            resolve: true,
            pull: true,
            tls: Tls::default(),
            is_upstream: true,
            is_plain_fallback: false,
        })
    };
    let secure = endpoint("https")?;
    if !is_loopback(&secure.base) {
        return Ok(vec![secure]);
    }
    let plain = Endpoint { is_plain_fallback: true, ..endpoint("http")? };
    Ok(vec![secure, plain])
}

fn upstream(scheme: &str, registry: &str) -> Result<Url, HostsError> {
    let host = if registry == DOCKER_HUB { DOCKER_HUB_SERVER } else { registry };
    Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|_| HostsError::Registry(registry.to_owned()))
}

/// Tells whether a URL's host is this one.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn certificates(directory: &Path) -> Result<Vec<Vec<u8>>, HostsError> {
    let unreadable = |source| HostsError::Read { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| fs::read(path).map_err(|source| HostsError::Read { path: path.clone(), source })).collect()
}

struct File {
    path: PathBuf,
    directory: PathBuf,
}

impl File {
    fn endpoints(&self, table: &Table, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
        let mut endpoints = Vec::new();
        if let Some(hosts) = table.get("host") {
            let hosts = hosts.as_table().ok_or_else(|| self.bad("host", "it takes tables"))?;
            for (url, settings) in hosts {
                let key = format!("host.{url:?}");
                let settings = settings.as_table().ok_or_else(|| self.bad(&key, "it takes a table"))?;
                endpoints.push(self.endpoint(&key, url, settings, false)?);
            }
        }
        let server = match table.get("server") {
            None => upstream("https", registry)?.to_string(),
            Some(Value::String(server)) => server.clone(),
            Some(_) => return Err(self.bad("server", "it takes a URL")),
        };
        endpoints.push(self.endpoint("server", &server, table, true)?);
        Ok(endpoints)
    }

    fn endpoint(&self, key: &str, url: &str, settings: &Table, is_upstream: bool) -> Result<Endpoint, HostsError> {
        let written = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let mut base = Url::parse(&written).map_err(|_| self.bad(key, "it is no URL"))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(self.bad(key, "it takes an http or https URL"));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let overrides = self.flag(key, settings, "override_path")?;
        let path = if overrides || path.ends_with("/v2") { format!("{path}/") } else { format!("{path}/v2/") };
        base.set_path(&path);
        let (resolve, pull) = self.capabilities(key, settings)?;
        for later in ["client", "header"] {
            if settings.contains_key(later) {
                let path = self.path.display();
                tracing::warn!(%path, key = later, "this key of hosts.toml is not supported yet and has no effect");
            }
        }
        let skip_verify = self.flag(key, settings, "skip_verify")?;
        let tls = Tls { skip_verify, authorities: self.authorities(key, settings)? };
        Ok(Endpoint { base, resolve, pull, tls, is_upstream, is_plain_fallback: false })
    }

    fn capabilities(&self, key: &str, settings: &Table) -> Result<(bool, bool), HostsError> {
        match settings.get("capabilities") {
            None => Ok((true, true)),
            Some(Value::Array(list)) => {
                let has = |word: &str| list.iter().any(|value| value.as_str() == Some(word));
                Ok((has("resolve"), has("pull")))
            }
            Some(_) => Err(self.bad(&format!("{key}.capabilities"), "it takes a list of words")),
        }
    }

    fn flag(&self, key: &str, settings: &Table, name: &str) -> Result<bool, HostsError> {
        match settings.get(name) {
            None => Ok(false),
            Some(Value::Boolean(value)) => Ok(*value),
            Some(_) => Err(self.bad(&format!("{key}.{name}"), "it takes true or false")),
        }
    }

    fn authorities(&self, key: &str, settings: &Table) -> Result<Vec<Vec<u8>>, HostsError> {
        let bad = || self.bad(&format!("{key}.ca"), "it takes a path or a list of paths");
        let paths = match settings.get("ca") {
            None => Vec::new(),
            Some(Value::String(path)) => vec![path.as_str()],
            Some(Value::Array(list)) => {
                list.iter().map(|value| value.as_str().ok_or_else(bad)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(bad()),
        };
        paths
            .into_iter()
            .map(|path| {
                let path = self.directory.join(path);
                fs::read(&path).map_err(|source| HostsError::Read { path, source })
            })
            .collect()
    }

    fn bad(&self, key: &str, problem: &'static str) -> HostsError {
        HostsError::Value { path: self.path.clone(), key: key.to_owned(), problem }
    }
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
        assert_eq!(found[1].tls, Tls { skip_verify: true, authorities: vec![b"PEM".to_vec()] });
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
        fs::write(dir.path().join("r.io/own.crt"), "PEM").unwrap();
        assert_eq!(endpoints(dir.path(), "r.io").unwrap()[0].tls.authorities, [b"PEM".to_vec()]);
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
            ("host = [", "hosts.toml"),
        ] {
            write(dir.path(), "r.io", text);
            let error = endpoints(dir.path(), "r.io").unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
