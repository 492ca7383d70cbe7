//! Traffic control: rtnetlink's messages for queueing disciplines and filters, as far as limiting a rate needs them.

use crate::netlink::{ACK, Attributes, CREATE, EXCLUSIVE, Message};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

/// What the device sends.
const ROOT: u32 = u32::MAX;
/// Where what the device receives is looked at.
const INGRESS: u32 = 0xffff_fff1;
/// The handle of that discipline, which its filters name as their parent.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// The first handle that is not the kernel's to give.
const FIRST_HANDLE: u32 = 1 << 16;
const LINKLAYER_ETHERNET: u8 = 1;
const ETH_P_ALL: u16 = 3;
const U32_TERMINAL: u8 = 1;
const EGRESS_REDIRECT: u32 = 1;
const ACTION_STOLEN: u32 = 4;

/// What a token bucket lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Bytes per second.
    pub(crate) rate: u64,
    /// How many bytes go at once after a pause; a device's largest frame at least.
    pub(crate) burst: u32,
    /// How many bytes wait; more are dropped.
    pub(crate) queue: u32,
}

/// The message that has what a device sends wait for a token bucket (`sch_tbf`).
pub(crate) fn new_bucket(index: u32, bucket: &Bucket) -> Message {
    // `struct tc_tbf_qopt`: rate, peak rate, and the lengths of the queue, the burst (here told by bytes) and a frame.
    let mut parameters = [0; 36];
    // Told, so that the kernel needs no table of what each length of a packet takes.
    parameters[1] = LINKLAYER_ETHERNET;
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    parameters[8..12].copy_from_slice(&rate.to_ne_bytes());
    parameters[24..28].copy_from_slice(&bucket.queue.to_ne_bytes());
    let mut options = Attributes::new().bytes(TCA_TBF_PARMS, &parameters).u32(TCA_TBF_BURST, bucket.burst);
    if rate == u32::MAX {
        options = options.bytes(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
    }
    let attributes = Attributes::new().text(TCA_KIND, "tbf").nest(TCA_OPTIONS, options);
    new(RTM_NEWQDISC, &header(index, FIRST_HANDLE, ROOT, 0), &attributes)
}

/// The message that lets filters look at what a device receives (`sch_ingress`).
pub(crate) fn new_ingress(index: u32) -> Message {
    let attributes = Attributes::new().text(TCA_KIND, "ingress");
    new(RTM_NEWQDISC, &header(index, INGRESS_HANDLE, INGRESS, 0), &attributes)
}

/// The message that has all that a device receives be sent by another one (`cls_u32`, which every packet matches, and
/// `act_mirred`).
pub(crate) fn new_redirect(index: u32, to: u32) -> Message {
    // `struct tc_u32_sel` with one key, whose mask is empty.
    let mut selector = [0; 32];
    (selector[0], selector[2]) = (U32_TERMINAL, 1);
    // `struct tc_mirred`
    let mut redirect = [0; 28];
    redirect[8..12].copy_from_slice(&ACTION_STOLEN.to_ne_bytes());
    redirect[20..24].copy_from_slice(&EGRESS_REDIRECT.to_ne_bytes());
    redirect[24..].copy_from_slice(&to.to_ne_bytes());
    let action = Attributes::new()
        .text(TCA_ACT_KIND, "mirred")
        .nest(TCA_ACT_OPTIONS, Attributes::new().bytes(TCA_MIRRED_PARMS, &redirect));
    let options = Attributes::new().nest(TCA_U32_ACT, Attributes::new().nest(1, action)).bytes(TCA_U32_SEL, &selector);
    let attributes = Attributes::new().text(TCA_KIND, "u32").nest(TCA_OPTIONS, options);
    let priority_and_protocol = 1 << 16 | u32::from(ETH_P_ALL.to_be());
    new(RTM_NEWTFILTER, &header(index, 0, INGRESS_HANDLE, priority_and_protocol), &attributes)
}

/// The messages that take away what the others made for a device.
pub(crate) fn delete(index: u32) -> [Message; 2] {
    [ROOT, INGRESS].map(|parent| Message::new(RTM_DELQDISC, ACK, &header(index, 0, parent, 0), &Attributes::new()))
}

fn new(kind: u16, header: &[u8], attributes: &Attributes) -> Message {
    Message::new(kind, ACK | CREATE | EXCLUSIVE, header, attributes)
}

/// `struct tcmsg`
fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (part, value) in header[4..].chunks_exact_mut(4).zip([index, handle, parent, info]) {
        part.copy_from_slice(&value.to_ne_bytes());
    }
    header
}
