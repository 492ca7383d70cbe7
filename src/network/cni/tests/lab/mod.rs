//! A laboratory: directories of configurations, plugins and records, and plugins that are shell scripts of the tests.

#![allow(clippy::unwrap_used, reason = "a laboratory that cannot be set up fails its test")]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses a part of the laboratory, and none is a library"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use podwright_base::chain as told;
use podwright_cni::{AddError, AddResult, Cni, NetworkConfig, Request, Settings};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Far more than a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);
const VERSIONS: &str = r#""0.3.1","0.4.0","1.0.0","1.1.0""#;

pub struct Lab {
    pub dir: TempDir,
    limit: Duration,
}

impl Lab {
    pub fn new() -> Self {
        Self::with_limit(PATIENCE)
    }

    pub fn with_limit(limit: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["conf", "bin", "log", "netns"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, limit }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The runtime, as after each start of its daemon.
    pub fn open(&self) -> Cni {
        self.open_with(&[self.path("bin")])
    }

    pub fn open_with(&self, bin_dirs: &[PathBuf]) -> Cni {
        Cni::new(Settings {
            conf_dir: self.path("conf"),
            bin_dirs: bin_dirs.to_vec(),
            records: self.path("root/network/cni"),
            plugin_limit: self.limit,
        })
    }

    pub fn configure(&self, network: &Value) {
        fs::write(self.path("conf/10-test.conflist"), network.to_string()).unwrap();
    }

    /// Installs a plugin that notes each call, and then does what the script says; VERSION is answered.
    pub fn plugin(&self, name: &str, script: &str) {
        self.plugin_speaking(VERSIONS, name, script);
    }

    pub fn plugin_speaking(&self, versions: &str, name: &str, script: &str) {
        let log = self.path("log").display().to_string();
        let text = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND {name}\" >>{log}/calls\nenv | grep '^CNI_' | sort >{log}/$CNI_COMMAND.{name}.env\n\
             cat >{log}/$CNI_COMMAND.{name}.json\n\
             [ $CNI_COMMAND = VERSION ] && {{ echo '{{\"supportedVersions\":[{versions}]}}'; exit 0; }}\n{script}\n"
        );
        let file = self.path("bin").join(name);
        // Beside its place, so that nobody executes a file that is being written.
        let temporary = self.path("log").join(name);
        fs::write(&temporary, text).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&temporary, &file).unwrap();
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log/calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn forget_calls(&self) {
        fs::write(self.path("log/calls"), "").unwrap();
    }

    /// What a plugin read at its last call for an operation.
    pub fn input(&self, call: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("log/{call}.json"))).unwrap()).unwrap()
    }

    /// The environment of its last call.
    pub fn environment(&self, call: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("log/{call}.env"))).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    pub fn records(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("root/network/cni")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    pub async fn add(&self, container: &str) -> Result<AddResult, AddError> {
        let cni = self.open();
        let network = network(&cni);
        cni.add(&network, &request(container, &self.path("netns"), Map::new())).await
    }
}

/// A list of plugins, by their types.
pub fn chain(version: &str, kinds: &[&str]) -> Value {
    let plugins: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    json!({ "cniVersion": version, "name": "test-net", "plugins": plugins })
}

/// A script that answers ADD with an address.
pub fn answers(address: &str) -> String {
    format!(r#"[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion":"1.0.0","ips":[{{"address":"{address}"}}]}}'; exit 0"#)
}

pub fn network(cni: &Cni) -> NetworkConfig {
    cni.network().unwrap().unwrap()
}

pub fn request<'a>(container: &'a str, netns: &'a Path, capabilities: Map<String, Value>) -> Request<'a> {
    const ARGS: &[(&str, &str)] = &[("IgnoreUnknown", "1"), ("K8S_POD_NAME", "web-0")];
    Request { container, interface: "eth0", netns, args: ARGS, capabilities }
}
