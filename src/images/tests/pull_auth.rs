//! Registries that want to know who asks.

use std::collections::BTreeMap;

use podwright_base::config::{RegistryAuth, Secret};

use super::image::{Layer, Tar, TestImage};
use super::registry::{Door, Fault, Node, Registry, chain};
use crate::{Credentials, PullClass};

fn user(pair: &str) -> Option<Credentials> {
    let (username, password) = pair.split_once(':').unwrap();
    Some(Credentials { username: username.to_owned(), password: password.to_owned(), ..Credentials::default() })
}

async fn lab(door: Door) -> (Registry, Node, String) {
    let (registry, node) = (Registry::start().await, Node::new());
    registry.door(door);
    let name = registry.push("x", "v", &TestImage::small("x"));
    (registry, node, name)
}

#[tokio::test]
async fn basic_credentials_are_sent_when_asked_for() {
    let (registry, node, name) = lab(Door::Basic("u:p")).await;
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unauthorized);
    let error = node.pull_as(&name, user("u:wrong")).await.unwrap_err();
    assert!(error.class() == PullClass::Unauthorized && !chain(&error).contains("wrong"), "{}", chain(&error));
    assert!(registry.log()[0].authorization.is_none());
    let before = registry.log().len();
    node.pull_as(&name, user("u:p")).await.unwrap();
    // It is known by now that the registry wants them.
    assert!(registry.log()[before..].iter().all(|asked| asked.authorization.is_some()));
    let packed = Credentials { auth: "dTpw".to_owned(), ..Credentials::default() };
    node.pull_as(&name, Some(packed)).await.unwrap();
    let broken = Credentials { auth: "!".to_owned(), ..Credentials::default() };
    assert_eq!(node.pull_as(&name, Some(broken)).await.unwrap_err().class(), PullClass::Invalid);
}

#[tokio::test]
async fn credentials_go_only_where_they_are_for() {
    let (registry, node, name) = lab(Door::Basic("u:p")).await;
    let elsewhere = Credentials { server_address: "other.example".to_owned(), ..user("u:p").unwrap() };
    assert_eq!(node.pull_as(&name, Some(elsewhere)).await.unwrap_err().class(), PullClass::Unauthorized);
    assert!(registry.log().iter().all(|asked| asked.authorization.is_none()));
    // A mirror does not get the upstream's password, unless it is named.
    node.hosts("r.example", &format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]", registry.address));
    assert!(node.pull_as("r.example/x:v", user("u:p")).await.is_err());
    assert!(registry.log().iter().all(|asked| asked.authorization.is_none()));
    let named = Credentials { server_address: registry.address.to_string(), ..user("u:p").unwrap() };
    node.pull_as("r.example/x:v", Some(named)).await.unwrap();
}

#[tokio::test]
async fn tokens_are_fetched_once_and_kept() {
    let (registry, node, name) = lab(Door::Token { pair: "u:p", refresh: "", life: 300 }).await;
    node.pull_as(&name, user("u:p")).await.unwrap();
    registry.push("x", "w", &TestImage::small("w"));
    node.pull_as(&registry.name("x", "w"), user("u:p")).await.unwrap();
    assert_eq!(registry.tokens(), 1);
    // They are nobody else's.
    let error = node.pull_as(&name, user("u:wrong")).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unauthorized);
    assert_eq!(node.pull(&name).await.unwrap_err().class(), PullClass::Unauthorized);
}

#[tokio::test]
async fn a_token_that_ends_is_fetched_anew() {
    let (registry, node, name) = lab(Door::Token { pair: "", refresh: "", life: 0 }).await;
    node.pull(&name).await.unwrap();
    // Manifest, configuration, layer: none finds the token before it good.
    assert_eq!(registry.tokens(), 3);
}

#[tokio::test]
async fn refresh_and_ready_made_tokens_work() {
    let (_registry, node, name) = lab(Door::Token { pair: "no:body", refresh: "r3fresh", life: 60 }).await;
    let refresh = Credentials { identity_token: "r3fresh".to_owned(), ..Credentials::default() };
    node.pull_as(&name, Some(refresh)).await.unwrap();
    let (_registry, node, name) = lab(Door::Bearer("ready")).await;
    let ready = Credentials { registry_token: "ready".to_owned(), ..Credentials::default() };
    node.pull_as(&name, Some(ready)).await.unwrap();
}

#[tokio::test]
async fn a_token_server_that_is_away_makes_the_registry_unavailable() {
    let (_registry, node, name) = lab(Door::Bearer("nobody knows")).await;
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unavailable);
    assert!(chain(&error).contains("127.0.0.1:1/token"), "{}", chain(&error));
}

#[tokio::test]
async fn layers_side_by_side_share_one_token_request() {
    let registry = Registry::start().await;
    let node = Node::with(|config, _| config.max_concurrent_layers = 8);
    registry.door(Door::Token { pair: "", refresh: "", life: 300 });
    let layer = |index: usize| Layer::gzip(Tar::default().file("name", index.to_string()));
    let image = TestImage::new((0..8).map(layer).collect());
    let name = registry.push("x", "v", &image);
    // All layers find the token bad at once.
    registry.fault(&format!("blobs/{}", podwright_base::Digest::of(&image.config)), Fault::Revoke(None));
    node.pull(&name).await.unwrap();
    assert_eq!(registry.tokens(), 2);
}

#[tokio::test]
async fn a_token_that_ends_in_a_transfer_is_fetched_anew() {
    let (registry, node) = (Registry::start().await, Node::new());
    registry.door(Door::Token { pair: "u:p", refresh: "", life: 300 });
    let image = TestImage::small("x");
    let name = registry.push("x", "v", &image);
    let blob = image.layers[0].digest();
    registry.fault(blob.as_str(), Fault::Revoke(Some(30)));
    node.pull_as(&name, user("u:p")).await.unwrap();
    assert_eq!(registry.tokens(), 2);
    let asked = registry.log();
    assert!(asked.iter().any(|asked| asked.path.contains(blob.hex()) && asked.range.is_some()), "{asked:?}");
}

#[tokio::test]
async fn a_busy_token_server_is_asked_again() {
    let (registry, node, name) = lab(Door::Token { pair: "", refresh: "", life: 300 }).await;
    registry.fault("/token", Fault::Status(429, vec![("retry-after", "0".to_owned())], String::new()));
    registry.fault("/token", Fault::Status(503, Vec::new(), String::new()));
    node.pull(&name).await.unwrap();
    assert_eq!(registry.tokens(), 1);
}

#[tokio::test]
async fn a_mirror_sees_the_registrys_credentials_where_the_configuration_says_so() {
    let registry = Registry::start().await;
    registry.door(Door::Basic("u:p"));
    registry.push("x", "v", &TestImage::small("x"));
    let text = format!("server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]", registry.address);
    let trusted = registry.address.to_string();
    let node = Node::with(|config, _| config.auth_mirrors = vec![trusted.clone()]);
    node.hosts("r.example", &text);
    node.pull_as("r.example/x:v", user("u:p")).await.unwrap();
    // The node's own credentials for the registry go there, too.
    let node = Node::with(|config, _| {
        config.auth_mirrors = vec![trusted.clone()];
        config.auth = BTreeMap::from([entry("r.example", "u", "p")]);
    });
    node.hosts("r.example", &text);
    node.pull("r.example/x:v").await.unwrap();
    // A mirror's own come before them, and need no trust.
    let node = Node::with(|config, _| {
        config.auth = BTreeMap::from([entry("r.example", "u", "wrong"), entry(&trusted, "u", "p")]);
    });
    node.hosts("r.example", &text);
    node.pull("r.example/x:v").await.unwrap();
}

#[tokio::test]
async fn the_node_has_credentials_where_the_request_has_none() {
    let registry = Registry::start().await;
    registry.door(Door::Basic("u:p"));
    let name = registry.push("x", "v", &TestImage::small("x"));
    let address = registry.address.to_string();
    let node = Node::with(|config, _| config.auth = BTreeMap::from([entry(&address, "u", "p")]));
    node.pull(&name).await.unwrap();
    // The request's come first, right or wrong.
    let error = node.pull_as(&name, user("u:wrong")).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Unauthorized);

    let file = tempfile::NamedTempFile::new().unwrap();
    let docker = |auth: &str| format!(r#"{{"auths": {{"http://{address}/v2/": {{"auth": "{auth}"}}}}}}"#);
    std::fs::write(file.path(), docker("dTpw")).unwrap();
    let node = Node::with(|config, _| config.docker_config = Some(file.path().to_owned()));
    node.pull(&name).await.unwrap();
    std::fs::write(file.path(), docker("c2VjcmV0")).unwrap();
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.class(), PullClass::Internal);
    let told = chain(&error);
    assert!(told.contains(&address) && !told.contains("c2VjcmV0") && !told.contains("secret"), "{told}");
}

#[tokio::test]
async fn what_is_for_a_registry_does_not_follow_a_redirect_to_another() {
    let (registry, storage, node) = (Registry::start().await, Registry::start().await, Node::new());
    registry.door(Door::Basic("u:p"));
    let image = TestImage::small("x");
    registry.push("x", "v", &image);
    storage.push("x", "v", &image);
    let path = format!("x/blobs/{}", image.layers[0].digest());
    let location = format!("http://{}/v2/{path}", storage.address);
    for (host, header) in [("headed.example", "[header]\nx-pass = \"open\""), ("bare.example", "")] {
        registry.fault(&path, Fault::Status(307, vec![("location", location.clone())], String::new()));
        node.hosts(host, &format!("server = \"http://{}\"\n{header}", registry.address));
        let pulled = node.pull_as(&format!("{host}/x:v"), user("u:p")).await.unwrap();
        node.images.remove(pulled.id.as_str()).await.unwrap();
    }
    let asked = storage.log();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.authorization.is_none() && asked.pass.is_none()), "{asked:?}");
    let at_home = registry.log();
    assert!(at_home.iter().any(|asked| asked.path.contains(&path) && asked.pass.is_some()), "{at_home:?}");
}

fn entry(host: &str, username: &str, password: &str) -> (String, RegistryAuth) {
    let auth =
        RegistryAuth { username: username.to_owned(), password: Secret::new(password), ..RegistryAuth::default() };
    (host.to_owned(), auth)
}
