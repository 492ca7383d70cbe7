//! Results of ADD: one type for all versions, read from what a plugin says and written as the chosen version has it
//! (CNI specification, section 5). Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::version::Version;

/// What a chain of plugins made for a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddResult {
    /// Interfaces inside the pod and outside.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What the network knows of name servers; it is recorded, not forced on the pod.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Bytes of its largest packet (since 1.1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace's path; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that stands for it (since 1.1.0).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its PCI device (since 1.1.0).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// "4" or "6" (until 0.4.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The address and its subnet's length.
    pub address: IpNet,
    /// The subnet's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of [`AddResult::interfaces`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub gw: Option<IpAddr>,
    /// Bytes of the largest packet on the way (since 1.1.0, as all that follow).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The largest TCP segment to announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Lower ones go before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i64>,
    /// The routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The kernel's number of the scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// Name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Servers' addresses.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Searched domains.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Plugins write `null` for what they have none of.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Plugins write an empty string for an address that there is none of.
fn empty_is_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(from)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

impl AddResult {
    /// Reads what a plugin says; every version's form is a part of this type.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let mut result: Self = serde_json::from_slice(text)?;
        for ip in &mut result.ips {
            ip.version = None;
        }
        Ok(result)
    }

    /// Writes it as a version has it, for the next plugin.
    pub(crate) fn to_value(&self, version: Version) -> Result<Value, serde_json::Error> {
        let mut result = self.clone();
        if version < Version::V1_0_0 {
            for ip in &mut result.ips {
                ip.version = Some(if ip.address.addr().is_ipv4() { "4" } else { "6" }.to_owned());
            }
        }
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) = (None, String::new(), String::new());
            }
            for route in &mut result.routes {
                *route = Route { mtu: None, advmss: None, priority: None, table: None, scope: None, ..route.clone() };
            }
        }
        let mut value = serde_json::to_value(&result)?;
        value["cniVersion"] = Value::from(version.as_str());
        Ok(value)
    }

    /// The pod's addresses at an interface, the first IPv4 address first, as its status has them.
    pub fn addresses(&self, interface: &str) -> Vec<IpAddr> {
        let inside = |index: usize| self.interfaces.get(index).filter(|interface| !interface.sandbox.is_empty());
        let at = |wanted: &dyn Fn(&Ip) -> bool| -> Vec<IpAddr> {
            self.ips.iter().filter(|ip| wanted(ip)).map(|ip| ip.address.addr()).collect()
        };
        let mut addresses =
            at(&|ip| ip.interface.is_none_or(|index| inside(index).is_some_and(|inside| inside.name == interface)));
        if addresses.is_empty() {
            // Some plugins name the pod's interface otherwise than they were told.
            addresses = at(&|ip| ip.interface.is_some_and(|index| inside(index).is_some()));
        }
        if let Some(first) = addresses.iter().position(IpAddr::is_ipv4) {
            addresses[..=first].rotate_right(1);
        }
        addresses
    }

    /// The hardware address of an interface inside the pod; empty when no plugin tells.
    pub fn mac(&self, interface: &str) -> &str {
        let inside = self.interfaces.iter().find(|one| !one.sandbox.is_empty() && one.name == interface);
        inside.map_or("", |interface| &interface.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn full() -> AddResult {
        let text = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "veth1", "mac": "0a:00:00:00:00:01", "mtu": 1500},
                {"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/x", "socketPath": "/s", "pciID": "0"},
            ],
            "ips": [
                {"address": "192.0.2.9/32", "interface": 0},
                {"address": "2001:db8::5/64", "gateway": "2001:db8::1", "interface": 1},
                {"address": "10.1.0.5/16", "gateway": "", "interface": 1},
                {"address": "10.2.0.5/16", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "priority": 3, "table": 7, "scope": 0}],
            "dns": {"nameservers": ["10.1.0.1"], "search": null},
        });
        AddResult::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn every_version_is_written_as_it_has_it() {
        let result = full();
        let newest = result.to_value(Version::V1_1_0).unwrap();
        assert_eq!(AddResult::parse(newest.to_string().as_bytes()).unwrap(), result);
        assert_eq!((&newest["interfaces"][0]["mtu"], &newest["routes"][0]["table"]), (&json!(1500), &json!(7)));
        let middle = result.to_value(Version::V1_0_0).unwrap();
        assert_eq!(
            middle["interfaces"][1],
            json!({"name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/x"})
        );
        assert_eq!(middle["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.1.0.1"}));
        assert_eq!(middle["ips"][2], json!({"address": "10.1.0.5/16", "interface": 1}));
        let old = result.to_value(Version::V0_3_1).unwrap();
        assert_eq!((&old["ips"][1]["version"], &old["ips"][2]["version"]), (&json!("6"), &json!("4")));
        assert_eq!(old["cniVersion"], "0.3.1");
        let again = AddResult::parse(old.to_string().as_bytes()).unwrap();
        assert_eq!((again.ips, again.dns), (result.ips, result.dns));
    }

    #[test]
    fn the_pods_addresses_begin_with_ipv4() {
        let addresses = full().addresses("eth0");
        assert_eq!(addresses, ["10.1.0.5", "2001:db8::5", "10.2.0.5"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(full().mac("eth0"), "0a:00:00:00:00:02");
        assert_eq!(full().addresses("net1").len(), 3, "the pod's only interface has another name");
        let bare = AddResult::parse(br#"{"ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}"#).unwrap();
        assert_eq!(bare.addresses("eth0"), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for text in
            ["", "ok", r#"{"ips":[{"address":"10.0.0.2"}]}"#, r#"{"ips":[{"address":"10.0.0.2/24","gateway":"x"}]}"#]
        {
            assert!(AddResult::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
