//! The configuration of the built-in network, checked.

use podwright_base::config;

use crate::bridge::Settings;
use crate::leases::LeaseError;
use crate::{link, subnet};

/// Why the network cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configured name is none that a device can have.
    #[error("network.bridge {name:?}: a device's name has 1 to 15 characters without '/', ':' and white space")]
    BridgeName {
        /// As configured.
        name: String,
    },
    /// The configured IPv4 subnet has no room.
    #[error("network.ipv4 {subnet}: a prefix of at most /{} has room for a pod", subnet::LONGEST_IPV4)]
    Ipv4TooSmall {
        /// As configured.
        subnet: ipnet::Ipv4Net,
    },
    /// The configured IPv6 subnet has no room.
    #[error("network.ipv6 {subnet}: a prefix of at most /{} has room for a pod", subnet::LONGEST_IPV6)]
    Ipv6TooSmall {
        /// As configured.
        subnet: ipnet::Ipv6Net,
    },
    /// The leases cannot be read.
    #[error("read the address leases of pods")]
    Leases(#[source] LeaseError),
    /// The daemon is going down.
    #[error("the daemon ended before the network was opened")]
    Cancelled,
}

/// Checks the configuration of the bridge.
pub(crate) fn settings(instance: Option<&str>, config: &config::Network) -> Result<Settings, OpenError> {
    let name = match (&config.bridge, instance) {
        (Some(name), _) => name.clone(),
        (None, None) => "podwright0".to_owned(),
        (None, Some(instance)) => format!("pw{instance}"),
    };
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > link::MAX_NAME || name.contains(bad) || name == "." || name == ".." {
        return Err(OpenError::BridgeName { name });
    }
    if let Some(subnet) = config.ipv4.filter(|subnet| subnet.prefix_len() > subnet::LONGEST_IPV4) {
        return Err(OpenError::Ipv4TooSmall { subnet });
    }
    if let Some(subnet) = config.ipv6.filter(|subnet| subnet.prefix_len() > subnet::LONGEST_IPV6) {
        return Err(OpenError::Ipv6TooSmall { subnet });
    }
    Ok(Settings {
        name,
        ipv4: config.ipv4.map(|subnet| subnet.trunc()),
        ipv6: config.ipv6.map(|subnet| subnet.trunc()),
        enable_ipv6: config.enable_ipv6,
        mtu: config.mtu,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_bridge_can_be_is_named() {
        let config = |bridge: &str| config::Network { bridge: Some(bridge.to_owned()), ..config::Network::default() };
        for bad in ["", "a/b", "a b", "sixteen-letters!", ".."] {
            assert!(matches!(settings(None, &config(bad)), Err(OpenError::BridgeName { .. })), "{bad:?}");
        }
        assert_eq!(settings(None, &config("br0")).unwrap().name, "br0");
        assert_eq!(settings(Some("01234567"), &config::Network::default()).unwrap().name, "pw01234567");
        let small = config::Network { ipv4: Some("10.0.0.0/31".parse().unwrap()), ..config::Network::default() };
        assert!(matches!(settings(None, &small), Err(OpenError::Ipv4TooSmall { .. })));
    }
}
