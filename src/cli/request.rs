//! The flags of `podwright run`, and the CRI messages they become.

use std::env;
use std::path::{Component, Path};
use std::str::FromStr;

use podwright_proto::runtime::v1::security_profile::ProfileType;
use podwright_proto::runtime::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, SecurityProfile,
};

/// The period that a CPU limit is counted over, microseconds: the kubelet's.
const CPU_PERIOD: f64 = 100_000.0;
/// The shortest CPU time in a period that the kernel takes, microseconds.
const CPU_QUOTA_MIN: f64 = 1_000.0;

/// What a container sees empty: the list that the kubelet sends for an ordinary one.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What it cannot write to: likewise.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// How the container is to be.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Flags {
    /// Set a variable; without a value, hand on this shell's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<Variable>,
    /// Mount a path of the host
    #[arg(short = 'v', long, value_name = "HOST:CONTAINER[:ro]")]
    mount: Vec<Volume>,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GID]")]
    user: Option<RunAs>,
    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Use the host's network
    #[arg(long)]
    pub(crate) host_network: bool,
    /// Limit memory: bytes, or a number with k, m or g
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<Bytes>,
    /// Limit CPU time
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<Cpus>,
}

impl Flags {
    /// Makes the pod's configuration.
    pub(crate) fn pod(&self, name: &str, uid: &str, log_directory: &Path, label: (&str, &str)) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: if self.host_network { String::new() } else { hostname(name) },
            log_directory: log_directory.display().to_string(),
            labels: [(label.0.to_owned(), label.1.to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Makes the container's configuration.
    pub(crate) fn container(&self, name: &str, image: &str, reference: &str, args: &[String]) -> ContainerConfig {
        let (uid, username, gid) = match self.user.clone().unwrap_or_default() {
            RunAs { user: Who::Image, .. } => (None, String::new(), None),
            RunAs { user: Who::Uid(uid), gid } => (Some(uid), String::new(), gid),
            RunAs { user: Who::Name(name), gid } => (None, name, gid),
        };
        let id = |id: Option<u32>| id.map(|id| Int64Value { value: id.into() });
        let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect();
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec {
                image: image.to_owned(),
                user_specified_image: reference.to_owned(),
                ..Default::default()
            }),
            args: args.to_vec(),
            working_dir: self.workdir.clone().unwrap_or_default(),
            envs: self.env.iter().filter_map(Variable::to_cri).collect(),
            mounts: self.mount.iter().map(Volume::to_cri).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(self.resources()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    run_as_user: id(uid),
                    run_as_username: username,
                    run_as_group: id(gid),
                    seccomp: Some(SecurityProfile {
                        profile_type: ProfileType::RuntimeDefault.into(),
                        localhost_ref: String::new(),
                    }),
                    masked_paths: paths(&MASKED),
                    readonly_paths: paths(&READONLY),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }
    }

    fn namespaces(&self) -> NamespaceOption {
        let network = if self.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        NamespaceOption {
            network: network.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        }
    }

    fn resources(&self) -> LinuxContainerResources {
        let mut resources = LinuxContainerResources::default();
        if let Some(Bytes(bytes)) = self.memory {
            resources.memory_limit_in_bytes = bytes;
        }
        if let Some(Cpus(cpus)) = self.cpus {
            resources.cpu_period = CPU_PERIOD as i64;
            resources.cpu_quota = (cpus * CPU_PERIOD).max(CPU_QUOTA_MIN) as i64;
            resources.cpu_shares = (cpus * 1024.0).max(2.0) as i64;
        }
        resources
    }
}

/// Makes a host name of a pod's: a DNS label has 63 characters at most.
fn hostname(name: &str) -> String {
    let label: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    label.trim_matches('-').to_owned()
}

/// `NAME=VALUE`, or `NAME` for this process's own value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    name: String,
    value: Option<String>,
}

impl Variable {
    fn to_cri(&self) -> Option<KeyValue> {
        use std::os::unix::ffi::OsStringExt;
        let value = match &self.value {
            Some(value) => value.clone().into_bytes(),
            // A variable that this shell does not have, the container does not get.
            None => env::var_os(&self.name)?.into_vec(),
        };
        Some(KeyValue { key: self.name.clone(), value })
    }
}

impl FromStr for Variable {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        if name.is_empty() { Err("a variable needs a name") } else { Ok(Self { name: name.to_owned(), value }) }
    }
}

/// `HOST:CONTAINER[:ro]`
#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    host: String,
    container: String,
    readonly: bool,
}

impl Volume {
    fn to_cri(&self) -> Mount {
        Mount {
            host_path: self.host.clone(),
            container_path: self.container.clone(),
            readonly: self.readonly,
            ..Default::default()
        }
    }
}

impl FromStr for Volume {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "a mount is HOST:CONTAINER, with :ro or :rw after it";
        let parts: Vec<_> = word.split(':').collect();
        let (host, container, readonly) = match parts[..] {
            [host, container] | [host, container, "rw"] => (host, container, false),
            [host, container, "ro"] => (host, container, true),
            _ => return Err(FORM),
        };
        if host.is_empty() || container.is_empty() {
            return Err(FORM);
        }
        if !container.starts_with('/') {
            return Err("the place in the container needs to be an absolute path");
        }
        Ok(Self { host: absolute(host)?, container: container.to_owned(), readonly })
    }
}

/// Makes a path absolute: the daemon's working directory is another one.
fn absolute(path: &str) -> Result<String, &'static str> {
    let path = std::path::absolute(path).map_err(|_| "the working directory is gone")?;
    // `absolute` keeps `..`, which is right with links and has to be resolved by the kernel; `.` it drops.
    debug_assert!(!path.components().any(|part| part == Component::CurDir));
    path.into_os_string().into_string().map_err(|_| "the working directory's path is not UTF-8")
}

/// `USER[:GID]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RunAs {
    user: Who,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Who {
    #[default]
    Image,
    Uid(u32),
    Name(String),
}

impl FromStr for RunAs {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let (user, group) = match word.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (word, None),
        };
        let gid = group.map(str::parse).transpose().map_err(|_| "the group needs to be a number")?;
        let user = match user.parse() {
            _ if user.is_empty() => return Err("a user is a name or a number"),
            Ok(uid) => Who::Uid(uid),
            Err(_) => Who::Name(user.to_owned()),
        };
        Ok(Self { user, gid })
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bytes(i64);

impl FromStr for Bytes {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: i64 = match word[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "ki" | "kib" => 1 << 10,
            "m" | "mb" | "mi" | "mib" => 1 << 20,
            "g" | "gb" | "gi" | "gib" => 1 << 30,
            _ => return Err("the units are k, m and g"),
        };
        let number: i64 = digits.parse().map_err(|_| "needs a whole number, such as 64m")?;
        number.checked_mul(unit).filter(|bytes| *bytes > 0).map(Self).ok_or("is out of range")
    }
}

/// A number of CPUs.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cpus(f64);

impl FromStr for Cpus {
    type Err = &'static str;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word.parse() {
            Ok(number) if number > 0.0 && number <= 65_536.0 => Ok(Self(number)),
            _ => Err("needs a number above 0, such as 0.5"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        let read = |word: &str| word.parse::<Variable>().unwrap().to_cri().map(|pair| (pair.key, pair.value));
        assert_eq!(read("A=b=c"), Some(("A".into(), b"b=c".to_vec())));
        assert_eq!(read("A="), Some(("A".into(), Vec::new())));
        assert_eq!(read("PODWRIGHT_TEST_UNSET_VARIABLE"), None);
        assert_eq!(read("PATH").map(|(name, _)| name), Some("PATH".to_owned()));
        assert!("=x".parse::<Variable>().is_err());
    }

    #[test]
    fn volumes() {
        let read = |word: &str| word.parse::<Volume>().map(|v| (v.host, v.container, v.readonly));
        assert_eq!(read("/a:/b"), Ok(("/a".into(), "/b".into(), false)));
        assert_eq!(read("/a:/b:ro"), Ok(("/a".into(), "/b".into(), true)));
        assert_eq!(read("/a:/b:rw"), Ok(("/a".into(), "/b".into(), false)));
        let here = env::current_dir().unwrap().join("x").display().to_string();
        assert_eq!(read("./x:/b"), Ok((here, "/b".into(), false)));
        for bad in ["/a", ":/b", "/a:", "/a:b", "/a:/b:rx", "/a:/b:ro:x", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users() {
        let read = |word: &str| word.parse::<RunAs>();
        assert_eq!(read("7"), Ok(RunAs { user: Who::Uid(7), gid: None }));
        assert_eq!(read("7:8"), Ok(RunAs { user: Who::Uid(7), gid: Some(8) }));
        assert_eq!(read("web:8"), Ok(RunAs { user: Who::Name("web".into()), gid: Some(8) }));
        for bad in ["", ":8", "7:", "7:staff", "7:8:9"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_cpus() {
        for (word, want) in [("1", 1), ("64m", 64 << 20), ("64MiB", 64 << 20), ("2G", 2 << 30), ("10k", 10 << 10)] {
            assert_eq!(word.parse(), Ok(Bytes(want)), "{word}");
        }
        for bad in ["", "m", "0", "-1m", "1.5g", "1t", "9999999999g"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!("0.5".parse(), Ok(Cpus(0.5)));
        for bad in ["", "0", "-1", "nan", "inf", "x"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_become_messages() {
        let flags = Flags {
            user: Some("7:8".parse().unwrap()),
            memory: Some(Bytes(1 << 20)),
            cpus: Some(Cpus(0.001)),
            host_network: true,
            ..Flags::default()
        };
        let container = flags.container("c", "sha256:1", "web", &["a".into()]);
        let linux = container.linux.unwrap();
        let (resources, security) = (linux.resources.unwrap(), linux.security_context.unwrap());
        assert_eq!((resources.cpu_quota, resources.cpu_shares), (1000, 2));
        assert_eq!(resources.memory_limit_in_bytes, 1 << 20);
        assert_eq!(security.run_as_user, Some(Int64Value { value: 7 }));
        assert_eq!(security.run_as_group, Some(Int64Value { value: 8 }));
        assert_eq!(security.namespace_options.unwrap().network(), NamespaceMode::Node);
        assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
        assert_eq!((container.args, container.command), (vec!["a".to_owned()], Vec::new()));

        let pod = Flags::default().pod("My_Web.1", "u", Path::new("/logs"), ("key", "value"));
        assert_eq!(pod.hostname, "my-web-1");
        assert_eq!(pod.labels["key"], "value");
    }
}
