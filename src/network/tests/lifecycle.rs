//! Failures, retries, restarts and the sweep: nothing is left, nothing is lost.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;

use lab::{HOST, Lab, Netns, Pod, attach, pins, port, remove, request};
use podwright_base::{chain, config};
use podwright_network::Protocol::Tcp;
use podwright_network::{AttachError, BridgeError, LeaseError, Network};

#[test]
fn nothing_is_made_before_the_first_pod() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        assert!(network.status().await.ready);
        let swept = network.sweep(&HashSet::new()).await;
        assert!(swept.errors.is_empty(), "{swept:?}");
        network.detach(&Pod::fresh().id).await.unwrap();
        network.unpin(&Pod::fresh().id).unwrap();
        assert_eq!(lab.host.links(), ["lo", "up0"]);
        assert_eq!(lab.host.nft("list ruleset"), "");
        assert_eq!(lab.host.read_sysctl("ipv4/ip_forward"), "0");
    });
}

#[test]
fn detaching_works_twice_and_after_the_namespace_has_gone() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        let id = pod.id.clone();
        network.unpin(&id).unwrap();
        drop(pod);
        network.detach(&id).await.unwrap();
        network.detach(&id).await.unwrap();
        network.unpin(&id).unwrap();
        lab.assert_no_pods();
    });
}

#[test]
fn a_retry_keeps_addresses_and_connections() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let first = attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        let index = pod.netns.within(|| fs::read_to_string("/proc/thread-self/net/dev_snmp6/eth0").unwrap());
        let again = attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        assert_eq!(first, again);
        let kept = pod.netns.within(|| fs::read_to_string("/proc/thread-self/net/dev_snmp6/eth0").unwrap());
        assert_eq!(index.lines().next(), kept.lines().next(), "the device is the same");

        // Another namespace, as of a pod that was begun anew: the device moves there; and other ports.
        let begun_anew = Pod { id: pod.id.clone(), netns: Netns::fresh() };
        let moved = attach(&network, &begun_anew, &[port(Tcp, None, 8081, 80)]).await.unwrap();
        assert_eq!(first, moved);
        assert_eq!(pod.netns.links(), ["lo"]);
        lab.world.talk(&format!("{HOST}:8081"), &begun_anew.netns.listen("0.0.0.0:80"));
        assert!(lab.world.is_refused(&format!("{HOST}:8080")));
        remove(&network, &begun_anew).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_restarted_daemon_goes_on() {
    Lab::test(|lab| async move {
        let (a, b) = (Pod::fresh(), Pod::fresh());
        let network = lab.open().await;
        attach(&network, &a, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        drop(network);
        lab.host.nft("flush ruleset");

        let network = lab.open().await;
        let swept = network.sweep(&HashSet::from([a.id.clone()])).await;
        assert!(swept.errors.is_empty() && swept.leases.is_empty() && swept.links.is_empty(), "{swept:?}");
        let of_b = attach(&network, &b, &[]).await.unwrap();
        assert_eq!(of_b.ips[0], "10.88.0.3".parse::<IpAddr>().unwrap());
        let web = a.netns.listen("0.0.0.0:80");
        b.netns.talk("10.88.0.2:80", &web);
        lab.world.talk(&format!("{HOST}:8080"), &web);
        remove(&network, &a).await;
        remove(&network, &b).await;
        lab.assert_no_pods();
    });
}

#[test]
fn what_an_administrator_removed_is_made_again() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (a, b) = (Pod::fresh(), Pod::fresh());
        attach(&network, &a, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        lab.host.nft("flush ruleset");
        attach(&network, &b, &[]).await.unwrap();
        let web = a.netns.listen("0.0.0.0:80");
        lab.world.talk(&format!("{HOST}:8080"), &web);
        lab.host.ip(&format!("link delete {}", lab.bridge()));
        let c = Pod::fresh();
        attach(&network, &c, &[]).await.unwrap();
        lab.host.talk("10.88.0.4:80", &c.netns.listen("0.0.0.0:80"));
        for pod in [&a, &b, &c] {
            remove(&network, pod).await;
        }
        lab.assert_no_pods();
    });
}

#[test]
fn the_sweep_removes_what_killed_daemons_left() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (dead, live, begun) = (Pod::fresh(), Pod::fresh(), Pod::fresh());
        attach(&network, &dead, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        attach(&network, &live, &[port(Tcp, None, 8081, 80)]).await.unwrap();
        // Killed between the lease and the veth pair.
        let files = lab.layout("d").network();
        let lease = r#"{"ipv4":"10.88.0.9","ipv6":null,"ports":[]}"#;
        fs::write(files.join(format!("{}.json", begun.id)), lease).unwrap();
        fs::write(files.join("network.new"), "{").unwrap();
        // Killed within the veth pair's messages; and somebody else's port of the bridge.
        for name in ["pv0123456789ab", "others0"] {
            lab.host.ip(&format!("link add {name} type veth peer name x{name} netns {}", lab.world.path()));
            lab.host.ip(&format!("link set {name} master {}", lab.bridge()));
        }
        // A veth pair whose lease was lost.
        let lost = Pod::fresh();
        attach(&network, &lost, &[]).await.unwrap();
        fs::remove_file(files.join(format!("{}.json", lost.id))).unwrap();
        drop(network);

        let network = lab.open().await;
        let swept = network.sweep(&HashSet::from([live.id.clone()])).await;
        assert!(swept.errors.is_empty(), "{swept:?}");
        assert_eq!(
            HashSet::from_iter(swept.leases),
            HashSet::from([dead.id.clone(), begun.id.clone()]),
            "leases of pods that are no more"
        );
        assert_eq!(
            HashSet::from_iter(swept.links),
            HashSet::from(["pv0123456789ab".to_owned(), format!("pv{}", lost.id.short())])
        );
        assert_eq!(HashSet::from_iter(swept.pins), HashSet::from([dead.id.clone(), lost.id.clone()]));
        assert_eq!(lab.lease_files(), [format!("{}.json", live.id), "network.json".to_owned()].sorted());
        assert!(lab.host.links().contains(&"others0".to_owned()));
        lab.world.talk(&format!("{HOST}:8081"), &live.netns.listen("0.0.0.0:80"));
        assert!(lab.world.is_refused(&format!("{HOST}:8080")));

        lab.host.ip("link delete others0");
        remove(&network, &live).await;
        lab.assert_no_pods();
    });
}

trait Sorted {
    fn sorted(self) -> Self;
}

impl Sorted for [String; 2] {
    fn sorted(mut self) -> Self {
        self.sort();
        self
    }
}

#[test]
fn an_exhausted_subnet_is_named_and_recovers() {
    Lab::test(|lab| async move {
        let config = config::Network { ipv4: Some("10.9.0.0/30".parse().unwrap()), ..lab.config() };
        let network = lab.open_with(&config).await;
        let (a, b) = (Pod::fresh(), Pod::fresh());
        attach(&network, &a, &[]).await.unwrap();
        let error = attach(&network, &b, &[]).await.unwrap_err();
        assert!(matches!(error, AttachError::Lease(LeaseError::Exhausted { .. })), "{error:?}");
        assert!(chain(&error).contains("10.9.0.0/30"), "{}", chain(&error));
        remove(&network, &a).await;
        attach(&network, &b, &[]).await.unwrap();
        remove(&network, &b).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_configured_subnet_that_the_host_has_is_refused() {
    Lab::test(|lab| async move {
        let config = config::Network { ipv4: Some("192.0.0.0/16".parse().unwrap()), ..lab.config() };
        let network = lab.open_with(&config).await;
        let pod = Pod::fresh();
        let error = attach(&network, &pod, &[]).await.unwrap_err();
        let AttachError::Bridge(BridgeError::Overlap { device, .. }) = &error else { panic!("{error:?}") };
        assert_eq!(device, "up0");
        assert!(chain(&error).contains("192.0.0.0/16"), "{}", chain(&error));
        assert_eq!(lab.host.links(), ["lo", "up0"]);
        network.unpin(&pod.id).unwrap();
    });
}

#[test]
fn daemons_side_by_side_share_nothing() {
    Lab::test(|lab| async move {
        lab.host.ip("route add 10.88.16.0/24 via 192.0.2.1");
        let one = lab.open().await;
        let two = Network::open(&lab.layout("e"), &lab.config()).await.unwrap();
        let (a, b) = (Pod::fresh(), Pod::fresh());
        assert_eq!(attach(&one, &a, &[]).await.unwrap().ips[0], "10.88.0.2".parse::<IpAddr>().unwrap());
        let of_b = attach(&two, &b, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        assert_eq!(of_b.ips[0], "10.88.32.2".parse::<IpAddr>().unwrap());
        let swept = one.sweep(&HashSet::from([a.id.clone()])).await;
        assert!(swept.pins.is_empty() && swept.links.is_empty() && swept.leases.is_empty(), "{swept:?}");
        let in_b = b.netns.listen("0.0.0.0:80");
        lab.world.talk(&format!("{HOST}:8080"), &in_b);
        a.netns.talk("10.88.32.2:80", &in_b);
        remove(&one, &a).await;
        remove(&two, &b).await;
        assert_eq!(pins(&lab.layout("e")), Vec::<String>::new());
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let first = Pod::fresh();
        attach(&network, &first, &[]).await.unwrap();
        remove(&network, &first).await;

        let pod = Pod::fresh();
        pod.netns.ip("link add eth0 type bridge");
        let error = attach(&network, &pod, &[port(Tcp, None, 8080, 80)]).await.unwrap_err();
        assert!(matches!(error, AttachError::Veth { .. }), "{error:?}");
        network.unpin(&pod.id).unwrap();
        lab.assert_no_pods();

        let missing = network
            .attach(&pod.id, std::path::Path::new("/run/netns/none"), &request(&[], &BTreeMap::new()))
            .await
            .unwrap_err();
        assert!(matches!(missing, AttachError::Netns { .. }), "{missing:?}");
        let no_netns = network
            .attach(&pod.id, std::path::Path::new("/dev/null"), &request(&[], &BTreeMap::new()))
            .await
            .unwrap_err();
        assert!(matches!(no_netns, AttachError::Enter { .. }), "{no_netns:?}");
        lab.assert_no_pods();
    });
}

#[test]
fn another_device_with_the_bridges_name_is_named() {
    Lab::test(|lab| async move {
        lab.host.ip(&format!("link add {} type veth peer name other0", lab.bridge()));
        let network = lab.open().await;
        let pod = Pod::fresh();
        let error = attach(&network, &pod, &[]).await.unwrap_err();
        assert!(chain(&error).contains("is no bridge but \"veth\""), "{}", chain(&error));
        network.unpin(&pod.id).unwrap();
    });
}

#[test]
fn another_device_with_a_pods_name_is_named_and_left_alone() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let name = format!("pv{}", pod.id.short());
        for (kind, device) in
            [("veth", format!("{name} type veth peer name other0")), ("bridge", format!("{name} type bridge"))]
        {
            lab.host.ip(&format!("link add {device}"));
            let error = attach(&network, &pod, &[]).await.unwrap_err();
            assert!(
                matches!(&error, AttachError::NameTaken { name: n, kind: k } if *n == name && k == kind),
                "{error:?}"
            );
            network.detach(&pod.id).await.unwrap();
            assert!(lab.host.links().contains(&name));
            lab.host.ip(&format!("link delete {name}"));
            attach(&network, &pod, &[]).await.unwrap();
            remove(&network, &pod).await;
            lab.assert_no_pods();
        }
    });
}

#[test]
fn a_cni_configuration_is_not_passed_over() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let dir = lab.dir.path().join("cni");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("10-pods.conflist"), "{}").unwrap();
        let status = network.status().await;
        assert_eq!((status.ready, status.reason.as_str()), (false, "NetworkPluginNotReady"));
        assert!(status.message.contains("10-pods.conflist: name is missing"), "{}", status.message);
        let pod = Pod::fresh();
        let pin = network.pin(&pod.id, pod.netns.fd().as_fd()).unwrap();
        let error = network.attach(&pod.id, &pin, &request(&[], &BTreeMap::new())).await.unwrap_err();
        assert!(matches!(error, AttachError::CniConfig(_)), "{error:?}");
        network.unpin(&pod.id).unwrap();
        assert_eq!(lab.host.links(), ["lo", "up0"]);
    });
}

#[test]
fn many_pods_come_and_go_at_once() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pods: Vec<Pod> = (0..12).map(|_| Pod::fresh()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (pod, number) in pods.iter().zip(1..) {
            let pin = network.pin(&pod.id, pod.netns.fd().as_fd()).unwrap();
            let (network, id) = (network.clone(), pod.id.clone());
            tasks.spawn(async move {
                let ports = [port(Tcp, None, 8000 + number, 80)];
                network.attach(&id, &pin, &request(&ports, &BTreeMap::new())).await.unwrap()
            });
        }
        let addresses: HashSet<IpAddr> = tasks.join_all().await.into_iter().map(|attached| attached.ips[0]).collect();
        assert_eq!(addresses.len(), pods.len());
        for (pod, number) in pods.iter().zip(1..) {
            lab.world.talk(&format!("{HOST}:{}", 8000 + number), &pod.netns.listen("0.0.0.0:80"));
        }
        let mut tasks = tokio::task::JoinSet::new();
        for pod in &pods {
            let (network, id) = (network.clone(), pod.id.clone());
            tasks.spawn(async move {
                network.detach(&id).await.unwrap();
                network.unpin(&id).unwrap();
            });
        }
        tasks.join_all().await;
        lab.assert_no_pods();
    });
}
