//! Pods of CNI networks, by Debian's plugins and by scripts: attached, reached, detached, and nothing of them left.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use lab::{HOST, Lab, Pod, attach, pins, port, remove, request};
use podwright_base::config;
use podwright_network::Protocol::{Tcp, Udp};
use podwright_network::{AttachError, ClaimError, LeaseError, Network};
use serde_json::{Value, json};

const BRIDGE: &str = "cni-guests";

fn config(lab: &Lab) -> config::Network {
    let debian = std::env::var_os("PODWRIGHT_TEST_CNI").unwrap_or_else(|| "/usr/lib/cni".into());
    config::Network { cni_bin_dirs: vec![debian.into(), lab.dir.path().join("bin")], ..lab.config() }
}

/// Configures Debian's bridge with addresses from a directory of the test's, and what follows it in the chain.
fn configure(lab: &Lab, version: &str, rest: &[Value]) {
    let ranges = json!([[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd77::/64" }]]);
    let bridge = json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "ranges": ranges, "dataDir": lab.dir.path().join("ipam"),
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    });
    let plugins: Vec<_> = std::iter::once(bridge).chain(rest.iter().cloned()).collect();
    write(lab, &json!({ "cniVersion": version, "name": "guests", "plugins": plugins }));
}

fn write(lab: &Lab, network: &Value) {
    let dir = lab.dir.path().join("cni");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("10-guests.conflist"), network.to_string()).unwrap();
}

fn script(lab: &Lab, name: &str, text: &str) {
    let dir = lab.dir.path().join("bin");
    fs::create_dir_all(&dir).unwrap();
    let temporary = lab.dir.path().join(name);
    fs::write(&temporary, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(temporary, dir.join(name)).unwrap();
}

/// The files of a directory that are addresses.
fn given(lab: &Lab) -> usize {
    let Ok(entries) = fs::read_dir(lab.dir.path().join("ipam/guests")) else { return 0 };
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().parse::<IpAddr>().is_ok()).count()
}

fn assert_no_guests(lab: &Lab) {
    assert_eq!(given(lab), 0);
    assert_eq!(pins(&lab.layout("d")), Vec::<String>::new());
    let left = fs::read_dir(lab.layout("d").network()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name != "cni" && name != "network.json" && name != "node.json").collect();
    assert!(left.is_empty(), "{left:?}");
    if let Ok(records) = fs::read_dir(lab.layout("d").cni_attachments()) {
        assert_eq!(records.count(), 0);
    }
    let links = lab.host.links();
    assert!(!links.iter().any(|name| name.starts_with("veth")), "{links:?}");
    assert!(!lab.has_table());
}

#[test]
fn host_ports_that_no_plugin_opens_are_built_in() {
    Lab::test(|lab| async move {
        // The bridge sends a pod's own packets back to it, so detection would find its address taken.
        lab.host.sysctl("ipv6/conf/default/accept_dad", "0");
        configure(&lab, "1.0.0", &[]);
        let network = lab.open_with(&config(&lab)).await;
        assert!(network.status().await.ready);
        let (web, peer) = (Pod::fresh(), Pod::fresh());
        for pod in [&web, &peer] {
            pod.netns.sysctl("ipv6/conf/default/accept_dad", "0");
        }
        let of_peer = attach(&network, &peer, &[]).await.unwrap();
        let ports = [port(Tcp, None, 8080, 80), port(Tcp, Some("127.0.0.1"), 8081, 80), port(Udp, None, 8082, 80)];
        let attached = attach(&network, &web, &ports).await.unwrap();
        let ips = ["10.77.0.3", "fd77::3"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!((&attached.ips[..], attached.interface.as_str()), (&ips[..], "eth0"));
        assert!(web.netns.ip("link show eth0").contains(&attached.mac), "{}", attached.mac);

        let listener = web.netns.listen("[::]:80");
        peer.netns.talk("10.77.0.3:80", &listener);
        lab.world.talk(&format!("{HOST}:8080"), &listener);
        lab.world.talk("[2001:db8::2]:8080", &listener);
        lab.host.talk("127.0.0.1:8080", &listener);
        lab.host.talk("127.0.0.1:8081", &listener);
        lab.host.talk("[::1]:8080", &listener);
        // Its answer comes by the host, not to the peer directly.
        assert_ne!(peer.netns.talk(&format!("{HOST}:8080"), &listener), of_peer.ips[0]);
        web.netns.talk(&format!("{HOST}:8080"), &listener);
        web.netns.talk("10.77.0.1:8080", &listener);
        assert_eq!(lab.host.read_sysctl(&format!("ipv4/conf/{BRIDGE}/route_localnet")), "1");
        let devices = lab.host.nft(&format!("list set inet {} guest_devices", lab.table()));
        assert!(devices.contains(BRIDGE), "{devices}");

        remove(&network, &web).await;
        assert!(lab.world.is_refused(&format!("{HOST}:8080")));
        assert_eq!(lab.host.read_sysctl(&format!("ipv4/conf/{BRIDGE}/route_localnet")), "0");
        remove(&network, &peer).await;
        assert_no_guests(&lab);
    });
}

#[test]
fn what_listens_on_the_hosts_loopback_is_not_for_guests() {
    Lab::test(|lab| async move {
        configure(&lab, "1.0.0", &[]);
        let network = lab.open_with(&config(&lab)).await;
        let pod = Pod::fresh();
        attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        // A pod that may do so sends 127.0.0.1 over the wire.
        pod.netns.ip("route delete local 127.0.0.0/8 dev lo table local");
        pod.netns.ip("route delete local 127.0.0.1 dev lo table local");
        pod.netns.ip("route add 127.0.0.0/8 via 10.77.0.1");
        pod.netns.sysctl("ipv4/conf/eth0/route_localnet", "1");
        let (secret, open) = (lab.host.udp("127.0.0.1:7000"), lab.host.udp("10.77.0.1:7001"));
        let sender = pod.netns.udp("10.77.0.2:0");
        let send_both = || {
            sender.send_to(b"for the host", "127.0.0.1:7000").unwrap();
            // What is sent later arrives later.
            sender.send_to(b"for all", "10.77.0.1:7001").unwrap();
            open.recv(&mut [0; 16]).unwrap();
        };
        secret.set_nonblocking(true).unwrap();
        send_both();
        assert_eq!(secret.recv(&mut [0; 16]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        // It is the guard that keeps it away.
        lab.host.nft(&format!("flush chain inet {} guard", lab.table()));
        send_both();
        assert_eq!(secret.recv(&mut [0; 16]).unwrap(), b"for the host".len());
        remove(&network, &pod).await;
        assert_no_guests(&lab);
    });
}

#[test]
fn host_ports_are_the_plugins_when_one_opens_them() {
    Lab::test(|lab| async move {
        configure(&lab, "1.0.0", &[json!({ "type": "portmap", "capabilities": { "portMappings": true } })]);
        let network = lab.open_with(&config(&lab)).await;
        let (web, other) = (Pod::fresh(), Pod::fresh());
        attach(&network, &web, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        lab.world.talk(&format!("{HOST}:8080"), &web.netns.listen("0.0.0.0:80"));
        assert!(!lab.has_table(), "the built-in table is not needed");
        let taken = attach(&network, &other, &[port(Tcp, None, 8080, 80)]).await.unwrap_err();
        assert!(
            matches!(taken, AttachError::Lease(LeaseError::Port(ClaimError::Taken { ref pod, .. })) if *pod == web.id),
            "{taken}"
        );
        remove(&network, &web).await;
        attach(&network, &other, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        remove(&network, &other).await;
        assert_no_guests(&lab);
    });
}

#[test]
fn pods_are_detached_from_what_they_were_attached_to() {
    Lab::test(|lab| async move {
        let network = lab.open_with(&config(&lab)).await;
        let (early, guest, late) = (Pod::fresh(), Pod::fresh(), Pod::fresh());
        attach(&network, &early, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        configure(&lab, "0.4.0", &[]);
        let attached = attach(&network, &guest, &[port(Tcp, None, 8081, 80)]).await.unwrap();
        assert_eq!(attached.ips[0], "10.77.0.2".parse::<IpAddr>().unwrap(), "live pods do not hold the change up");
        fs::remove_dir_all(lab.dir.path().join("cni")).unwrap();
        let built_in = attach(&network, &late, &[]).await.unwrap();
        assert_eq!(built_in.ips[0], "10.88.0.3".parse::<IpAddr>().unwrap());
        lab.world.talk(&format!("{HOST}:8080"), &early.netns.listen("0.0.0.0:80"));
        lab.world.talk(&format!("{HOST}:8081"), &guest.netns.listen("0.0.0.0:80"));

        // As after a restart, by which the rules are made anew.
        drop(network);
        let network = lab.open_with(&config(&lab)).await;
        let swept = network.sweep(&[&early, &guest, &late].map(|pod| pod.id.clone()).into()).await;
        assert!(swept.errors.is_empty() && swept.attachments.is_empty(), "{swept:?}");
        lab.world.talk(&format!("{HOST}:8081"), &guest.netns.listen("0.0.0.0:80"));
        assert!(network.check(&early.id).await.is_err());
        network.check(&guest.id).await.unwrap();
        assert_eq!(network.plugins_result(&guest.id).unwrap().unwrap().addresses("eth0"), attached.ips);
        assert_eq!(network.plugins_result(&early.id).unwrap(), None);
        for pod in [&guest, &early, &late] {
            remove(&network, pod).await;
        }
        assert_no_guests(&lab);
    });
}

#[test]
fn a_sweep_detaches_guests_that_are_not_live() {
    Lab::test(|lab| async move {
        configure(&lab, "1.0.0", &[json!({ "type": "portmap", "capabilities": { "portMappings": true } })]);
        let network = lab.open_with(&config(&lab)).await;
        let (dead, lost, live) = (Pod::fresh(), Pod::fresh(), Pod::fresh());
        attach(&network, &dead, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        attach(&network, &lost, &[port(Tcp, None, 8081, 80)]).await.unwrap();
        attach(&network, &live, &[]).await.unwrap();
        drop(network);
        fs::remove_file(lab.layout("d").network().join(format!("cni/guests-{}-eth0.json", lost.id))).unwrap();
        let network = lab.open_with(&config(&lab)).await;
        let swept = network.sweep(&HashSet::from([live.id.clone()])).await;
        assert!(swept.errors.is_empty(), "{swept:?}");
        let gone = HashSet::from([dead.id.clone(), lost.id.clone()]);
        let attachments: HashSet<_> = swept.attachments.iter().map(|pod| pod.parse().unwrap()).collect();
        assert_eq!((attachments, HashSet::from_iter(swept.pins)), (gone.clone(), gone));
        let rules = lab.host.nft("list ruleset");
        assert!(!rules.contains("8080") && !rules.contains("8081"), "{rules}");
        assert_eq!((given(&lab), dead.netns.links(), lost.netns.links().len()), (2, vec!["lo".to_owned()], 1));
        remove(&network, &live).await;
        assert_no_guests(&lab);
    });
}

#[test]
fn readiness_and_failures_are_told_in_the_plugins_words() {
    Lab::test(|lab| async move {
        script(&lab, "agent", r#"echo '{"code":50,"msg":"the agent is not running"}'; exit 1"#);
        write(&lab, &json!({ "cniVersion": "1.1.0", "name": "guests", "plugins": [{ "type": "agent" }] }));
        let network = lab.open_with(&config(&lab)).await;
        let status = network.status().await;
        assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
        let words = "CNI network guests: plugin agent, STATUS: the agent is not running (code 50)";
        assert_eq!(status.message, words);
        script(&lab, "agent", "exit 0");
        assert_eq!(network.status().await.message, words, "the answer counts for some seconds");
        write(&lab, &json!({ "cniVersion": "1.1.0", "name": "guests2", "plugins": [{ "type": "agent" }] }));
        assert!(network.status().await.ready, "but not for another configuration");
        write(&lab, &json!({ "cniVersion": "0.4.0", "name": "guests", "plugins": [{ "type": "absent" }] }));
        let status = network.status().await;
        assert!(status.message.contains("no executable file absent in "), "{}", status.message);

        script(&lab, "agent", r#"[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code":11,"msg":"no addresses"}'; exit 1"#);
        configure(&lab, "1.0.0", &[json!({ "type": "agent" })]);
        let pod = Pod::fresh();
        let error = attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap_err();
        assert_eq!(error.to_string(), "CNI network guests: plugin agent, ADD");
        let told = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(told, "no addresses (code 11)");
        let annotations = BTreeMap::from([("kubernetes.io/ingress-bandwidth".to_owned(), "a lot".to_owned())]);
        let pin = network.pin(&pod.id, pod.netns.fd().as_fd()).unwrap();
        let error = network.attach(&pod.id, &pin, &request(&[], &annotations)).await.unwrap_err();
        assert!(matches!(error, AttachError::Annotation(_)), "{error}");
        script(&lab, "agent", r#"[ $CNI_COMMAND = ADD ] && echo '{"ips":[]}'; exit 0"#);
        let error = attach(&network, &pod, &[]).await.unwrap_err();
        assert!(matches!(error, AttachError::NoAddress { .. }), "{error}");
        network.unpin(&pod.id).unwrap();
        assert_no_guests(&lab);
    });
}

#[test]
fn the_nodes_pod_addresses_are_used_once_nobody_has_others() {
    Lab::test(|lab| async move {
        let network = lab.open_with(&config(&lab)).await;
        let first = |network: &Network| {
            let network = network.clone();
            async move {
                let pod = Pod::fresh();
                let ips = attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap().ips;
                (pod, ips)
            }
        };
        assert!(network.set_pod_cidr("10.244.1.0").await.is_err());
        let (early, ips) = first(&network).await;
        assert_eq!(ips[0], "10.88.0.2".parse::<IpAddr>().unwrap());
        network.set_pod_cidr("10.244.1.0/24, fd24:1::/64").await.unwrap();
        let late = Pod::fresh();
        let ips = attach(&network, &late, &[]).await.unwrap().ips;
        assert_eq!(ips[0], "10.88.0.3".parse::<IpAddr>().unwrap(), "live pods keep their neighbours");
        remove(&network, &early).await;
        remove(&network, &late).await;

        let expected = ["10.244.1.2", "fd24:1::2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let (pod, ips) = first(&network).await;
        assert_eq!(ips, expected);
        lab.world.talk(&format!("{HOST}:8080"), &pod.netns.listen("0.0.0.0:80"));
        assert!(!lab.host.ip("address").contains("10.88."), "the last subnet has gone");
        let network = lab.open_with(&config(&lab)).await;
        remove(&network, &pod).await;
        let (pod, ips) = first(&network).await;
        assert_eq!(ips, ["10.244.1.3", "fd24:1::3"].map(|ip| ip.parse::<IpAddr>().unwrap()), "after a restart as well");
        remove(&network, &pod).await;
        // Configured subnets go before.
        let configured = config::Network { ipv4: Some("10.99.0.0/24".parse().unwrap()), ..config(&lab) };
        let network = lab.open_with(&configured).await;
        let (pod, ips) = first(&network).await;
        assert_eq!(ips[0], "10.99.0.2".parse::<IpAddr>().unwrap());
        remove(&network, &pod).await;
        assert_no_guests(&lab);
    });
}

#[test]
fn a_template_becomes_the_configuration_once_the_node_has_addresses() {
    Lab::test(|lab| async move {
        let template = lab.dir.path().join("cni.template");
        let text = json!({
            "cniVersion": "1.0.0", "name": "guests", "plugins": [{
                "type": "ptp", "ipam": { "type": "host-local", "subnet": "{{.PodCIDR}}", "dataDir": lab.dir.path().join("ipam") },
            }],
        });
        fs::write(&template, text.to_string()).unwrap();
        let config = config::Network { cni_conf_template: Some(template), ..config(&lab) };
        let network = lab.open_with(&config).await;
        network.set_pod_cidr("10.66.0.0/24").await.unwrap();
        let pod = Pod::fresh();
        assert_eq!(attach(&network, &pod, &[]).await.unwrap().ips, ["10.66.0.2".parse::<IpAddr>().unwrap()]);
        remove(&network, &pod).await;
        assert_no_guests(&lab);
    });
}
