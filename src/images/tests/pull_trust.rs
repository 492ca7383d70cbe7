//! Pulls that a signature policy lets in or not, and what is asked of the registry for it.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use podwright_base::Digest;
use podwright_signature::{BUNDLE, SIGNATURE_ANNOTATION, SIMPLE_SIGNING};
use rcgen::{KeyPair, SigningKey};
use serde_json::{Value, json};

use super::image::TestImage;
use super::registry::{Fault, Node, Registry, chain};
use crate::PullClass;
use crate::platform::Host;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn policy(dir: &Path, policy: &Value) {
    std::fs::write(dir.join("policy.json"), policy.to_string()).unwrap();
}

fn judged_by(text: &Value) -> Node {
    Node::with(|config, dir| {
        policy(dir, text);
        config.signature_policy = Some(dir.join("policy.json"));
    })
}

/// A policy that takes this key's signatures, with this identity.
fn by_key(key: &KeyPair, identity: &str) -> Value {
    let data = STANDARD.encode(key.public_key_pem());
    json!({"default": [{"type": "sigstoreSigned", "keyData": data, "signedIdentity": {"type": identity}}]})
}

fn payload(name: &str, digest: &Digest) -> Vec<u8> {
    json!({"critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}, "optional": null}).to_string().into_bytes()
}

/// A layer of signatures, pushed; each is a payload and its signature.
fn push_signature(registry: &Registry, signed: &Digest, key: &KeyPair, payloads: &[Vec<u8>]) {
    let layer = |payload: &Vec<u8>| {
        registry.push_blob("x", payload.clone());
        let signature = STANDARD.encode(key.sign(payload).unwrap());
        json!({"mediaType": SIMPLE_SIGNING, "digest": Digest::of(payload), "size": payload.len(), "annotations": {SIGNATURE_ANNOTATION: signature}})
    };
    let layers: Vec<Value> = payloads.iter().map(layer).collect();
    let config =
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}"), "size": 2});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    let path = format!("x/manifests/sha256-{}.sig", signed.hex());
    registry.put(&path, OCI_MANIFEST, manifest.to_string().into_bytes());
}

/// Pushes a bundle as cosign 3 does, and lists it where `place` says.
fn push_bundle(registry: &Registry, signed: &Digest, key: &KeyPair, place: &str, artifact_type: &str) {
    let statement = json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": signed.hex()}}], "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}}).to_string();
    let kind = "application/vnd.in-toto+json";
    let pae = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let sig = STANDARD.encode(key.sign(pae.as_bytes()).unwrap());
    let bundle = json!({"mediaType": BUNDLE, "verificationMaterial": {}, "dsseEnvelope": {"payload": STANDARD.encode(statement), "payloadType": kind, "signatures": [{"sig": sig}]}});
    let bundle = bundle.to_string().into_bytes();
    registry.push_blob("x", bundle.clone());
    let layer = json!({"mediaType": BUNDLE, "digest": Digest::of(&bundle), "size": bundle.len()});
    let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": BUNDLE, "config": empty, "layers": [layer]});
    let manifest = manifest.to_string().into_bytes();
    registry.put(&format!("x/manifests/{}", Digest::of(&manifest)), OCI_MANIFEST, manifest.clone());
    let entry = |artifact: &str, digest: &Digest| json!({"mediaType": OCI_MANIFEST, "artifactType": artifact, "digest": digest, "size": manifest.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry("application/spdx+json", &Digest::of(b"sbom")), entry(artifact_type, &Digest::of(&manifest))]});
    registry.put(&format!("x/{place}"), OCI_INDEX, index.to_string().into_bytes());
}

async fn refused(node: &Node, name: &str) -> String {
    let error = node.pull(name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Untrusted, "{}", chain(&error));
    chain(&error)
}

#[tokio::test]
async fn a_policy_accepts_and_rejects_by_name() {
    let registry = Registry::start().await;
    let node = judged_by(&json!({
        "default": [{"type": "reject"}],
        "transports": {"docker": {(format!("{}/good", registry.address)): [{"type": "insecureAcceptAnything"}]}},
    }));
    let (good, bad) =
        (registry.push("good/x", "v", &TestImage::small("x")), registry.push("x", "v", &TestImage::small("y")));
    let words = refused(&node, &bad).await;
    assert!(words.contains("policy.json, default: every such image is rejected"), "{words}");
    assert!(registry.log().is_empty(), "a rejected name is not asked for");
    node.pull(&good).await.unwrap();
    assert!(registry.log().iter().all(|asked| !asked.path.contains(".sig") && !asked.path.contains("referrers")));
}

#[tokio::test]
async fn a_signature_lets_in_what_it_signs() {
    let (registry, key) = (Registry::start().await, KeyPair::generate().unwrap());
    let node = judged_by(&by_key(&key, "matchRepoDigestOrExact"));
    let image = TestImage::small("signed");
    let name = registry.push("x", "v", &image);
    let digest = image.manifest_digest();
    // The right one among others: any will do.
    push_signature(&registry, &digest, &key, &[payload("elsewhere.example/x:v", &digest), payload(&name, &digest)]);
    let pulled = node.pull(&name).await.unwrap();
    assert_eq!(node.read(&pulled, "/etc/name"), "signed");
    assert_eq!(registry.count("/referrers/"), 0, "what was found was enough");
    // By its digest any tag of the repository will do.
    node.pull(&format!("{}/x@{digest}", registry.address)).await.unwrap();
    // What is here is judged again when it is pulled again.
    push_signature(&registry, &digest, &key, &[]);
    refused(&node, &name).await;
    assert!(node.images.find(&name).is_some());
}

#[tokio::test]
async fn what_does_not_sign_it_lets_nothing_in() {
    let (registry, key, other) = (Registry::start().await, KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let node = judged_by(&by_key(&key, "matchRepoDigestOrExact"));
    let image = TestImage::small("x");
    let name = registry.push("x", "v", &image);
    let digest = image.manifest_digest();
    let words = refused(&node, &name).await;
    assert!(words.contains("policy.json, default:") && words.ends_with("it has no signature"), "{words}");
    assert!(words.contains("default[0].keyData") && words.contains(&name), "{words}");
    for (key, payload, word) in [
        (&other, payload(&name, &digest), "not made by such a key"),
        (&key, payload(&name, &Digest::of(b"other")), "not this image"),
        (&key, payload(&registry.name("y", "v"), &digest), "it names"),
        (&key, b"{}".to_vec(), "does not parse"),
    ] {
        push_signature(&registry, &digest, key, &[payload]);
        let words = refused(&node, &name).await;
        assert!(words.contains(word) && words.contains(&format!("sha256-{}.sig, layer 0", digest.hex())), "{words}");
    }
    for blob in [image.id(), image.layers[0].digest()] {
        assert_eq!(registry.count(blob.as_str()), 0, "nothing of a refused image is fetched");
    }
    assert!(node.residue().is_empty(), "{:?}", node.residue());
}

#[tokio::test]
async fn a_bundle_is_found_among_the_referrers_or_under_their_tag() {
    let key = KeyPair::generate().unwrap();
    let image = TestImage::small("bundled");
    let digest = image.manifest_digest();
    for (place, artifact_type) in [
        (format!("referrers/{digest}"), BUNDLE),
        // What cosign 3.1 writes there is the type of its manifest's configuration.
        (format!("manifests/sha256-{}", digest.hex()), "application/vnd.oci.empty.v1+json"),
    ] {
        let (registry, node) = (Registry::start().await, judged_by(&by_key(&key, "matchDigest")));
        let name = registry.push("x", "v", &image);
        push_bundle(&registry, &digest, &key, &place, artifact_type);
        node.pull(&name).await.unwrap();
        let asked = registry.log();
        let filter = format!("artifactType={}", BUNDLE.replace('+', "%2B"));
        assert!(asked.iter().any(|asked| asked.path.contains("/referrers/") && asked.query == filter), "{asked:?}");
        assert_eq!(registry.count(Digest::of(b"sbom").as_str()), 0, "other artifacts are left alone");
        policy(node.dir.path(), &by_key(&key, "matchRepository"));
        assert!(refused(&node, &name).await.contains("matchDigest"));
    }
}

#[tokio::test]
async fn the_index_or_this_hosts_manifest_is_signed() {
    let (registry, key) = (Registry::start().await, KeyPair::generate().unwrap());
    let node = judged_by(&by_key(&key, "matchRepository"));
    let image = TestImage::small("x");
    registry.push("x", "unused", &image);
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"mediaType": OCI_MANIFEST, "digest": image.manifest_digest(), "size": 1, "platform": {"os": "linux", "architecture": Host::current().architecture}}]});
    let index = index.to_string().into_bytes();
    let top = Digest::of(&index);
    for tag in ["one", "two"] {
        registry.put(&format!("x/manifests/{tag}"), OCI_INDEX, index.clone());
    }
    let (one, two) = (registry.name("x", "one"), registry.name("x", "two"));
    refused(&node, &one).await;
    for signed in [top, image.manifest_digest()] {
        push_signature(&registry, &signed, &key, &[payload(&registry.name("x", "any"), &signed)]);
        node.pull(&one).await.unwrap();
        push_signature(&registry, &signed, &key, &[]);
    }
    refused(&node, &two).await;
}

#[tokio::test]
async fn the_policy_of_now_counts() {
    let (registry, key) = (Registry::start().await, KeyPair::generate().unwrap());
    let node = judged_by(&json!({"default": [{"type": "insecureAcceptAnything"}]}));
    let name = registry.push("x", "v", &TestImage::small("x"));
    node.pull(&name).await.unwrap();
    let dir = node.dir.path();
    policy(dir, &json!({"default": [{"type": "reject"}]}));
    assert!(refused(&node, &name).await.contains("rejected"));
    policy(dir, &json!({"default": [{"type": "signedBy"}]}));
    let words = refused(&node, &name).await;
    assert!(words.contains("default[0].type") && words.contains("sigstoreSigned"), "{words}");
    std::fs::remove_file(dir.join("policy.json")).unwrap();
    let words = refused(&node, &name).await;
    assert!(words.contains("read the signature policy") && words.contains("policy.json"), "{words}");
    // The key's file is read again too.
    let path = dir.join("key.pub");
    std::fs::write(&path, KeyPair::generate().unwrap().public_key_pem()).unwrap();
    policy(dir, &json!({"default": [{"type": "sigstoreSigned", "keyPath": path}]}));
    let digest = TestImage::small("x").manifest_digest();
    push_signature(&registry, &digest, &key, &[payload(&name, &digest)]);
    assert!(refused(&node, &name).await.contains("key.pub"));
    std::fs::write(&path, key.public_key_pem()).unwrap();
    node.pull(&name).await.unwrap();
}

#[tokio::test]
async fn a_mirror_without_signatures_hides_none() {
    let (mirror, registry, key) = (Registry::start().await, Registry::start().await, KeyPair::generate().unwrap());
    let node = judged_by(&by_key(&key, "matchRepoDigestOrExact"));
    let image = TestImage::small("x");
    mirror.push("x", "v", &image);
    let (name, digest) = (registry.push("x", "v", &image), image.manifest_digest());
    node.hosts(
        &registry.address.to_string(),
        &format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", registry.address, mirror.address),
    );
    push_signature(&registry, &digest, &key, &[payload(&name, &digest)]);
    node.pull(&name).await.unwrap();
    assert_eq!((mirror.count(".sig"), registry.count(".sig")), (1, 1));
    assert_eq!(registry.count(image.layers[0].digest().as_str()), 0, "the rest comes from the mirror");
}

#[tokio::test]
async fn a_registry_that_fails_refuses_for_now_or_for_good() {
    let (registry, key) = (Registry::start().await, KeyPair::generate().unwrap());
    let node = judged_by(&by_key(&key, "matchRepoDigestOrExact"));
    let image = TestImage::small("x");
    let (name, digest) = (registry.push("x", "v", &image), image.manifest_digest());
    push_signature(&registry, &digest, &key, &[]);
    for _ in 0..3 {
        registry.fault(".sig", Fault::Status(503, Vec::new(), String::new()));
    }
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unavailable, "{}", chain(&error));
    assert!(chain(&error).contains("look for its signatures"), "{}", chain(&error));
    registry.fault(".sig", Fault::Status(403, Vec::new(), String::new()));
    assert!(refused(&node, &name).await.contains("denies the manifest"));
    // What is longer than a signature is not fetched.
    let long = vec![b' '; (1 << 20) + 1];
    push_signature(&registry, &digest, &key, std::slice::from_ref(&long));
    assert!(refused(&node, &name).await.contains("longer than 1048576 bytes"));
    assert_eq!(registry.count(Digest::of(&long).as_str()), 0);
    // What passes is tried again.
    push_signature(&registry, &digest, &key, &[payload(&name, &digest)]);
    registry.fault(".sig", Fault::Status(500, Vec::new(), String::new()));
    node.pull(&name).await.unwrap();
}

#[tokio::test]
async fn the_first_signatures_are_looked_at_and_no_more() {
    let (registry, key) = (Registry::start().await, KeyPair::generate().unwrap());
    let node = judged_by(&by_key(&key, "matchRepoDigestOrExact"));
    let image = TestImage::small("x");
    let (name, digest) = (registry.push("x", "v", &image), image.manifest_digest());
    let payloads: Vec<Vec<u8>> = (0..80).map(|n| payload(&format!("r.io/x:{n}"), &digest)).collect();
    push_signature(&registry, &digest, &key, &payloads);
    assert!(refused(&node, &name).await.ends_with("and 56 more"));
    assert_eq!(registry.count("/blobs/"), 64);
}
