//! Seccomp user notification: the filter's listener, from the process that it holds to the one that answers.
//!
//! The kernel gives the descriptor to the process that installs the filter, which from that call on is held by it: if it
//! has to say a word to hand the descriptor over, a filter that refuses `sendmsg`, or asks the very listener about it,
//! leaves it stuck or failed. Here it makes no system call between the filter and the moment the descriptor is with its
//! listener. A second thread of the process, made before and not under the filter, takes the descriptor from memory, sends
//! it to the launcher, and waits for the launcher's word that the listener has it; the first one looks at memory meanwhile.
//! So any filter can be installed, and the call of execve may be asked about as well. Should launcher or process go, the
//! second thread sees the end of its socket, or is gone with the first.
//!
//! What waits meanwhile, waits by looking; the thread is made before the process takes its own scheduling, so that a
//! real-time one cannot keep it from running for longer than the kernel lets real-time processes hold a processor.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};
use std::thread::Thread;

use podwright_plan::wire::SeccompListener;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::failure::{Failure, Named};
use crate::status::Reporter;

/// The exit code of a process whose listener could not be handed over; the launcher knows why.
const NOT_HANDED_OVER: i32 = 1;
/// The second thread calls a few functions.
const STACK: usize = 64 << 10;

/// What both threads look at.
#[derive(Default)]
struct Shared {
    /// The filter is next.
    armed: AtomicBool,
    listener: Mutex<Option<OwnedFd>>,
    /// The listener has it.
    released: AtomicBool,
}

/// The thread that hands a listener over.
pub(crate) struct Messenger {
    shared: &'static Shared,
    thread: Thread,
}

impl Messenger {
    /// Makes the thread.
    pub(crate) fn hire(reporter: &Reporter) -> Result<Self, Failure> {
        let reporter = reporter.try_clone().in_child("copy status socket", "")?;
        // Never freed: that would be a system call, when the last one of the two lets go under the filter.
        let shared: &'static Shared = Box::leak(Box::default());
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn(move || hand_over(shared, &reporter))
            .in_child("start thread", "for the seccomp listener")?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// Says that the filter is next: from here on the thread looks at memory.
    pub(crate) fn prepare(&self) {
        self.shared.armed.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Gives the listener to the thread, and returns when it has reached its goal. Makes no system call.
    pub(crate) fn send(&self, listener: OwnedFd) {
        let mut listener = Some(listener);
        while listener.is_some() {
            // Not `lock`, which may wait in the kernel; the thread uses none that makes this one wake it either.
            if let Ok(mut place) = self.shared.listener.try_lock() {
                *place = listener.take();
            }
            std::hint::spin_loop();
        }
        while !self.shared.released.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
    }
}

/// The thread's whole life.
fn hand_over(shared: &'static Shared, reporter: &Reporter) {
    while !shared.armed.load(Ordering::Acquire) {
        std::thread::park();
    }
    let listener = loop {
        match shared.listener.try_lock().map(|mut place| place.take()) {
            Ok(Some(listener)) => break listener,
            Ok(None) | Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => std::thread::yield_now(),
        }
    };
    let handed_over = reporter.listener(listener.as_fd()).in_child("hand over seccomp listener", "");
    // The last reference in this process: it is to see when nobody listens any more.
    drop(listener);
    match handed_over.and_then(|()| reporter.wait_for_go()) {
        Ok(()) => shared.released.store(true, Ordering::Release),
        Err(_) => podwright_sys::clone::exit(NOT_HANDED_OVER),
    }
}

/// Sends a listener to the socket of a plan, with the state of the process `pid` of the container whose init is `init`.
///
/// # Errors
/// When nobody listens at the socket.
pub fn deliver(to: &SeccompListener, listener: impl AsFd, pid: u32, init: u32) -> Result<(), Failure> {
    let failed = |step: &'static str| move |errno| Failure::launch(step, &to.path, errno);
    // The parts have a pid between each two: of the process, then of the init.
    let mut state = String::new();
    for (part, pid) in to.state.iter().zip([Some(pid), Some(init), None]) {
        state.push_str(part);
        state.extend(pid.map(|pid| pid.to_string()));
    }
    // A listener that takes nothing must not stop the launcher, who may have a pod's other containers to look after.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(failed("make socket for seccomp listener"))?;
    SocketAddrUnix::new(&*to.path)
        .and_then(|address| rustix::net::connect(&socket, &address))
        .map_err(failed("connect to seccomp listener"))?;
    let fds = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(&socket, &[IoSlice::new(state.as_bytes())], &mut control, SendFlags::NOSIGNAL)
        .map_err(failed("send to seccomp listener"))?;
    // A socket that nothing was sent on takes far more than a state has.
    if sent == state.len() { Ok(()) } else { Err(failed("send to seccomp listener")(Errno::MSGSIZE)) }
}
