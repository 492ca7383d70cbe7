//! Policies as files, and their verdicts on signatures made here and by openssl.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use podwright_base::{Digest, chain};
use proptest::prelude::*;
use rcgen::{KeyPair, SigningKey};
use serde_json::{Value, json};

use crate::{Content, Decision, ImageName, Policy, PolicyError, Refusal, Signature};

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const OTHER: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

struct Etc(tempfile::TempDir);

impl Etc {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn policy(&self, policy: &Value) -> Result<Policy, PolicyError> {
        Policy::read(&self.file("policy.json", &policy.to_string()))
    }

    /// A policy whose one requirement is `sigstoreSigned` with these fields.
    fn signed(&self, fields: Value) -> Result<Policy, PolicyError> {
        let mut requirement = json!({"type": "sigstoreSigned"});
        requirement.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.policy(&json!({"default": [requirement]}))
    }
}

fn digest(text: &str) -> Digest {
    text.parse().unwrap()
}

fn judge(policy: &Policy, image: &str, digests: &[&str], contents: &[Content]) -> Result<(), Refusal> {
    let image = ImageName::parse(image).unwrap();
    let Decision::Judge(rule) = policy.decide(&image)? else { panic!("no signature is asked for") };
    let digests: Vec<Digest> = digests.iter().map(|text| digest(text)).collect();
    let signature =
        |(index, content): (usize, &Content)| Signature { origin: format!("#{index}"), content: content.clone() };
    rule.judge(&digests, &contents.iter().enumerate().map(signature).collect::<Vec<_>>())
}

fn sign(key: &KeyPair, name: &str, digest: &str) -> Content {
    let payload = json!({"critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}, "optional": {"creator": "test"}});
    let payload = payload.to_string().into_bytes();
    Content::SimpleSigning { signature: STANDARD.encode(key.sign(&payload).unwrap()), payload }
}

#[test]
fn the_most_specific_scope_decides_alone() {
    let (accept, reject) = (json!([{"type": "insecureAcceptAnything"}]), json!([{"type": "reject"}]));
    let policy = Etc::new().policy(&json!({
        "default": reject,
        "transports": {
            "docker": {
                "": accept, "r.io": reject, "r.io/a": accept, "r.io/a/x": reject, "r.io/a/x:ok": accept,
                (format!("r.io/a/x@{EMPTY}")): accept, "*.example.com": reject, "GOOD.example.com": accept,
                "r.io/both": [{"type": "insecureAcceptAnything"}, {"type": "reject"}],
            },
            "dir": {"": [{"type": "whatever its reader knows"}]},
        },
    }));
    let policy = policy.unwrap();
    for (image, accepted) in [
        ("elsewhere.io/x:1", true),
        ("r.io/b/x:1", false),
        ("R.IO/b/x:1", false),
        ("r.io/a/y:1", true),
        ("r.io/aa/y:1", false),
        ("r.io/a/x:1", false),
        ("r.io/a/x:ok", true),
        // The tag is not what was pinned.
        (&format!("r.io/a/x:ok@{OTHER}"), false),
        (&format!("r.io/a/x@{EMPTY}"), true),
        ("bad.example.com:5000/x:1", false),
        ("good.example.com/x:1", true),
        ("r.io/both:1", false),
    ] {
        let image = ImageName::parse(image).unwrap();
        assert_eq!(policy.decide(&image).is_ok(), accepted, "{image}");
    }
    let refusal = policy.decide(&ImageName::parse("r.io/a/x:1").unwrap()).unwrap_err().to_string();
    assert!(refusal.contains("policy.json") && refusal.contains("transports.docker.\"r.io/a/x\""), "{refusal}");
}

#[test]
fn a_signature_of_a_key_does_for_its_digest_and_name() {
    let (etc, key, other) = (Etc::new(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let path = etc.file("k.pub", &key.public_key_pem());
    let policy = etc.signed(json!({"keyPath": path})).unwrap();
    let good = sign(&key, "r.io/x:1", EMPTY);
    judge(&policy, "r.io/x:1", &[EMPTY], std::slice::from_ref(&good)).unwrap();
    // Of the index or of the manifest in it; among others.
    let among = [sign(&other, "r.io/x:1", EMPTY), Content::Unusable("it is too long".into()), good.clone()];
    judge(&policy, "r.io/x:1", &[OTHER, EMPTY], &among).unwrap();
    for (content, word) in [
        (sign(&other, "r.io/x:1", EMPTY), "not made by such a key"),
        (sign(&key, "r.io/x:1", OTHER), "signs \"sha256:000"),
        (sign(&key, "r.io/y:1", EMPTY), "names \"r.io/y:1\""),
        (sign(&key, "no name", EMPTY), "names \"no name\""),
        (Content::Unusable("it is too long".into()), "it is too long"),
        (Content::SimpleSigning { payload: Vec::new(), signature: "*".into() }, "base64"),
    ] {
        let refusal = judge(&policy, "r.io/x:1", &[EMPTY], &[content]).unwrap_err().to_string();
        assert!(refusal.contains(word), "{refusal}");
        for told in ["policy.json", "default", "k.pub", "r.io/x:1 (matchRepoDigestOrExact)", "#0"] {
            assert!(refusal.contains(told), "{refusal}");
        }
    }
    let refusal = judge(&policy, "r.io/x:1", &[EMPTY], &[]).unwrap_err().to_string();
    assert!(refusal.ends_with("it has no signature"), "{refusal}");
    let many = vec![sign(&other, "r.io/x:1", EMPTY); 20];
    let refusal = judge(&policy, "r.io/x:1", &[EMPTY], &many).unwrap_err().to_string();
    assert!(refusal.ends_with("and 12 more"), "{refusal}");
}

#[test]
fn any_key_of_a_requirement_and_all_requirements() {
    let (etc, one, two) = (Etc::new(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let paths = [etc.file("1.pub", &one.public_key_pem()), etc.file("2.pub", &two.public_key_pem())];
    let datas = [STANDARD.encode(one.public_key_pem()), STANDARD.encode(two.public_key_pem())];
    let (by_one, by_two) = (sign(&one, "r.io/x:1", EMPTY), sign(&two, "r.io/x:1", EMPTY));
    for any in [json!({"keyPaths": paths}), json!({"keyDatas": datas})] {
        let policy = etc.signed(any).unwrap();
        for content in [&by_one, &by_two] {
            judge(&policy, "r.io/x:1", &[EMPTY], std::slice::from_ref(content)).unwrap();
        }
    }
    let all = json!({"default": [{"type": "sigstoreSigned", "keyPath": paths[0]}, {"type": "insecureAcceptAnything"}, {"type": "sigstoreSigned", "keyData": datas[1]}]});
    let policy = etc.policy(&all).unwrap();
    judge(&policy, "r.io/x:1", &[EMPTY], &[by_one.clone(), by_two]).unwrap();
    let refusal = judge(&policy, "r.io/x:1", &[EMPTY], &[by_one]).unwrap_err().to_string();
    assert!(refusal.contains("default[2].keyData"), "{refusal}");
}

#[test]
fn identities_are_asked_for_as_the_policy_says() {
    let (etc, key) = (Etc::new(), KeyPair::generate().unwrap());
    let data = STANDARD.encode(key.public_key_pem());
    // What cosign signs: the repository alone.
    let by_cosign = sign(&key, "r.io/a/x", EMPTY);
    for (identity, takes) in [
        (json!({"type": "matchRepoDigestOrExact"}), false),
        (json!({"type": "matchExact"}), false),
        (json!({"type": "matchRepository"}), true),
        (json!({"type": "matchDigest"}), true),
        (json!({"type": "exactRepository", "dockerRepository": "r.io/a/x"}), true),
        (json!({"type": "exactRepository", "dockerRepository": "r.io/a/y"}), false),
        (json!({"type": "exactReference", "dockerReference": "r.io/a/x:1"}), false),
        (json!({"type": "remapIdentity", "prefix": "r.io", "signedPrefix": "s.io"}), false),
    ] {
        let policy = etc.signed(json!({"keyData": data, "signedIdentity": identity})).unwrap();
        assert_eq!(
            judge(&policy, "r.io/a/x:1", &[EMPTY], std::slice::from_ref(&by_cosign)).is_ok(),
            takes,
            "{identity}"
        );
    }
}

#[test]
fn a_bundle_names_nothing_and_counts_where_that_is_said() {
    let etc = Etc::new();
    let path = etc.file("k.pub", include_str!("testdata/p256.pub"));
    let bundle = [Content::Bundle(include_bytes!("testdata/bundle.json").to_vec())];
    let policy = etc.signed(json!({"keyPath": path})).unwrap();
    let refusal = judge(&policy, "r.io/x:1", &[EMPTY], &bundle).unwrap_err().to_string();
    assert!(refusal.contains("matchDigest"), "{refusal}");
    let policy = etc.signed(json!({"keyPath": path, "signedIdentity": {"type": "matchDigest"}})).unwrap();
    judge(&policy, "r.io/x:1", &[EMPTY], &bundle).unwrap();
    let refusal = judge(&policy, "r.io/x:1", &[OTHER], &bundle).unwrap_err().to_string();
    assert!(refusal.contains("not this image"), "{refusal}");
    let attestation = [Content::Bundle(include_bytes!("testdata/attestation.json").to_vec())];
    let refusal = judge(&policy, "r.io/x:1", &[EMPTY], &attestation).unwrap_err().to_string();
    assert!(refusal.contains("attestation (https://sigstore.dev/other/v1)"), "{refusal}");
}

#[test]
fn what_is_not_checked_does_not_load() {
    let etc = Etc::new();
    let key = etc.file("k.pub", include_str!("testdata/p256.pub"));
    let weak = etc.file("weak.pub", include_str!("testdata/rsa1024.pub"));
    let signed = |fields: Value| {
        let mut requirement = json!({"type": "sigstoreSigned", "keyPath": key});
        requirement.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"default": [requirement]})
    };
    let scope =
        |scope: &str| json!({"default": [{"type": "reject"}], "transports": {"docker": {scope: [{"type": "reject"}]}}});
    for (policy, words) in [
        (json!([]), ["the top level", "object"]),
        (json!({}), ["default", "missing"]),
        (json!({"default": []}), ["default", "insecureAcceptAnything"]),
        (json!({"default": {}}), ["default", "list"]),
        (json!({"default": ["reject"]}), ["default[0]", "object"]),
        (json!({"default": [{}]}), ["default[0]", "\"type\""]),
        (json!({"default": [{"type": "rejcet"}]}), ["default[0].type", "rejcet"]),
        (json!({"default": [{"type": "reject", "why": "x"}]}), ["default[0]", "\"why\""]),
        (json!({"default": [{"type": "reject"}], "defaults": []}), ["the top level", "\"defaults\""]),
        (json!({"default": [{"type": "signedBy", "keyType": "GPGKeys"}]}), ["default[0].type", "sigstoreSigned"]),
        (json!({"default": [{"type": "sigstoreSigned"}]}), ["default[0]", "exactly one of keyPath"]),
        (signed(json!({"keyData": ""})), ["default[0]", "exactly one of keyPath"]),
        (signed(json!({"fulcio": {}})), ["default[0].fulcio", "keyPath"]),
        (signed(json!({"pki": {}})), ["default[0].pki", "keyPath"]),
        (signed(json!({"rekorPublicKeyPath": "/x"})), ["default[0].rekorPublicKeyPath", "leave it out"]),
        (signed(json!({"signedIdentity": {"type": "any"}})), ["default[0].signedIdentity.type", "matchRepository"]),
        (signed(json!({"signedIdentity": {"type": "matchExact", "x": 1}})), ["default[0].signedIdentity", "\"x\""]),
        (
            signed(json!({"signedIdentity": {"type": "exactReference", "dockerReference": "r.io/x"}})),
            ["dockerReference", "tag"],
        ),
        (
            signed(json!({"signedIdentity": {"type": "exactRepository", "dockerRepository": "r.io/x:1"}})),
            ["dockerRepository", "without tag"],
        ),
        (
            signed(json!({"signedIdentity": {"type": "remapIdentity", "prefix": "r.io/x:1", "signedPrefix": "s.io"}})),
            [".prefix", "without tag"],
        ),
        (
            signed(json!({"signedIdentity": {"type": "remapIdentity", "prefix": "r.io"}})),
            ["signedIdentity", "signedPrefix"],
        ),
        (json!({"default": [{"type": "sigstoreSigned", "keyPath": "k.pub"}]}), ["default[0].keyPath", "absolute"]),
        (
            json!({"default": [{"type": "sigstoreSigned", "keyPath": "/missing.pub"}]}),
            ["default[0].keyPath", "/missing.pub"],
        ),
        (json!({"default": [{"type": "sigstoreSigned", "keyPaths": [key, weak]}]}), ["default[0].keyPaths[1]", "1024"]),
        (json!({"default": [{"type": "sigstoreSigned", "keyPaths": []}]}), ["default[0].keyPaths", "no key"]),
        (json!({"default": [{"type": "sigstoreSigned", "keyData": "*"}]}), ["default[0].keyData", "base64"]),
        (json!({"default": [{"type": "sigstoreSigned", "keyData": 1}]}), ["default[0].keyData", "string"]),
        (json!({"default": [{"type": "reject"}], "transports": {"dokcer": {}}}), ["\"dokcer\"", "docker"]),
        (scope("a*.io"), ["transports.docker.\"a*.io\"", "wildcard"]),
        (scope("*.r.io/x"), ["transports.docker.\"*.r.io/x\"", "wildcard"]),
        (scope("https://r.io"), ["https://r.io", "scheme"]),
        (scope("r.io/"), ["r.io/", "final /"]),
    ] {
        let error = chain(&etc.policy(&policy).unwrap_err());
        for word in words.into_iter().chain(["policy.json"]) {
            assert!(error.contains(word), "{word}: {error}");
        }
    }
    let twice = etc.file(
        "policy.json",
        "{\"default\": [{\"type\": \"reject\"}],\n \"default\": [{\"type\": \"insecureAcceptAnything\"}]}",
    );
    let error = chain(&Policy::read(&twice).unwrap_err());
    assert!(error.contains("\"default\" is there twice") && error.contains("line 2"), "{error}");
    let missing = chain(&Policy::read(Path::new("/missing.json")).unwrap_err());
    assert!(missing.contains("/missing.json") && missing.contains("No such file"), "{missing}");
    let long = etc.file("long.json", &" ".repeat((4 << 20) + 1));
    assert!(chain(&Policy::read(&long).unwrap_err()).contains("longer than"));
}

/// A signature by `cosign`, another by `skopeo`: see testdata/README.
#[test]
fn what_cosign_and_skopeo_signed_does() {
    let etc = Etc::new();
    let path = etc.file("k.pub", include_str!("testdata/tools.pub"));
    let of = |manifest: &str| {
        let manifest: Value = serde_json::from_str(manifest).unwrap();
        manifest["layers"][0]["annotations"][crate::SIGNATURE_ANNOTATION].as_str().unwrap().to_owned()
    };
    let skopeo = Content::SimpleSigning {
        payload: include_bytes!("testdata/skopeo-payload.json").to_vec(),
        signature: of(include_str!("testdata/skopeo-manifest.json")),
    };
    let cosign = Content::SimpleSigning {
        payload: include_bytes!("testdata/cosign-payload.json").to_vec(),
        signature: of(include_str!("testdata/cosign-manifest.json")),
    };
    let (image, manifest) = (include_str!("testdata/tools.txt").trim().split_once(' ')).unwrap();
    let policy = etc.signed(json!({"keyPath": path})).unwrap();
    judge(&policy, image, &[manifest], std::slice::from_ref(&skopeo)).unwrap();
    let refusal = judge(&policy, image, &[manifest], std::slice::from_ref(&cosign)).unwrap_err().to_string();
    assert!(refusal.contains("it names"), "{refusal}");
    let policy = etc.signed(json!({"keyPath": path, "signedIdentity": {"type": "matchRepository"}})).unwrap();
    judge(&policy, image, &[manifest], std::slice::from_ref(&cosign)).unwrap();
    let bundle = Content::Bundle(include_bytes!("testdata/cosign3-bundle.json").to_vec());
    let policy = etc.signed(json!({"keyPath": path, "signedIdentity": {"type": "matchDigest"}})).unwrap();
    judge(&policy, image, &[manifest], &[bundle]).unwrap();
}

proptest! {
    #[test]
    fn nothing_that_anybody_wrote_is_accepted(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,60}") {
        let etc = Etc::new();
        let path = etc.file("k.pub", include_str!("testdata/p256.pub"));
        let policy = etc.signed(json!({"keyPath": path, "signedIdentity": {"type": "matchDigest"}})).unwrap();
        let contents = [Content::Bundle(bytes.clone()), Content::SimpleSigning { payload: bytes.clone(), signature: text.clone() }];
        prop_assert!(judge(&policy, "r.io/x:1", &[EMPTY], &contents).is_err());
        // A policy of any bytes is read or refused, in words.
        if let Err(error) = Policy::read(&etc.file("policy.json", &text)) {
            prop_assert!(error.to_string().contains("policy.json"));
        }
    }
}
