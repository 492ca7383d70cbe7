//! The sweep at the daemon's start: what a killed predecessor left of pods that are no more.

use std::collections::HashSet;
use std::io;

use podwright_base::PodId;
use podwright_cni::{ConfigError, DelError};
use podwright_sys::netns::PinError;

use crate::Inner;
use crate::attach::{DetachError, detach, veth_name};
use crate::leases::{Lease, LeaseError};
use crate::link;
use crate::netlink::{Netlink, NetlinkError};
use crate::progress::{Progress, Unfinished};

/// What a sweep removed, and what it could not.
#[derive(Debug, Default)]
pub struct Swept {
    /// Pods whose namespace pins are gone now.
    pub pins: Vec<PodId>,
    /// Names of devices that are gone now.
    pub links: Vec<String>,
    /// Pods whose leases, and host ports with them, are gone now.
    pub leases: Vec<PodId>,
    /// Ids of pods that CNI plugins have detached now.
    pub attachments: Vec<String>,
    /// What is still there.
    pub errors: Vec<SweepError>,
}

/// Something that a sweep could not remove.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// CNI plugins have not removed what belongs to no pod.
    #[error(transparent)]
    Cni(DelError),
    /// The CNI network whose plugins should do so cannot be used.
    #[error(transparent)]
    CniConfig(ConfigError),
    /// The pins cannot be listed.
    #[error("list the network namespace pins")]
    ListPins(#[source] io::Error),
    /// A pin is still there.
    #[error("remove the network namespace pin of pod {pod}")]
    Pin {
        /// The pod.
        pod: PodId,
        /// Why.
        source: PinError,
    },
    /// The devices cannot be listed.
    #[error("list the pods' devices")]
    ListLinks(#[source] NetlinkError),
    /// A device is still there.
    #[error("delete the device {name}")]
    Link {
        /// The device.
        name: String,
        /// Why.
        source: NetlinkError,
    },
    /// The leases cannot be listed.
    #[error("list the address leases")]
    ListLeases(#[source] LeaseError),
    /// A pod's lease, veth pair or host ports are still there.
    #[error("remove what is left of a pod's network")]
    Pod(#[source] DetachError),
    /// The rules still have what earlier pods had.
    #[error("make the nf_tables rules anew")]
    Rules(#[source] NetlinkError),
    /// The sweep did not end in time.
    #[error("sweep the pod network")]
    Unfinished(#[source] Unfinished),
}

/// Removes what belongs to pods that are not live.
pub(crate) fn sweep(inner: &Inner, live: &HashSet<PodId>, progress: &Progress) -> Swept {
    let mut swept = Swept::default();
    progress.enter("sweep the address leases");
    match inner.leases.strays(live) {
        Ok(strays) => strays.into_iter().for_each(|pod| {
            let failures = detach(inner, &pod, progress);
            if failures.is_empty() {
                swept.leases.push(pod);
            } else {
                swept.errors.push(SweepError::Pod(DetachError { pod, failures }));
            }
        }),
        Err(error) => swept.errors.push(SweepError::ListLeases(error)),
    }
    // Behind the leases: it lists those devices that have none.
    progress.enter("sweep the pods' devices");
    match Netlink::route().and_then(|mut host| Ok((stray_links(inner, live, &mut host)?, host))) {
        Ok((strays, mut host)) => strays.into_iter().for_each(|name| match link::delete(&mut host, &name) {
            Ok(_) => swept.links.push(name),
            Err(source) => swept.errors.push(SweepError::Link { name, source }),
        }),
        Err(error) => swept.errors.push(SweepError::ListLinks(error)),
    }
    progress.enter("sweep the nf_tables rules");
    swept.errors.extend(renew_rules(inner).map_err(SweepError::Rules).err());
    progress.enter("sweep the namespace pins");
    match inner.pins.strays(live) {
        Ok(strays) => strays.into_iter().for_each(|pod| match inner.pins.unpin(&pod) {
            Ok(()) => swept.pins.push(pod),
            Err(source) => swept.errors.push(SweepError::Pin { pod, source }),
        }),
        Err(error) => swept.errors.push(SweepError::ListPins(error)),
    }
    swept
}

/// Our devices say so in their alias; a veth end whose daemon was killed before it could is a port of our bridge with a
/// name of ours.
fn stray_links(inner: &Inner, live: &HashSet<PodId>, host: &mut Netlink) -> Result<Vec<String>, NetlinkError> {
    let links = link::all(host)?;
    let bridge = links.iter().find(|link| link.name == inner.bridge.name()).map(|link| link.index);
    let ours = |link: &&link::Link| match inner.pod_of_alias(&link.alias) {
        Some(pod) => !live.contains(&pod),
        None => {
            link.alias.is_empty()
                && link.kind == "veth"
                && link.name.starts_with("pv")
                && link.master.is_some()
                && link.master == bridge
                && !live.iter().any(|pod| veth_name(pod) == link.name)
        }
    };
    Ok(links.iter().filter(ours).map(|link| link.name.clone()).collect())
}

/// Makes the rules anew from the leases that are left, if any pod needs them or there are rules: somebody may have
/// flushed them. Without pods they go.
fn renew_rules(inner: &Inner) -> Result<(), NetlinkError> {
    let mut netfilter = Netlink::netfilter()?;
    let mut rules = inner.ruleset.hold();
    if inner.leases.is_empty() {
        return rules.delete(&mut netfilter);
    }
    let needed = |lease: &Lease| match &lease.guest {
        None => true,
        Some(guest) => !guest.plugin_opens_ports && !lease.ports.is_empty(),
    };
    if inner.leases.all().iter().any(|(_, lease)| needed(lease)) || inner.ruleset.exists(&mut netfilter)? {
        rules.install(&mut netfilter, &inner.leases)?;
    }
    Ok(())
}
