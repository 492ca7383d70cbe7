//! A chain of CNI plugins, run by itself: what it takes whichever runtime calls it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Map, Value, json};

use crate::client::milliseconds;

/// The plugins of a `.conflist` file, and where they are.
#[derive(Debug)]
pub(crate) struct Chain {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
    directory: PathBuf,
    count: u32,
}

impl Chain {
    /// Reads a network configuration.
    pub(crate) fn read(conflist: &Path, directory: &Path) -> anyhow::Result<Self> {
        let text = fs::read(conflist).with_context(|| format!("read {}", conflist.display()))?;
        let list: Value = serde_json::from_slice(&text).with_context(|| format!("parse {}", conflist.display()))?;
        let text = |key: &str| {
            let value = list[key].as_str().map(str::to_owned);
            value.with_context(|| format!("{} has no {key}", conflist.display()))
        };
        let plugins = list["plugins"].as_array().into_iter().flatten().filter_map(Value::as_object).cloned().collect();
        Ok(Self {
            name: text("name")?,
            version: text("cniVersion")?,
            plugins,
            directory: directory.to_owned(),
            count: 0,
        })
    }

    /// Attaches a namespace with nothing in it and detaches it again; the milliseconds that all ADDs took.
    pub(crate) fn cycle(&mut self, host_port: Option<i32>) -> anyhow::Result<f64> {
        self.count += 1;
        let container = format!("bench-chain-{}-{}", std::process::id(), self.count);
        let netns = fresh_netns()?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
        let mut result = None;
        let clock = Instant::now();
        for plugin in &self.plugins {
            result = Some(self.run("ADD", plugin, &container, &path, (host_port, result.as_ref()))?);
        }
        let elapsed = milliseconds(clock);
        for plugin in self.plugins.iter().rev() {
            self.run("DEL", plugin, &container, &path, (host_port, result.as_ref()))?;
        }
        Ok(elapsed)
    }

    /// Runs one plugin; its result, of an ADD.
    fn run(
        &self,
        command: &str,
        plugin: &Map<String, Value>,
        container: &str,
        netns: &str,
        (host_port, last): (Option<i32>, Option<&Value>),
    ) -> anyhow::Result<Value> {
        let mut config = plugin.clone();
        let kind = config.get("type").and_then(Value::as_str).context("a plugin has no type")?.to_owned();
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.version));
        config.extend(last.map(|result| ("prevResult".to_owned(), result.clone())));
        let takes_ports = config.remove("capabilities").is_some_and(|all| all["portMappings"] == true);
        if let Some(port) = host_port.filter(|_| takes_ports) {
            let mapping = json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" });
            config.insert("runtimeConfig".to_owned(), json!({ "portMappings": [mapping] }));
        }
        let mut child = Command::new(self.directory.join(&kind))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {kind}"))?;
        child.stdin.take().context("the plugin's input")?.write_all(&serde_json::to_vec(&config)?)?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{kind}, {command}: {text}");
        if command == "ADD" {
            serde_json::from_str(&text).with_context(|| format!("{kind}: {text}"))
        } else {
            Ok(Value::Null)
        }
    }
}

fn fresh_netns() -> anyhow::Result<File> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        anyhow::Ok(File::open("/proc/thread-self/ns/net")?)
    };
    std::thread::spawn(make).join().map_err(|_| anyhow::anyhow!("the thread that makes a namespace panicked"))?
}
