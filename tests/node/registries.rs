//! Registries as they are met: behind TLS and passwords, mirrors and proxies. The servers are real ones where there is one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_cri::v1::AuthConfig;
use serde_json::json;
use tonic::{Code, Status};

use crate::lab::Node;
use crate::lab::archive::{Format, Image, Layer, Packing};
use crate::lab::authority::Authority;
use crate::lab::distribution::{Distribution, Lock, USER};
use crate::lab::node::image;
use crate::lab::proxy::Proxy;
use crate::lab::registry::{Access, Registry};
use crate::lab::tokens::TokenServer;

fn user(password: &str) -> AuthConfig {
    AuthConfig { username: USER.0.to_owned(), password: password.to_owned(), ..Default::default() }
}

/// The kubelet looks for the word at the beginning of a message whose code is `Unknown`.
fn assert_unavailable(status: &Status, words: &[&str]) {
    let message = status.message();
    assert!(status.code() == Code::Unknown && message.starts_with("RegistryUnavailable: "), "{status:?}");
    for word in words {
        assert!(message.contains(word), "{word} is not in {message}");
    }
}

/// Pulls busybox from a host and takes it away again, so that the next host is asked, too.
async fn pull_once(node: &Node, host: &str) {
    let reference = format!("{host}/busybox:latest");
    node.pull(&reference).await.unwrap_or_else(|status| panic!("{host}: {}", status.message()));
    node.remove_image(&reference).await.expect("RemoveImage");
}

#[tokio::test]
async fn tls_with_an_own_authority_and_with_client_certificates() {
    let node = Node::start().await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let dir = node.dir().to_owned();
    authority.write(&dir.join("ca.pem"));
    let pair = authority.issue(&dir, "server", &["127.0.0.1"]);
    let (open, closed, ca) = (dir.join("open"), dir.join("closed"), dir.join("ca.pem"));
    let (open, closed) = tokio::join!(
        Distribution::start(&open, &Lock::None, Some(&pair), None),
        Distribution::start(&closed, &Lock::None, Some(&pair), Some(&ca)),
    );

    node.hosts("unknown.test", &format!("server = \"{}\"", open.url()));
    let status = node.pull("unknown.test/busybox:latest").await.expect_err("nobody knows the authority");
    assert_unavailable(&status, &["certificate", &open.url()]);
    node.hosts("known.test", &format!("server = \"{}\"\nca = {ca:?}", open.url()));
    pull_once(&node, "known.test").await;
    node.hosts("trusting.test", &format!("server = \"{}\"\nskip_verify = true", open.url()));
    pull_once(&node, "trusting.test").await;
    // Docker's way: the authority's file is enough. A port in the host's name is written in underscores.
    let docker = dir.join("registries.d").join(format!("127.0.0.1_{}_", open.address().port()));
    fs::create_dir_all(&docker).expect("a directory for the host");
    fs::copy(&ca, docker.join("own.crt")).expect("the authority's certificate");
    pull_once(&node, &open.address().to_string()).await;

    node.hosts("nobody.test", &format!("server = \"{}\"\nca = {ca:?}", closed.url()));
    assert_unavailable(&node.pull("nobody.test/busybox:latest").await.expect_err("no certificate"), &[&closed.url()]);
    let client = stranger.issue(&dir, "client", &[]);
    let text =
        format!("server = {:?}\nca = {ca:?}\nclient = [[{:?}, {:?}]]", closed.url(), client.certificate, client.key);
    node.hosts("client.test", &text);
    assert_unavailable(&node.pull("client.test/busybox:latest").await.expect_err("a stranger"), &[&closed.url()]);
    // Files that change count from the next pull on.
    authority.issue(&dir, "client", &[]);
    pull_once(&node, "client.test").await;
    node.finish().await;
}

#[tokio::test]
async fn a_password_comes_from_the_request_or_from_the_node() {
    let node = Node::start().await;
    let dir = node.dir().to_owned();
    let registry = Distribution::start(&dir.join("registry"), &Lock::Password, None, None).await;
    for host in ["request.test", "config.test", "docker.test", "helper.test", "nobody.test"] {
        node.map_host(host, &registry.url());
    }
    let bin = dir.join("bin");
    write_helper(&bin);
    fs::write(dir.join("password"), format!("{}\n", USER.1)).expect("the password's file");
    // anna:s3cret
    let docker = json!({"auths": {"https://docker.test/v2/": {"auth": "YW5uYTpzM2NyZXQ="}}, "credHelpers": {"helper.test": "lab"}});
    fs::write(dir.join("docker.json"), docker.to_string()).expect("Docker's configuration");
    let config = format!(
        "docker_config = {:?}\n[registry.auth.\"config.test\"]\nusername = \"{}\"\npassword_file = {:?}",
        dir.join("docker.json"),
        USER.0,
        dir.join("password")
    );
    let path = std::env::var("PATH").unwrap_or_default();
    node.restart_with(&config, &[("PATH", &format!("{}:{path}", bin.display()))]).await;

    let status = node.pull("nobody.test/busybox:latest").await.expect_err("nobody gets in without a password");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let status =
        node.pull_as("config.test/busybox:latest", Some(user("wr0ng-one"))).await.expect_err("the request counts");
    assert!(status.code() == Code::PermissionDenied && !status.message().contains("wr0ng-one"), "{status:?}");
    node.pull_as("request.test/busybox:latest", Some(user(USER.1))).await.expect("PullImage");
    node.remove_image("request.test/busybox:latest").await.expect("RemoveImage");
    for host in ["config.test", "docker.test", "helper.test"] {
        pull_once(&node, host).await;
    }
    let asked = fs::read_to_string(bin.join("asked")).expect("the helper was asked");
    assert_eq!(asked, "helper.test\n", "once for a pull, and for no other registry");
    let log = fs::read_to_string(dir.join("daemon.log")).expect("the daemon's log");
    for secret in [USER.1, "wr0ng-one", "YW5uYTpzM2NyZXQ"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    node.finish().await;
}

/// A credential helper that knows one user, and notes what it is asked for.
fn write_helper(bin: &Path) {
    fs::create_dir(bin).expect("a directory of programs");
    let helper = bin.join("docker-credential-lab");
    let answer = json!({"ServerURL": "helper.test", "Username": USER.0, "Secret": USER.1});
    let text =
        format!("#!/bin/sh\n[ \"$1\" = get ] || exit 2\n(cat; echo) >>{:?}\necho '{answer}'\n", bin.join("asked"));
    fs::write(&helper, text).expect("the helper is written");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("the helper is a program");
}

#[tokio::test]
async fn a_token_is_bought_once_for_all_of_an_image() {
    let node = Node::start().await;
    let dir = node.dir().to_owned();
    let server = TokenServer::start(&dir).await;
    let lock = Lock::Token { server: server.url(), certificate: server.certificate() };
    let registry = Distribution::start(&dir.join("registry"), &lock, None, None).await;
    node.map_host("token.test", &registry.url());
    let status = node.pull("token.test/redis:latest").await.expect_err("no token without a password");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert_eq!(server.sold(), 0);
    node.pull_as("token.test/redis:latest", Some(user(USER.1))).await.expect("PullImage");
    assert_eq!(server.sold(), 1);
    node.finish().await;
}

#[tokio::test]
async fn mirrors_that_are_dead_empty_or_locked_are_passed_by() {
    let node = Node::start().await;
    let (empty, locked) = tokio::join!(Registry::start(Access::Open), Registry::start(Access::Basic(USER.0, USER.1)));
    let upstream = format!("http://{}", std::env::var("PODWRIGHT_TEST_REGISTRY").expect("hack/test sets it"));
    let hosts = |upstream: &str| {
        let mirror = |url: &str| format!("[host.{url:?}]\ncapabilities = [\"pull\", \"resolve\"]\n");
        let mirrors = [mirror("http://127.0.0.1:1"), mirror(&empty.url()), mirror(&locked.url())].concat();
        format!("server = {upstream:?}\n{mirrors}")
    };
    node.hosts("mirrored.test", &hosts(&upstream));
    pull_once(&node, "mirrored.test").await;
    assert!(
        empty.count("GET", "/busybox/manifests/latest") > 0 && locked.count("GET", "/busybox/manifests/latest") > 0
    );

    // A mirror that is trusted with the registry's credentials, and has the image.
    let packed = Image::pack(Format::Oci, vec![(Layer::busybox(), Packing::Gzip)], &json!({"Cmd": ["sh"]}));
    locked.publish("app", "1", &packed);
    node.hosts("away.test", &hosts("http://127.0.0.1:2"));
    let status = node.pull_as("away.test/app:1", Some(user(USER.1))).await.expect_err("the mirror is not trusted");
    let each =
        ["ask http://127.0.0.1:1: ", "ask http://127.0.0.1:2: ", "Connection refused", &empty.url(), &locked.url()];
    assert_unavailable(&status, &each);
    let address = locked.url().replace("http://", "");
    node.restart_with(&format!("auth_mirrors = [{address:?}]"), &[]).await;
    assert_eq!(node.pull_as("away.test/app:1", Some(user(USER.1))).await.expect("PullImage"), packed.id);
    node.finish().await;
}

#[tokio::test]
async fn the_environments_proxy_is_used_for_all_but_this_host() {
    let node = Node::start().await;
    let dir = node.dir().to_owned();
    let authority = Authority::new();
    authority.write(&dir.join("ca.pem"));
    let pair = authority.issue(&dir, "server", &["secure.invalid"]);
    let secure = Distribution::start(&dir.join("registry"), &Lock::None, Some(&pair), None).await;
    let plain = std::env::var("PODWRIGHT_TEST_REGISTRY").expect("hack/test sets it").parse().expect("an address");
    let (http, https) = tokio::join!(Proxy::start(plain), Proxy::start(secure.address()));
    // Nobody but the proxy can find these.
    node.hosts("plain.test", "server = \"http://plain.invalid\"");
    node.hosts("secure.test", &format!("server = \"https://secure.invalid\"\nca = {:?}", dir.join("ca.pem")));
    let environment = [("HTTP_PROXY", &*http.url()), ("https_proxy", &*https.url()), ("NO_PROXY", "192.0.2.0/24")];
    node.restart_with("", &environment).await;
    pull_once(&node, "plain.test").await;
    assert!(http.asked()[0].starts_with("GET http://plain.invalid/v2/busybox/manifests/latest"), "{:?}", http.asked());
    pull_once(&node, "secure.test").await;
    assert!(https.asked()[0].starts_with("CONNECT secure.invalid:443"), "{:?}", https.asked());
    let before = http.asked().len();
    node.pull(&image("busybox")).await.expect("PullImage");
    assert_eq!(http.asked().len(), before, "a registry on this host is asked without a proxy");

    let strange = [("HTTP_PROXY", &*http.url_of_a_stranger()), ("HTTPS_PROXY", &*https.url_of_a_stranger())];
    node.restart_with("", &strange).await;
    for (host, proxy) in [("plain.test", http.url_of_a_stranger()), ("secure.test", https.url_of_a_stranger())] {
        let status = node.pull(&format!("{host}/busybox:latest")).await.expect_err("the proxy refuses");
        assert_unavailable(&status, &[&format!("through the proxy {proxy}")]);
    }
    let log = fs::read_to_string(dir.join("daemon.log")).expect("the daemon's log");
    assert!(!log.contains("pr0xy-pass"), "the proxy's password is in the log");
    node.finish().await;
}

#[tokio::test]
async fn headers_that_a_front_server_wants_are_sent() {
    let node = Node::start().await;
    let registry = Registry::start(Access::Header("x-lab-pass", "op3n-door")).await;
    let packed = Image::pack(Format::Oci, vec![(Layer::busybox(), Packing::Gzip)], &json!({"Cmd": ["sh"]}));
    registry.publish("app", "1", &packed);
    node.map_host("bare.test", &registry.url());
    assert_eq!(node.pull("bare.test/app:1").await.expect_err("no header").code(), Code::PermissionDenied);
    node.hosts("headed.test", &format!("server = {:?}\n[header]\nx-lab-pass = [\"op3n-door\"]", registry.url()));
    assert_eq!(node.pull("headed.test/app:1").await.expect("PullImage"), packed.id);
    let log = fs::read_to_string(node.dir().join("daemon.log")).expect("the daemon's log");
    assert!(!log.contains("op3n-door"), "the header's value is in the log");
    node.finish().await;
}
