//! The form of the numbers, which is runc's: that of v1, on v2 too.

use podwright_sys::cgroup::{Amount, Cpu, Io, Memory, Pids, Usage};
use serde_json::{Map, Value, json};

/// Writes what a container uses; a part that is not counted is there and empty.
pub(super) fn stats(usage: &Usage) -> Value {
    let huge_pages: Map<String, Value> = usage
        .huge_pages
        .iter()
        .map(|(size, it)| (size.clone(), json!({ "usage": it.usage, "max": it.peak, "failcnt": it.failures })))
        .collect();
    json!({
        "cpu": usage.cpu.as_ref().map_or_else(|| json!({}), cpu),
        "memory": usage.memory.as_ref().map_or_else(|| json!({}), memory),
        "pids": usage.pids.as_ref().map_or_else(|| json!({}), pids),
        "blkio": io(&usage.io),
        "hugetlb": huge_pages,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn cpu(cpu: &Cpu) -> Value {
    json!({
        "usage": { "total": cpu.total, "percpu": cpu.per_cpu, "kernel": cpu.system, "user": cpu.user },
        "throttling": {
            "periods": cpu.periods,
            "throttledPeriods": cpu.throttled_periods,
            "throttledTime": cpu.throttled,
        },
    })
}

fn memory(memory: &Memory) -> Value {
    let swap = memory.swap.map(|swap| with_memory(swap, memory));
    let stat = |v1: &str, v2: &str| memory.stat.get(v1).or(memory.stat.get(v2)).copied().unwrap_or_default();
    json!({
        "cache": stat("cache", "file"),
        "usage": amount(memory.own),
        "swap": amount(swap.unwrap_or_default()),
        "kernel": amount(memory.kernel.unwrap_or_default()),
        "kernelTCP": amount(memory.kernel_tcp.unwrap_or_default()),
        "raw": memory.stat,
    })
}

/// On v1 swap is counted together with memory, and so it is told. Only v2 knows files apart from caches.
fn with_memory(swap: Amount, memory: &Memory) -> Amount {
    if memory.stat.contains_key("cache") {
        return swap;
    }
    Amount {
        usage: swap.usage.saturating_add(memory.own.usage),
        limit: swap.limit.saturating_add(memory.own.limit),
        ..swap
    }
}

fn amount(amount: Amount) -> Value {
    json!({ "limit": amount.limit, "usage": amount.usage, "max": amount.peak, "failcnt": amount.failures })
}

fn pids(pids: &Pids) -> Value {
    // 0 is no limit.
    json!({ "current": pids.current, "limit": pids.limit.unwrap_or_default() })
}

fn io(devices: &[Io]) -> Value {
    let entries = |of: fn(&Io) -> [(&'static str, u64); 2]| -> Vec<Value> {
        let entry = |io: &Io, (op, value): (&str, u64)| json!({ "major": io.major, "minor": io.minor, "op": op, "value": value });
        devices.iter().flat_map(|io| of(io).map(|operation| entry(io, operation))).collect()
    };
    json!({
        "ioServiceBytesRecursive": entries(|io| [("Read", io.read_bytes), ("Write", io.written_bytes)]),
        "ioServicedRecursive": entries(|io| [("Read", io.reads), ("Write", io.writes)]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_told_with_memory() {
        let own = Amount { usage: 10, limit: 20, ..Amount::default() };
        let swap = Some(Amount { usage: 1, limit: 2, ..Amount::default() });
        let mut usage = Memory { own, swap, ..Memory::default() };
        usage.stat.insert("file".to_owned(), 5);
        let v2 = memory(&usage);
        assert_eq!((&v2["cache"], &v2["swap"]["usage"], &v2["swap"]["limit"]), (&json!(5), &json!(11), &json!(22)));
        usage.stat.insert("cache".to_owned(), 7);
        let v1 = memory(&usage);
        assert_eq!((&v1["cache"], &v1["swap"]["usage"], &v1["swap"]["limit"]), (&json!(7), &json!(1), &json!(2)));
    }

    #[test]
    fn every_part_is_there() {
        let device = Io { major: 8, minor: 1, read_bytes: 2, written_bytes: 3, reads: 4, writes: 5 };
        let usage = Usage { io: vec![device], pids: Some(Pids { current: 6, limit: None }), ..Usage::default() };
        let shown = stats(&usage);
        assert_eq!(shown["pids"], json!({ "current": 6, "limit": 0 }));
        assert_eq!((&shown["cpu"], &shown["memory"], &shown["hugetlb"]), (&json!({}), &json!({}), &json!({})));
        let written = json!({ "major": 8, "minor": 1, "op": "Write", "value": 3 });
        assert_eq!(shown["blkio"]["ioServiceBytesRecursive"][1], written);
        assert_eq!(shown["blkio"]["ioServicedRecursive"][0]["value"], 4);
    }
}
