//! The built-in network against a whole daemon, most often with a network namespace of its own for a host: what pods reach
//! and who reaches them, what is refused and until when, and what is left when they have gone.

use std::net::{IpAddr, TcpListener};

use k8s_cri::v1::*;
use tonic::Code;

use crate::lab::cri::{eventually, pod, refused};
use crate::lab::netns::Netns;
use crate::lab::{Node, Setup};

/// Pods that come and go at once.
const AT_ONCE: usize = 8;

fn port(protocol: Protocol, host_ip: &str, host_port: u16) -> PortMapping {
    PortMapping {
        protocol: protocol.into(),
        container_port: 80,
        host_port: host_port.into(),
        host_ip: host_ip.to_owned(),
    }
}

fn with_ports(node: &Node, name: &str, ports: &[PortMapping]) -> PodSandboxConfig {
    PodSandboxConfig { port_mappings: ports.to_vec(), ..pod(node, name) }
}

async fn alone(network: &str) -> (Node, Netns) {
    let node = Node::start_with(Setup { network, own_network: true, ..Setup::default() }).await;
    let host = Netns::of_host(&node);
    (node, host)
}

/// Gives a host a neighbour, to which its default routes lead.
fn world_of(host: &Netns) -> Netns {
    let world = Netns::fresh();
    host.ip(&format!("link add up0 type veth peer name up0 netns {}", world.path()));
    for (netns, number) in [(host, 2), (&world, 1)] {
        netns.ip(&format!("address add 192.0.2.{number}/24 dev up0"));
        netns.ip(&format!("address add 2001:db8::{number}/64 dev up0 nodad"));
        netns.ip("link set up0 up");
    }
    host.ip("route add default via 192.0.2.1");
    host.ip("route add default via 2001:db8::1");
    world
}

#[tokio::test]
async fn the_world_reaches_host_ports_and_pods_reach_the_world_as_their_host() {
    let (node, host) = alone("").await;
    let world = world_of(&host);
    let id = node.run_pod(&with_ports(&node, "web", &[port(Protocol::Tcp, "", 8080)])).await;
    let (inside, ips) = (Netns::of_pod(&node, &id).await, node.pod_ips(&id).await);
    let web = inside.listen("[::]:80");
    for (from, to) in [
        (&world, "192.0.2.2:8080"),
        (&world, "[2001:db8::2]:8080"),
        (&host, "127.0.0.1:8080"),
        (&host, "[::1]:8080"),
        (&host, "192.0.2.2:8080"),
        (&host, "[2001:db8::2]:8080"),
        (&inside, "192.0.2.2:8080"),
        (&inside, "[2001:db8::2]:8080"),
    ] {
        let seen = from.reach(to, &web);
        let is_world = ["::ffff:192.0.2.1", "2001:db8::1"].contains(&seen.to_string().as_str());
        assert_eq!(is_world, std::ptr::eq(from, &raw const world), "{to} is reached from {seen}");
    }
    let listener = world.listen("[::]:9000");
    for (to, seen) in [("192.0.2.1:9000", "::ffff:192.0.2.2"), ("[2001:db8::1]:9000", "2001:db8::2")] {
        assert_eq!(inside.reach(to, &listener).to_string(), seen);
    }
    // The host itself is no other network: it sees the pod.
    let listener = host.listen("[::]:9000");
    let seen = ["192.0.2.2:9000", "[2001:db8::2]:9000"].map(|to| inside.reach(to, &listener).to_canonical());
    assert_eq!(seen.as_slice(), ips);
    node.delete(&id).await;
    node.finish().await;
}

#[tokio::test]
async fn a_host_port_is_one_pods_until_that_goes() {
    let node = Node::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let number = listener.local_addr().expect("its address").port();
    let local = with_ports(&node, "local", &[port(Protocol::Tcp, "127.0.0.1", number)]);
    let words = [
        &*format!("config.port_mappings: host port 127.0.0.1:{number}/tcp is used by a program of the host"),
        &*format!("listens at 127.0.0.1:{number}: end it"),
    ];
    refused(node.try_run_pod(&local, "").await, Code::FailedPrecondition, &words);
    node.assert_clean();
    drop(listener);
    // A crash amid the pod's start leaves the port free for the next attempt.
    let begun = || std::fs::read_dir(node.layout().pods()).is_ok_and(|mut pods| pods.next().is_some());
    let _ = tokio::join!(node.try_run_pod(&local, ""), async {
        eventually("the pod is begun", async || begun().then_some(())).await;
        node.kill().await;
    });
    node.launch().await;
    let first = node.run_pod(&local).await;
    assert_eq!(node.run_pod(&local).await, first, "the same attempt again is the same pod");
    let beside = [(Protocol::Tcp, "127.0.0.2"), (Protocol::Tcp, "::1"), (Protocol::Udp, "")];
    let beside = beside.map(|(protocol, ip)| port(protocol, ip, number));
    let mut ids = vec![first.clone()];
    for (index, port) in beside.into_iter().enumerate() {
        ids.push(node.run_pod(&with_ports(&node, &format!("beside-{index}"), &[port])).await);
    }
    node.crash().await;
    // At all addresses the port is several pods' already, of which any may be named.
    for (ip, owner) in [("", "pod "), ("0.0.0.0", "pod "), ("127.0.0.1", &*format!("pod {first}, at 127.0.0.1"))] {
        let second = with_ports(&node, "second", &[port(Protocol::Tcp, ip, number)]);
        let words = [&*format!("{number}/tcp is used by {owner}"), "choose another port"];
        refused(node.try_run_pod(&second, "").await, Code::FailedPrecondition, &words);
    }
    for id in &ids {
        node.delete(id).await;
    }
    let mut second = with_ports(&node, "second", &[port(Protocol::Tcp, "", number)]);
    let id = node.run_pod(&second).await;
    // The kubelet's next attempt at a pod comes after the last is stopped, and before that is removed.
    node.stop_pod(&id).await.expect("StopPodSandbox");
    second.metadata.as_mut().expect("set by pod()").attempt = 1;
    let again = node.run_pod(&second).await;
    node.remove_pod(&id).await.expect("RemovePodSandbox");
    let third = with_ports(&node, "third", &[port(Protocol::Tcp, "", number)]);
    refused(node.try_run_pod(&third, "").await, Code::FailedPrecondition, &[&format!("is used by pod {again}")]);
    node.delete(&again).await;
    node.finish().await;
}

#[tokio::test]
async fn a_full_subnet_has_room_again_when_a_pod_goes() {
    let (node, host) = alone("ipv4 = \"10.9.0.0/30\"").await;
    let first = node.run_pod(&pod(&node, "first")).await;
    assert_eq!(node.pod_ips(&first).await[0], "10.9.0.2".parse::<IpAddr>().expect("an address"));
    let links = host.ip("-o link");
    let second = pod(&node, "second");
    let words = ["all addresses of 10.9.0.0/30 are used by pods", "remove some", "network.ipv4"];
    refused(node.try_run_pod(&second, "").await, Code::ResourceExhausted, &words);
    assert_eq!(host.ip("-o link"), links, "nothing is left of the second");
    node.delete(&first).await;
    let second = node.run_pod(&second).await;
    node.delete(&second).await;
    node.finish().await;
}

#[tokio::test]
async fn a_device_with_the_bridges_name_is_named_until_it_goes() {
    let (node, host) = alone("").await;
    let bridge = node.bridge();
    host.ip(&format!("link add {bridge} type veth peer name other0"));
    let config = pod(&node, "early");
    let (links, rules) = (host.ip("-o link"), host.run("nft", "list ruleset"));
    let words = [&*format!("the device {bridge} is no bridge but \"veth\": remove it"), "network.bridge"];
    refused(node.try_run_pod(&config, "").await, Code::FailedPrecondition, &words);
    assert_eq!((host.ip("-o link"), host.run("nft", "list ruleset")), (links, rules), "all is as before");
    node.assert_clean();
    host.ip(&format!("link delete {bridge}"));
    let id = node.run_pod(&config).await;
    node.delete(&id).await;
    node.finish().await;
}

#[tokio::test]
async fn pods_come_and_go_without_a_trace_in_the_packet_filter() {
    let (node, host) = alone("").await;
    host.run("nft", "add table inet firewall");
    host.run("nft", "add chain inet firewall input { type filter hook input priority 0 ; policy accept ; }");
    host.run("nft", "add rule inet firewall input tcp dport 9999 drop");
    let before = host.run("nft", "list ruleset");
    let run = async |number: usize| {
        let ports = [port(Protocol::Tcp, "", 10_000 + number as u16), port(Protocol::Udp, "127.0.0.1", 53)];
        let ports = if number == 0 { &ports[..] } else { &ports[..1] };
        node.run_pod(&with_ports(&node, &format!("pod-{number}"), ports)).await
    };
    for round in 0..3 {
        let numbers = (round * AT_ONCE..).take(AT_ONCE);
        let ids = futures_util::future::join_all(numbers.map(run)).await;
        let during = host.run("nft", "list ruleset");
        assert!(during.starts_with(&before) && during.len() > before.len(), "{during}");
        futures_util::future::join_all(ids.iter().map(|id| node.delete(id))).await;
    }
    assert_eq!(host.run("nft", "list ruleset"), before);
    node.finish().await;
}
