//! Chunked bodies in arbitrary pieces → uh-proxy's scanner; the reference must find the same end and content.

use uh_http1::body::{BodyError, BodyScanner, Framing, Step};
use uh_testkit::fuzz::reference::{Message, Read, read};
use uh_testkit::fuzz::words::HTTP_WORDS;

use crate::target::{Target, behind};

pub(crate) const TARGET: Target = Target { name: "body", check, seeds, words: &[HTTP_WORDS, WORDS] };

const WORDS: &[&str] = &[
    "5\r\nhello\r\n",
    "5;a=\"b\"\r\nhello\r\n",
    "7fffffffffffffff\r\n",
    "8000000000000000\r\n",
    "ffffffffffffffff\r\n",
    "X-Forwarded-For: 6.6.6.6\r\n",
    "Host: b\r\n",
    "X-Sum: 1\r\n",
];

/// The longest framing of one piece that any limit allows.
const LIMIT: usize = 1024;

fn seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-sum: 1\r\nY: 2\r\n\r\n",
        "0\r\n\r\n",
        "001 \t;x\r\na\r\n00\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "ffffffffffffffff\r\nx",
    ];
    behind(&[0, 1, 3, 200], seeds)
}

/// The result of a scan.
#[derive(Debug, PartialEq, Eq)]
enum End {
    At(usize),
    More,
    Bad(BodyError),
}

fn check(case: &[u8]) -> Result<(), String> {
    let Some((&first, bytes)) = case.split_first() else { return Ok(()) };
    let piece = if first == 0 { usize::MAX } else { usize::from(first) };
    let (end, content) = scan(bytes, piece);
    let whole = scan(bytes, usize::MAX);
    if (&end, &content) != (&whole.0, &whole.1) {
        return Err(format!("whole: {whole:?}, in pieces of {piece}: {:?}", (end, content)));
    }
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let input = [head, bytes].concat();
    let told = read(&input);
    match (&end, told) {
        (End::At(end), Read::Whole(message, length)) => {
            if (*end, &content) != (length - head.len(), &message.body) {
                return Err(format!("ends at {end} with {content:?}, and should at {length}: {message:?}"));
            }
            if let Some(name) = of_a_head(&message) {
                return Err(format!("{name} in the trailers"));
            }
            Ok(())
        }
        (End::Bad(BodyError::BadTrailer), Read::Whole(message, _)) if of_a_head(&message).is_some() => Ok(()),
        (End::Bad(_), Read::Whole(..)) if has_long_line(bytes) => Ok(()),
        // The reference doesn't judge a line before it is complete.
        (End::Bad(_), Read::Bad(_) | Read::More) | (End::More, Read::More) => Ok(()),
        // 2^63 bytes can't occur.
        (_, told) => Err(format!("{end:?} of what is {}", name(&told))),
    }
}

fn scan(bytes: &[u8], piece: usize) -> (End, Vec<u8>) {
    let mut scanner = BodyScanner::new(Framing::Chunked);
    let (mut at, mut content) = (0, Vec::new());
    while at < bytes.len() && !scanner.is_done() {
        let end = at.saturating_add(piece).min(bytes.len());
        match scanner.step(&bytes[at..end]) {
            Ok(Step::Data(n)) => {
                content.extend_from_slice(&bytes[at..at + n]);
                at += n;
            }
            Ok(Step::Frame(n) | Step::Trailer(n)) => at += n,
            Err(bad) => return (End::Bad(bad), content),
        }
    }
    assert_eq!(scanner.content(), content.len() as u64);
    (if scanner.is_done() { End::At(at) } else { End::More }, content)
}

/// A trailer that an app might confuse with a field of the head.
fn of_a_head(message: &Message) -> Option<&str> {
    let known = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "expect",
        "te",
        "proxy-connection",
        "proxy",
        "x-request-id",
        "forwarded",
        "x-real-ip",
    ];
    message.trailers.iter().map(|(name, _)| name.as_str()).find(|name| {
        let folded: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        known.contains(&folded.as_str()) || folded.starts_with("x-forwarded-")
    })
}

fn has_long_line(bytes: &[u8]) -> bool {
    bytes.split(|&byte| byte == b'\n').any(|line| line.len() >= LIMIT) || bytes.len() > 8 * LIMIT
}

fn name(told: &Read) -> String {
    match told {
        Read::Whole(message, _) => format!("whole: {message:?}"),
        Read::More => "half a body".to_owned(),
        Read::Bad(why) => format!("bad: {why}"),
    }
}
