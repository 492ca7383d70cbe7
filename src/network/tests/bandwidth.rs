//! Pods on the bridge whose annotations limit their bandwidth, as `tc` sees them.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use lab::{Lab, Netns, Pod, attach, remove, request};
use podwright_base::chain;
use podwright_network::{AttachError, Attachment, Network};
use serde_json::Value;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

async fn limit(network: &Network, pod: &Pod, limits: &[(&str, &str)]) -> Result<Attachment, AttachError> {
    let pin = network.pin(&pod.id, pod.netns.fd().as_fd()).unwrap();
    let annotations: BTreeMap<_, _> = limits.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    network.attach(&pod.id, &pin, &request(&[], &annotations)).await
}

/// The devices that packets to the pod and from it wait at.
fn devices(pod: &Pod) -> [String; 2] {
    ["pv", "pi"].map(|kind| format!("{kind}{}", pod.id.short()))
}

/// The token bucket of a device.
fn bucket(host: &Netns, device: &str) -> Option<Value> {
    let text = host.run("tc", &["-s", "-j", "qdisc", "show", "dev", device]);
    let Value::Array(list) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
    list.into_iter().find(|discipline| discipline["kind"] == "tbf")
}

/// The bytes per second of a device's token bucket.
fn rate(host: &Netns, device: &str) -> Option<u64> {
    bucket(host, device)?["options"]["rate"].as_u64()
}

fn count(host: &Netns, device: &str, counter: &str) -> u64 {
    bucket(host, device).unwrap()[counter].as_u64().unwrap()
}

/// Sends 400 kB from one namespace to another.
fn send(from: &Netns, to: &Netns, address: SocketAddr) {
    let listener = to.listen(&address.to_string());
    let mut stream = from.within(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap();
    let mut other = listener.accept().unwrap().0;
    std::thread::scope(|scope| {
        scope.spawn(move || stream.write_all(&[0; 400_000]).unwrap());
        let mut bytes = Vec::new();
        other.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 400_000);
    });
}

/// Sends more datagrams at once than wait for a slow bucket.
fn flood(from: &Netns, to: &str) {
    for _ in 0..10 {
        let socket = from.udp("0.0.0.0:0");
        socket.set_nonblocking(true).unwrap();
        for _ in 0..50 {
            // What does not fit into the socket's buffer is not sent: others have one as well.
            let _ = socket.send_to(&[0; 1400], to);
        }
    }
}

#[test]
fn both_directions_wait_for_their_buckets() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (pod, other) = (Pod::fresh(), Pod::fresh());
        let ips = limit(&network, &pod, &[(INGRESS, "100M"), (EGRESS, "50M")]).await.unwrap().ips;
        let other_ips = attach(&network, &other, &[]).await.unwrap().ips;
        let [veth, ifb] = devices(&pod);
        assert_eq!((rate(&lab.host, &veth), rate(&lab.host, &ifb)), (Some(12_500_000), Some(6_250_000)));
        let [plain, none] = devices(&other);
        assert_eq!((bucket(&lab.host, &plain), lab.host.links().contains(&none)), (None, false));
        let alias = format!("alias podwright-{} {}", lab.layout("d").instance().unwrap(), pod.id);
        assert!(lab.host.ip(&format!("link show {ifb}")).contains(&alias));
        let overlimits = || [&veth, &ifb].map(|device| count(&lab.host, device, "overlimits"));
        for (ip, other_ip) in ips.iter().zip(&other_ips) {
            let before = overlimits();
            send(&other.netns, &pod.netns, SocketAddr::new(*ip, 80));
            send(&pod.netns, &other.netns, SocketAddr::new(*other_ip, 80));
            let after = overlimits();
            assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
        }
        remove(&network, &pod).await;
        remove(&network, &other).await;
        lab.assert_no_pods();
    });
}

#[test]
fn what_is_too_much_for_a_slow_bucket_is_dropped() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let attached = limit(&network, &pod, &[(INGRESS, "1k"), (EGRESS, "1k")]).await.unwrap();
        let [veth, ifb] = devices(&pod);
        // To neighbours that are known: what waits for an address waits elsewhere.
        lab.host.ip(&format!("neigh replace 10.88.0.2 lladdr {} dev {}", attached.mac, lab.bridge()));
        pod.netns.ip("neigh replace 10.88.0.1 lladdr 02:00:00:00:00:01 dev eth0");
        flood(&lab.host, "10.88.0.2:9");
        flood(&pod.netns, "10.88.0.1:9");
        for device in [veth, ifb] {
            assert!(count(&lab.host, &device, "drops") > 0 && count(&lab.host, &device, "backlog") > 0, "{device}");
        }
        remove(&network, &pod).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_retry_makes_the_limits_that_are_asked_for_now() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let [veth, ifb] = devices(&pod);
        let rates = || {
            let of = |device: &String| lab.host.links().contains(device).then(|| rate(&lab.host, device)).flatten();
            (of(&veth), of(&ifb))
        };
        limit(&network, &pod, &[(EGRESS, "10M")]).await.unwrap();
        assert_eq!(rates(), (None, Some(1_250_000)));
        limit(&network, &pod, &[(INGRESS, "40G"), (EGRESS, "20M")]).await.unwrap();
        assert_eq!(rates(), (Some(5_000_000_000), Some(2_500_000)));
        lab.host.ip(&format!("link delete {ifb}"));
        lab.host.run("tc", &["qdisc", "delete", "dev", &veth, "root"]);
        limit(&network, &pod, &[(INGRESS, "40G"), (EGRESS, "20M")]).await.unwrap();
        assert_eq!(rates(), (Some(5_000_000_000), Some(2_500_000)));
        send(&pod.netns, &lab.host, "10.88.0.1:80".parse().unwrap());
        limit(&network, &pod, &[(INGRESS, "1M")]).await.unwrap();
        assert_eq!(rates(), (Some(125_000), None));
        limit(&network, &pod, &[]).await.unwrap();
        assert_eq!(rates(), (None, None));
        assert!(!lab.host.run("tc", &["qdisc", "show", "dev", &veth]).contains("ingress"));
        send(&pod.netns, &lab.host, "10.88.0.1:80".parse().unwrap());
        remove(&network, &pod).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_sweep_removes_the_devices_of_pods_that_are_no_more() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (dead, lost, live) = (Pod::fresh(), Pod::fresh(), Pod::fresh());
        for pod in [&dead, &lost, &live] {
            limit(&network, pod, &[(EGRESS, "10M")]).await.unwrap();
        }
        fs::remove_file(lab.layout("d").network().join(format!("{}.json", lost.id))).unwrap();
        drop(network);
        let network = lab.open().await;
        let swept = network.sweep(&HashSet::from([live.id.clone()])).await;
        assert!(swept.errors.is_empty(), "{swept:?}");
        assert_eq!(HashSet::from_iter(swept.links), HashSet::from(devices(&lost)));
        assert_eq!(rate(&lab.host, &devices(&live)[1]), Some(1_250_000));
        remove(&network, &live).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_limit_that_makes_no_sense_is_refused_by_name() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        for value in ["fast", "0", "999", "2P"] {
            let error = limit(&network, &pod, &[(INGRESS, value)]).await.unwrap_err();
            assert!(matches!(error, AttachError::Annotation(_)), "{error:?}");
            let text = chain(&error);
            assert!(text.starts_with(&format!("annotation {INGRESS} {value:?}: a quantity of bits")), "{text}");
        }
        assert_eq!(lab.host.links(), ["lo", "up0"]);
        network.unpin(&pod.id).unwrap();
    });
}
