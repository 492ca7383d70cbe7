//! Network namespaces that tests look into: a daemon's host, its pods, and the world outside.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

use super::Node;
use super::cri::PATIENCE;

/// A network namespace, alive as long as this is.
#[derive(Debug)]
pub(crate) struct Netns(File);

impl Netns {
    /// The namespace at a path.
    pub(crate) fn at(path: impl AsRef<Path>) -> Self {
        Self(File::open(path).expect("the namespace"))
    }

    /// The namespace that a daemon takes for its host.
    pub(crate) fn of_host(node: &Node) -> Self {
        Self::at(format!("/proc/{}/ns/net", node.pid()))
    }

    /// A pod's namespace.
    pub(crate) async fn of_pod(node: &Node, pod: &str) -> Self {
        let status = node.pod_status(pod).await.expect("PodSandboxStatus");
        let info: serde_json::Value = serde_json::from_str(&status.info["info"]).expect("JSON");
        Self::at(info["runtimeSpec"]["linux"]["namespaces"][0]["path"].as_str().expect("a path"))
    }

    /// A new one, with its loopback device up.
    pub(crate) fn fresh() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace can be made");
            Self::at("/proc/thread-self/ns/net")
        };
        let netns = std::thread::spawn(make).join().expect("the namespace is made");
        netns.ip("link set lo up");
        netns
    }

    /// A path to it, for programs of this process's.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does work inside.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("the work ends"))
    }

    /// Runs a program inside, with arguments that spaces separate; its output.
    pub(crate) fn run(&self, program: &str, arguments: &str) -> String {
        let output = self.within(|| Command::new(program).args(arguments.split(' ')).output());
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs ip(8) inside.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    /// Listens inside.
    pub(crate) fn listen(&self, at: &str) -> TcpListener {
        self.within(|| TcpListener::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"))
    }

    /// Connects from inside to an address that leads to a listener; whom that sees.
    pub(crate) fn reach(&self, to: &str, listener: &TcpListener) -> IpAddr {
        let to: SocketAddr = to.parse().expect("an address");
        let client = self.within(|| TcpStream::connect_timeout(&to, PATIENCE));
        let client = client.unwrap_or_else(|error| panic!("{to}: {error}"));
        let (server, peer) = listener.accept().expect("the connection arrives");
        drop((client, server));
        peer.ip()
    }
}
