//! The controllers that count or tag one thing each: pids, hugetlb, rdma, net_cls and net_prio.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxHugepageLimit, LinuxNetwork, LinuxResources};

use super::limits::{Limits, not_on, optional, write};
use crate::error::{CompileError, invalid};
use crate::facts::Home;

pub(super) fn limits(limits: &mut Limits<'_>, resources: &LinuxResources) -> Result<(), CompileError> {
    // Zero is unset: the specification's types cannot tell it from an absent field, and it was no limit up to 1.2.
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        let home = limits.home("pids", "pids.limit")?;
        let value = if limit < 0 { "max".to_owned() } else { limit.to_string() };
        limits.add(home, [write("pids.max", value)]);
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        hugepages(limits, index, limit)?;
    }
    if let Some(rdma) = resources.rdma().as_ref().filter(|rdma| !rdma.is_empty()) {
        let home = limits.home("rdma", "rdma")?;
        let sorted: BTreeMap<_, _> = rdma.iter().collect();
        for (device, limit) in sorted {
            let mut value = device.clone();
            for (key, count) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
                if let Some(count) = count {
                    value.push_str(&format!(" {key}={count}"));
                }
            }
            limits.add(home, [write("rdma.max", value)]);
        }
    }
    resources.network().as_ref().map_or(Ok(()), |network| tags(limits, network))
}

fn hugepages(limits: &mut Limits<'_>, index: usize, limit: &LinuxHugepageLimit) -> Result<(), CompileError> {
    let field = format!("linux.resources.hugepageLimits[{index}]");
    let size = limit.page_size();
    let digits = size.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = &size[digits.len()..];
    if !matches!(unit, "KB" | "MB" | "GB") || digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid(format!("{field}.pageSize"), size, "is no page size such as 2MB"));
    }
    if limit.limit() < 0 {
        return Err(invalid(format!("{field}.limit"), limit.limit().to_string(), "is negative"));
    }
    let Some(home) = limits.find("hugetlb") else {
        // The kubelet sends a limit of zero for every page size of the node, also where nothing can enforce it.
        return if limit.limit() == 0 {
            Ok(())
        } else {
            limits.home("hugetlb", &format!("hugepageLimits[{index}]")).map(|_| ())
        };
    };
    // The second file limits what is reserved by mmap, which otherwise ends in SIGBUS at first touch.
    let (usage, reserved) = match home {
        Home::V1(_) => ("limit_in_bytes", "rsvd.limit_in_bytes"),
        Home::V2(_) => ("max", "rsvd.max"),
    };
    limits.add(
        home,
        [
            write(format!("hugetlb.{size}.{usage}"), limit.limit()),
            optional(format!("hugetlb.{size}.{reserved}"), limit.limit()),
        ],
    );
    Ok(())
}

fn tags(limits: &mut Limits<'_>, network: &LinuxNetwork) -> Result<(), CompileError> {
    if let Some(class) = network.class_id().filter(|class| *class != 0) {
        match limits.find("net_cls") {
            Some(home @ Home::V1(_)) => limits.add(home, [write("net_cls.classid", class)]),
            _ if limits.layout().is_v2() => return Err(not_on("v2", "network.classID")),
            _ => limits.home("net_cls", "network.classID").map(|_| ())?,
        }
    }
    let priorities = network.priorities().as_deref().unwrap_or_default();
    if !priorities.is_empty() {
        match limits.find("net_prio") {
            Some(home @ Home::V1(_)) => limits.add(
                home,
                priorities.iter().map(|it| write("net_prio.ifpriomap", format!("{} {}", it.name(), it.priority()))),
            ),
            _ if limits.layout().is_v2() => return Err(not_on("v2", "network.priorities")),
            _ => limits.home("net_prio", "network.priorities").map(|_| ())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::{hybrid, legacy, unified};

    fn compiled(json: &str, facts: &crate::HostFacts) -> Result<Vec<(String, String)>, String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let path = "/a".parse().unwrap();
        let mut collected = Limits::new(&facts.cgroup, &path);
        limits(&mut collected, &resources).map_err(|error| error.to_string())?;
        let dirs = collected.into_dirs().into_iter();
        Ok(dirs
            .flat_map(|dir| dir.writes.into_iter().map(move |it| (format!("{}/{}", dir.path, it.file), it.value)))
            .collect())
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (format!("/sys/fs/cgroup/{file}"), value.to_owned())
    }

    #[test]
    fn pids_are_limited_unlimited_or_left_alone() {
        assert_eq!(compiled(r#"{"pids": {"limit": 7}}"#, &unified()).unwrap(), [pair("a/pids.max", "7")]);
        assert_eq!(compiled(r#"{"pids": {"limit": -1}}"#, &legacy()).unwrap(), [pair("pids/a/pids.max", "max")]);
        assert_eq!(compiled(r#"{"pids": {"limit": 0}}"#, &unified()).unwrap(), []);
    }

    #[test]
    fn hugepages_go_where_their_controller_is() {
        let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
        let hybrid = compiled(json, &hybrid()).unwrap();
        assert_eq!(hybrid[0], pair("unified/a/hugetlb.2MB.max", "4194304"));
        assert!(compiled(json, &legacy()).unwrap_err().contains("\"hugetlb\""));
        assert_eq!(compiled(&json.replace("4194304", "0"), &legacy()).unwrap(), []);
        assert!(compiled(&json.replace("2MB", "../2MB"), &unified()).is_err());
    }

    #[test]
    fn network_tags_are_v1_only() {
        let json = r#"{"network": {"classID": 1048577}}"#;
        assert!(compiled(json, &unified()).unwrap_err().contains("network.classID does not exist on cgroup v2"));
        assert!(compiled(json, &legacy()).unwrap_err().contains("net_cls"));
    }

    #[test]
    fn rdma_limits_are_one_line_a_device() {
        let json = r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 1}}}"#;
        assert_eq!(
            compiled(json, &unified()).unwrap(),
            [pair("a/rdma.max", "mlx4_0 hca_object=1"), pair("a/rdma.max", "mlx5_1 hca_handle=3 hca_object=10000")]
        );
    }
}
