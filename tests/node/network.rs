//! The pods' network: addresses, names, namespaces.

use k8s_cri::v1::*;

use std::path::Path;
use std::process::Command;

use tonic::Code;

use crate::lab::Node;
use crate::lab::cri::{namespaces, pod, refused, security, shell};

const SERVE: &str = "mkdir -p /www; echo hello from $(hostname) >/www/index.html; exec httpd -f -p 80 -h /www";

#[tokio::test]
async fn pods_reach_each_other_over_both_protocols() {
    let node = Node::start_with_images(&["busybox"]).await;
    let (one, two) =
        tokio::join!(async { node.run(&shell("one", SERVE)).await }, async { node.run(&shell("two", SERVE)).await });
    let (ips_one, ips_two) = (node.pod_ips(&one.pod).await, node.pod_ips(&two.pod).await);
    for ips in [&ips_one, &ips_two] {
        assert!(ips.len() == 2 && ips[0].is_ipv4() && ips[1].is_ipv6(), "{ips:?}");
    }
    assert!(ips_one.iter().all(|ip| !ips_two.contains(ip)), "two pods have one address");
    for (from, name, ips) in [(&one, "two", &ips_two), (&two, "one", &ips_one), (&one, "one", &ips_one)] {
        for ip in ips {
            let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            node.sh(&from.container, &format!("ping -c 1 -W 5 {ip}")).await;
            let wait = format!("for n in $(seq 100); do wget -qO- http://{host}/ && exit; sleep 0.05; done; exit 1");
            assert_eq!(node.sh(&from.container, &wait).await, format!("hello from {name}\n"));
        }
    }
    let links = node.sh(&one.container, "ip -o link").await;
    assert_eq!(links.lines().count(), 2, "loopback and eth0: {links}");
    assert!(
        links.contains("eth0") && node.sh(&one.container, "ping -c 1 127.0.0.1").await.contains("1 packets received")
    );
    node.delete(&one.pod).await;
    node.delete(&two.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_knows_its_names() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = pod(&node, "names");
    config.hostname = "some-host".to_owned();
    config.dns_config = Some(DnsConfig {
        servers: vec!["192.0.2.53".to_owned(), "2001:db8::53".to_owned()],
        searches: vec!["default.svc.cluster.local".to_owned(), "cluster.local".to_owned()],
        options: vec!["ndots:5".to_owned()],
    });
    let running = node.run_in(&config, &shell("main", "while :; do sleep 0.05; done")).await;
    assert_eq!(
        node.sh(&running.container, "hostname; cat /etc/hostname; echo $HOSTNAME").await,
        "some-host\n".repeat(3)
    );
    let resolv = node.sh(&running.container, "cat /etc/resolv.conf").await;
    let lines: Vec<_> = resolv.lines().collect();
    for line in [
        "search default.svc.cluster.local cluster.local",
        "nameserver 192.0.2.53",
        "nameserver 2001:db8::53",
        "options ndots:5",
    ] {
        assert!(lines.contains(&line), "{line:?} is missing in {resolv}");
    }
    let hosts = node.sh(&running.container, "cat /etc/hosts").await;
    let ip = node.pod_ips(&running.pod).await[0].to_string();
    assert!(hosts.lines().any(|line| line.split_whitespace().eq(["127.0.0.1", "localhost"])), "{hosts}");
    assert!(hosts.lines().any(|line| line.split_whitespace().eq([ip.as_str(), "some-host"])), "{hosts}");
    assert!(node.sh(&running.container, "ping -c 1 localhost; ping -c 1 some-host").await.contains(&ip));
    node.delete(&running.pod).await;

    // Without a DNS configuration the host's own resolvers serve.
    let running = node.run(&shell("plain", "while :; do sleep 0.05; done")).await;
    let host = std::fs::read_to_string("/etc/resolv.conf").expect("the host's resolvers");
    let inside = node.sh(&running.container, "cat /etc/resolv.conf").await;
    for line in host.lines().filter(|line| line.starts_with("nameserver")) {
        assert!(inside.contains(line), "{line:?} is missing in {inside}");
    }
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pod_of_the_hosts_network_is_on_the_host() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut pod_config = pod(&node, "host-network");
    pod_config.hostname = String::new();
    namespaces(&mut pod_config).network = NamespaceMode::Node.into();
    let mut config = shell("main", "while :; do sleep 0.05; done");
    security(&mut config).namespace_options = Some(namespaces(&mut pod_config).clone());
    let running = node.run_in(&pod_config, &config).await;
    let host = std::fs::read_link("/proc/self/ns/net").expect("this process's namespace");
    let inside = node.sh(&running.container, "readlink /proc/self/ns/net").await;
    assert_eq!(inside.trim_end(), host.to_string_lossy());
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    assert_eq!(node.sh(&running.container, "hostname").await, name);
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_pods_sysctls_are_its_own() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = pod(&node, "sysctls");
    let sysctls = &mut config.linux.as_mut().expect("set by pod()").sysctls;
    for (key, value) in [("net.core.somaxconn", "321"), ("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_forward", "1")] {
        sysctls.insert(key.to_owned(), value.to_owned());
    }
    let host = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("the host's value");
    let running = node.run_in(&config, &shell("main", "while :; do sleep 0.05; done")).await;
    let inside = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_forward";
    assert_eq!(node.sh(&running.container, inside).await, "321\n1\n1\n");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("the host's value"), host);
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_network_ipc_and_shared_memory() {
    let node = Node::start_with_images(&["busybox"]).await;
    let pod_config = pod(&node, "shared");
    let pod_id = node.run_pod(&pod_config).await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let id = node.create(&pod_id, &shell(name, "while :; do sleep 0.05; done"), &pod_config).await;
        node.start_container(&id).await.expect("StartContainer");
        ids.push(id);
    }
    node.sh(&ids[0], "echo shared >/dev/shm/note; echo private >/tmp/note").await;
    assert_eq!(node.sh(&ids[1], "cat /dev/shm/note; ls /tmp").await, "shared\n");
    for namespace in ["net", "ipc", "uts"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        assert_eq!(node.sh(&ids[0], &link).await, node.sh(&ids[1], &link).await);
        let host = std::fs::read_link(format!("/proc/self/ns/{namespace}")).expect("this process's namespace");
        assert_ne!(node.sh(&ids[0], &link).await.trim_end(), host.to_string_lossy());
    }
    for namespace in ["mnt", "pid"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        assert_ne!(node.sh(&ids[0], &link).await, node.sh(&ids[1], &link).await);
    }
    node.delete(&pod_id).await;
    node.finish().await;
}

#[tokio::test]
async fn addresses_come_back_and_survive_a_restart() {
    let node = Node::start_with_images(&["busybox"]).await;
    let kept = node.run(&shell("kept", SERVE)).await;
    let kept_ips = node.pod_ips(&kept.pod).await;
    node.crash().await;
    for round in 0..3 {
        let running = node.run(&shell(&format!("passing-{round}"), SERVE)).await;
        let ips = node.pod_ips(&running.pod).await;
        assert!(ips.iter().all(|ip| !kept_ips.contains(ip)), "a restart forgot the lease of {ips:?}");
        node.sh(&kept.container, &format!("ping -c 1 -W 5 {}", ips[0])).await;
        node.delete(&running.pod).await;
    }
    assert_eq!(node.pod_ips(&kept.pod).await, kept_ips);
    node.delete(&kept.pod).await;
    node.finish().await;
}

/// What `tc` says of the token bucket of a device of a pod on the host.
fn bucket(device: &str) -> serde_json::Value {
    let output = Command::new("tc").args(["-s", "-j", "qdisc", "show", "dev", device]).output().expect("tc");
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    list.into_iter().find(|discipline| discipline["kind"] == "tbf").expect("a token bucket")
}

#[tokio::test]
async fn annotations_limit_a_pods_bandwidth() {
    let node = Node::start_with_images(&["busybox"]).await;
    let mut config = pod(&node, "limited");
    for (name, value) in [("ingress", "fast"), ("egress", "0")] {
        let name = format!("kubernetes.io/{name}-bandwidth");
        config.annotations = [(name.clone(), value.to_owned())].into();
        let words = [&*format!("annotation {name} \"{value}\""), "a quantity of bits per second from 1k to 1P"];
        refused(node.try_run_pod(&config, "").await, Code::InvalidArgument, &words);
    }
    config.annotations =
        [("ingress", "20M"), ("egress", "40M")].map(|(d, v)| (format!("kubernetes.io/{d}-bandwidth"), v.into())).into();
    let serve = SERVE.replace("exec", "dd if=/dev/zero of=/www/file bs=1000 count=500; exec");
    let (limited, peer) = tokio::join!(async { node.run_in(&config, &shell("main", &serve)).await }, async {
        node.run(&shell("peer", &serve)).await
    });
    let devices = ["pv", "pi"].map(|kind| format!("{kind}{}", &limited.pod[..12]));
    let rates = || devices.each_ref().map(|device| bucket(device)["options"]["rate"].as_u64());
    assert_eq!(rates(), [Some(2_500_000), Some(5_000_000)], "bytes per second");
    node.crash().await;
    assert_eq!(rates(), [Some(2_500_000), Some(5_000_000)], "the next daemon leaves them alone");
    let overlimits = || devices.each_ref().map(|device| bucket(device)["overlimits"].as_u64().expect("a number"));
    for (from, to, direction) in [(&peer, &limited, 1), (&limited, &peer, 0)] {
        let before = overlimits()[direction];
        let ip = node.pod_ips(&to.pod).await[0];
        let get = format!("for n in $(seq 100); do wget -qO- http://{ip}/file && exit; sleep 0.05; done; exit 1");
        assert_eq!(node.sh(&from.container, &format!("({get}) | wc -c")).await.trim(), "500000");
        let after = overlimits()[direction];
        assert!(after > before, "what is more than {} lets through waits: {before} {after}", devices[direction]);
    }
    node.delete(&limited.pod).await;
    node.delete(&peer.pod).await;
    for device in devices {
        assert!(!Path::new("/sys/class/net").join(&device).exists(), "{device} is left");
    }
    node.finish().await;
}
