//! `linux.resources.memory`. The specification's swap is memory and swap together, as v1 counts it; v2 counts swap alone.
//!
//! `kernel` limited what the kernel itself used for the container: since 5.16 no kernel has that limit, and what it held down
//! counts against `limit` on every kernel. It is passed over, as runc and crun do. So is `kernelTCP`, but for v1 kernels that
//! have its file.

use oci_spec::runtime::LinuxMemory;
use podwright_plan::wire::CgroupWrite;

use super::limits::{Limits, lenient, not_on, optional, write};
use crate::error::{CompileError, invalid, unsupported};
use crate::facts::Home;

/// What the specification writes for "no limit".
const UNLIMITED: i64 = -1;

pub(super) fn limits(limits: &mut Limits<'_>, memory: &LinuxMemory) -> Result<(), CompileError> {
    for (field, value) in [("limit", memory.limit()), ("reservation", memory.reservation()), ("swap", memory.swap())] {
        if let Some(value) = value.filter(|value| *value < UNLIMITED) {
            let field = format!("linux.resources.memory.{field}");
            return Err(invalid(field, value.to_string(), "is below -1, which means unlimited"));
        }
    }
    refuse_obsolete(memory)?;
    let asked = [memory.limit(), memory.reservation(), memory.swap()].into_iter().flatten().any(|it| it != 0)
        || swappiness(memory).is_some()
        || memory.disable_oom_killer() == Some(true)
        || kernel_tcp(memory).is_some();
    if asked {
        let home = limits.home("memory", "memory")?;
        let writes = match home {
            Home::V1(_) => v1(memory)?,
            Home::V2(_) => v2(memory)?,
        };
        limits.add(home, writes);
    }
    Ok(())
}

fn refuse_obsolete(memory: &LinuxMemory) -> Result<(), CompileError> {
    // Kernels since 5.11 count hierarchically and no other way.
    if memory.use_hierarchy() == Some(false) {
        return Err(unsupported("linux.resources.memory.useHierarchy=false"));
    }
    Ok(())
}

/// The limit of a file that holds no less than what is used, if that is to be checked.
fn checked(write: CgroupWrite, memory: &LinuxMemory, usage: &str) -> CgroupWrite {
    let check = memory.check_before_update() == Some(true);
    CgroupWrite { not_below: if check { usage.to_owned() } else { String::new() }, ..write }
}

/// What some writers leave for "the kernel's default" is -1, read as the largest number.
fn swappiness(memory: &LinuxMemory) -> Option<u64> {
    memory.swappiness().filter(|swappiness| *swappiness != u64::MAX)
}

fn kernel_tcp(memory: &LinuxMemory) -> Option<i64> {
    set(memory.kernel_tcp())
}

fn v2(memory: &LinuxMemory) -> Result<Vec<CgroupWrite>, CompileError> {
    if swappiness(memory).is_some() {
        return Err(not_on("v2", "memory.swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(not_on("v2", "memory.disableOOMKiller"));
    }
    let mut writes = Vec::new();
    writes.extend(set(memory.limit()).map(|it| checked(write("memory.max", number(it)), memory, "memory.current")));
    writes.extend(swap_max(set(memory.limit()), set(memory.swap()))?.map(|swap| {
        // A kernel without swap has no such file, and gives neither no swap at all nor a limit to it.
        let enforced_anyway = matches!(swap, 0 | UNLIMITED);
        if enforced_anyway { optional("memory.swap.max", number(swap)) } else { write("memory.swap.max", number(swap)) }
    }));
    writes.extend(set(memory.reservation()).map(|low| write("memory.low", number(low))));
    Ok(writes)
}

/// Turns a limit of memory and swap together into one of swap.
pub(super) fn swap_max(limit: Option<i64>, both: Option<i64>) -> Result<Option<i64>, CompileError> {
    let refuse = |both: i64, problem| Err(invalid("linux.resources.memory.swap", both.to_string(), problem));
    match (limit, both) {
        (Some(UNLIMITED), None) => Ok(Some(UNLIMITED)),
        (_, None) => Ok(None),
        (_, Some(UNLIMITED)) => Ok(Some(UNLIMITED)),
        (Some(UNLIMITED), Some(both)) => Ok(Some(both)),
        (None, Some(both)) => refuse(both, "counts memory and swap together, so it needs memory.limit beside it"),
        (Some(limit), Some(both)) if both < limit => {
            refuse(both, "counts memory and swap together, so it is at least limit")
        }
        (Some(limit), Some(both)) => Ok(Some(both - limit)),
    }
}

fn v1(memory: &LinuxMemory) -> Result<Vec<CgroupWrite>, CompileError> {
    let mut writes = Vec::new();
    let limit = set(memory.limit());
    // As on v2: unlimited memory leaves no limit to memory and swap together.
    let both = set(memory.swap()).or(limit.filter(|limit| *limit == UNLIMITED));
    // The kernel wants the limit of memory at or below that of both: on the way up the second goes first, on the way
    // down the first. Kernels without swap accounting have no file for the second.
    if limit.is_some() {
        writes.extend(both.map(|both| lenient("memory.memsw.limit_in_bytes", both)));
    }
    writes.extend(limit.map(|it| checked(write("memory.limit_in_bytes", it), memory, "memory.usage_in_bytes")));
    writes.extend(both.map(|both| optional("memory.memsw.limit_in_bytes", both)));
    writes.extend(set(memory.reservation()).map(|soft| write("memory.soft_limit_in_bytes", soft)));
    writes.extend(kernel_tcp(memory).map(|limit| optional("memory.kmem.tcp.limit_in_bytes", limit)));
    if let Some(swappiness) = swappiness(memory) {
        if swappiness > 100 {
            let field = "linux.resources.memory.swappiness";
            return Err(invalid(field, swappiness.to_string(), "is above 100"));
        }
        writes.push(write("memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push(write("memory.oom_control", 1));
    }
    Ok(writes)
}

/// Zero means unset throughout the specification's memory fields.
fn set(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

fn number(value: i64) -> String {
    if value == UNLIMITED { "max".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_what_is_left_of_both() {
        for (limit, both, expected) in [
            (None, None, None),
            (Some(100), None, None),
            (Some(100), Some(100), Some(0)),
            (Some(100), Some(150), Some(50)),
            (Some(100), Some(-1), Some(-1)),
            (Some(-1), None, Some(-1)),
            (Some(-1), Some(100), Some(100)),
            (None, Some(-1), Some(-1)),
        ] {
            assert_eq!(swap_max(limit, both).unwrap(), expected, "{limit:?} {both:?}");
        }
        assert!(swap_max(None, Some(100)).is_err());
        assert!(swap_max(Some(100), Some(99)).is_err());
    }

    #[test]
    fn no_swap_needs_no_file_but_some_swap_does() {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(100)).set_swap(Some(100));
        assert_eq!(v2(&memory).unwrap(), [write("memory.max", 100), optional("memory.swap.max", 0)]);
        memory.set_swap(Some(101));
        assert_eq!(v2(&memory).unwrap(), [write("memory.max", 100), write("memory.swap.max", 1)]);
    }

    #[test]
    fn v1_writes_both_limits_in_an_order_that_fits_either_way() {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(100)).set_swap(Some(150));
        let files: Vec<_> = v1(&memory).unwrap().into_iter().map(|it| (it.file, it.lenient)).collect();
        let both = "memory.memsw.limit_in_bytes".to_owned();
        assert_eq!(files, [(both.clone(), true), ("memory.limit_in_bytes".to_owned(), false), (both, false)]);
    }

    #[test]
    fn what_only_one_version_has_is_named() {
        let mut memory = LinuxMemory::default();
        memory.set_swappiness(Some(60));
        assert_eq!(v1(&memory).unwrap(), [write("memory.swappiness", 60)]);
        assert!(v2(&memory).unwrap_err().to_string().contains("memory.swappiness"));
        memory.set_swappiness(Some(101));
        assert!(v1(&memory).is_err());
        memory.set_swappiness(Some(u64::MAX));
        assert_eq!(v2(&memory).unwrap(), []);
    }

    #[test]
    fn what_the_kernel_uses_is_part_of_the_limit() {
        let json = r#"{"kernel": 1048576, "kernelTCP": 4096, "checkBeforeUpdate": true, "limit": 100}"#;
        let memory: LinuxMemory = serde_json::from_str(json).unwrap();
        let checked = |file, usage: &str| CgroupWrite { not_below: usage.to_owned(), ..write(file, 100) };
        assert_eq!(v2(&memory).unwrap(), [checked("memory.max", "memory.current")]);
        assert_eq!(
            v1(&memory).unwrap(),
            [
                checked("memory.limit_in_bytes", "memory.usage_in_bytes"),
                optional("memory.kmem.tcp.limit_in_bytes", 4096)
            ]
        );
    }
}
