//! A bundle with busybox as its root file system, and the commands on it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// Debian's static build.
const BUSYBOX: &str = "/bin/busybox";
const PROGRAMS: [&str; 18] = [
    "cat", "cp", "cut", "echo", "env", "false", "grep", "hostname", "id", "kill", "ls", "ps", "readlink", "sh",
    "sleep", "stat", "touch", "true",
];

/// A container that was not created yet, or was; nothing of it may be left when this is dropped.
pub struct Bundle {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
    /// Global flags of every command.
    pub flags: Vec<&'static str>,
}

impl Bundle {
    /// A container that runs a shell script, as `spec` has it.
    pub fn new(script: &str) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let id = format!("podwright-test-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        // Also for the root of a user namespace.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(BUSYBOX, bin.join("busybox")).expect("busybox-static is installed");
        PROGRAMS.iter().for_each(|program| symlink("busybox", bin.join(program)).unwrap());
        let made = Command::new(program()).args(["spec", "--bundle"]).arg(dir.path()).status().unwrap();
        assert!(made.success());
        let mut config: Value = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = false.into();
        Self { dir, id, config, flags: Vec::new() }
    }

    /// Adds a namespace.
    pub fn namespace(&mut self, namespace: Value) {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
    }

    /// Removes the namespace of a kind.
    pub fn without_namespace(&mut self, kind: &str) {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|it| it["type"] != kind);
    }

    /// Gives it a user namespace with ids that are nobody's on the host, and the root file system to its root.
    pub fn map_ids(&mut self) {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        self.config["linux"]["uidMappings"] = map.clone();
        self.config["linux"]["gidMappings"] = map;
        self.namespace(json!({ "type": "user" }));
        let chown = Command::new("chown").args(["-R", "100000:100000"]).arg(self.path("rootfs")).status().unwrap();
        assert!(chown.success());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the specification.
    pub fn write(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    /// A command on the containers of this bundle.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.path("state")).args(&self.flags).args(words).stdin(Stdio::null());
        command
    }

    /// Does a command that succeeds, and gives what it wrote.
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Does a command that fails, and gives the last of what it wrote on stderr.
    pub fn fails(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs the container to its end.
    pub fn run(&self) -> Output {
        self.write();
        self.command(&["run", "--bundle", self.dir.path().to_str().unwrap(), &self.id]).output().unwrap()
    }

    /// Runs it to its end, which is a good one, and gives what it wrote.
    pub fn output(&self) -> String {
        let output = self.run();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Creates it; what it writes goes to the file `out`.
    pub fn create(&self) {
        self.write();
        let out = fs::File::create(self.path("out")).unwrap();
        let mut command = self.command(&["create", "--bundle", self.dir.path().to_str().unwrap()]);
        command.arg("--pid-file").arg(self.path("pid")).arg(&self.id);
        let status = command.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
        assert!(status.success(), "{}", self.written());
    }

    /// What it has written since its creation.
    pub fn written(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap()
    }

    /// Its state.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn pid(&self) -> u64 {
        self.state()["pid"].as_u64().unwrap()
    }

    /// Waits for the end of its process.
    pub fn wait(&self) {
        let pid = self.pid();
        while pid != 0 && self.status() != "stopped" {
            std::thread::yield_now();
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a failed test leaves is not what the next one is to stumble over.
            let _ = self.command(&["delete", "--force", &self.id]).status();
            return;
        }
        let left: Vec<_> = fs::read_dir(self.path("state")).into_iter().flatten().collect();
        assert!(left.is_empty(), "state is left: {left:?}");
        let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", &self.id]).output().unwrap();
        assert!(groups.stdout.is_empty(), "cgroups are left: {}", String::from_utf8_lossy(&groups.stdout));
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_podwright-oci"))
}
