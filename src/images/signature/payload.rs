//! The "simple signing" payload: what cosign's classic signatures and those of containers/image sign.

use serde::Deserialize;

use crate::judge::{Claim, Reason};

/// The one type that both tools write, and that tells an image's signature from anything else the key has signed.
const TYPE: &str = "cosign container image signature";

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
    // `optional` has a creator, a time and users' annotations, none of which a policy asks for.
}

/// Whatever is critical must be understood: a field that is not known makes the signature one that is not understood.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    r#type: String,
    image: Image,
    identity: Identity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

/// Reads what a payload claims. Its signature has been verified.
pub(crate) fn claim(payload: &[u8]) -> Result<Claim, Reason> {
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|source| Reason::Parse { part: "payload", source })?;
    let critical = payload.critical;
    if critical.r#type != TYPE {
        return Err(Reason::Type(critical.r#type));
    }
    let name = Some(critical.identity.docker_reference);
    Ok(Claim { digests: vec![critical.image.docker_manifest_digest], name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_images_signature_claims_anything() {
        let good = include_str!("testdata/payload.json");
        let found = claim(good.as_bytes()).unwrap();
        assert_eq!(found.name.as_deref(), Some("registry.example:5000/team/app:v1"));
        assert!(found.digests[0].starts_with("sha256:e3b0"));
        let bad = |from: &str, to: &str| claim(good.replace(from, to).as_bytes()).unwrap_err();
        assert!(matches!(bad("cosign container", "atomic container"), Reason::Type(_)));
        for (from, to) in [
            ("\"type\"", "\"kind\""),
            ("\"identity\"", "\"expires\":1,\"identity\""),
            ("\"docker-manifest-digest\"", "\"docker-manifest-digest\":\"x\",\"docker-manifest-digest\""),
            ("{\"critical\"", "{\"critical\":{},\"critical\""),
        ] {
            assert!(matches!(bad(from, to), Reason::Parse { .. }), "{to}");
        }
    }
}
