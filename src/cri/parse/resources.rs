//! Limits of a container.

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::container::Resources;

use super::field::{Field, at_least, text};

/// The quota and the swap limit have a value that means "no limit".
const UNLIMITED: i64 = -1;

/// Reads the limits; absent ones are unset.
pub(crate) fn parse(resources: Option<v1::LinuxContainerResources>, at: Field<'_>) -> Result<Resources, Error> {
    let Some(resources) = resources else { return Ok(Resources::default()) };
    check_swap(&resources, at)?;
    check_unified(&resources, at.child("unified"))?;
    Ok(Resources {
        cpu_period: at_least(0, resources.cpu_period, at.child("cpu_period"))?,
        cpu_quota: at_least(UNLIMITED, resources.cpu_quota, at.child("cpu_quota"))?,
        cpu_shares: at_least(0, resources.cpu_shares, at.child("cpu_shares"))?,
        memory_limit_in_bytes: at_least(0, resources.memory_limit_in_bytes, at.child("memory_limit_in_bytes"))?,
        memory_swap_limit_in_bytes: resources.memory_swap_limit_in_bytes,
        oom_score_adj: oom_score_adj(resources.oom_score_adj, at.child("oom_score_adj"))?,
        cpuset_cpus: list(resources.cpuset_cpus, at.child("cpuset_cpus"))?,
        cpuset_mems: list(resources.cpuset_mems, at.child("cpuset_mems"))?,
        hugepage_limits: hugepages(resources.hugepage_limits, at.child("hugepage_limits"))?,
        unified: resources.unified,
    })
}

/// The swap limit counts memory and swap together.
fn check_swap(resources: &v1::LinuxContainerResources, at: Field<'_>) -> Result<(), Error> {
    let field = at.child("memory_swap_limit_in_bytes");
    let (memory, both) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
    at_least(UNLIMITED, both, field)?;
    if both > 0 && both < memory {
        return Err(field.invalid(format!("{both} is below memory_limit_in_bytes, {memory}, which it includes")));
    }
    Ok(())
}

fn oom_score_adj(score: i64, field: Field<'_>) -> Result<i64, Error> {
    if (-1000..=1000).contains(&score) {
        Ok(score)
    } else {
        Err(field.invalid(format!("{score} is not between -1000 and 1000")))
    }
}

/// A list of processors or memory nodes, as `cpuset(7)` writes it.
fn list(list: String, field: Field<'_>) -> Result<String, Error> {
    let number = |text: &str| text.parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
    };
    if list.is_empty() || list.split(',').all(range) {
        Ok(list)
    } else {
        Err(field.invalid(format!("{list:?} is no list such as 0-2,7")))
    }
}

/// The page size becomes part of a file's name.
fn hugepages(limits: Vec<v1::HugepageLimit>, at: Field<'_>) -> Result<Vec<(String, u64)>, Error> {
    let one = |(index, limit): (usize, v1::HugepageLimit)| {
        let size = limit.page_size;
        let number = size.trim_end_matches(|char: char| char.is_ascii_alphabetic());
        let unit = &size[number.len()..];
        if number.parse::<u64>().is_err() || !matches!(unit, "KB" | "MB" | "GB") {
            return Err(at.item(index).child("page_size").invalid(format!("{size:?} is no size such as 2MB or 1GB")));
        }
        Ok((size, limit.limit))
    };
    limits.into_iter().enumerate().map(one).collect()
}

/// The keys become names of files in the container's cgroup.
fn check_unified(resources: &v1::LinuxContainerResources, field: Field<'_>) -> Result<(), Error> {
    for (name, value) in &resources.unified {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // Every setting's file begins with its controller; `cgroup.*` would move processes or freeze them.
        if !name.bytes().all(plain) || name.starts_with("cgroup.") || !name.contains('.') || name.starts_with('.') {
            return Err(field.invalid(format!("{name:?} is no setting of a cgroup v2 controller, such as memory.high")));
        }
        text(value.clone(), field)?;
    }
    Ok(())
}
