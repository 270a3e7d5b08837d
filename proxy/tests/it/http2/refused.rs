//! Requests that meet a stop: each is answered, or refused before anything was done for it, so that its client may send it
//! again. None is both, and none is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::clients::{H2C, before, h2c};
use super::raw::{
    ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, NO_ERROR, PING, REFUSED_STREAM, RST_STREAM,
    Raw, request,
};
use crate::harness::{Scripted, Then, soon, until};
use crate::tls::certificates::{self, Authority};
use crate::tls::clients::Rustls;

/// `:status: 200` in a header block (RFC 7541, appendix A).
const STATUS_200: u8 = 0x80 | 8;

/// How often a client sends a request, whatever uh-proxy has announced meanwhile.
const PAUSE: Duration = Duration::from_millis(4);

/// The last stream of the first GOAWAY frame (RFC 9113 §6.8): more may follow.
const ANY: u32 = 0x7fff_ffff;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// A response with status 200, to its end.
    Answered,
    /// Another response, or one that broke off: it may have been begun.
    Failed,
    /// RST_STREAM with REFUSED_STREAM: it wasn't begun.
    Reset,
    /// It came after the last stream of the final GOAWAY frame: it wasn't begun.
    Late,
}

/// The requests that an app has begun to serve.
type Begun = Arc<Mutex<Vec<String>>>;

/// An app that notes each request, and answers after as many milliseconds as the path begins with.
async fn noting() -> (Scripted, Begun) {
    let begun = Begun::default();
    let notes = Arc::clone(&begun);
    let app = Scripted::start(move |head, mut stream: TcpStream| {
        let notes = Arc::clone(&notes);
        async move {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let ms = path.split('/').nth(1).unwrap().parse().unwrap();
            notes.lock().push(path);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            (stream, Then::KeepAlive)
        }
    })
    .await;
    (app, begun)
}

/// What a client has seen on one connection.
#[derive(Debug, Default)]
struct Seen {
    /// The status of responses: whether it is 200.
    heads: BTreeMap<u32, bool>,
    ended: BTreeSet<u32>,
    reset: BTreeMap<u32, u32>,
    /// The last streams that GOAWAY frames have named.
    last: Vec<u32>,
    /// The most recent stream when the first GOAWAY frame arrived.
    announced_after: u32,
}

impl Seen {
    fn note(&mut self, frame: &Frame, newest: u32) {
        match frame.kind {
            HEADERS => drop(self.heads.entry(frame.stream).or_insert(frame.payload[0] == STATUS_200)),
            RST_STREAM => drop(self.reset.insert(frame.stream, frame.code())),
            GOAWAY => {
                assert_eq!(frame.code(), NO_ERROR, "{frame:?}");
                if self.last.is_empty() {
                    self.announced_after = newest;
                }
                self.last.push(frame.last_stream());
            }
            _ => {}
        }
        if frame.ends() {
            self.ended.insert(frame.stream);
        }
    }

    fn fate(&self, stream: u32) -> Option<Fate> {
        let late = self.last.last().is_some_and(|last| stream > *last);
        match self.reset.get(&stream) {
            Some(&REFUSED_STREAM) => Some(Fate::Reset),
            // With NO_ERROR after a complete response, the rest of a request isn't wanted.
            Some(&code) if code != NO_ERROR => Some(Fate::Failed),
            _ if self.ended.contains(&stream) && self.heads[&stream] => Some(Fate::Answered),
            _ if self.ended.contains(&stream) => Some(Fate::Failed),
            _ => late.then_some(Fate::Late),
        }
    }
}

/// What a client does about PING frames. One of them comes with the first GOAWAY frame, and the final one waits for its
/// answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pings {
    /// Answers arrive some requests later, as over a long distance.
    Answered,
    Ignored,
}

/// uh-proxy sends one PING frame, when it stops.
const MOST_PINGS: usize = 1;

/// How many requests are sent before a PING frame is answered.
const DISTANCE: u32 = 5;

/// Sends requests until the connection is closed, whatever has been announced, and returns what was sent and seen.
async fn keep_asking<S>(
    connection: Raw<S>,
    name: String,
    first: u32,
    pings: Pings,
) -> (BTreeMap<u32, String>, Seen)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut input, mut output) = connection.split();
    let newest = Arc::new(Mutex::new(0));
    let (acknowledge, mut acknowledgements) = mpsc::channel(MOST_PINGS);
    let reader = {
        let newest = Arc::clone(&newest);
        tokio::spawn(async move {
            let mut seen = Seen::default();
            while let Some(frame) = input.next().await {
                seen.note(&frame, *newest.lock());
                if frame.kind == PING && frame.flags & ACK == 0 && pings == Pings::Answered {
                    let _ = acknowledge.try_send((*newest.lock() + 2 * DISTANCE, frame.payload));
                }
            }
            seen
        })
    };
    let (mut sent, mut due) = (BTreeMap::new(), Vec::<(u32, Vec<u8>)>::new());
    let mut stream = first;
    while !reader.is_finished() {
        due.extend(acknowledgements.try_recv());
        while let Some((_, payload)) = due.pop_if(|(at, _)| stream > *at) {
            output.send(PING, ACK, 0, &payload).await;
        }
        let path = format!("/{}/{name}/{stream}", stream * 7 % 20);
        *newest.lock() = stream;
        // Before the write: it may have arrived even if the write fails.
        sent.insert(stream, path.clone());
        let is_sent = if stream.is_multiple_of(3) {
            output
                .send(HEADERS, END_HEADERS, stream, &request("POST", &path, &[("content-length", "2")]))
                .await
                && output.send(DATA, END_STREAM, stream, b"ok").await
        } else {
            output.get(stream, &path).await
        };
        if !is_sent {
            break;
        }
        stream += 2;
        tokio::time::sleep(PAUSE).await;
    }
    (sent, soon("the end of the connection", reader).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_that_meets_a_stop_is_answered_or_was_never_begun() {
    let (app, begun) = noting().await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let apps = (app.address, app.address);
    let home = certificates::home(apps, &authority, &[("app", &pair)], H2C, "");
    let mut proxy = home.start().await;
    let (plain, secure) = (h2c(&proxy).await, certificates::address(&proxy).await);
    let rustls =
        Rustls::with(&authority, rustls::ALL_VERSIONS, |config| config.alpn_protocols = vec![b"h2".to_vec()]);
    let mut clients = Vec::new();
    for n in 0..4 {
        let raw = Raw::connect(plain, b"").await;
        clients.push(tokio::spawn(keep_asking(raw, format!("plain-{n}"), 1, Pings::Answered)));
        let stream = rustls.connect(secure, "app.test").await.unwrap().stream;
        let raw = Raw::over(stream, b"").await;
        clients.push(tokio::spawn(keep_asking(raw, format!("tls-{n}"), 1, Pings::Answered)));
    }
    until("there is load", async || (app.seen() > 200).then_some(())).await;
    proxy.signal(Signal::TERM);
    let mut fates = BTreeMap::<Fate, usize>::new();
    let mut crossed = 0;
    for client in clients {
        let (sent, seen) = soon("the end of a connection", client).await.unwrap();
        assert!(seen.last.len() >= 2 && seen.last[0] == ANY, "{:?}", seen.last);
        for (stream, path) in &sent {
            let fate = seen.fate(*stream).unwrap_or_else(|| panic!("{path} was lost: {seen:?}"));
            let executions = begun.lock().iter().filter(|begun| *begun == path).count();
            assert_eq!(executions, usize::from(fate == Fate::Answered), "{path}: {fate:?}");
            assert_ne!(fate, Fate::Failed, "{path}");
            crossed += usize::from(*stream > seen.announced_after && fate == Fate::Answered);
            *fates.entry(fate).or_default() += 1;
        }
    }
    println!("{fates:?}, {crossed} answered that were sent after the announcement");
    assert!(crossed > 0, "no request was sent between the two GOAWAY frames");
    assert!(fates.contains_key(&Fate::Late), "no request was sent after the final GOAWAY frame: {fates:?}");
    assert!(proxy.ended().await.success());
}

/// At the cut, an upload that is in flight is answered with 503, and has a moment to end. Whatever arrives in it is refused.
/// The client doesn't answer PING, so that the final GOAWAY frame doesn't come before.
#[tokio::test]
async fn what_arrives_at_the_cut_is_refused_and_was_never_begun() {
    let (app, begun) = noting().await;
    let (_home, mut proxy, address) = before(app.address, "shutdown_timeout = \"500ms\"", "").await;
    let mut raw = Raw::connect(address, b"").await;
    raw.send(HEADERS, END_HEADERS, 1, &request("POST", "/60000/upload/1", &[])).await;
    raw.send(DATA, 0, 1, b"not all of it").await;
    until("it is in flight", async || (app.seen() == 1).then_some(())).await;
    proxy.signal(Signal::TERM);
    let (sent, seen) = keep_asking(raw, "cut".to_owned(), 3, Pings::Ignored).await;
    let mut fates = BTreeMap::<Fate, usize>::new();
    for (stream, path) in &sent {
        let fate = seen.fate(*stream).unwrap_or_else(|| panic!("{path} was lost: {seen:?}"));
        let executed = begun.lock().contains(path);
        assert!(executed || fate != Fate::Answered, "{path}: {fate:?}");
        assert!(!executed || matches!(fate, Fate::Answered | Fate::Failed), "{path}: {fate:?}");
        *fates.entry(fate).or_default() += 1;
    }
    println!("{fates:?}");
    assert!(!seen.heads[&1] && seen.ended.contains(&1), "503: {seen:?}");
    assert!(fates.contains_key(&Fate::Reset), "nothing was refused: {fates:?}");
    assert!(proxy.ended().await.success());
}
