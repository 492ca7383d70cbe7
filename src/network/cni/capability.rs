//! Capability arguments: what a pod asks of plugins that declare that they can do it (CNI CONVENTIONS.md). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::annotation::{AnnotationError, Bandwidth};

/// The pod's annotations, under the name that other runtimes have given the capability.
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Host ports.
pub const PORT_MAPPINGS: &str = "portMappings";
/// Annotation: addresses that the pod is to have, with or without the length of their subnet, separated by commas.
const IPS: &str = "podwright.io/cni-ips";
/// Annotation: the hardware address that the pod's interface is to have.
const MAC: &str = "podwright.io/cni-mac";
/// Annotation: names of the pod in its network, separated by commas.
const ALIASES: &str = "podwright.io/cni-aliases";
/// A host port that leads into the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// "tcp", "udp" or "sctp".
    pub protocol: String,
    /// The host's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The host's address; none: all of them.
    pub host_ip: Option<IpAddr>,
}

/// What is known of a pod that plugins may want to know.
#[derive(Debug, Clone, Default)]
pub struct Wishes<'a> {
    /// Host ports.
    pub ports: Vec<PortMapping>,
    /// Annotations.
    pub annotations: Option<&'a BTreeMap<String, String>>,
    /// Servers, searched domains and options.
    pub dns: Option<(&'a [String], &'a [String], &'a [String])>,
    /// The cgroup that the pod's processes are below; may be empty.
    pub cgroup: &'a str,
    /// The node's ranges of pod addresses.
    pub ranges: &'a [IpNet],
}

impl Wishes<'_> {
    /// Makes the arguments; each plugin is given those that it declares.
    ///
    /// # Errors
    /// An annotation that makes no sense.
    pub fn arguments(&self) -> Result<Map<String, Value>, AnnotationError> {
        let mut arguments = Map::new();
        let mut set = |name: &str, value: Value| drop(arguments.insert(name.to_owned(), value));
        if !self.ports.is_empty() {
            set(PORT_MAPPINGS, self.ports.iter().map(port).collect());
        }
        if let Some((servers, searches, options)) = self.dns {
            set("dns", json!({ "servers": servers, "searches": searches, "options": options }));
        }
        if !self.cgroup.is_empty() {
            set("cgroupPath", self.cgroup.into());
        }
        if !self.ranges.is_empty() {
            set("ipRanges", self.ranges.iter().map(|range| json!([{ "subnet": range.to_string() }])).collect());
        }
        if let Some(annotations) = self.annotations {
            if !annotations.is_empty() {
                set(POD_ANNOTATIONS, json!(annotations));
            }
            let bandwidth = Bandwidth::of(annotations)?;
            if !bandwidth.is_unlimited() {
                set("bandwidth", limits(&bandwidth).into());
            }
            if let Some(ips) = annotations.get(IPS) {
                set("ips", ip_list(ips)?);
            }
            if let Some(mac) = annotations.get(MAC) {
                set("mac", checked_mac(mac)?.into());
            }
            if let Some(aliases) = annotations.get(ALIASES) {
                set("aliases", words(aliases).map(Value::from).collect());
            }
        }
        Ok(arguments)
    }
}

fn port(port: &PortMapping) -> Value {
    let mut value = json!({
        "hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol,
    });
    if let Some(ip) = port.host_ip {
        value["hostIP"] = ip.to_string().into();
    }
    value
}

fn limits(bandwidth: &Bandwidth) -> Map<String, Value> {
    let mut limits = Map::new();
    for (limit, rate, burst) in
        [(&bandwidth.ingress, "ingressRate", "ingressBurst"), (&bandwidth.egress, "egressRate", "egressBurst")]
    {
        if let Some(limit) = limit {
            limits.insert(rate.to_owned(), limit.bits.into());
            // As much as the kernel's shaper takes: a limit of the rate, not of how much comes at once.
            limits.insert(burst.to_owned(), u32::MAX.into());
        }
    }
    limits
}

fn ip_list(text: &str) -> Result<Value, AnnotationError> {
    let is_ip = |word: &&str| word.parse::<IpAddr>().is_ok() || word.parse::<IpNet>().is_ok();
    if words(text).next().is_none() || !words(text).all(|word| is_ip(&word)) {
        let expected = "addresses, with or without \"/length\", separated by commas";
        return Err(AnnotationError { name: IPS, value: text.to_owned(), expected });
    }
    Ok(words(text).map(Value::from).collect())
}

fn checked_mac(text: &str) -> Result<&str, AnnotationError> {
    let octets: Vec<_> = text.split(':').collect();
    let hex = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    if octets.len() == 6 && octets.iter().all(hex) {
        return Ok(text);
    }
    Err(AnnotationError { name: MAC, value: text.to_owned(), expected: "six octets, such as 0a:58:0a:f4:00:05" })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotation::{EGRESS, INGRESS};

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn arguments_follow_the_conventions() {
        let given = annotations(&[
            (INGRESS, "1M"),
            (EGRESS, "2G"),
            (IPS, "10.0.0.7/24, fd00::7"),
            (MAC, "0a:58:00:00:00:07"),
            (ALIASES, "db,primary"),
        ]);
        let servers = ["10.96.0.10".to_owned()];
        let port = |host_ip| PortMapping { protocol: "tcp".to_owned(), host_port: 8080, container_port: 80, host_ip };
        let wishes = Wishes {
            ports: vec![port(None), port(Some("127.0.0.1".parse().unwrap()))],
            annotations: Some(&given),
            dns: Some((&servers, &[], &[])),
            cgroup: "/kubepods/pod1",
            ranges: &["10.1.0.0/24".parse().unwrap(), "fd01::/64".parse().unwrap()],
        };
        let arguments = Value::from(wishes.arguments().unwrap());
        assert_eq!(
            arguments,
            json!({
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
                ],
                "bandwidth": {
                    "ingressRate": 1_000_000, "ingressBurst": u32::MAX,
                    "egressRate": 2_000_000_000_u64, "egressBurst": u32::MAX,
                },
                "dns": {"servers": ["10.96.0.10"], "searches": [], "options": []},
                "cgroupPath": "/kubepods/pod1",
                "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd01::/64"}]],
                "ips": ["10.0.0.7/24", "fd00::7"],
                "mac": "0a:58:00:00:00:07",
                "aliases": ["db", "primary"],
                POD_ANNOTATIONS: given,
            })
        );
        assert_eq!(Wishes::default().arguments().unwrap(), Map::new());
    }

    #[test]
    fn annotations_that_make_no_sense_are_named() {
        for (name, value) in [(INGRESS, "fast"), (EGRESS, "10"), (IPS, "10.0.0"), (IPS, ""), (MAC, "0a:58")] {
            let given = annotations(&[(name, value)]);
            let error = Wishes { annotations: Some(&given), ..Wishes::default() }.arguments().unwrap_err();
            assert_eq!((error.name, error.value.as_str()), (name, value));
        }
    }
}
