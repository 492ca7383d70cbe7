//! Pods of CNI networks against a whole daemon, whose host is a network namespace of its own.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use k8s_cri::v1::*;
use serde_json::{Value, json};
use tonic::Code;

use crate::lab::cri::{eventually, pod, refused};
use crate::lab::netns::Netns;
use crate::lab::node::{Node, Setup};

async fn start() -> Node {
    let plugins = std::env::var("PODWRIGHT_TEST_CNI").unwrap_or_else(|_| "/usr/lib/cni".to_owned());
    let network = format!("cni_bin_dirs = [{plugins:?}, \"{{dir}}/bin\"]\ncni_conf_template = \"{{dir}}/template\"");
    let node = Node::start_with(Setup { network: &network, own_network: true, ..Setup::default() }).await;
    fs::create_dir(node.dir().join("bin")).expect("the directory of plugins is new");
    node
}

fn configuration(node: &Node) -> PathBuf {
    node.dir().join("cni/10-test.conflist")
}

/// A chain that begins with Debian's bridge and addresses from a directory of the node's, by the newest version that its
/// plugins speak.
fn chain(node: &Node, rest: &[Value]) -> Value {
    let bridge = json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
            "type": "host-local", "dataDir": node.dir().join("ipam"), "routes": [{ "dst": "0.0.0.0/0" }],
            "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]],
        },
    });
    let plugins: Vec<_> = std::iter::once(bridge).chain(rest.iter().cloned()).collect();
    json!({ "cniVersions": ["1.0.0", "1.1.0"], "name": "test", "plugins": plugins })
}

fn script(node: &Node, name: &str, text: &str) {
    let temporary = node.dir().join(name);
    fs::write(&temporary, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).expect("it can be executed");
    fs::rename(temporary, node.dir().join("bin").join(name)).expect("it is put in place");
}

/// Addresses that host-local has given away.
fn given(node: &Node, network: &str) -> usize {
    let Ok(entries) = fs::read_dir(node.dir().join("ipam").join(network)) else { return 0 };
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<IpAddr>().is_ok()).count()
}

async fn network_condition(node: &Node) -> RuntimeCondition {
    let status = node.runtime.clone().status(StatusRequest { verbose: false }).await.expect("Status").into_inner();
    let conditions = status.status.expect("a status").conditions;
    conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").expect("the condition")
}

async fn info(node: &Node, pod: &str) -> Value {
    let status = node.pod_status(pod).await.expect("PodSandboxStatus");
    serde_json::from_str(&status.info["info"]).expect("JSON")
}

#[tokio::test]
async fn pods_of_a_chain_are_reached_and_go_without_their_configuration() {
    let node = start().await;
    let portmap = json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } });
    fs::write(configuration(&node), chain(&node, &[portmap]).to_string()).expect("a configuration");
    assert!(network_condition(&node).await.status);
    let mut config = pod(&node, "web");
    config.port_mappings = vec![PortMapping { host_port: 8080, container_port: 80, ..PortMapping::default() }];
    let id = node.run_pod(&config).await;
    let ips = ["10.77.0.2", "fd77::2"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
    assert_eq!(node.pod_ips(&id).await, ips);
    let details = info(&node, &id).await;
    let netns = details["runtimeSpec"]["linux"]["namespaces"][0]["path"].as_str().expect("a path").to_owned();
    assert!(netns.starts_with("/run/netns/"), "plugins see the conventional path: {netns}");
    assert_eq!(details["network"]["result"]["interfaces"][2]["sandbox"], netns.as_str(), "{details}");
    let (host, listener) = (Netns::of_host(&node), Netns::at(&netns).listen("0.0.0.0:80"));
    host.reach("10.77.0.2:80", &listener);
    host.reach("127.0.0.1:8080", &listener);
    drop(listener);

    fs::remove_file(configuration(&node)).expect("the configuration goes");
    node.delete(&id).await;
    assert_eq!(given(&node, "test"), 0);
    node.finish().await;
}

#[tokio::test]
async fn a_network_that_is_not_ready_says_why() {
    let node = start().await;
    assert!(network_condition(&node).await.status, "without a configuration the built-in network serves");
    fs::write(configuration(&node), "{\"name\":\"test\"}").expect("a configuration");
    let condition = network_condition(&node).await;
    assert_eq!((condition.status, condition.reason.as_str()), (false, "NetworkPluginNotReady"));
    assert!(condition.message.contains("10-test.conflist: cniVersion is missing"), "{}", condition.message);
    let plugins = json!([{ "type": "agent" }]);
    let network = json!({ "cniVersion": "1.1.0", "name": "test", "plugins": plugins });
    fs::write(configuration(&node), network.to_string()).expect("a configuration");
    script(
        &node,
        "agent",
        r#"[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code":50,"msg":"the agent is not running"}'; exit 1"#,
    );
    let condition = network_condition(&node).await;
    assert!(!condition.status && condition.message.contains("STATUS: the agent is not running"), "{condition:?}");
    let config = pod(&node, "early");
    let words = ["CNI network test: plugin agent, ADD: the agent is not running (code 50)"];
    refused(node.try_run_pod(&config, "").await, Code::Internal, &words);
    script(&node, "agent", r#"[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"192.0.2.7/24"}]}'; exit 0"#);
    eventually("the network is ready again", async || network_condition(&node).await.status.then_some(())).await;
    let mut wishful = pod(&node, "wishful");
    wishful.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "fast".to_owned());
    let words = ["annotation kubernetes.io/egress-bandwidth \"fast\""];
    refused(node.try_run_pod(&wishful, "").await, Code::InvalidArgument, &words);
    let id = node.run_pod(&config).await;
    node.delete(&id).await;
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_that_dies_amid_an_attachment_leaves_no_address_taken() {
    let node = start().await;
    fs::write(configuration(&node), chain(&node, &[json!({ "type": "hang" })]).to_string()).expect("a configuration");
    let begun = node.dir().join("begun");
    script(
        &node,
        "hang",
        &format!("[ $CNI_COMMAND = ADD ] && {{ echo >{}; exec sleep 600; }}; exit 0", begun.display()),
    );
    let config = pod(&node, "unlucky");
    tokio::select! {
        result = node.try_run_pod(&config, "") => panic!("{result:?}"),
        () = eventually("the plugin hangs", async || begun.exists().then_some(())) => {}
    }
    assert_eq!(given(&node, "test"), 2);
    node.crash().await;
    assert_eq!(given(&node, "test"), 0, "the next daemon has undone it before it serves");
    let own = format!("{}\0", node.dir().join("bin").display());
    let left = fs::read_dir("/proc").expect("processes").flatten().filter(|process| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&own)
    });
    assert_eq!(left.count(), 0, "the plugin has not outlived its daemon");
    node.finish().await;
}

#[tokio::test]
async fn the_clusters_addresses_make_the_configuration() {
    let node = start().await;
    let ipam = json!({ "type": "host-local", "subnet": "{{.PodCIDR}}", "dataDir": node.dir().join("ipam") });
    let template = json!({ "cniVersion": "1.0.0", "name": "node", "plugins": [{ "type": "ptp", "ipam": ipam }] });
    fs::write(node.dir().join("template"), template.to_string()).expect("a template");
    let update = async |text: &str| {
        let network_config = Some(NetworkConfig { pod_cidr: text.to_owned() });
        let request = UpdateRuntimeConfigRequest { runtime_config: Some(RuntimeConfig { network_config }) };
        node.runtime.clone().update_runtime_config(request).await
    };
    refused(update("10.66.0.0/33").await, Code::InvalidArgument, &["pod_cidr", "10.66.0.0/33"]);
    update("").await.expect("nothing to say");
    update("10.66.0.0/24,fd66::/64").await.expect("UpdateRuntimeConfig");
    let id = node.run_pod(&pod(&node, "placed")).await;
    assert_eq!(node.pod_ips(&id).await, ["10.66.0.2".parse::<IpAddr>().expect("an address")]);
    node.delete(&id).await;
    assert_eq!(given(&node, "node"), 0);
    node.finish().await;
}
