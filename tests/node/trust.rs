//! Signatures: an image that openssl has signed, in a real registry, and the policy that asks for it.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tonic::Code;

use crate::lab::archive::digest;
use crate::lab::cri::container;
use crate::lab::node::image;
use crate::lab::{Node, Setup};

/// A tool of another hand, which must succeed.
async fn tool(program: &str, arguments: &[&str]) {
    let output = tokio::process::Command::new(program).args(arguments).output().await;
    let output = output.unwrap_or_else(|error| panic!("hack/test installs {program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Copies an OCI layout into the registry; returns the manifest's digest.
async fn push(dir: &Path, layout: &str, target: &str) -> String {
    let registry = std::env::var("PODWRIGHT_TEST_REGISTRY").expect("set by hack/test");
    let (file, target) = (dir.join("digest"), format!("docker://{registry}/{target}"));
    let arguments = ["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--digestfile"];
    tool("skopeo", &[&arguments[..], &[&file.to_string_lossy(), &format!("oci:{layout}"), &target]].concat()).await;
    fs::read_to_string(file).expect("the digest")
}

/// Pushes busybox, and a signature of it under a name, as cosign does: openssl makes it.
async fn push_signed(dir: &Path, repository: &str, name: &str) {
    let layouts = std::env::var("PODWRIGHT_TEST_IMAGES").expect("set by hack/test");
    let image = push(dir, &format!("{layouts}/oci/busybox:latest"), &format!("{repository}:1")).await;
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": image},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    fs::write(path("payload"), payload.to_string()).expect("the payload");
    let (key, signature, signed) = (path("key.pem"), path("signature"), path("payload"));
    tool("openssl", &["dgst", "-sha256", "-sign", &key, "-out", &signature, &signed]).await;
    let signature = STANDARD.encode(fs::read(signature).expect("the signature"));
    let layout = dir.join(name.replace(['/', ':'], "_"));
    write_layout(&layout, payload.to_string().as_bytes(), &signature);
    let target = format!("{repository}:{}.sig", image.replace(':', "-"));
    push(dir, &format!("{}:sig", layout.display()), &target).await;
}

/// An OCI layout whose one manifest holds a payload and its signature.
fn write_layout(layout: &Path, payload: &[u8], signature: &str) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a new directory");
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).expect("a blob");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let mut layer = blob("application/vnd.dev.cosign.simplesigning.v1+json", payload);
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
    let config = json!({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let mut manifest = blob(media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "sig"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("the layout's marker");
}

async fn refused(node: &Node, name: &str) -> String {
    let status = node.pull(name).await.expect_err("the policy does not let it in");
    assert_eq!(status.code(), Code::Unknown, "{status:?}");
    // Where the kubelet looks for its word.
    assert!(status.message().starts_with("SignatureValidationFailed: pull "), "{status:?}");
    assert!(node.image_status(name).await.is_none(), "{name}");
    status.message().to_owned()
}

#[tokio::test]
async fn what_is_signed_is_let_in_and_nothing_else() {
    let node = Node::start_with(Setup { config: "signature_policy = \"{dir}/policy.json\"", ..Setup::default() }).await;
    let dir = node.dir().join("signer");
    fs::create_dir(&dir).expect("a new directory");
    let (private, public) = (dir.join("key.pem"), dir.join("key.pub"));
    let (private, public) = (private.to_string_lossy(), public.to_string_lossy());
    tool("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &private]).await;
    tool("openssl", &["pkey", "-in", &private, "-pubout", "-out", &public]).await;
    let signed = json!([{"type": "sigstoreSigned", "keyPath": public}]);
    let policy = |policy: &Value| {
        fs::write(node.dir().join("policy.json"), policy.to_string()).expect("the policy is written");
    };

    let missing = refused(&node, &image("busybox")).await;
    assert!(missing.contains("policy.json: No such file"), "{missing}");
    policy(&json!({"default": [{"type": "reject"}], "transports": {"docker": {
        "lab.test/busybox": [{"type": "insecureAcceptAnything"}], "lab.test/trust": signed,
    }}}));
    node.pull(&image("busybox")).await.expect("an accepted image");
    let rejected = refused(&node, &image("nginx")).await;
    assert!(rejected.contains("default: every such image is rejected"), "{rejected}");

    let layouts = std::env::var("PODWRIGHT_TEST_IMAGES").expect("set by hack/test");
    push(&dir, &format!("{layouts}/oci/busybox:latest"), "trust/unsigned:1").await;
    let unsigned = refused(&node, "lab.test/trust/unsigned:1").await;
    assert!(unsigned.contains("key.pub") && unsigned.ends_with("it has no signature"), "{unsigned}");
    push_signed(&dir, "trust/misnamed", "lab.test/trust/other:1").await;
    let misnamed = refused(&node, "lab.test/trust/misnamed:1").await;
    assert!(misnamed.contains("it names \"lab.test/trust/other:1\""), "{misnamed}");
    push_signed(&dir, "trust/signed", "lab.test/trust/signed:1").await;
    node.pull("lab.test/trust/signed:1").await.expect("a signed image");
    let (text, status) = node.script(&container("run", "lab.test/trust/signed:1", &["echo", "trusted"])).await;
    assert_eq!((status.exit_code, text.as_str()), (0, "trusted\n"));

    // The same for people: the word, and why.
    let command = node.command(&["image", "pull", "lab.test/trust/unsigned:1"]).output().await.expect("image pull");
    let said = String::from_utf8_lossy(&command.stderr);
    assert!(!command.status.success() && said.contains("SignatureValidationFailed: "), "{said}");
    node.finish().await;
}
