//! The contents of a pod's `/etc/resolv.conf` and `/etc/hosts`. Pure.

use std::fmt::Write;
use std::net::IpAddr;

/// Servers, searched domains and options (CRI `DNSConfig`).
pub type Dns<'a> = (&'a [String], &'a [String], &'a [String]);

/// Writes a `resolv.conf` from what was asked for; when that is nothing, it is the host's.
pub fn resolv_conf((servers, searches, options): Dns<'_>, host_text: &str) -> String {
    if servers.is_empty() && searches.is_empty() && options.is_empty() {
        return host_text.to_owned();
    }
    let mut text = String::new();
    if !searches.is_empty() {
        line(&mut text, "search", &searches.join(" "));
    }
    for server in servers {
        line(&mut text, "nameserver", server);
    }
    if !options.is_empty() {
        line(&mut text, "options", &options.join(" "));
    }
    text
}

/// Writes a `hosts` file: the host's, or one that knows the loopback addresses only, and the pod's name for each of
/// its addresses.
pub fn hosts(hostname: &str, ips: &[IpAddr], host_text: Option<&str>) -> String {
    let mut text = host_text.unwrap_or("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n").to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !hostname.is_empty() {
        for ip in ips {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{ip}\t{hostname}");
        }
    }
    text
}

fn line(text: &mut String, key: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{key} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_was_asked_for_replaces_the_hosts_file() {
        let (servers, searches, options) =
            (words(&["10.96.0.10", "fd00::a"]), words(&["a.svc", "svc"]), words(&["ndots:5", "edns0"]));
        assert_eq!(
            resolv_conf((&servers, &searches, &options), "nameserver 192.0.2.1\n"),
            "search a.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n"
        );
    }

    #[test]
    fn without_a_wish_the_hosts_file_is_taken() {
        assert_eq!(resolv_conf((&[], &[], &[]), "nameserver 192.0.2.1\n"), "nameserver 192.0.2.1\n");
    }

    #[test]
    fn a_pod_knows_its_own_name() {
        let ips = ["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(
            hosts("web-0", &ips, None),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.88.0.2\tweb-0\nfd00::2\tweb-0\n"
        );
        assert_eq!(hosts("", &ips, Some("127.0.0.1 localhost")), "127.0.0.1 localhost\n");
    }
}
