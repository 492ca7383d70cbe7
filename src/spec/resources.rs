//! CRI `LinuxContainerResources` as the OCI specification has them.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

use crate::container::Resources;
use crate::error::SpecError;
use crate::input::HostTraits;

/// Converts what a container may use. Device rules are not among it.
///
/// Used at creation and for CRI `UpdateContainerResources`; zero and empty mean "leave as it is".
///
/// # Errors
/// Names the field whose value the kernel would not take.
pub fn limits(resources: &Resources, host: &HostTraits) -> Result<LinuxResources, SpecError> {
    let mut oci = LinuxResources::default();
    oci.set_cpu(cpu(resources)?);
    oci.set_memory(memory(resources, host)?);
    // The kubelet sends a limit for each page size of the node, also for pods that ask for none: on a host that
    // cannot limit them, insisting would keep every pod from starting.
    if host.hugetlb && !resources.hugepage_limits.is_empty() {
        oci.set_hugepage_limits(Some(resources.hugepage_limits.iter().map(hugepages).collect()));
    }
    if !resources.unified.is_empty() {
        oci.set_unified(Some(resources.unified.clone().into_iter().collect::<HashMap<_, _>>()));
    }
    Ok(oci)
}

/// Makes the limit on the number of processes.
pub(crate) fn pids(limit: i64) -> LinuxPids {
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    pids
}

/// Checks `oom_score_adj`.
pub(crate) fn oom_score_adj(resources: &Resources) -> Result<i32, SpecError> {
    let value = resources.oom_score_adj;
    i32::try_from(value).ok().filter(|value| (-1000..=1000).contains(value)).ok_or(SpecError::OutOfRange {
        field: "oom_score_adj",
        value,
        range: "-1000 to 1000",
    })
}

fn cpu(resources: &Resources) -> Result<Option<LinuxCpu>, SpecError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(given(natural("cpu_shares", resources.cpu_shares)?));
    cpu.set_period(given(natural("cpu_period", resources.cpu_period)?));
    cpu.set_quota(given(at_least_minus_one("cpu_quota", resources.cpu_quota)?));
    cpu.set_cpus(text(&resources.cpuset_cpus));
    cpu.set_mems(text(&resources.cpuset_mems));
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

fn memory(resources: &Resources, host: &HostTraits) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = at_least_minus_one("memory_limit_in_bytes", resources.memory_limit_in_bytes)?;
    let swap = at_least_minus_one("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes)?;
    let mut memory = LinuxMemory::default();
    memory.set_limit(given(limit));
    if host.swap_accounting {
        // `swap` counts memory and swap together: equal to the limit it means no swap, which is what a limit alone asks for.
        memory.set_swap(given(swap).or(given(limit)));
    }
    Ok(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
}

fn hugepages((size, bytes): &(String, u64)) -> LinuxHugepageLimit {
    let mut limit = LinuxHugepageLimit::default();
    limit.set_page_size(size.clone());
    // More than 2^63 bytes is no limit on any machine.
    limit.set_limit(i64::try_from(*bytes).unwrap_or(i64::MAX));
    limit
}

fn given<T: Default + PartialEq>(value: T) -> Option<T> {
    Some(value).filter(|value| *value != T::default())
}

fn text(value: &str) -> Option<String> {
    given(value.to_owned())
}

fn natural(field: &'static str, value: i64) -> Result<u64, SpecError> {
    u64::try_from(value).map_err(|_| SpecError::OutOfRange { field, value, range: "0 or more" })
}

fn at_least_minus_one(field: &'static str, value: i64) -> Result<i64, SpecError> {
    if value < -1 { Err(SpecError::OutOfRange { field, value, range: "-1 (no limit) or more" }) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(swap_accounting: bool, hugetlb: bool) -> HostTraits {
        HostTraits { swap_accounting, hugetlb, ..HostTraits::default() }
    }

    #[test]
    fn nothing_asked_is_nothing_set() {
        assert_eq!(limits(&Resources::default(), &host(true, true)), Ok(LinuxResources::default()));
    }

    #[test]
    fn a_memory_limit_alone_forbids_swap_where_that_can_be_said() {
        for (limit, swap, accounting, want) in [
            (100, 0, true, Some(100)),
            (100, 150, true, Some(150)),
            (100, -1, true, Some(-1)),
            (0, 150, true, Some(150)),
            (100, 150, false, None),
        ] {
            let asked =
                Resources { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: swap, ..Resources::default() };
            let memory = limits(&asked, &host(accounting, false)).unwrap().memory().unwrap();
            assert_eq!((memory.limit().unwrap_or_default(), memory.swap()), (limit, want));
        }
    }

    #[test]
    fn huge_pages_are_limited_where_the_host_can() {
        let asked = Resources { hugepage_limits: vec![("2MB".into(), u64::MAX)], ..Resources::default() };
        let limited = limits(&asked, &host(false, true)).unwrap();
        let list = limited.hugepage_limits().as_ref().unwrap();
        assert_eq!((list[0].page_size().as_str(), list[0].limit()), ("2MB", i64::MAX));
        assert_eq!(limits(&asked, &host(false, false)).unwrap().hugepage_limits(), &None);
    }

    #[test]
    fn what_the_kernel_would_not_take_is_named() {
        let base = Resources::default;
        for (asked, field) in [
            (Resources { cpu_shares: -1, ..base() }, "linux.resources.cpu_shares"),
            (Resources { cpu_period: -5, ..base() }, "linux.resources.cpu_period"),
            (Resources { cpu_quota: -2, ..base() }, "linux.resources.cpu_quota"),
            (Resources { memory_limit_in_bytes: -2, ..base() }, "linux.resources.memory_limit_in_bytes"),
        ] {
            assert_eq!(limits(&asked, &host(true, true)).unwrap_err().field(), field);
        }
        assert_eq!(oom_score_adj(&Resources { oom_score_adj: -999, ..base() }), Ok(-999));
        assert!(oom_score_adj(&Resources { oom_score_adj: 1001, ..base() }).is_err());
        assert!(oom_score_adj(&Resources { oom_score_adj: i64::MIN, ..base() }).is_err());
    }
}
