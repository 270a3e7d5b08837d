//! Whole exchanges through the whole proxy: the bytes of a client, and the bytes of the app that answers its requests.
//! The app must get what the client meant, and the client must get the app's response or one of uh-proxy's own.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use uh_http1::body::Framing;
use uh_http1::field::MAX_LEADING_LINES;
use uh_testkit::fuzz::reference::{Demand, Message, Read, read};
use uh_testkit::fuzz::witness::{Reply, Witness, compare};
use uh_testkit::fuzz::words::{HTTP_WORDS, KNOWN_REQUESTS, REQUEST_WORDS, REQUESTS};

use crate::front_door::{self, FrontDoor};
use crate::response::{Head, Lines};
use crate::target::Target;

pub(crate) const TARGET: Target = Target {
    name: "exchange",
    check,
    seeds,
    words: &[HTTP_WORDS, REQUEST_WORDS, &["\x00\x01\x02\x03", "HTTP/1.1 200 OK\r\n"]],
};

/// Separates the client's bytes from the app's. Occurs in neither.
const BETWEEN: &[u8] = b"\x00\x01\x02\x03";

const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nX-T: t\r\n\r\n",
    "HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x08\x02\x03\x03",
    "nonsense",
];

fn seeds() -> Vec<Vec<u8>> {
    let requests = REQUESTS.iter().chain(KNOWN_REQUESTS);
    let each = |(index, request): (usize, &&str)| {
        let answer = ANSWERS[index % ANSWERS.len()];
        [request.as_bytes(), BETWEEN, answer.as_bytes()].concat()
    };
    let paired = requests.enumerate().map(each);
    let get = REQUESTS[1].as_bytes();
    paired.chain(ANSWERS.iter().map(|answer| [get, BETWEEN, answer.as_bytes()].concat())).collect()
}

/// The app, and the bytes with which it answers now.
fn app() -> &'static (Witness, Arc<Mutex<Vec<u8>>>) {
    static APP: OnceLock<(Witness, Arc<Mutex<Vec<u8>>>)> = OnceLock::new();
    APP.get_or_init(|| {
        let answer = Arc::<Mutex<Vec<u8>>>::default();
        let of_app = Arc::clone(&answer);
        let witness = Witness::answering(move |message| {
            let bytes = lock(&of_app).clone();
            let meant = meant_answer(&bytes, message.method == "HEAD");
            Reply { is_whole: meant.is_some_and(|meant| meant.is_all), bytes }
        });
        (witness, answer)
    })
}

fn lock(answer: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    answer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let at = bytes.windows(BETWEEN.len()).position(|window| window == BETWEEN);
    let (sent, answer) = match at {
        Some(at) => (&bytes[..at], &bytes[at + BETWEEN.len()..]),
        None => (bytes, &[][..]),
    };
    let answer = if answer.is_empty() { ANSWERS[0].as_bytes() } else { answer };
    static FRONT_DOOR: OnceLock<FrontDoor> = OnceLock::new();
    let (witness, of_app) = app();
    let front_door = FRONT_DOOR.get_or_init(|| front_door::start(witness.address, witness.address));
    *lock(of_app) = answer.to_vec();
    let (seen, answers) = witness.exchange(front_door.address, sent, None)?;
    compare(sent, &seen, Demand::Strict)?;
    judge_answers(&answers, answer, &seen.messages)
        .map_err(|why| format!("{why}\nthe client got: {}", answers.escape_ascii()))
}

/// An answer of an app, read strictly.
struct MeantAnswer {
    status: u16,
    body: Vec<u8>,
    /// Whether its end is certain, and the app's bytes end there.
    is_all: bool,
}

/// The final response at the start of an app's bytes; none: it isn't clear what is meant.
fn meant_answer(mut bytes: &[u8], to_head: bool) -> Option<MeantAnswer> {
    loop {
        // Empty lines before a head do no harm, and some are let pass (RFC 9112 §2.2, of requests).
        for _ in 0..MAX_LEADING_LINES {
            bytes = bytes.strip_prefix(b"\r\n").or(bytes.strip_prefix(b"\n")).unwrap_or(bytes);
        }
        let (head, length) = Head::read(bytes, Lines::AnyLf)?;
        bytes = &bytes[length..];
        let is_interim = (100..200).contains(&head.status) && head.status != 101;
        if is_interim {
            continue;
        }
        let framing = head.framing(to_head)?;
        let (body, end) = match framing {
            Framing::None => (Vec::new(), Some(0)),
            Framing::Length(length) => {
                let end = usize::try_from(length).ok().filter(|end| *end <= bytes.len());
                (bytes[..end.unwrap_or(bytes.len())].to_vec(), end)
            }
            Framing::UntilClose => (bytes.to_vec(), None),
            Framing::Chunked => chunks(bytes),
        };
        let is_all = end == Some(bytes.len()) && !head.names("close");
        return Some(MeantAnswer { status: head.status, body, is_all });
    }
}

/// The content of chunks, as far as they are whole, and where they end.
fn chunks(bytes: &[u8]) -> (Vec<u8>, Option<usize>) {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    match read(&[head, bytes].concat()) {
        Read::Whole(message, end) => (message.body, Some(end - head.len())),
        _ => (Vec::new(), None),
    }
}

/// Each complete response is the app's or uh-proxy's own; no bytes of the app form a response by themselves.
fn judge_answers(mut answers: &[u8], of_app: &[u8], messages: &[Message]) -> Result<(), String> {
    const OWN: [u16; 12] = [400, 404, 405, 408, 413, 417, 431, 501, 502, 503, 504, 505];
    let mut messages = messages.iter();
    let mut message = messages.next();
    while !answers.is_empty() {
        let Some((head, length)) = Head::read(answers, Lines::CrLf) else {
            return Err(format!("no answer: {}", answers.escape_ascii()));
        };
        answers = &answers[length..];
        if (100..200).contains(&head.status) && head.status != 101 {
            continue;
        }
        let to_head = message.is_some_and(|message| message.method == "HEAD");
        // uh-proxy's own answers to a HEAD that never reached the app have no body either.
        let framing = head.framing(to_head).ok_or("the client can't tell the end of an answer")?;
        let (body, end) = match framing {
            Framing::None => (Vec::new(), Some(0)),
            Framing::Length(length) => {
                let end = usize::try_from(length).ok().filter(|end| *end <= answers.len());
                (answers[..end.unwrap_or(answers.len())].to_vec(), end)
            }
            Framing::UntilClose => (answers.to_vec(), Some(answers.len())),
            Framing::Chunked => chunks(answers),
        };
        let meant = message.and_then(|_| meant_answer(of_app, to_head));
        let is_apps = meant.is_some_and(|meant| {
            meant.status == head.status
                && (end.is_none()
                    || meant.body.starts_with(&body)
                        && (head.status == 101 || framing == Framing::UntilClose || meant.body == body))
        });
        let is_own = OWN.contains(&head.status) && head.names("close")
            || head.values("cache-control").any(|v| v == b"no-store");
        if !is_apps && !is_own {
            return Err(format!("whose answer is {head:?} with {}?", body.escape_ascii()));
        }
        let Some(end) = end else { return Ok(()) };
        if head.names("close") && answers.len() > end && !to_head {
            return Err("more after the last answer".to_owned());
        }
        answers = &answers[end..];
        message = messages.next();
    }
    Ok(())
}
