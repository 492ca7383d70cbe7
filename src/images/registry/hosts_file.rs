//! A `hosts.toml` file, as containerd 2 reads it: its `[host."URL"]` tables are mirrors, tried in the file's order; what is
//! outside of them is about `server`, else about the registry itself, which comes last.
//!
//! It differs where containerd guesses: a file that is wrong is an error that names file and key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use toml::{Table, Value};

use crate::hosts::{self, Endpoint, HostsError, Identity, Tls};

/// What a table may say about its server.
const KEYS: [&str; 7] = ["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"];

pub(crate) struct File {
    pub(crate) path: PathBuf,
    /// What paths in it are relative to.
    pub(crate) directory: PathBuf,
}

/// One server and what is said about it.
struct Section<'a> {
    file: &'a File,
    /// Its key, for errors.
    key: String,
    settings: &'a Table,
}

struct Capabilities {
    pull: bool,
    resolve: bool,
    referrers: bool,
}

impl File {
    pub(crate) fn endpoints(&self, table: &Table, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
        let mut endpoints = Vec::new();
        if let Some(hosts) = table.get("host") {
            let hosts = hosts.as_table().ok_or_else(|| self.bad("host", "it takes tables"))?;
            for (url, settings) in hosts {
                let key = format!("host.{url:?}");
                let settings = settings.as_table().ok_or_else(|| self.bad(&key, "it takes a table"))?;
                let section = Section { file: self, key, settings };
                section.warn_of_unknown(&[]);
                endpoints.extend(section.endpoints(url)?);
            }
        }
        let section = Section { file: self, key: "server".to_owned(), settings: table };
        section.warn_of_unknown(&["server", "host"]);
        match table.get("server") {
            None => endpoints.extend(section.registry_itself(registry)?),
            Some(Value::String(server)) => {
                let upstream = section.endpoints(server)?.into_iter();
                endpoints.extend(upstream.map(|endpoint| Endpoint { is_upstream: true, ..endpoint }));
            }
            Some(_) => return Err(self.bad("server", "it takes a URL")),
        }
        Ok(endpoints)
    }

    fn bad(&self, key: &str, problem: impl Into<String>) -> HostsError {
        HostsError::Value { path: self.path.clone(), key: key.to_owned(), problem: problem.into() }
    }
}

impl Section<'_> {
    fn endpoints(&self, url: &str) -> Result<Vec<Endpoint>, HostsError> {
        let written = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let bad = |problem: &str| self.file.bad(&self.key, problem);
        let mut base = Url::parse(&written).map_err(|_| bad("it is no URL"))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(bad("it takes an http or https URL"));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let overrides = self.flag("override_path")?.unwrap_or(false);
        let path = if overrides || path.ends_with("/v2") { format!("{path}/") } else { format!("{path}/v2/") };
        base.set_path(&path);
        let Capabilities { pull, resolve, referrers } = self.capabilities()?;
        let (tls, identities, is_explicit) = self.tls()?;
        let endpoint = Endpoint {
            base,
            resolve,
            pull,
            referrers,
            tls,
            headers: self.headers()?,
            dial_timeout: self.dial_timeout()?,
            is_upstream: false,
            is_plain_fallback: false,
        };
        Ok(with_either_scheme(endpoint, identities, is_explicit))
    }

    /// The registry of the reference, which can do everything, whatever the file's capabilities say of a `server`.
    fn registry_itself(&self, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
        let (tls, identities, _) = self.tls()?;
        let (headers, dial_timeout) = (self.headers()?, self.dial_timeout()?);
        let endpoints = hosts::default_endpoints(registry)?.into_iter().flat_map(|endpoint| {
            let identities = if endpoint.is_plain_fallback { Vec::new() } else { identities.clone() };
            let endpoint = Endpoint { tls: tls.clone(), headers: headers.clone(), dial_timeout, ..endpoint };
            hosts::with_identities(endpoint, identities)
        });
        Ok(endpoints.collect())
    }

    fn capabilities(&self) -> Result<Capabilities, HostsError> {
        let words = self.words("capabilities", "a list of words")?.unwrap_or_default();
        if words.is_empty() {
            return Ok(Capabilities { pull: true, resolve: true, referrers: true });
        }
        let mut found = Capabilities { pull: false, resolve: false, referrers: false };
        for word in words {
            match word.to_ascii_lowercase().as_str() {
                "pull" => found.pull = true,
                "resolve" => found.resolve = true,
                "referrers" => found.referrers = true,
                // Podwright does not push.
                "push" => {}
                _ => {
                    let problem = format!("{word:?} is not one of pull, resolve, push, referrers");
                    return Err(self.bad("capabilities", problem));
                }
            }
        }
        Ok(found)
    }

    /// Also tells whether the section says anything about TLS.
    fn tls(&self) -> Result<(Tls, Vec<Identity>, bool), HostsError> {
        let skip_verify = self.flag("skip_verify")?;
        let authorities = match self.settings.get("ca") {
            None => Vec::new(),
            Some(Value::String(path)) => vec![hosts::read(&self.path(path))?],
            Some(_) => {
                let paths = self.words("ca", "a path or a list of paths")?.unwrap_or_default();
                paths.iter().map(|path| hosts::read(&self.path(path))).collect::<Result<_, _>>()?
            }
        };
        let identities = self.identities()?;
        let is_explicit = skip_verify.is_some() || !authorities.is_empty() || !identities.is_empty();
        let tls = Tls { skip_verify: skip_verify.unwrap_or(false), authorities, identity: None };
        Ok((tls, identities, is_explicit))
    }

    /// A file with both, a list of such files, or a list of certificate and key.
    fn identities(&self) -> Result<Vec<Identity>, HostsError> {
        let bad = || self.bad("client", "it takes a path, a list of paths, or a list of [certificate, key]");
        let one = |path: &str| Identity::read(&self.path(path), None);
        let each = match self.settings.get("client") {
            None => return Ok(Vec::new()),
            Some(Value::String(path)) => return Ok(vec![one(path)?]),
            Some(Value::Array(each)) => each,
            Some(_) => return Err(bad()),
        };
        let identity = |value: &Value| match value {
            Value::String(path) => one(path),
            Value::Array(pair) => match pair.iter().map(Value::as_str).collect::<Option<Vec<_>>>().as_deref() {
                Some([both, ""]) => one(both),
                Some([certificate, key]) => Identity::read(&self.path(certificate), Some(&self.path(key))),
                _ => Err(bad()),
            },
            _ => Err(bad()),
        };
        each.iter().map(identity).collect()
    }

    fn headers(&self) -> Result<HeaderMap, HostsError> {
        let mut headers = HeaderMap::new();
        let Some(table) = self.settings.get("header") else { return Ok(headers) };
        let table = table.as_table().ok_or_else(|| self.bad("header", "it takes a table"))?;
        for (name, values) in table {
            // Values are not shown: they may be secrets.
            let bad = |problem: &str| self.bad(&format!("header.{name:?}"), problem);
            let header = HeaderName::try_from(name.as_str()).map_err(|_| bad("it is no header's name"))?;
            let values = values.as_array().map_or(std::slice::from_ref(values), Vec::as_slice);
            for value in values {
                let value = value.as_str().ok_or_else(|| bad("it takes a string or a list of strings"))?;
                let mut value = HeaderValue::from_str(value).map_err(|_| bad("it has a character no header has"))?;
                value.set_sensitive(true);
                headers.append(header.clone(), value);
            }
        }
        Ok(headers)
    }

    fn dial_timeout(&self) -> Result<Option<Duration>, HostsError> {
        match self.settings.get("dial_timeout") {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(value) => match value.as_str().and_then(duration) {
                // Go's clients take zero for no bound at all: the client's own is kept.
                Some(bound) => Ok(Some(bound).filter(|bound| !bound.is_zero())),
                None => Err(self.bad("dial_timeout", "it takes a duration such as \"3s\" or \"1m30s\"")),
            },
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, HostsError> {
        match self.settings.get(name) {
            None => Ok(None),
            Some(Value::Boolean(value)) => Ok(Some(*value)),
            Some(_) => Err(self.bad(name, "it takes true or false")),
        }
    }

    fn words(&self, name: &str, takes: &str) -> Result<Option<Vec<&str>>, HostsError> {
        let Some(value) = self.settings.get(name) else { return Ok(None) };
        let words = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        words.map(Some).ok_or_else(|| self.bad(name, format!("it takes {takes}")))
    }

    /// Another program may know the key: the file is used all the same.
    fn warn_of_unknown(&self, further: &[&str]) {
        static WARNED: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());
        for name in self.settings.keys().filter(|name| !KEYS.contains(&name.as_str())) {
            let place = (self.file.path.clone(), self.place(name));
            if !further.contains(&name.as_str())
                && WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(place.clone())
            {
                tracing::warn!(path = %place.0.display(), key = place.1, "an unknown key of hosts.toml has no effect");
            }
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.file.directory.join(Path::new(path))
    }

    /// The whole key of a setting.
    fn place(&self, name: &str) -> String {
        if self.key == "server" { name.to_owned() } else { format!("{}.{name}", self.key) }
    }

    fn bad(&self, name: &str, problem: impl Into<String>) -> HostsError {
        self.file.bad(&self.place(name), problem)
    }
}

/// A plain URL with something said about TLS is asked in TLS first: containerd's users rely on it for registries that
/// moved.
fn with_either_scheme(endpoint: Endpoint, identities: Vec<Identity>, is_explicit: bool) -> Vec<Endpoint> {
    let is_ambiguous = endpoint.base.scheme() == "http" && endpoint.base.port().is_some() && is_explicit;
    if !is_ambiguous {
        return hosts::with_identities(endpoint, identities);
    }
    let mut secure = endpoint;
    // The change between the two schemes is always possible.
    let _ = secure.base.set_scheme("https");
    let mut endpoints = hosts::with_identities(secure, identities);
    if let Some(last) = endpoints.pop() {
        endpoints.extend(hosts::with_plain_fallback(last));
    }
    endpoints
}

/// Reads a duration as Go writes it: numbers with units.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str, files: &[(&str, &str)]) -> Result<Vec<Endpoint>, HostsError> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("r.io")).unwrap();
        fs::write(dir.path().join("r.io/hosts.toml"), text).unwrap();
        for (name, content) in files {
            fs::write(dir.path().join("r.io").join(name), content).unwrap();
        }
        hosts::endpoints(dir.path(), "r.io")
    }

    fn identities(client: &str) -> Vec<String> {
        let files = [("a.pem", "A"), ("b.pem", "B"), ("b.key", "K")];
        let endpoints = read(&format!("server = \"https://r.io\"\nclient = {client}"), &files).unwrap();
        let pem = |endpoint: &Endpoint| endpoint.tls.identity.as_ref().map(|identity| identity.pem.clone());
        let text = |pem: Option<Vec<u8>>| String::from_utf8(pem.unwrap_or_default()).unwrap();
        endpoints.iter().map(|endpoint| text(pem(endpoint))).collect()
    }

    #[test]
    fn client_certificates_come_in_three_forms() {
        assert_eq!(identities("\"a.pem\""), ["A"]);
        assert_eq!(identities("[\"a.pem\", \"b.pem\"]"), ["A", "B"]);
        assert_eq!(identities("[[\"b.pem\", \"b.key\"], [\"a.pem\", \"\"]]"), ["B\nK", "A"]);
        assert_eq!(identities("[]"), [""]);
    }

    #[test]
    fn headers_are_sent_and_not_printed() {
        let text = "server = \"https://r.io\"\n[header]\nx-one = \"s3cret\"\nx-two = [\"s3cret\", \"b\"]";
        let endpoints = read(text, &[]).unwrap();
        assert_eq!(endpoints[0].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(endpoints[0].headers["x-one"], "s3cret");
        assert!(!format!("{endpoints:?}").contains("s3cret"));
    }

    #[test]
    fn what_the_file_says_without_a_server_is_about_the_registry() {
        let text = "ca = \"a.pem\"\ncapabilities = [\"push\"]\ndial_timeout = \"1m0.5s\"\n[header]\nx = \"y\"";
        let endpoints = read(text, &[("a.pem", "A")]).unwrap();
        let [endpoint] = endpoints.as_slice() else { panic!("{endpoints:?}") };
        assert_eq!(endpoint.base.as_str(), "https://r.io/v2/");
        assert!(endpoint.pull && endpoint.resolve && endpoint.is_upstream && endpoint.headers.contains_key("x"));
        assert_eq!(endpoint.dial_timeout, Some(Duration::from_millis(60_500)));
        assert_eq!(endpoint.tls.authorities, [b"A".to_vec()]);
    }

    #[test]
    fn capabilities_are_words_in_either_case() {
        let found = |words: &str| {
            let endpoint = &read(&format!("server = \"r.io\"\ncapabilities = {words}"), &[]).unwrap()[0];
            (endpoint.pull, endpoint.resolve, endpoint.referrers)
        };
        assert_eq!(found("[]"), (true, true, true));
        assert_eq!(found("[\"Pull\", \"push\"]"), (true, false, false));
        assert_eq!(found("[\"referrers\", \"resolve\"]"), (false, true, true));
    }

    #[test]
    fn a_plain_url_with_certificates_is_asked_in_tls_first() {
        let bases = |text: &str| {
            let endpoints = read(text, &[]).unwrap();
            endpoints.iter().map(|endpoint| endpoint.base.to_string()).collect::<Vec<_>>()
        };
        let text = "server = \"http://r.io:5000\"\nskip_verify = true";
        assert_eq!(bases(text), ["https://r.io:5000/v2/", "http://r.io:5000/v2/"]);
        assert_eq!(bases("server = \"http://r.io\"\nskip_verify = true"), ["http://r.io/v2/"]);
        assert_eq!(bases("server = \"http://r.io:5000\""), ["http://r.io:5000/v2/"]);
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [("3s", 3000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("250ms", 250), ("0", 0)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "3", "s", "-1s", "1d", "1s2", "1..2s", "ten"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn bad_values_name_the_key_and_keep_secrets() {
        for (text, word) in [
            ("client = 3", "client"),
            ("client = [[\"a.pem\"]]", "client"),
            ("client = \"missing.pem\"", "missing.pem"),
            ("dial_timeout = \"3\"", "dial_timeout"),
            ("dial_timeout = 3", "dial_timeout"),
            ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "host.\"https://x\".capabilities"),
            ("[header]\nx = 5", "header.\"x\""),
            ("[header]\n\"x y\" = \"v\"", "header.\"x y\""),
            ("[header]\nx = \"s3cret\\n\"", "header.\"x\""),
            ("[header]\nx = s3cret", "line 2"),
        ] {
            let error = read(text, &[]).unwrap_err().to_string();
            assert!(error.contains(word) && !error.contains("s3cret"), "{text}: {error}");
        }
    }
}
