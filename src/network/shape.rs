//! A pod's bandwidth: token buckets that what it receives and what it sends wait for.
//!
//! ```text
//! bridge → pv… [tbf] → eth0        eth0 → pv… (ingress: redirect) → pi… [tbf] → pv… → bridge
//! ```
//!
//! What a pod sends makes a detour by a device of its own (`ifb`): a container with CAP_NET_ADMIN could take a bucket at
//! eth0 away, and a policer at `pv…` would drop what is too much instead of having it wait. The buckets and filters of
//! `pv…` go with the veth pair; the `ifb` must be deleted.

use podwright_cni::{Bandwidth, Limit};
use rustix::io::Errno;

use crate::link;
use crate::netlink::{Message, Netlink, NetlinkError};
use crate::qdisc::{self, Bucket};

/// A bucket holds what comes in this part of a second: less, and the kernel's timer costs some of the rate.
const BURSTS_A_SECOND: u64 = 50;
/// What waits has waited for this part of a second when more is dropped.
const QUEUES_A_SECOND: u64 = 20;
/// But as much may wait in any case: the largest datagram comes as 45 packets.
const SHORTEST_QUEUE: u64 = 96 << 10;
/// Frames that a bucket has room for in any case.
const SMALLEST_BURST: u64 = 2;
/// More than any rate needs that a machine can keep.
const LARGEST_BURST: u64 = 64 << 20;

/// Why a pod's bandwidth is not limited as it asks.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// The kernel has not what it takes.
    #[error(
        "annotation {annotation} {value:?}: this kernel has no {parts}: load the modules of these names, or leave the \
         annotation out"
    )]
    Unsupported {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
        /// What is missing, by the names of kernel modules.
        parts: &'static str,
        /// What the kernel says.
        source: NetlinkError,
    },
    /// The kernel refuses.
    #[error("annotation {annotation} {value:?}: limit the pod's bandwidth at {device}")]
    Refused {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
        /// The device.
        device: String,
        /// What the kernel says.
        source: NetlinkError,
    },
    /// An earlier limit is still there.
    #[error("take an earlier limit of the pod's bandwidth away")]
    Clear(#[source] NetlinkError),
    /// The devices cannot be looked at.
    #[error("look for the device {name}")]
    Look {
        /// Its name.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// A device is not there although it was made.
    #[error("the device {name} is missing right after it was made")]
    Gone {
        /// Its name.
        name: String,
    },
}

/// A pod on the bridge whose bandwidth is limited.
pub(crate) struct Shape<'a> {
    /// The host's end of the pod's veth pair.
    pub(crate) veth: &'a str,
    /// What the device is to be called that what the pod sends waits at.
    pub(crate) ifb: &'a str,
    pub(crate) bandwidth: &'a Bandwidth,
    /// What the pod's devices on the host say about themselves.
    pub(crate) alias: &'a str,
    pub(crate) mtu: u32,
    /// Whether the host has IPv6, and so per-device settings of it.
    pub(crate) ipv6: bool,
}

impl Shape<'_> {
    /// Limits the bandwidth of a pod that has its veth pair, whatever the limits were before.
    pub(crate) fn apply(&self, host: &mut Netlink) -> Result<(), ShapeError> {
        clear(host, self.veth, self.ifb).map_err(ShapeError::Clear)?;
        let veth = index(host, self.veth)?;
        if let Some(limit) = &self.bandwidth.ingress {
            let message = qdisc::new_bucket(veth, &bucket(limit, self.mtu));
            request(host, limit, self.veth, vec![(message, "sch_tbf")])?;
        }
        let Some(limit) = &self.bandwidth.egress else { return Ok(()) };
        let [make, configure] = link::new_ifb(self.ifb, self.alias, self.mtu, self.ipv6);
        request(host, limit, self.ifb, vec![(make, "ifb"), (configure, "ifb")])?;
        let ifb = index(host, self.ifb)?;
        // The bucket first: what is redirected before would not wait for it.
        let messages = vec![
            (qdisc::new_bucket(ifb, &bucket(limit, self.mtu)), "sch_tbf"),
            (qdisc::new_ingress(veth), "sch_ingress"),
            (qdisc::new_redirect(veth, ifb), "cls_u32 or act_mirred"),
        ];
        request(host, limit, self.ifb, messages)
    }
}

/// Takes the limits of a pod's bandwidth away; there need not be any, nor the pod's veth pair.
pub(crate) fn clear(host: &mut Netlink, veth: &str, ifb: &str) -> Result<(), NetlinkError> {
    if let Some(veth) = link::by_name(host, veth)? {
        for message in qdisc::delete(veth.index) {
            match host.request(vec![message]) {
                Err(error) if !matches!(error.refusal(), Some(Errno::NOENT | Errno::NODEV)) => return Err(error),
                _ => {}
            }
        }
    }
    link::delete(host, ifb).map(drop)
}

fn bucket(limit: &Limit, mtu: u32) -> Bucket {
    let rate = limit.bits / 8;
    let burst = (rate / BURSTS_A_SECOND).min(LARGEST_BURST).max(SMALLEST_BURST * u64::from(mtu));
    let queue = burst + (rate / QUEUES_A_SECOND).max(SHORTEST_QUEUE);
    let bounded = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    Bucket { rate, burst: bounded(burst), queue: bounded(queue) }
}

fn index(host: &mut Netlink, name: &str) -> Result<u32, ShapeError> {
    let link = link::by_name(host, name).map_err(|source| ShapeError::Look { name: name.to_owned(), source })?;
    Ok(link.ok_or_else(|| ShapeError::Gone { name: name.to_owned() })?.index)
}

/// Sends messages, each with what it takes of the kernel, that limit the bandwidth at a device.
fn request(
    host: &mut Netlink,
    limit: &Limit,
    device: &str,
    messages: Vec<(Message, &'static str)>,
) -> Result<(), ShapeError> {
    let (messages, parts): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
    host.request(messages).map_err(|error| failure(limit, device, &parts, error))
}

fn failure(limit: &Limit, device: &str, parts: &[&'static str], source: NetlinkError) -> ShapeError {
    let (annotation, value) = (limit.annotation, limit.value.clone());
    let missing = match &source {
        // What the kernel says of a discipline, classifier or action that it does not have, and of a kind of device.
        NetlinkError::Refused { index, .. } if matches!(source.refusal(), Some(Errno::NOENT | Errno::OPNOTSUPP)) => {
            parts.get(*index).copied()
        }
        _ => None,
    };
    match missing {
        Some(parts) => ShapeError::Unsupported { annotation, value, parts, source },
        None => ShapeError::Refused { annotation, value, device: device.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(bits: u64) -> Limit {
        Limit { bits, annotation: "kubernetes.io/egress-bandwidth", value: "10M".to_owned() }
    }

    #[test]
    fn buckets_suit_all_rates() {
        let of = |bits| bucket(&limit(bits), 1500);
        assert_eq!(of(10_000_000), Bucket { rate: 1_250_000, burst: 25_000, queue: 25_000 + (96 << 10) });
        assert_eq!(of(1_000), Bucket { rate: 125, burst: 3000, queue: 3000 + (96 << 10) });
        assert_eq!(of(1_000_000_000), Bucket { rate: 125_000_000, burst: 2_500_000, queue: 8_750_000 });
        let fastest = Bucket { rate: 125_000_000_000_000, burst: 64 << 20, queue: u32::MAX };
        assert_eq!(of(1_000_000_000_000_000), fastest);
    }

    #[test]
    fn what_a_kernel_lacks_is_named_with_the_annotation() {
        let refused = |errno: Errno| NetlinkError::Refused { index: 1, hint: String::new(), source: errno.into() };
        let told = |errno| failure(&limit(1), "pi0", &["sch_tbf", "sch_ingress"], refused(errno)).to_string();
        let text = told(Errno::NOENT);
        assert!(
            text.starts_with("annotation kubernetes.io/egress-bandwidth \"10M\": this kernel has no sch_ingress: load"),
            "{text}"
        );
        assert_eq!(told(Errno::OPNOTSUPP), text);
        assert!(told(Errno::NOMEM).ends_with("limit the pod's bandwidth at pi0"));
    }
}
