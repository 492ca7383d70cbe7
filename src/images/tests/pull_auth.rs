//! Registries that want to know who asks.

use super::image::TestImage;
use super::registry::{Door, Node, Registry, chain};
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
