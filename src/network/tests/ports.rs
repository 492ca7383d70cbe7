//! Host ports: from outside, from the host, from pods; and who must not get in.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::net::IpAddr;
use std::path::Path;

use lab::{HOST, HOST6, Lab, Pod, attach, port, remove, talk_udp};
use podwright_network::Protocol::{Sctp, Tcp, Udp};
use podwright_network::{AttachError, ClaimError, LeaseError, ListenerError};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_host_port_leads_into_the_pod_from_everywhere() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (pod, other) = (Pod::fresh(), Pod::fresh());
        let ports = [port(Tcp, None, 8080, 80), port(Udp, None, 5353, 53), port(Sctp, None, 3868, 3868)];
        let of_pod = attach(&network, &pod, &ports).await.unwrap();
        attach(&network, &other, &[]).await.unwrap();
        let web = pod.netns.listen("0.0.0.0:80");

        assert_eq!(lab.world.talk(&format!("{HOST}:8080"), &web), ip("192.0.2.1"), "the client's address is kept");
        assert_eq!(lab.host.talk(&format!("{HOST}:8080"), &web), ip(HOST), "from the host itself");
        assert_eq!(lab.host.talk("127.0.0.1:8080", &web), ip("10.88.0.1"), "by the host's loopback");
        assert_eq!(other.netns.talk(&format!("{HOST}:8080"), &web), ip("10.88.0.1"), "from another pod");
        assert_eq!(pod.netns.talk(&format!("{HOST}:8080"), &web), ip("10.88.0.1"), "from the pod itself");
        assert_eq!(pod.netns.talk("10.88.0.1:8080", &web), ip("10.88.0.1"), "by the gateway's address");
        assert!(lab.world.is_refused(&format!("{HOST}:80")), "the pod's own port is not the host's");

        let dns = pod.netns.udp("0.0.0.0:53");
        assert_eq!(talk_udp(&lab.world.udp("0.0.0.0:0"), &format!("{HOST}:5353"), &dns), ip("192.0.2.1"));
        assert_eq!(talk_udp(&lab.host.udp("127.0.0.1:0"), "127.0.0.1:5353", &dns), ip("10.88.0.1"));
        assert_eq!(talk_udp(&other.netns.udp("0.0.0.0:0"), &format!("{HOST}:5353"), &dns), ip("10.88.0.1"));

        let listed = lab.elements().join("\n");
        assert!(listed.contains("sctp . 3868") && listed.contains(": 10.88.0.2 . 3868"), "{listed}");
        assert!(listed.contains(&format!("{} . 3868", of_pod.ips[1])), "{listed}");

        remove(&network, &pod).await;
        assert!(lab.world.is_refused(&format!("{HOST}:8080")), "closed with its pod");
        remove(&network, &other).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_host_port_leads_into_the_pod_over_ipv6() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (pod, other) = (Pod::fresh(), Pod::fresh());
        attach(&network, &pod, &[port(Tcp, None, 8080, 80), port(Tcp, Some("::"), 8081, 80)]).await.unwrap();
        attach(&network, &other, &[]).await.unwrap();
        let web = pod.netns.listen("[::]:80");
        let gateway = lab.host.ip(&format!("-6 -o address show dev {} scope global", lab.bridge()));
        let gateway = ip(gateway.split_whitespace().nth(3).unwrap().split('/').next().unwrap());
        assert_eq!(lab.world.talk(&format!("[{HOST6}]:8080"), &web), ip("2001:db8::1"));
        assert_eq!(lab.world.talk(&format!("[{HOST6}]:8081"), &web), ip("2001:db8::1"));
        assert_eq!(lab.host.talk(&format!("[{HOST6}]:8080"), &web), ip(HOST6));
        assert_eq!(other.netns.talk(&format!("[{HOST6}]:8080"), &web), gateway);
        assert_eq!(pod.netns.talk(&format!("[{HOST6}]:8080"), &web), gateway);
        assert!(lab.world.is_refused(&format!("{HOST}:8081")), "only IPv6 was asked for");
        remove(&network, &pod).await;
        remove(&network, &other).await;
        lab.assert_no_pods();
    });
}

/// Answers come by way of the bridge, whose packets this looks at, or does not, before IPv6 does.
const BRIDGE_NETFILTER: &str = "bridge/bridge-nf-call-ip6tables";

#[test]
fn a_host_port_leads_into_the_pod_from_the_hosts_ipv6_loopback() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let ports = [
            port(Tcp, None, 8080, 80),
            port(Tcp, Some("::1"), 8081, 80),
            port(Udp, None, 5353, 53),
            port(Tcp, None, 8082, 9),
        ];
        attach(&network, &pod, &ports).await.unwrap();
        let (web, dns) = (pod.netns.listen("[::]:80"), pod.netns.udp("[::]:53"));
        let gateway = lab.host.ip(&format!("-6 -o address show dev {} scope global", lab.bridge()));
        let gateway = ip(gateway.split_whitespace().nth(3).unwrap().split('/').next().unwrap());
        let has_bridge_netfilter = Path::new("/proc/sys/net").join(BRIDGE_NETFILTER).exists();
        for value in if has_bridge_netfilter { &["0", "1"][..] } else { &[""] } {
            if has_bridge_netfilter {
                lab.host.sysctl(BRIDGE_NETFILTER, value);
            }
            assert_eq!(lab.host.talk("[::1]:8080", &web), gateway);
            assert_eq!(lab.host.talk("[::1]:8081", &web), gateway);
            assert_eq!(talk_udp(&lab.host.udp("[::1]:0"), "[::1]:5353", &dns), gateway);
            assert!(lab.host.is_refused("[::1]:8082"), "by the pod, where nothing listens");
        }
        assert!(lab.host.is_refused(&format!("[{HOST6}]:8081")) && lab.world.is_refused(&format!("[{HOST6}]:8081")));
        assert!(lab.host.is_refused("[::1]:8083"), "what is no host port is the host's own matter");
        remove(&network, &pod).await;
        assert!(lab.host.is_refused("[::1]:8080"), "closed with its pod");
        lab.assert_no_pods();
    });
}

#[test]
fn a_port_of_one_address_is_no_port_of_another() {
    Lab::test(|lab| async move {
        lab.host.ip("address add 192.0.2.3/24 dev up0");
        let network = lab.open().await;
        let (one, two) = (Pod::fresh(), Pod::fresh());
        attach(&network, &one, &[port(Tcp, Some(HOST), 8080, 80)]).await.unwrap();
        attach(&network, &two, &[port(Tcp, Some("192.0.2.3"), 8080, 80), port(Tcp, Some("127.0.0.1"), 9090, 80)])
            .await
            .unwrap();
        let (in_one, in_two) = (one.netns.listen("0.0.0.0:80"), two.netns.listen("0.0.0.0:80"));
        lab.world.talk("192.0.2.2:8080", &in_one);
        lab.world.talk("192.0.2.3:8080", &in_two);
        assert!(lab.host.is_refused("127.0.0.1:8080"));
        lab.host.talk("127.0.0.1:9090", &in_two);
        assert!(lab.world.is_refused("192.0.2.2:9090"));
        remove(&network, &one).await;
        remove(&network, &two).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_taken_port_is_named_and_stays_with_its_pod() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (one, two) = (Pod::fresh(), Pod::fresh());
        attach(&network, &one, &[port(Tcp, None, 8080, 80)]).await.unwrap();
        let error = attach(&network, &two, &[port(Tcp, None, 8080, 81)]).await.unwrap_err();
        let AttachError::Lease(LeaseError::Port(ClaimError::Taken { pod, .. })) = error else { panic!("{error:?}") };
        assert_eq!(pod, one.id);
        let in_one = one.netns.listen("0.0.0.0:80");
        lab.world.talk(&format!("{HOST}:8080"), &in_one);
        assert_eq!(lab.lease_files().len(), 2, "the second pod has nothing");
        remove(&network, &one).await;
        attach(&network, &two, &[port(Tcp, None, 8080, 81)]).await.unwrap();
        lab.world.talk(&format!("{HOST}:8080"), &two.netns.listen("0.0.0.0:81"));
        remove(&network, &two).await;
        lab.assert_no_pods();
    });
}

#[test]
fn a_port_on_which_the_host_listens_is_the_hosts_until_it_is_free() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let ports = [port(Tcp, None, 8080, 80), port(Udp, None, 8080, 80)];
        let in_host = lab.host.udp("0.0.0.0:8080");
        let error = attach(&network, &pod, &ports).await.unwrap_err();
        let AttachError::Listener(ListenerError::Taken { port, address }) = &error else { panic!("{error:?}") };
        assert_eq!((port.to_string(), address.to_string()), ("8080/udp".to_owned(), "0.0.0.0:8080".to_owned()));
        assert_eq!(lab.lease_files(), ["network.json"]);
        talk_udp(&lab.world.udp("0.0.0.0:4000"), &format!("{HOST}:8080"), &in_host);
        drop(in_host);
        attach(&network, &pod, &ports).await.unwrap();
        // Who comes to listen there later does not take it away at the pod's next attempt.
        let _late = lab.host.listen("0.0.0.0:8080");
        attach(&network, &pod, &ports).await.unwrap();
        lab.world.talk(&format!("{HOST}:8080"), &pod.netns.listen("0.0.0.0:80"));
        remove(&network, &pod).await;
        lab.assert_no_pods();
    });
}

#[test]
fn udp_goes_to_the_next_pod_at_once() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let (one, two) = (Pod::fresh(), Pod::fresh());
        let ports = [port(Udp, None, 5353, 53)];
        let client = lab.world.udp("0.0.0.0:4000");
        let to = format!("{HOST}:5353");
        attach(&network, &one, &ports).await.unwrap();
        talk_udp(&client, &to, &one.netns.udp("0.0.0.0:53"));
        remove(&network, &one).await;
        attach(&network, &two, &ports).await.unwrap();
        talk_udp(&client, &to, &two.netns.udp("0.0.0.0:53"));
        remove(&network, &two).await;
        lab.assert_no_pods();
    });
}

#[test]
fn the_hosts_loopback_is_closed_to_pods_and_neighbours() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        attach(&network, &pod, &[port(Udp, Some("127.0.0.1"), 5353, 53)]).await.unwrap();
        let private = lab.host.udp("127.0.0.1:9000");
        let public = lab.host.udp("0.0.0.0:9001");
        let in_pod = pod.netns.udp("0.0.0.0:53");

        // Both send 127.0.0.1 over the wire, as no honest host would, and then to an address that is open: what comes
        // second proves that what came first was dropped.
        for (netns, device, gateway) in [(&pod.netns, "eth0", "10.88.0.1"), (&lab.world, "up0", HOST)] {
            netns.sysctl(&format!("ipv4/conf/{device}/route_localnet"), "1");
            netns.ip("address del 127.0.0.1/8 dev lo");
            netns.ip(&format!("route add 127.0.0.1/32 via {gateway}"));
            let sender = netns.udp("0.0.0.0:0");
            sender.send_to(b"private", "127.0.0.1:9000").unwrap();
            sender.send_to(b"port", "127.0.0.1:5353").unwrap();
            sender.send_to(b"public", format!("{gateway}:9001")).unwrap();
            let mut bytes = [0; 16];
            assert_eq!(public.recv(&mut bytes).unwrap(), b"public".len());
            for closed in [&private, &in_pod] {
                closed.set_nonblocking(true).unwrap();
                let error = closed.recv(&mut bytes).expect_err("nothing came in");
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            }
        }
        remove(&network, &pod).await;
    });
}

#[test]
fn the_hosts_ipv6_loopback_is_closed_to_pods_and_neighbours() {
    Lab::test(|lab| async move {
        let network = lab.open().await;
        let pod = Pod::fresh();
        let attached = attach(&network, &pod, &[port(Udp, Some("::1"), 5353, 53)]).await.unwrap();
        let private = lab.host.udp("[::1]:9000");
        let public = lab.host.udp("[::]:9001");
        let in_pod = pod.netns.udp("[::]:53");
        // A connection that the host has by way of its ::1 does not open that to others.
        talk_udp(&lab.host.udp("[::1]:0"), "[::1]:5353", &in_pod);
        let gateway = attached.ips[1].to_string().replace("::2", "::1");
        for (netns, gateway) in [(&pod.netns, gateway.as_str()), (&lab.world, HOST6)] {
            netns.ip("address del ::1/128 dev lo");
            netns.ip(&format!("-6 route add ::1/128 via {gateway}"));
            let sender = netns.udp("[::]:0");
            sender.send_to(b"private", "[::1]:9000").unwrap();
            sender.send_to(b"port", "[::1]:5353").unwrap();
            sender.send_to(b"public", format!("[{gateway}]:9001")).unwrap();
            let mut bytes = [0; 16];
            assert_eq!(public.recv(&mut bytes).unwrap(), b"public".len());
            for closed in [&private, &in_pod] {
                closed.set_nonblocking(true).unwrap();
                let error = closed.recv(&mut bytes).expect_err("nothing came in");
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            }
        }
        remove(&network, &pod).await;
    });
}
