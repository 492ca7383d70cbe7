//! Reads containers-policy.json(5), strictly: what is misspelt, there twice, or a check that is not made here keeps
//! the whole policy from loading.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::identity::{ImageName, SignedIdentity};
use crate::json::Node;
use crate::key::{KeyError, PublicKey};
use crate::policy::{Policy, Requirement, Signed};

/// Bounds on files: real ones are a few kilobytes.
const LONGEST_POLICY: u64 = 4 << 20;
const LONGEST_KEY: u64 = 64 << 10;
/// Transports of the file's other readers; what they say is left to those.
const OTHER_TRANSPORTS: [&str; 10] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
];
const KEY_FIELDS: [&str; 4] = ["keyPath", "keyPaths", "keyData", "keyDatas"];
const REKOR_FIELDS: [&str; 4] =
    ["rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas"];

/// Why there is no policy. `at` is the place in the JSON.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("read the signature policy {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no JSON, or has a key twice.
    #[error("the signature policy {} does not parse", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where, and what.
        source: serde_json::Error,
    },
    /// A value that it cannot have.
    #[error("the signature policy {}: {at}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Where.
        at: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// A key file cannot be read.
    #[error("the signature policy {}: {at}: read {}", path.display(), key.display())]
    ReadKey {
        /// The file.
        path: PathBuf,
        /// Where.
        at: String,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key cannot be used.
    #[error("the signature policy {}: {at}: {key}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Where.
        at: String,
        /// Where the key comes from.
        key: String,
        /// Why.
        source: KeyError,
    },
}

type Object<'a> = [(String, Node)];

impl Policy {
    /// Reads a policy and the keys that it names.
    ///
    /// # Errors
    /// Names the file, the place in it, and what to write instead.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let bytes = read(path, LONGEST_POLICY).map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, PolicyError> {
        let reader = Reader { path };
        let root: Node =
            serde_json::from_slice(bytes).map_err(|source| PolicyError::Json { path: path.to_owned(), source })?;
        let root = reader.object("the top level", &root)?;
        reader.known("the top level", root, &["default", "transports"])?;
        let default = field(root, "default")
            .ok_or_else(|| reader.bad("default", "it is missing: say [{\"type\": \"reject\"}] or what else holds"))?;
        let default = reader.requirements("default", default)?;
        let mut scopes = BTreeMap::new();
        if let Some(transports) = field(root, "transports") {
            for (transport, found) in reader.object("transports", transports)? {
                match transport.as_str() {
                    "docker" => scopes = reader.scopes(found)?,
                    other if OTHER_TRANSPORTS.contains(&other) => {}
                    other => {
                        let known = OTHER_TRANSPORTS.join(", ");
                        let problem =
                            format!("there is no such transport: images are pulled by docker; the others are {known}");
                        return Err(reader.bad(&format!("transports.{other:?}"), problem));
                    }
                }
            }
        }
        Ok(Self { path: path.to_owned(), default, scopes })
    }
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn scopes(&self, found: &Node) -> Result<BTreeMap<String, Vec<Requirement>>, PolicyError> {
        let mut scopes = BTreeMap::new();
        for (scope, requirements) in self.object("transports.docker", found)? {
            let at = format!("transports.docker.{scope:?}");
            let requirements = self.requirements(&at, requirements)?;
            if scopes.insert(self.scope(&at, scope)?, requirements).is_some() {
                return Err(self.bad(&at, "the scope is there twice: hosts are the same in upper and lower case"));
            }
        }
        Ok(scopes)
    }

    /// Checks a scope for what no image could ever match, and brings its host into lower case.
    fn scope(&self, at: &str, scope: &str) -> Result<String, PolicyError> {
        if let Some((before, domain)) = scope.split_once('*')
            && (!before.is_empty() || !domain.starts_with('.') || domain.contains(['*', '/', ':']))
        {
            return Err(self.bad(at, "a wildcard is *. and a domain, without port and path"));
        }
        if scope.contains("://") || scope.ends_with('/') || scope.contains(char::is_whitespace) {
            return Err(
                self.bad(at, "a scope is a host, a path below it or an image's full name, without scheme and final /")
            );
        }
        let (host, rest) = scope.split_at(scope.find('/').unwrap_or(scope.len()));
        Ok(format!("{}{rest}", host.to_ascii_lowercase()))
    }

    fn requirements(&self, at: &str, found: &Node) -> Result<Vec<Requirement>, PolicyError> {
        let list = self.list(at, found)?;
        if list.is_empty() {
            return Err(self.bad(at, "it has no requirement: say [{\"type\": \"insecureAcceptAnything\"}] for none"));
        }
        list.iter().enumerate().map(|(index, found)| self.requirement(&format!("{at}[{index}]"), found)).collect()
    }

    fn requirement(&self, at: &str, found: &Node) -> Result<Requirement, PolicyError> {
        let object = self.object(at, found)?;
        let kind = format!("{at}.type");
        match self.required(at, object, "type")? {
            "insecureAcceptAnything" => self.known(at, object, &["type"]).map(|()| Requirement::Accept),
            "reject" => self.known(at, object, &["type"]).map(|()| Requirement::Reject),
            "sigstoreSigned" => self.sigstore_signed(at, object).map(Requirement::Signed),
            "signedBy" | "signedBaseLayer" => Err(self.bad(
                &kind,
                "GPG signatures are not verified: use sigstoreSigned with a key (`cosign sign --key`, `skopeo copy \
                 --sign-by-sigstore-private-key`)",
            )),
            other => {
                let problem = format!("{other:?} is none of insecureAcceptAnything, reject and sigstoreSigned");
                Err(self.bad(&kind, problem))
            }
        }
    }

    fn sigstore_signed(&self, at: &str, object: &Object<'_>) -> Result<Signed, PolicyError> {
        for (key, _) in object {
            let remedy = match key.as_str() {
                "fulcio" => "certificates of Fulcio are not verified: sign with a key, and name it in keyPath",
                "pki" => "signatures by certificates are not verified: sign with a key, and name it in keyPath",
                rekor if REKOR_FIELDS.contains(&rekor) => {
                    "the transparency log is not consulted: leave it out, and let the key in keyPath decide"
                }
                _ => continue,
            };
            return Err(self.bad(&format!("{at}.{key}"), remedy));
        }
        self.known(at, object, &["type", "keyPath", "keyPaths", "keyData", "keyDatas", "signedIdentity"])?;
        let sources: Vec<_> = object.iter().filter(|(key, _)| KEY_FIELDS.contains(&key.as_str())).collect();
        let [(source, found)] = sources.as_slice() else {
            return Err(self.bad(at, format!("it takes exactly one of {}", KEY_FIELDS.join(", "))));
        };
        let place = format!("{at}.{source}");
        let keys = match source.as_str() {
            "keyPath" => vec![self.key_file(&place, found)?],
            "keyData" => vec![self.key_data(&place, found)?],
            many => {
                let list = self.list(&place, found)?;
                if list.is_empty() {
                    return Err(self.bad(&place, "it has no key"));
                }
                let key = |(index, found)| match many {
                    "keyPaths" => self.key_file(&format!("{place}[{index}]"), found),
                    _ => self.key_data(&format!("{place}[{index}]"), found),
                };
                list.iter().enumerate().map(key).collect::<Result<_, _>>()?
            }
        };
        let identity = match field(object, "signedIdentity") {
            None => SignedIdentity::MatchRepoDigestOrExact,
            Some(found) => self.identity(&format!("{at}.signedIdentity"), found)?,
        };
        Ok(Signed { keys, identity })
    }

    fn key_file(&self, at: &str, found: &Node) -> Result<PublicKey, PolicyError> {
        let key = Path::new(self.text(at, found)?);
        if !key.is_absolute() {
            return Err(self.bad(at, format!("{} is no absolute path", key.display())));
        }
        let bytes = read(key, LONGEST_KEY).map_err(|source| PolicyError::ReadKey {
            path: self.path.to_owned(),
            at: at.to_owned(),
            key: key.to_owned(),
            source,
        })?;
        self.key(at, key.display().to_string(), &bytes)
    }

    fn key_data(&self, at: &str, found: &Node) -> Result<PublicKey, PolicyError> {
        let bytes = STANDARD.decode(self.text(at, found)?);
        let bytes = bytes.map_err(|_| self.bad(at, "it takes a PEM file in base64: `base64 -w0 key.pub`"))?;
        self.key(at, at.to_owned(), &bytes)
    }

    fn key(&self, at: &str, origin: String, bytes: &[u8]) -> Result<PublicKey, PolicyError> {
        PublicKey::parse(bytes, origin.clone()).map_err(|source| PolicyError::Key {
            path: self.path.to_owned(),
            at: at.to_owned(),
            key: origin,
            source,
        })
    }

    fn identity(&self, at: &str, found: &Node) -> Result<SignedIdentity, PolicyError> {
        let object = self.object(at, found)?;
        let plain = |kind| self.known(at, object, &["type"]).map(|()| kind);
        match self.required(at, object, "type")? {
            "matchRepoDigestOrExact" => plain(SignedIdentity::MatchRepoDigestOrExact),
            "matchExact" => plain(SignedIdentity::MatchExact),
            "matchRepository" => plain(SignedIdentity::MatchRepository),
            "matchDigest" => plain(SignedIdentity::MatchDigest),
            "exactReference" => {
                self.known(at, object, &["type", "dockerReference"])?;
                let name = self.name(at, object, "dockerReference")?;
                if name.is_repository() {
                    return Err(self.bad(&format!("{at}.dockerReference"), "it takes a name with tag or digest"));
                }
                Ok(SignedIdentity::ExactReference(name))
            }
            "exactRepository" => {
                self.known(at, object, &["type", "dockerRepository"])?;
                let name = self.name(at, object, "dockerRepository")?;
                if !name.is_repository() {
                    return Err(self.bad(&format!("{at}.dockerRepository"), "it takes a name without tag and digest"));
                }
                Ok(SignedIdentity::ExactRepository(name.repository))
            }
            "remapIdentity" => {
                self.known(at, object, &["type", "prefix", "signedPrefix"])?;
                let (prefix, signed_prefix) =
                    (self.prefix(at, object, "prefix")?, self.prefix(at, object, "signedPrefix")?);
                Ok(SignedIdentity::Remap { prefix, signed_prefix })
            }
            other => Err(self.bad(
                &format!("{at}.type"),
                format!(
                    "{other:?} is none of matchRepoDigestOrExact, matchExact, matchRepository, exactReference, \
                     exactRepository, remapIdentity and matchDigest"
                ),
            )),
        }
    }

    fn name(&self, at: &str, object: &Object<'_>, key: &str) -> Result<ImageName, PolicyError> {
        let text = self.required(at, object, key)?;
        ImageName::parse(text).map_err(|error| self.bad(&format!("{at}.{key}"), error.to_string()))
    }

    /// A host, or a path below one, in full.
    fn prefix(&self, at: &str, object: &Object<'_>, key: &str) -> Result<String, PolicyError> {
        let text = self.required(at, object, key)?;
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
        if !text.split('/').all(is_part) || path.contains([':', '@']) || host.contains('@') {
            let problem = "it takes a host, or a host and a path below it, without tag and digest";
            return Err(self.bad(&format!("{at}.{key}"), problem));
        }
        Ok(format!("{}{path}", host.to_ascii_lowercase()))
    }

    fn known(&self, at: &str, object: &Object<'_>, known: &[&str]) -> Result<(), PolicyError> {
        match object.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => Err(self.bad(at, format!("the key {key:?} is none of {}", known.join(", ")))),
            None => Ok(()),
        }
    }

    fn required<'n>(&self, at: &str, object: &'n Object<'_>, key: &str) -> Result<&'n str, PolicyError> {
        let found = field(object, key).ok_or_else(|| self.bad(at, format!("the key {key:?} is missing")))?;
        self.text(&format!("{at}.{key}"), found)
    }

    fn object<'n>(&self, at: &str, found: &'n Node) -> Result<&'n Object<'n>, PolicyError> {
        match found {
            Node::Object(entries) => Ok(entries),
            _ => Err(self.bad(at, "it takes an object")),
        }
    }

    fn list<'n>(&self, at: &str, found: &'n Node) -> Result<&'n [Node], PolicyError> {
        match found {
            Node::List(entries) => Ok(entries),
            _ => Err(self.bad(at, "it takes a list")),
        }
    }

    fn text<'n>(&self, at: &str, found: &'n Node) -> Result<&'n str, PolicyError> {
        match found {
            Node::Text(text) => Ok(text),
            _ => Err(self.bad(at, "it takes a string")),
        }
    }

    fn bad(&self, at: &str, problem: impl Into<String>) -> PolicyError {
        PolicyError::Value { path: self.path.to_owned(), at: at.to_owned(), problem: problem.into() }
    }
}

fn field<'n>(object: &'n Object<'_>, key: &str) -> Option<&'n Node> {
    object.iter().find(|(known, _)| known == key).map(|(_, value)| value)
}

/// Reads a whole file of bounded length.
fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")));
    }
    Ok(bytes)
}
