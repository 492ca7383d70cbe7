//! The policy: which requirements an image has to meet, by the most specific scope that its name is in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::identity::{ImageName, SignedIdentity};
use crate::judge::{Refusal, Rule};
use crate::key::PublicKey;

/// A policy with its keys, as it was when it was read.
#[derive(Debug)]
pub struct Policy {
    pub(crate) path: PathBuf,
    pub(crate) default: Vec<Requirement>,
    /// Of the transport `docker`, the only one that pulls use; hosts in lower case.
    pub(crate) scopes: BTreeMap<String, Vec<Requirement>>,
}

/// One of a scope's requirements, all of which must be met.
#[derive(Debug)]
pub(crate) enum Requirement {
    Accept,
    Reject,
    Signed(Signed),
}

/// `sigstoreSigned` by a key.
#[derive(Debug)]
pub(crate) struct Signed {
    /// Any of them will do.
    pub(crate) keys: Vec<PublicKey>,
    pub(crate) identity: SignedIdentity,
}

/// What a policy says of an image that it does not refuse outright.
#[derive(Debug)]
pub enum Decision<'a> {
    /// No signature is needed.
    Accept,
    /// Its signatures have to be judged.
    Judge(Rule<'a>),
}

impl Policy {
    /// Decides on an image by its name.
    ///
    /// # Errors
    /// When no image of this name may be pulled.
    pub fn decide<'a>(&'a self, image: &'a ImageName) -> Result<Decision<'a>, Refusal> {
        let found = scopes(image).into_iter().find_map(|scope| self.scopes.get_key_value(&scope));
        let (scope, requirements) = match found {
            Some((scope, requirements)) => (format!("transports.docker.{scope:?}"), requirements),
            None => ("default".to_owned(), &self.default),
        };
        let mut signed = Vec::new();
        for requirement in requirements {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(Refusal::Rejected { policy: self.path.clone(), scope }),
                Requirement::Signed(requirement) => signed.push(requirement),
            }
        }
        Ok(if signed.is_empty() {
            Decision::Accept
        } else {
            Decision::Judge(Rule { policy: &self.path, scope, image, signed })
        })
    }
}

/// The scopes that an image is in, the most specific first.
fn scopes(image: &ImageName) -> Vec<String> {
    let mut scopes = Vec::new();
    // A digest decides which image it is; what tag was written beside it nobody has checked.
    if let Some(digest) = &image.digest {
        scopes.push(format!("{}@{digest}", image.repository));
    } else if let Some(tag) = &image.tag {
        scopes.push(format!("{}:{tag}", image.repository));
    }
    let mut prefix = image.repository.as_str();
    scopes.push(prefix.to_owned());
    while let Some((shorter, _)) = prefix.rsplit_once('/') {
        prefix = shorter;
        scopes.push(prefix.to_owned());
    }
    // What is left is the host; an IPv6 address has no domains above it.
    if !prefix.starts_with('[') {
        let mut domain = prefix.split(':').next().unwrap_or_default();
        while let Some((_, parent)) = domain.split_once('.') {
            domain = parent;
            scopes.push(format!("*.{domain}"));
        }
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_scope_comes_first() {
        let of = |image: &str| scopes(&ImageName::parse(image).unwrap());
        assert_eq!(
            of("Reg.Example.com:5000/a/b:t"),
            [
                "reg.example.com:5000/a/b:t",
                "reg.example.com:5000/a/b",
                "reg.example.com:5000/a",
                "reg.example.com:5000",
                "*.example.com",
                "*.com",
                ""
            ]
        );
        assert_eq!(of("[fd00::1]:5000/a:t"), ["[fd00::1]:5000/a:t", "[fd00::1]:5000/a", "[fd00::1]:5000", ""]);
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(of(&format!("busybox:1@{digest}"))[0], format!("docker.io/library/busybox@{digest}"));
        assert_eq!(of(&format!("busybox:1@{digest}"))[1], "docker.io/library/busybox");
    }
}
