//! A SPDY client as small as can be: it inflates and deflates by zlib and keeps to no windows, as Go's does.

use std::collections::BTreeMap;

use flate2::{Decompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::spdy::headers::tests::Deflater;

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32, u32),
    Pong(u32),
    Goaway(u32),
    Credit(u32, u32),
}

/// What a client writes.
pub(super) struct Sender<S> {
    socket: WriteHalf<S>,
    deflater: Deflater,
    next: u32,
}

/// What a client reads.
pub(super) struct Receiver<S> {
    socket: ReadHalf<S>,
    inflater: Decompress,
    dictionary: bool,
}

/// All that came until the server hung up.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) replied: Vec<u32>,
    pub(super) data: BTreeMap<u32, Vec<u8>>,
    pub(super) finished: Vec<u32>,
    pub(super) resets: BTreeMap<u32, u32>,
    pub(super) goaway: Option<u32>,
    pub(super) credits: BTreeMap<u32, u64>,
}

impl Conversation {
    pub(super) fn text(&self, id: u32) -> String {
        self.data.get(&id).map(|bytes| String::from_utf8(bytes.clone()).unwrap()).unwrap_or_default()
    }

    pub(super) fn add(&mut self, frame: Frame) {
        match frame {
            Frame::Reply(id) => self.replied.push(id),
            Frame::Data(id, bytes, last) => {
                self.data.entry(id).or_default().extend(bytes);
                self.finished.extend(last.then_some(id));
            }
            Frame::Reset(id, reason) => drop(self.resets.insert(id, reason)),
            Frame::Goaway(reason) => self.goaway = Some(reason),
            Frame::Credit(id, bytes) => *self.credits.entry(id).or_default() += u64::from(bytes),
            Frame::Pong(_) => {}
        }
    }
}

/// Speaks SPDY on a connection that has been upgraded.
pub(super) fn client<S: AsyncRead + AsyncWrite>(socket: S) -> (Sender<S>, Receiver<S>) {
    let (read, write) = tokio::io::split(socket);
    let sender = Sender { socket: write, deflater: Deflater::new(), next: 1 };
    (sender, Receiver { socket: read, inflater: Decompress::new(true), dictionary: false })
}

/// Upgrades a connection and returns the head of the answer.
pub(super) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut S, path: &str, versions: &str) -> String {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {versions}\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

impl<S: AsyncRead + AsyncWrite> Sender<S> {
    async fn write(&mut self, head: [u8; 4], flags: u8, payload: &[u8]) -> std::io::Result<()> {
        let size = u32::try_from(payload.len()).unwrap() | (u32::from(flags) << 24);
        self.socket.write_all(&[&head[..], &size.to_be_bytes(), payload].concat()).await
    }

    async fn control(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        self.write([0x80, 3, 0, kind], flags, payload).await.unwrap();
    }

    /// Opens a stream and returns its number.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let payload = [&id.to_be_bytes()[..], &[0; 6], &self.deflater.headers(headers)].concat();
        self.control(1, 0, &payload).await;
        id
    }

    /// Opens the streams of an exec or attach, the error stream first.
    pub(super) async fn open_all<const N: usize>(&mut self, kinds: [&str; N]) -> [u32; N] {
        let mut ids = [0; N];
        for (id, kind) in ids.iter_mut().zip(kinds) {
            *id = self.open(&[("streamtype", kind)]).await;
        }
        ids
    }

    /// Opens the two streams of a forwarded connection: data and error.
    pub(super) async fn open_port(&mut self, port: &str, request: &str) -> (u32, u32) {
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request)];
        let error = self.open(&headers("error")).await;
        self.data(error, b"", true).await.unwrap();
        (self.open(&headers("data")).await, error)
    }

    pub(super) async fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> std::io::Result<()> {
        self.write(id.to_be_bytes(), u8::from(last), bytes).await
    }

    pub(super) async fn reset(&mut self, id: u32) {
        self.control(3, 0, &[id.to_be_bytes(), [0, 0, 0, 5]].concat()).await;
    }

    pub(super) async fn ping(&mut self, number: u32) {
        self.control(6, 0, &number.to_be_bytes()).await;
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }
}

impl<S: AsyncRead + AsyncWrite> Receiver<S> {
    /// Reads a frame; none once the server has hung up.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        self.socket.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let mut payload = vec![0; usize::try_from(size).unwrap()];
        self.socket.read_exact(&mut payload).await.ok()?;
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        if head[0] & 0x80 == 0 {
            let id = u32::from_be_bytes(head[..4].try_into().unwrap());
            return Some(Frame::Data(id, payload, head[4] & 1 != 0));
        }
        assert_eq!(head[..3], [0x80, 3, 0]);
        Some(match head[3] {
            2 => {
                let id = word(0);
                self.inflate(&payload[4..]);
                Frame::Reply(id)
            }
            3 => Frame::Reset(word(0), word(4)),
            6 => Frame::Pong(word(0)),
            7 => Frame::Goaway(word(4)),
            9 => Frame::Credit(word(0), word(4)),
            kind => panic!("a frame of kind {kind}"),
        })
    }

    /// Checks that a reply's headers are none.
    fn inflate(&mut self, mut block: &[u8]) {
        let mut out = Vec::with_capacity(1024);
        if !self.dictionary {
            let before = self.inflater.total_in();
            let error = self.inflater.decompress_vec(block, &mut out, FlushDecompress::Sync).unwrap_err();
            assert!(error.needs_dictionary().is_some());
            block = &block[usize::try_from(self.inflater.total_in() - before).unwrap()..];
            self.inflater.set_dictionary(crate::spdy::dictionary()).unwrap();
            self.dictionary = true;
        }
        self.inflater.decompress_vec(block, &mut out, FlushDecompress::Sync).unwrap();
        assert_eq!(out, [0; 4]);
    }

    /// Waits until streams have been accepted. Nothing else may come before.
    pub(super) async fn accepted<const N: usize>(&mut self, ids: [u32; N]) {
        let mut conversation = Conversation::default();
        while conversation.replied.len() < N {
            conversation.add(self.next().await.expect("streams are accepted"));
        }
        assert_eq!(conversation.replied, ids);
        assert_eq!(conversation.data, BTreeMap::new());
    }

    /// Reads until a stream has given this many bytes or ended, and returns them.
    pub(super) async fn read(&mut self, id: u32, count: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < count {
            match self.next().await.expect("there is more to come") {
                Frame::Data(from, bytes, last) if from == id => {
                    read.extend(bytes);
                    if last {
                        break;
                    }
                }
                // Another stream may end first.
                Frame::Reply(_) | Frame::Credit(..) => {}
                Frame::Data(_, bytes, true) if bytes.is_empty() => {}
                other => panic!("{other:?} came first"),
            }
        }
        read
    }

    /// Reads until a frame comes for which `wanted` holds.
    pub(super) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Conversation {
        let mut conversation = Conversation::default();
        loop {
            let frame = self.next().await.expect("the frame comes before the end");
            let last = wanted(&frame);
            conversation.add(frame);
            if last {
                return conversation;
            }
        }
    }

    /// Reads until the server has hung up.
    pub(super) async fn rest(&mut self) -> Conversation {
        let mut conversation = Conversation::default();
        while let Some(frame) = self.next().await {
            conversation.add(frame);
        }
        conversation
    }
}
