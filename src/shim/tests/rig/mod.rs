//! Spawns the real shim and speaks to it as a daemon does.

mod client;
pub(crate) mod plans;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use podwright_plan::wire::reply::Result as Answer;
use podwright_plan::wire::request::Op;
use podwright_plan::wire::{self, Shutdown};

pub(crate) use client::Client;

/// What busybox is asked to be in the tests' image.
const APPLETS: [&str; 9] = ["sh", "sleep", "echo", "cat", "seq", "true", "tty", "head", "stty"];

/// A shim with its own directories and cgroups, shut down and checked for remains when it is dropped.
pub(crate) struct Shim {
    pub(crate) id: String,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) process: Child,
}

impl Shim {
    /// Starts a shim that has no pod yet.
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let id = format!("podwright-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let listener = UnixListener::bind(dir.path().join("shim.sock")).unwrap();
        let words = fs::File::create(dir.path().join("words")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_podwright-shim"))
            .args(["--pod", &id])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(words))
            .spawn()
            .unwrap();
        let shim = Self { id, dir, process };
        shim.make_image();
        shim
    }

    /// Starts a shim and gives it a pod.
    pub(crate) fn with_pod() -> (Self, Client) {
        let shim = Self::start();
        let mut client = shim.connect();
        let (answer, fds) = client.ask_for(Op::SetupPod(shim.pod()), &[]);
        assert!(matches!(answer, Answer::PodReady(_)), "{answer:?}");
        assert_eq!(fds.len(), 1);
        client.subscribe();
        (shim, client)
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.dir.path().join("shim.sock"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The texts of a log: `stream tag text`.
    pub(crate) fn log(&self, name: &str) -> Vec<String> {
        texts(&self.path(name))
    }

    /// Waits for a line at the end of a log. Each question is answered after a round of the shim's loop.
    pub(crate) fn wait_for_log(&self, name: &str, client: &mut Client, line: &str) {
        let end = format!("Z {line}\n");
        // Not by its lines: the last may be half written.
        while !fs::read_to_string(self.path(name)).unwrap().ends_with(&end) {
            client.inspect();
        }
    }

    /// How many descriptors the shim has open.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// The shim's last words.
    pub(crate) fn words(&self) -> String {
        fs::read_to_string(self.path("words")).unwrap()
    }

    /// A descriptor to send along.
    pub(crate) fn any_fd(&self) -> OwnedFd {
        fs::File::open("/dev/null").unwrap().into()
    }

    /// Shuts the pod down and sees that nothing is left of it, and that the shim had nothing to complain of.
    pub(crate) fn end(self, client: Client) {
        self.end_with_words(client, 0);
    }

    /// The same, when the shim has written some lines.
    pub(crate) fn end_with_words(mut self, mut client: Client, lines: usize) {
        let answer = client.ask(Op::Shutdown(Shutdown {}));
        assert_eq!(answer, Answer::Done(wire::Done {}), "{}", self.words());
        assert!(self.process.wait().unwrap().success(), "{}", self.words());
        self.remove_own_cgroups();
        assert_eq!(self.remains(), Vec::<PathBuf>::new());
        assert_eq!(self.words().lines().count(), lines, "{}", self.words());
    }

    /// Removes the cgroups that the shim itself was in, as the daemon does.
    pub(crate) fn remove_own_cgroups(&self) {
        for dir in self.remains().iter().filter(|dir| dir.to_str().is_some_and(|dir| dir.ends_with("-shim"))) {
            podwright_launch::cgroup::remove(dir).unwrap();
        }
    }

    /// Cgroup directories with the shim's id in their path.
    pub(crate) fn remains(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let places = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).filter(|place| place.is_dir());
        let entries = places.flat_map(|place| fs::read_dir(place).unwrap());
        let mut remains: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        remains
            .retain(|path| path.is_dir() && path.to_str().is_some_and(|path| path.contains(&format!("{}-", self.id))));
        remains
    }

    fn make_image(&self) {
        let bin = self.path("layers/busybox/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).expect("Debian's busybox-static is installed");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
    }
}

impl Drop for Shim {
    /// For a test that failed: nothing it started may stay. What does all the same is not worth a second panic.
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        // The shim is in one of the cgroups.
        for dir in self.remains() {
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        for dir in self.remains() {
            let _ = podwright_launch::cgroup::remove(&dir);
        }
    }
}

/// The lines of a log without their times.
pub(crate) fn texts(path: &Path) -> Vec<String> {
    let log = fs::read_to_string(path).unwrap();
    log.split_terminator('\n').map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

/// Whether a process of this number exists and is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A tmpfs of a size, attached nowhere: paths into it go by this process's descriptor.
pub(crate) struct SmallDisk(OwnedFd);

impl SmallDisk {
    pub(crate) fn new(bytes: usize) -> Self {
        use rustix::mount::{
            FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
        };
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(context.as_fd(), "size", bytes.to_string()).unwrap();
        fsconfig_create(context.as_fd()).unwrap();
        Self(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        format!("/proc/{}/fd/{}/{name}", std::process::id(), self.0.as_raw_fd()).into()
    }
}
