//! The daemon's configuration: every key, its default, and the file it is read from.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::paths::{DEFAULT_ROOT, DEFAULT_STATE};
pub use crate::secret::Secret;

/// Where the file is looked for when `--config` names none; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/podwright/config.toml";

/// All of `config.toml`. Every key has a default, unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory for what outlives a reboot: images, layers, records.
    pub root: PathBuf,
    /// Directory for what a reboot clears: sockets, locks, pod files.
    pub state: PathBuf,
    /// CRI socket; unset: `podwright.sock` in the state directory.
    pub address: Option<PathBuf>,
    /// The daemon's own log.
    pub log: Log,
    /// The per-pod process.
    pub shim: Shim,
    /// Containers' logs.
    pub container_log: ContainerLog,
    /// Control groups.
    pub cgroup: Cgroup,
    /// The network of pods.
    pub network: Network,
    /// Registries and pulls.
    pub registry: Registry,
    /// The server of exec, attach and port-forward.
    pub streaming: Streaming,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: DEFAULT_ROOT.into(),
            state: DEFAULT_STATE.into(),
            address: None,
            log: Log::default(),
            shim: Shim::default(),
            container_log: ContainerLog::default(),
            cgroup: Cgroup::default(),
            network: Network::default(),
            registry: Registry::default(),
            streaming: Streaming::default(),
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Filter in tracing's syntax: a level, or `target=level` pairs.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[shim]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shim {
    /// The shim's binary; unset: `podwright-shim` beside the daemon's own.
    pub path: Option<PathBuf>,
}

/// `[container_log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerLog {
    /// Bytes at which a container's log file is rotated; 0: never, the kubelet does it.
    pub max_bytes: u64,
    /// Rotated files that are kept of each log.
    pub max_files: u32,
}

impl Default for ContainerLog {
    fn default() -> Self {
        Self { max_bytes: 0, max_files: 4 }
    }
}

/// `[cgroup]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Who makes control groups.
    pub driver: CgroupDriver,
}

/// Who makes control groups (CRI `CgroupDriver`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// Podwright writes the cgroup file system itself.
    #[default]
    Cgroupfs,
}

/// `[network]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Directory searched for CNI configuration lists; the built-in network serves when it holds none.
    pub cni_conf_dir: PathBuf,
    /// Directories of CNI plugins, in the order in which they are searched.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Template of a CNI configuration, filled with the node's pod addresses once the kubelet tells them; unset: none.
    pub cni_conf_template: Option<PathBuf>,
    /// Seconds that one execution of a CNI plugin may take.
    pub cni_plugin_timeout_seconds: u64,
    /// Whether CNI plugins are told to remove what belongs to no pod of this daemon.
    pub cni_gc: bool,
    /// Bridge of the built-in network; unset: `podwright0`, or a name of its own for a daemon with another state directory.
    pub bridge: Option<String>,
    /// Pod addresses of the built-in network; unset: the node's range when the kubelet tells one, else the first free /20
    /// of 10.88.0.0/13.
    pub ipv4: Option<Ipv4Net>,
    /// Pod IPv6 addresses; unset: the node's range when the kubelet tells one, else a /64 of a unique local prefix derived
    /// from the bridge's name.
    pub ipv6: Option<Ipv6Net>,
    /// Whether pods have IPv6 addresses at all.
    pub enable_ipv6: bool,
    /// Bytes a packet may have; unset: that of the host's default route, else 1500.
    pub mtu: Option<u32>,
    /// Whether packets to other networks leave with the host's address.
    pub masquerade: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_conf_template: None,
            cni_plugin_timeout_seconds: 60,
            cni_gc: true,
            bridge: None,
            ipv4: None,
            ipv6: None,
            enable_ipv6: true,
            mtu: None,
            masquerade: true,
        }
    }
}

/// `[registry]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Directory tree of `<host>/hosts.toml` files, as containerd's `certs.d`.
    pub config_path: PathBuf,
    /// Layers fetched at once for one image.
    pub max_concurrent_layers: usize,
    /// Bodies of blobs in flight on this node.
    pub max_concurrent_transfers: usize,
    /// Bodies of blobs in flight from one registry.
    pub max_concurrent_transfers_per_registry: usize,
    /// Seconds without a byte after which a transfer is dropped and retried.
    pub stall_timeout_seconds: u64,
    /// Attempts for each request before its error is reported.
    pub attempts: u32,
    /// Bytes asked for at once beside the transfer of a large layer that comes slower than it is unpacked; 0: never.
    pub range_bytes: u64,
    /// Such ranges of one layer in flight.
    pub max_ranges_per_layer: usize,
    /// Whether layers' blobs are kept beside the directories that they are unpacked into.
    pub keep_layer_blobs: bool,
    /// Names of images that the kubelet's garbage collection leaves alone, `*` standing for any characters.
    pub pinned_images: Vec<String>,
    /// Policy that pulled images are judged by, as containers-policy.json(5); unset: every image is accepted.
    pub signature_policy: Option<PathBuf>,
    /// Docker's `config.json`, for registries that neither a request nor `auth` has credentials for; unset: none is read.
    pub docker_config: Option<PathBuf>,
    /// Mirrors (`host[:port]`) that may see the credentials of the registries that they mirror.
    pub auth_mirrors: Vec<String>,
    /// Credentials for registries, by `host[:port]`, which a path of repositories may follow.
    pub auth: BTreeMap<String, RegistryAuth>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            config_path: "/etc/podwright/registries.d".into(),
            max_concurrent_layers: 4,
            max_concurrent_transfers: 16,
            max_concurrent_transfers_per_registry: 8,
            stall_timeout_seconds: 30,
            attempts: 5,
            range_bytes: 8 << 20,
            max_ranges_per_layer: 3,
            keep_layer_blobs: false,
            pinned_images: Vec::new(),
            signature_policy: None,
            docker_config: None,
            auth_mirrors: Vec::new(),
            auth: BTreeMap::new(),
        }
    }
}

/// `[registry.auth."host"]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryAuth {
    /// The user.
    pub username: String,
    /// The user's password, or an access token.
    pub password: Secret,
    /// A file that holds the password; it is read at each pull.
    pub password_file: Option<PathBuf>,
    /// `username:password` in base64, in place of the two.
    pub auth: Secret,
    /// OAuth2 refresh token for the registry's token server.
    pub identity_token: Secret,
}

/// `[streaming]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streaming {
    /// Where exec, attach and port-forward are served; port 0 takes a free one.
    pub address: SocketAddr,
    /// Certificate chain in PEM; with it and `tls_key` the server speaks TLS alone. Read again when it changes.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM.
    pub tls_key: Option<PathBuf>,
    /// Authorities in PEM one of which must have signed a client's certificate; unset: clients need none.
    pub tls_client_ca: Option<PathBuf>,
    /// Seconds without a byte either way after which a session is ended.
    pub idle_timeout_seconds: NonZeroU64,
    /// Seconds a client has to open the streams it asked for.
    pub stream_creation_timeout_seconds: NonZeroU64,
}

impl Default for Streaming {
    fn default() -> Self {
        let seconds = |count| NonZeroU64::new(count).expect("the defaults are not zero");
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            idle_timeout_seconds: seconds(4 * 60 * 60),
            stream_creation_timeout_seconds: seconds(30),
        }
    }
}
