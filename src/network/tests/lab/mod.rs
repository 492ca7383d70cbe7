//! A laboratory: a network namespace that plays the host, one that plays the world outside, and pods.
//!
//! ```text
//! world  192.0.2.1, 2001:db8::1  ── up0 ──  host  192.0.2.2, 2001:db8::2  ── bridge ── pods
//!        198.51.100.1 (the internet)
//! ```
//!
//! Everything under test runs on a thread inside the host's namespace, and so do the threads that it starts.

#![allow(clippy::unwrap_used, reason = "a laboratory that cannot be set up fails its test")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the laboratory, and none is a library")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use podwright_base::{Layout, PodId, config};
use podwright_network::{AttachError, Attachment, HostPort, Network, PodRequest, Protocol};
use podwright_sys::netns;
use tempfile::TempDir;

/// When a packet that should come is given up: far more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(20);

pub const HOST: &str = "192.0.2.2";
pub const HOST6: &str = "2001:db8::2";
pub const INTERNET: &str = "198.51.100.1";
pub const WORLD6: &str = "2001:db8::1";

/// A network namespace, alive as long as its descriptor.
pub struct Netns(OwnedFd);

impl Netns {
    pub fn fresh() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::current()
        });
        let netns = made.join().unwrap();
        netns.ip("link set lo up");
        netns
    }

    pub fn current() -> Self {
        Self(netns::open(Path::new("/proc/thread-self/ns/net")).unwrap())
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(self.0.as_fd(), work).unwrap()
    }

    /// Runs a program inside; its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.within(|| Command::new(program).args(arguments).output().unwrap());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.run("ip", &arguments.split(' ').collect::<Vec<_>>())
    }

    pub fn nft(&self, arguments: &str) -> String {
        self.run("nft", &arguments.split(' ').collect::<Vec<_>>())
    }

    pub fn sysctl(&self, name: &str, value: &str) {
        self.within(|| fs::write(Path::new("/proc/sys/net").join(name), value).unwrap());
    }

    pub fn read_sysctl(&self, name: &str) -> String {
        self.within(|| fs::read_to_string(Path::new("/proc/sys/net").join(name)).unwrap()).trim().to_owned()
    }

    /// Names of the links inside.
    pub fn links(&self) -> Vec<String> {
        let text = self.ip("-o link show");
        text.lines().map(|line| line.split([' ', ':', '@']).nth(2).unwrap().to_owned()).collect()
    }

    pub fn listen(&self, at: &str) -> TcpListener {
        let listener = self.within(|| TcpListener::bind(at).unwrap());
        rustix::net::sockopt::set_socket_timeout(&listener, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
            .unwrap();
        listener
    }

    pub fn udp(&self, at: &str) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Connects to an address, talks to the listener behind it in both directions, and returns whom that saw.
    pub fn talk(&self, to: &str, listener: &TcpListener) -> IpAddr {
        let to: SocketAddr = to.parse().unwrap();
        let mut client = self
            .within(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut server, peer) = listener.accept().unwrap_or_else(|error| panic!("accept for {to}: {error}"));
        let mut bytes = [0; 4];
        client.write_all(b"ping").unwrap();
        server.read_exact(&mut bytes).unwrap();
        server.write_all(b"pong").unwrap();
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"pong");
        peer.ip()
    }

    /// Whether a connection is refused at once, as by a host on which nothing listens.
    pub fn is_refused(&self, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        let result = self.within(|| TcpStream::connect_timeout(&to, PATIENCE));
        result.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    }
}

/// Sends a datagram to an address, answers it from the socket behind it, and returns whom that saw.
pub fn talk_udp(client: &UdpSocket, to: &str, server: &UdpSocket) -> IpAddr {
    let mut bytes = [0; 16];
    client.send_to(b"ping", to).unwrap();
    let (length, peer) = server.recv_from(&mut bytes).unwrap_or_else(|error| panic!("datagram to {to}: {error}"));
    assert_eq!(&bytes[..length], b"ping");
    server.send_to(b"pong", peer).unwrap();
    let (length, from) = client.recv_from(&mut bytes).unwrap_or_else(|error| panic!("answer from {to}: {error}"));
    assert_eq!((&bytes[..length], from), (&b"pong"[..], to.parse().unwrap()));
    peer.ip()
}

/// A pod: its id and namespace.
pub struct Pod {
    pub id: PodId,
    pub netns: Netns,
}

impl Pod {
    pub fn fresh() -> Self {
        Self { id: PodId::random(), netns: Netns::fresh() }
    }
}

/// The host and the world.
pub struct Lab {
    pub host: Netns,
    pub world: Netns,
    pub dir: TempDir,
}

impl Lab {
    /// Runs a test on a thread inside the host's namespace.
    pub fn test<F: Future<Output = ()>>(work: impl FnOnce(Self) -> F + Send + 'static) {
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let lab = Self::new();
            let layout = lab.layout("d");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(lab));
            assert_eq!(pins(&layout), Vec::<String>::new(), "a test leaves no pins");
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        let (host, world) = (Netns::current(), Netns::fresh());
        host.ip("link set lo up");
        // A new namespace may have the machine's settings, and a daemon may have been here.
        host.sysctl("ipv4/ip_forward", "0");
        host.sysctl("ipv6/conf/all/forwarding", "0");
        host.ip(&format!("link add up0 mtu 1480 type veth peer name up0 netns {}", world.path()));
        for (netns, ipv4, ipv6) in
            [(&host, "192.0.2.2/24", "2001:db8::2/64"), (&world, "192.0.2.1/24", "2001:db8::1/64")]
        {
            netns.sysctl("ipv6/conf/up0/accept_dad", "0");
            netns.sysctl("ipv6/conf/up0/accept_ra", "1");
            netns.ip(&format!("address add {ipv4} dev up0"));
            netns.ip(&format!("address add {ipv6} dev up0 nodad"));
            netns.ip("link set up0 mtu 1480 up");
        }
        host.ip("route add default via 192.0.2.1");
        host.ip("route add default via 2001:db8::1");
        world.ip("address add 198.51.100.1/32 dev lo");
        Self { host, world, dir: tempfile::tempdir().unwrap() }
    }

    /// The directories of one of the daemons on the host.
    pub fn layout(&self, daemon: &str) -> Layout {
        let dir = self.dir.path().join(daemon);
        Layout::new(dir.join("root"), dir.join("state"))
    }

    pub fn config(&self) -> config::Network {
        config::Network { cni_conf_dir: self.dir.path().join("cni"), ..config::Network::default() }
    }

    pub async fn open(&self) -> Network {
        self.open_with(&self.config()).await
    }

    pub async fn open_with(&self, config: &config::Network) -> Network {
        Network::open(&self.layout("d"), config).await.unwrap()
    }

    /// The bridge of the daemon `d`.
    pub fn bridge(&self) -> String {
        format!("pw{}", self.layout("d").instance().unwrap())
    }

    /// The nf_tables table of the daemon `d`.
    pub fn table(&self) -> String {
        format!("podwright_{}", self.layout("d").instance().unwrap())
    }

    /// What nft lists of the table's elements.
    pub fn elements(&self) -> Vec<String> {
        if !self.has_table() {
            return Vec::new();
        }
        let text = self.host.nft(&format!("list table inet {}", self.table()));
        text.lines().filter(|line| line.contains("comment")).map(str::to_owned).collect()
    }

    pub fn has_table(&self) -> bool {
        self.host.nft("list tables").contains(&self.table())
    }

    pub fn lease_files(&self) -> Vec<String> {
        names(&self.layout("d").network())
    }

    /// Checks that only what outlives pods is left: the bridge.
    pub fn assert_no_pods(&self) {
        assert_eq!(self.host.links(), ["lo".to_owned(), "up0".to_owned(), self.bridge()]);
        assert_eq!(self.lease_files(), ["network.json"]);
        assert!(!self.has_table());
        assert_eq!(pins(&self.layout("d")), Vec::<String>::new());
    }
}

impl Drop for Lab {
    /// A test that fails takes its pins along; one that passes must have done so itself.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pin in ["d", "e"].iter().flat_map(|daemon| pins(&self.layout(daemon))) {
                // What is left is for whoever looks into the failure.
                let _ = netns::unpin(&Path::new("/run/netns").join(pin));
            }
        }
    }
}

/// Pins and attaches a pod.
pub async fn attach(network: &Network, pod: &Pod, ports: &[HostPort]) -> Result<Attachment, AttachError> {
    let pin = network.pin(&pod.id, pod.netns.fd().as_fd()).unwrap();
    network.attach(&pod.id, &pin, &request(ports, &BTreeMap::new())).await
}

/// What a pod asks for that has nothing but host ports and annotations.
pub fn request<'a>(ports: &'a [HostPort], annotations: &'a BTreeMap<String, String>) -> PodRequest<'a> {
    PodRequest { ports, namespace: "default", name: "web-0", uid: "uid-0", annotations, dns: None, cgroup: "" }
}

/// Detaches and unpins a pod.
pub async fn remove(network: &Network, pod: &Pod) {
    network.detach(&pod.id).await.unwrap();
    network.unpin(&pod.id).unwrap();
}

pub fn port(protocol: Protocol, host_ip: Option<&str>, host_port: u16, container_port: u16) -> HostPort {
    HostPort { protocol, host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container_port }
}

/// The names of a daemon's pins.
pub fn pins(layout: &Layout) -> Vec<String> {
    let prefix = layout.netns_prefix();
    names(&PathBuf::from("/run/netns")).into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
