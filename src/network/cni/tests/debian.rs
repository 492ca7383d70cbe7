//! The plugins that Debian has (containernetworking-plugins), driven for real, by the newest version of CNI that they
//! speak. The host is a network namespace of each test's own, and so are pods.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::{Lab, PATIENCE, network, request, told};
use nix::sched::{CloneFlags, setns, unshare};
use podwright_cni::{AddError, AddResult, Cni, PortMapping, Version, Wishes};
use serde_json::{Map, Value, json};

/// Where the plugins are.
fn debian() -> PathBuf {
    std::env::var_os("PODWRIGHT_TEST_CNI").unwrap_or_else(|| "/usr/lib/cni".into()).into()
}

/// The versions that the plugins speak, oldest first, of those with chains of plugins.
fn spoken() -> Vec<String> {
    let output = Command::new(debian().join("bridge")).env("CNI_COMMAND", "VERSION").output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let versions = answer["supportedVersions"].as_array().unwrap().iter();
    versions.filter_map(|version| Version::parse(version.as_str().unwrap())).map(|known| known.to_string()).collect()
}

fn newest() -> String {
    spoken().pop().unwrap()
}

/// A network namespace, alive as long as its descriptor.
struct Netns(File);

impl Netns {
    fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    fn fresh() -> Self {
        std::thread::spawn(Self::unshare).join().unwrap()
    }

    /// Moves this thread to a namespace of its own, in which addresses can be used at once.
    fn unshare() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        Self::current()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn run(&self, command: &str) -> String {
        let words: Vec<_> = command.split(' ').collect();
        let output = self.within(|| Command::new(words[0]).args(&words[1..]).output().unwrap());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn links(&self) -> Vec<String> {
        let text = self.run("ip -o link show");
        text.lines().map(|line| line.split([' ', ':', '@']).nth(2).unwrap().to_owned()).collect()
    }

    /// Talks to a listener of another namespace by an address of its; whom that saw.
    fn reach(&self, to: &str, listener: &TcpListener) -> IpAddr {
        let to: SocketAddr = to.parse().unwrap();
        let _client = self
            .within(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        listener.accept().unwrap().1.ip()
    }

    fn listen(&self, at: &str) -> TcpListener {
        self.within(|| TcpListener::bind(at).unwrap())
    }
}

struct Node {
    lab: Lab,
    host: Netns,
    cni: Cni,
}

impl Node {
    /// Runs a test with the host's namespace around it: plugins are started there.
    fn test(work: impl AsyncFnOnce(Self) + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let host = Netns::unshare();
            let lab = Lab::new();
            let cni = lab.open_with(&[debian(), lab.path("bin")]);
            let node = Self { lab, host, cni };
            node.host.run("ip link set lo up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(node));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Configures a chain whose first plugin allocates by host-local, in a directory of the test's.
    fn configure(&self, version: &str, mut first: Value, ranges: &[&str], rest: &[Value]) {
        let ranges: Vec<_> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let routes: Vec<_> = ["0.0.0.0/0", "::/0"][..ranges.len()].iter().map(|dst| json!({ "dst": dst })).collect();
        first["ipam"] =
            json!({ "type": "host-local", "ranges": ranges, "routes": routes, "dataDir": self.lab.path("ipam") });
        let plugins: Vec<_> = std::iter::once(first).chain(rest.iter().cloned()).collect();
        self.lab.configure(&json!({ "cniVersion": version, "name": "debian", "plugins": plugins }));
    }

    async fn add(
        &self,
        container: &str,
        netns: &Path,
        capabilities: Map<String, Value>,
    ) -> Result<AddResult, AddError> {
        self.cni.add(&network(&self.cni), &request(container, netns, capabilities)).await
    }

    /// Addresses that host-local has given away.
    fn leases(&self) -> Vec<String> {
        let dir = self.lab.path("ipam/debian");
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.parse::<IpAddr>().is_ok());
        names.sort();
        names
    }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn bridge() -> Value {
    json!({ "type": "bridge", "bridge": "cni-test", "isGateway": true, "ipMasq": true })
}

fn full_chain(node: &Node) -> [Value; 4] {
    [
        json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } }),
        json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }),
        json!({ "type": "firewall", "backend": "iptables" }),
        json!({
            "type": "tuning", "capabilities": { "mac": true }, "sysctl": { "net.core.somaxconn": "500" },
            "dataDir": node.lab.path("tuning"),
        }),
    ]
}

#[test]
fn a_long_dual_stack_chain_does_all_that_it_is_asked() {
    Node::test(async |node| {
        node.configure(&newest(), bridge(), &["10.77.0.0/24", "fd77::/64"], &full_chain(&node));
        let rules = |node: &Node| node.host.run("iptables-save -t nat");
        let before = rules(&node);
        let annotations = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        let limited = annotations("kubernetes.io/ingress-bandwidth", "100M");
        let port = PortMapping { protocol: "tcp".to_owned(), host_port: 8080, container_port: 80, host_ip: None };
        let wishes = Wishes { ports: vec![port], annotations: Some(&limited), ..Wishes::default() };
        let (web, peer) = (Netns::fresh(), Netns::fresh());
        let result = node.add("web", &web.path(), wishes.arguments().unwrap()).await.unwrap();
        assert_eq!(result.addresses("eth0"), addresses(&["10.77.0.2", "fd77::2"]));
        // The plugin takes the link down for it, and the kernel its IPv6 address: not for the pod that is reached by that.
        let named = annotations("podwright.io/cni-mac", "0a:58:0a:4d:00:09");
        let wishes = Wishes { annotations: Some(&named), ..Wishes::default() };
        let result = node.add("peer", &peer.path(), wishes.arguments().unwrap()).await.unwrap();
        assert_eq!(result.mac("eth0"), "0a:58:0a:4d:00:09");
        assert_eq!(node.leases(), ["10.77.0.2", "10.77.0.3", "fd77::2", "fd77::3"]);
        let listener = web.listen("[::]:80");
        peer.reach("10.77.0.2:80", &listener);
        node.host.reach("[fd77::2]:80", &listener);
        node.host.reach("10.77.0.1:8080", &listener);
        node.host.reach("127.0.0.1:8080", &listener);
        let somaxconn = web.within(|| fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap());
        assert_eq!(somaxconn.trim(), "500");
        assert!(node.host.run("tc qdisc show").contains("tbf"), "the bandwidth is limited");
        assert!(node.host.run("iptables-save -t filter").contains("10.77.0.2"), "the firewall lets the pod through");

        node.cni.del("web").await.unwrap();
        node.cni.del("peer").await.unwrap();
        assert_eq!((node.leases(), node.lab.records()), (Vec::new(), Vec::new()));
        assert_eq!(node.host.links(), ["lo", "cni-test"]);
        assert_eq!((web.links(), node.lab.path("tuning").read_dir().unwrap().count()), (vec!["lo".to_owned()], 0));
        let left = rules(&node);
        assert!(!left.contains("10.77.0.2") && !left.contains("8080"), "{before}\n{left}");
    });
}

#[test]
fn point_to_point_pods_reach_the_host_in_every_version() {
    Node::test(async |node| {
        for version in spoken() {
            node.configure(&version, json!({ "type": "ptp" }), &["10.78.0.0/24", "fd78::/64"], &[]);
            let pod = Netns::fresh();
            let ips = node.add("pod", &pod.path(), Map::new()).await.unwrap().addresses("eth0");
            let listener = pod.listen("0.0.0.0:80");
            node.host.reach(&format!("{}:80", ips[0]), &listener);
            node.cni.check("pod").await.unwrap();
            node.cni.del("pod").await.unwrap();
            assert_eq!(
                (ips.len(), node.host.links(), node.leases()),
                (2, vec!["lo".to_owned()], Vec::new()),
                "{version}"
            );
        }
    });
}

#[test]
fn pods_on_the_hosts_own_link() {
    Node::test(async |node| {
        node.host.run("ip link add up0 type veth peer name out0");
        node.host.run("ip link set up0 up");
        node.host.run("ip link set out0 up");
        for (kind, mode) in [("macvlan", "bridge"), ("ipvlan", "l2")] {
            node.configure(
                &newest(),
                json!({ "type": kind, "master": "up0", "mode": mode }),
                &["10.79.0.0/24", "fd79::/64"],
                &[],
            );
            let (a, b) = (Netns::fresh(), Netns::fresh());
            let first = node.add("a", &a.path(), Map::new()).await;
            // The kernel of a test machine may lack a kind of link: then the plugin's words are told, and all is undone.
            let probe = format!("ip link add link up0 name probe0 type {kind}");
            if !Command::new("sh").args(["-c", &probe]).status().unwrap().success() {
                let text = told(&first.unwrap_err());
                assert!(text.starts_with(&format!("CNI network debian: plugin {kind}, ADD: ")), "{text}");
                assert_eq!((node.leases(), node.lab.records()), (Vec::new(), Vec::new()));
                continue;
            }
            node.host.run("ip link delete probe0");
            let of_a = first.unwrap().addresses("eth0");
            node.add("b", &b.path(), Map::new()).await.unwrap();
            let listener = a.listen("[::]:80");
            for ip in of_a {
                b.reach(&SocketAddr::from((ip, 80)).to_string(), &listener);
            }
            node.cni.check("b").await.unwrap();
            // What a reboot leaves of a pod: its record and its addresses.
            let (gone, pin) = (Netns::fresh(), node.lab.path("pin"));
            symlink(gone.path(), &pin).unwrap();
            node.add("gone", &pin, Map::new()).await.unwrap();
            assert_eq!(node.leases().len(), 6);
            fs::remove_file(&pin).unwrap();
            drop(gone);
            for pod in ["gone", "a", "b"] {
                node.cni.del(pod).await.unwrap();
            }
            assert_eq!((node.leases(), a.links()), (Vec::new(), vec!["lo".to_owned()]));
        }
    });
}

/// Loses all that the kernel has of a pod; records and host-local's directory stay. Of its pin is left what is said.
async fn reboot(node: Node, version: &str, remains: impl FnOnce(&Path)) {
    node.configure(version, bridge(), &["10.77.0.0/24", "fd77::/64"], &full_chain(&node));
    let (pod, pin) = (Netns::fresh(), node.lab.path("pin"));
    symlink(pod.path(), &pin).unwrap();
    node.add("pod", &pin, Map::new()).await.unwrap();
    assert_eq!(node.leases().len(), 2);
    drop(pod);
    fs::remove_file(&pin).unwrap();
    remains(&pin);
    let rebooted = Netns::fresh();
    setns(&rebooted.0, CloneFlags::CLONE_NEWNET).unwrap();
    fs::remove_file(node.lab.path("conf/10-test.conflist")).unwrap();
    let next = node.lab.open_with(&[debian()]);
    let swept = next.sweep(&HashSet::new(), None).await;
    assert!(swept.failures.0.is_empty(), "{}", swept.failures);
    assert_eq!((swept.detached, node.leases()), (vec!["pod".to_owned()], Vec::new()));
    assert_eq!(node.lab.records(), Vec::<String>::new());
}

#[test]
fn a_reboot_leaves_nothing_allocated() {
    for version in ["0.4.0".to_owned(), newest()] {
        Node::test(async move |node| reboot(node, &version, |_| {}).await);
    }
}

#[test]
fn a_pin_without_its_namespace_is_no_hindrance() {
    Node::test(async |node| reboot(node, &newest(), |pin| fs::write(pin, "").unwrap()).await);
}

#[test]
fn a_daemon_killed_amid_add_leaves_nothing_allocated() {
    Node::test(async |node| {
        node.lab.plugin("hang", "[ $CNI_COMMAND = ADD ] && exec sleep 600; exit 0");
        node.configure(&newest(), bridge(), &["10.77.0.0/24"], &[json!({ "type": "hang" })]);
        let pod = Netns::fresh();
        let hangs = async {
            while !node.lab.path("log/ADD.hang.json").exists() {
                tokio::task::yield_now().await
            }
        };
        let path = pod.path();
        tokio::select! {
            result = node.add("pod", &path, Map::new()) => panic!("{result:?}"),
            () = hangs => {}
        }
        assert_eq!(node.leases(), ["10.77.0.2"]);
        let next = node.lab.open_with(&[debian(), node.lab.path("bin")]);
        let swept = next.sweep(&HashSet::new(), Some(&network(&next))).await;
        assert!(swept.failures.0.is_empty(), "{}", swept.failures);
        assert_eq!((node.leases(), pod.links()), (Vec::new(), vec!["lo".to_owned()]));
    });
}

#[test]
fn an_exhausted_range_and_a_taken_name_are_told_and_can_be_tried_again() {
    Node::test(async |node| {
        node.configure(&newest(), bridge(), &["10.77.0.0/30"], &[]);
        let (a, b) = (Netns::fresh(), Netns::fresh());
        node.add("a", &a.path(), Map::new()).await.unwrap();
        let text = told(&node.add("b", &b.path(), Map::new()).await.unwrap_err());
        assert!(
            text.contains("plugin bridge, ADD: failed to allocate for range 0: no IP addresses available"),
            "{text}"
        );
        node.cni.del("a").await.unwrap();
        b.run("ip link add eth0 type veth peer name other");
        let text = told(&node.add("b", &b.path(), Map::new()).await.unwrap_err());
        assert!(text.contains("eth0") && text.contains("already exists"), "{text}");
        assert_eq!(node.leases(), Vec::<String>::new());
    });
}

#[test]
fn plugins_of_version_1_1_say_whether_they_are_ready_and_collect() {
    Node::test(async |node| {
        // Debian 12's plugins have neither; a network that states an older version too is spoken to in that.
        let is_new = newest() == "1.1.0";
        let configure = |ipam: &str| {
            let ipam =
                json!({ "type": ipam, "dataDir": node.lab.path("ipam"), "ranges": [[{ "subnet": "10.77.0.0/24" }]] });
            let bridge = json!({ "type": "bridge", "bridge": "cni-test", "ipam": ipam });
            let mut plugins = vec![bridge, json!({ "type": "collector" })];
            plugins.extend(full_chain(&node));
            node.lab.configure(&json!({ "cniVersions": ["1.0.0", "1.1.0"], "name": "debian", "plugins": plugins }));
        };
        // What plugins of addresses are to do at GC; host-local leaves it out.
        let collector = format!(
            "[ $CNI_COMMAND = GC ] || {{ jq -c .prevResult {log}/$CNI_COMMAND.collector.json; exit 0; }}\n\
             for lease in {ipam}/10.*; do\n\
             grep -q $(head -n 1 $lease | tr -d '\\r') {log}/GC.collector.json || rm $lease\ndone",
            log = node.lab.path("log").display(),
            ipam = node.lab.path("ipam/debian").display(),
        );
        node.lab.plugin("collector", &collector);
        configure("absent");
        let status = node.cni.status(&network(&node.cni)).await;
        if is_new {
            let text = told(&status.unwrap_err());
            let words = "CNI network debian: plugin bridge, STATUS: failed to find plugin \"absent\" in path";
            assert!(text.starts_with(words), "{text}");
        } else {
            status.unwrap();
        }
        configure("host-local");
        let network = network(&node.cni);
        node.cni.status(&network).await.unwrap();
        let pod = Netns::fresh();
        // Debian 12's bandwidth crashes at CHECK without one.
        let limited = [("kubernetes.io/ingress-bandwidth".to_owned(), "100M".to_owned())].into();
        let wishes = Wishes { annotations: Some(&limited), ..Wishes::default() };
        node.add("kept", &pod.path(), wishes.arguments().unwrap()).await.unwrap();
        node.cni.check("kept").await.unwrap();
        // An address of which nobody has a record.
        fs::write(node.lab.path("ipam/debian/10.77.0.9"), "stray\r\neth0").unwrap();
        let failures = node.cni.gc(&network).await.unwrap_or_default();
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(node.leases(), if is_new { vec!["10.77.0.2"] } else { vec!["10.77.0.2", "10.77.0.9"] });
        node.cni.check("kept").await.unwrap();
        node.cni.del("kept").await.unwrap();
        assert!(!node.leases().contains(&"10.77.0.2".to_owned()));
    });
}
