//! Who reaches whom: pods, the host and the world outside, over IPv4 and IPv6.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::net::IpAddr;

use lab::{HOST, HOST6, INTERNET, Lab, Pod, WORLD6, attach, remove, talk_udp};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

#[test]
fn pods_reach_each_other_the_host_and_the_world() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (a, b) = (Pod::fresh(), Pod::fresh());
        let of_a = attach(&network, &a, &[]).await.unwrap();
        let of_b = attach(&network, &b, &[]).await.unwrap();
        assert_eq!((of_a.ips.len(), of_a.interface.as_str()), (2, "eth0"));
        assert!(of_a.ips[0].is_ipv4() && of_a.ips[1].is_ipv6());
        assert_eq!((of_a.ips[0], of_b.ips[0]), (ip("10.88.0.2"), ip("10.88.0.3")));

        for (mine, other) in of_a.ips.iter().zip(&of_b.ips) {
            // A port for each family: a listener that was dropped may still be open in a child of another test's.
            let (any, port) = if mine.is_ipv4() { ("0.0.0.0", 7004) } else { ("[::]", 7006) };
            let any = format!("{any}:{port}");
            let in_b = b.netns.listen(&any);
            assert_eq!(a.netns.talk(&at(*other, port), &in_b), *mine, "pod to pod, with its own address");
            let seen = lab.host.talk(&at(*other, port), &in_b);
            assert!(!of_a.ips.contains(&seen), "host to pod");
            let (host, world) = if mine.is_ipv4() { (HOST, INTERNET) } else { (HOST6, WORLD6) };
            let on_host = lab.host.listen(&any);
            assert_eq!(a.netns.talk(&at(ip(host), port), &on_host), *mine, "pod to host, with its own address");
            let in_world = lab.world.listen(&any);
            assert_eq!(a.netns.talk(&at(ip(world), port), &in_world), ip(host), "the world sees the host");
        }
        let (client, server) = (a.netns.udp("0.0.0.0:0"), b.netns.udp("0.0.0.0:53"));
        assert_eq!(talk_udp(&client, &at(of_b.ips[0], 53), &server), of_a.ips[0]);

        remove(&network, &a).await;
        remove(&network, &b).await;
        lab.assert_no_pods();
    });
}

#[test]
fn the_pods_device_is_as_reported() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let attachment = attach(&network, &pod, &[]).await.unwrap();
        let inside = pod.netns.ip("address show dev eth0");
        assert!(inside.contains(&format!("link/ether {}", attachment.mac)), "{inside}");
        assert!(inside.contains("inet 10.88.0.2/20"), "{inside}");
        assert!(inside.contains(&format!("inet6 {}/64", attachment.ips[1])), "{inside}");
        assert!(inside.contains("mtu 1480"), "the default route's device has it: {inside}");
        // The link-local address may be so for a moment; the pod's own must be usable at once.
        let global = inside.lines().find(|line| line.contains("scope global") && line.contains("inet6")).unwrap();
        assert!(!global.contains("tentative"), "{global}");
        assert!(!inside.contains("dadfailed"), "{inside}");
        let outside = lab.host.ip(&format!("-d link show dev pv{}", pod.id.short()));
        assert!(outside.contains(&format!("master {}", lab.bridge())), "{outside}");
        assert!(outside.contains("hairpin on"), "{outside}");
        assert!(outside.contains(&format!("alias podwright-{} {}", lab.layout("d").instance().unwrap(), pod.id)));
        assert_eq!(pod.netns.links(), ["lo", "eth0"]);
        assert_eq!(pod.netns.read_sysctl("ipv6/conf/eth0/accept_ra"), "0", "no other pod is its router");
        remove(&network, &pod).await;
    });
}

#[test]
fn without_masquerade_the_world_sees_the_pod() {
    Lab::test(|lab| async move {
        let config = podwright_base::config::Network {
            masquerade: false,
            ipv4: Some("10.7.0.0/24".parse().unwrap()),
            ipv6: Some("fd07::/64".parse().unwrap()),
            mtu: Some(1400),
            bridge: Some("pods0".to_owned()),
            ..lab.config()
        };
        let network = lab.open_with(&config).await;
        let pod = Pod::fresh();
        let attachment = attach(&network, &pod, &[]).await.unwrap();
        assert_eq!(attachment.ips, [ip("10.7.0.2"), ip("fd07::2")]);
        assert!(pod.netns.ip("link show dev eth0").contains("mtu 1400"));
        assert!(lab.host.links().contains(&"pods0".to_owned()));
        lab.world.ip("route add 10.7.0.0/24 via 192.0.2.2");
        let in_world = lab.world.listen("0.0.0.0:80");
        assert_eq!(pod.netns.talk(&format!("{INTERNET}:80"), &in_world), ip("10.7.0.2"));
        remove(&network, &pod).await;
    });
}

#[test]
fn a_host_without_ipv6_has_pods_without_it() {
    Lab::test(|lab| async move {
        lab.host.sysctl("ipv6/conf/all/disable_ipv6", "1");
        let network = lab.open().await;
        let (a, b) = (Pod::fresh(), Pod::fresh());
        assert_eq!(attach(&network, &a, &[]).await.unwrap().ips, [ip("10.88.0.2")]);
        assert_eq!(attach(&network, &b, &[]).await.unwrap().ips, [ip("10.88.0.3")]);
        let in_b = b.netns.listen("0.0.0.0:80");
        assert_eq!(a.netns.talk("10.88.0.3:80", &in_b), ip("10.88.0.2"));
        remove(&network, &a).await;
        remove(&network, &b).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_pod_without_ipv6_is_attached_with_ipv4() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        pod.netns.sysctl("ipv6/conf/default/disable_ipv6", "1");
        assert_eq!(attach(&network, &pod, &[]).await.unwrap().ips, [ip("10.88.0.2")]);
        remove(&network, &pod).await;
        lab.assert_no_pods();
    });
}

#[test]
fn forwarding_leaves_router_advertisements_on() {
    Lab::test(|lab| async move {
        assert_eq!(lab.host.read_sysctl("ipv6/conf/up0/accept_ra"), "1");
        let network = lab.open().await;
        let pod = Pod::fresh();
        attach(&network, &pod, &[]).await.unwrap();
        assert_eq!(lab.host.read_sysctl("ipv4/ip_forward"), "1");
        assert_eq!(lab.host.read_sysctl("ipv6/conf/all/forwarding"), "1");
        assert_eq!(lab.host.read_sysctl("ipv6/conf/up0/accept_ra"), "2");
        remove(&network, &pod).await;
    });
}
