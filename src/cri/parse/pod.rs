//! A pod sandbox's configuration, from `RunPodSandboxRequest`.

use std::net::IpAddr;
use std::path::{Component, Path};

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::pod::{DnsConfig, LinuxPod, PodMetadata, PortMapping, Protocol};
use podwright_spec::{PodConfig, sysctl};

use super::field::{Field, absolute, id, ids, known, not_empty, required, text, word};
use super::namespaces;

/// Bytes of a host name that the kernel takes (`HOST_NAME_MAX`).
const HOSTNAME_LIMIT: usize = 64;

/// Reads the request for a new sandbox.
pub(crate) fn run_pod(request: v1::RunPodSandboxRequest) -> Result<PodConfig, Error> {
    if !request.runtime_handler.is_empty() {
        return Err(super::unknown_handler(&request.runtime_handler, Field::root("runtime_handler")));
    }
    let at = Field::root("config");
    let config = required(request.config, at)?;
    Ok(PodConfig {
        metadata: metadata(config.metadata, at.child("metadata"))?,
        hostname: hostname(config.hostname, at.child("hostname"))?,
        log_directory: log_directory(config.log_directory, at.child("log_directory"))?.into(),
        dns: dns(config.dns_config, at.child("dns_config"))?,
        port_mappings: port_mappings(config.port_mappings, at.child("port_mappings"))?,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: request.runtime_handler,
        linux: linux(config.linux, at.child("linux"))?,
    })
}

fn metadata(metadata: Option<v1::PodSandboxMetadata>, at: Field<'_>) -> Result<PodMetadata, Error> {
    let metadata = required(metadata, at)?;
    Ok(PodMetadata {
        name: not_empty(metadata.name, at.child("name"))?,
        uid: not_empty(metadata.uid, at.child("uid"))?,
        namespace: not_empty(metadata.namespace, at.child("namespace"))?,
        attempt: metadata.attempt,
    })
}

/// The name is set in the kernel and written into `/etc/hosts`.
fn hostname(hostname: String, field: Field<'_>) -> Result<String, Error> {
    if hostname.is_empty() {
        return Ok(hostname);
    }
    if hostname.len() > HOSTNAME_LIMIT {
        return Err(field.invalid(format!("{hostname:?} is longer than {HOSTNAME_LIMIT} bytes")));
    }
    word(hostname, field)
}

fn log_directory(directory: String, field: Field<'_>) -> Result<String, Error> {
    if directory.is_empty() { Ok(directory) } else { absolute(directory, field) }
}

/// A resolver configuration without any line is none: the host's is used then.
fn dns(dns: Option<v1::DnsConfig>, at: Field<'_>) -> Result<Option<DnsConfig>, Error> {
    let words = |values: Vec<String>, field: Field<'_>| -> Result<Vec<String>, Error> {
        values.into_iter().enumerate().map(|(index, value)| word(value, field.item(index))).collect()
    };
    let Some(dns) = dns else { return Ok(None) };
    let dns = DnsConfig {
        servers: words(dns.servers, at.child("servers"))?,
        searches: words(dns.searches, at.child("searches"))?,
        options: words(dns.options, at.child("options"))?,
    };
    Ok(Some(dns).filter(|dns| *dns != DnsConfig::default()))
}

/// Keeps the mappings that have a port on the host: the kubelet lists every port of every container.
fn port_mappings(mappings: Vec<v1::PortMapping>, at: Field<'_>) -> Result<Vec<PortMapping>, Error> {
    let mut kept = Vec::new();
    for (index, mapping) in mappings.into_iter().enumerate() {
        let at = at.item(index);
        let port = |port: i32, field: Field<'_>| {
            u16::try_from(port).map_err(|_| field.invalid(format!("{port} is no port: ports go from 1 to 65535")))
        };
        let protocol = match known(mapping.protocol, at.child("protocol"))? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        };
        let container_port = port(mapping.container_port, at.child("container_port"))?;
        let host_port = port(mapping.host_port, at.child("host_port"))?;
        let host_ip = host_ip(mapping.host_ip, at.child("host_ip"))?;
        if host_port == 0 {
            continue;
        }
        if container_port == 0 {
            return Err(at.child("container_port").invalid("0 is no port: ports go from 1 to 65535"));
        }
        kept.push(PortMapping { protocol, container_port, host_port, host_ip });
    }
    Ok(kept)
}

fn host_ip(ip: String, field: Field<'_>) -> Result<String, Error> {
    if ip.is_empty() || ip.parse::<IpAddr>().is_ok() {
        Ok(ip)
    } else {
        Err(field.invalid(format!("{ip:?} is no IP address")))
    }
}

fn linux(linux: Option<v1::LinuxPodSandboxConfig>, at: Field<'_>) -> Result<LinuxPod, Error> {
    let Some(linux) = linux else { return Ok(LinuxPod::default()) };
    let security = linux.security_context.unwrap_or_default();
    let security_at = at.child("security_context");
    check_unused(&security, security_at)?;
    let namespaces = namespaces::of_pod(security.namespace_options, security_at.child("namespace_options"))?;
    let linux = LinuxPod {
        cgroup_parent: cgroup_parent(linux.cgroup_parent, at.child("cgroup_parent"))?,
        sysctls: linux.sysctls,
        network: namespaces.network,
        pid: namespaces.pid,
        ipc: namespaces.ipc,
        privileged: security.privileged,
    };
    // Told now, before anything is made for the pod.
    sysctl::of_pod(&linux).map_err(|error| at.child("sysctls").invalid(error.to_string()))?;
    Ok(linux)
}

/// Checks what describes the process of a pause container. There is no such process here, but nonsense is told anyway.
fn check_unused(security: &v1::LinuxSandboxSecurityContext, at: Field<'_>) -> Result<(), Error> {
    if let Some(user) = &security.run_as_user {
        id(user.value, at.child("run_as_user"))?;
    }
    if let Some(group) = &security.run_as_group {
        id(group.value, at.child("run_as_group"))?;
        if security.run_as_user.is_none() {
            return Err(at.child("run_as_group").invalid("needs run_as_user beside it"));
        }
    }
    ids(security.supplemental_groups.clone(), at.child("supplemental_groups"))?;
    Ok(())
}

/// The parent is a path below each hierarchy's mount, and must stay there.
fn cgroup_parent(parent: String, field: Field<'_>) -> Result<String, Error> {
    if parent.is_empty() {
        return Ok(parent);
    }
    let parent = text(parent, field)?;
    if parent.ends_with(".slice") && !parent.starts_with('/') {
        return Err(field.invalid(format!(
            "{parent:?} is a slice of systemd, but the cgroup driver is cgroupfs: set the kubelet's cgroupDriver to it"
        )));
    }
    let parent = absolute(parent, field)?;
    if Path::new(&parent).components().any(|part| part == Component::ParentDir) {
        return Err(field.invalid(format!("{parent:?} leads out of its hierarchy")));
    }
    Ok(parent)
}
