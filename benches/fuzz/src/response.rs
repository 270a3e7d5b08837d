//! Response heads as apps send them → uh-proxy's check and rewriting → a strict parser, which must find the same
//! response in the forwarded bytes, framed so that no client can read it in two ways.

use std::time::SystemTime;

use uh_http1::body::Framing;
use uh_http1::field::HeadScanner;
use uh_http1::forwarded::{Caller, Scheme};
use uh_http1::policy::{HeaderPolicy, ServerField};
use uh_http1::request::{self, Version};
use uh_http1::response::{self, Coding, Recipient, ResponseHead};
use uh_testkit::fuzz::words::HTTP_WORDS;

use crate::target::{Target, behind};

pub(crate) const TARGET: Target = Target { name: "response", check, seeds, words: &[HTTP_WORDS, WORDS] };

/// What the answers are for.
const REQUESTS: [&str; 4] = [
    "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: id\r\n\r\n",
    "HEAD / HTTP/1.1\r\nHost: a\r\nX-Request-Id: id\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\nX-Request-Id: id\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Request-Id: id\r\n\r\n",
];

const SEEDS: &[&str] = &[
    "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nDate: then\r\nX-MiXed: kept\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5, max=9\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nServer: x\r\n\r\n",
    "HTTP/1.0 200 OK\r\nServer: old\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
    "HTTP/1.1 426 Upgrade Required\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200\r\nX-Request-Id: theirs\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "HTTP/1.1 502 Bad Gateway\r\nX: a\r\n b\r\n\r\n",
    "HTTP/1.0 200 OK\nContent-Type: text/plain\r\nContent-Length: 3\n\n",
];

const WORDS: &[&str] = &[
    "099",
    "999",
    "101",
    "204",
    "304",
    "426",
    "Content-Length: 5, 5\r\n",
    "Connection: keep-alive\r\n",
    "Connection: transfer-encoding\r\n",
    "Connection: date, x-request-id\r\n",
    "Keep-Alive: timeout=99999999999999999999\r\n",
    "Upgrade: websocket\r\n",
    "Proxy-Connection: close\r\n",
    "Date: x\r\n",
    "Server: x\r\n",
];

fn seeds() -> Vec<Vec<u8>> {
    behind(&[0, 1, 2, 3, 4, 0xff, 0b10_0110], SEEDS)
}

/// A response head as RFC 9112 has it, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) is_1_1: bool,
    pub(crate) status: u16,
    reason: Vec<u8>,
    /// Names in lowercase.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
}

/// How the lines of a head end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// As uh-proxy writes them.
    CrLf,
    /// As apps write them: in a bare line feed, too (RFC 9112 §2.2).
    AnyLf,
}

/// More fields than fit into what is tried here.
const FIELDS: usize = 1000;

impl Head {
    /// The head at the front of some bytes, and where it ends.
    pub(crate) fn read(bytes: &[u8], lines: Lines) -> Option<(Self, usize)> {
        let mut at = 0;
        let mut line = || {
            let rest = &bytes[at..];
            let end = rest.iter().position(|&byte| byte < b' ' && byte != b'\t' || byte == 0x7f)?;
            let length = match rest[end..] {
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] if lines == Lines::AnyLf => 1,
                _ => return None,
            };
            at += end + length;
            Some(&rest[..end])
        };
        let first = line()?;
        let (version, rest) = first.split_at_checked(9)?;
        let is_1_1 = version == b"HTTP/1.1 ";
        let (digits, reason) = rest.split_at_checked(3)?;
        let good = (is_1_1 || version == b"HTTP/1.0 ")
            && digits.iter().all(u8::is_ascii_digit)
            && (reason.is_empty() || reason[0] == b' ');
        let status = std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| good)?;
        let mut head = Self { is_1_1, status, reason: reason.trim_ascii().to_vec(), fields: Vec::new() };
        loop {
            let line = line()?;
            if line.is_empty() {
                return Some((head, at));
            }
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = std::str::from_utf8(&line[..colon]).ok()?;
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(token) {
                return None;
            }
            head.fields.push((name.to_ascii_lowercase(), line[colon + 1..].trim_ascii().to_vec()));
        }
    }

    pub(crate) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_slice())
    }

    fn count(&self, name: &str) -> usize {
        self.values(name).count()
    }

    /// Whether the `Connection` field has this option.
    pub(crate) fn names(&self, option: &str) -> bool {
        let options = self.values("connection").flat_map(|value| value.split(|&byte| byte == b','));
        options.map(<[u8]>::trim_ascii).any(|other| other.eq_ignore_ascii_case(option.as_bytes()))
    }

    /// How its body ends, for whoever has asked in this way (RFC 9112 §6.3); none: it isn't clear, or there are two
    /// ways.
    pub(crate) fn framing(&self, to_head: bool) -> Option<Framing> {
        if self.status == 101 {
            return Some(Framing::UntilClose);
        }
        if to_head || self.status < 200 || [204, 304].contains(&self.status) {
            return Some(Framing::None);
        }
        let number = |value: &[u8]| {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
        };
        // The same number again is the same length (RFC 9110 §8.6), however many zeros it begins with.
        let mut lengths: Vec<Option<u64>> = self.values("content-length").map(number).collect();
        lengths.dedup();
        let codings: Vec<_> = self.values("transfer-encoding").collect();
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => Some(Framing::UntilClose),
            ([length], []) => length.map(Framing::Length),
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && self.is_1_1 => {
                Some(Framing::Chunked)
            }
            _ => None,
        }
    }
}

fn check(case: &[u8]) -> Result<(), String> {
    let Some((&first, bytes)) = case.split_first() else { return Ok(()) };
    let request_head = REQUESTS[usize::from(first & 3)];
    let keep_alive = first & 4 == 0;
    let server = if first & 8 == 0 { ServerField::Pass } else { ServerField::Drop };
    let headers = HeaderPolicy::default();
    let caller = Caller {
        address: [192, 0, 2, 1].into(),
        text: "192.0.2.1",
        request_start: None,
        scheme: Scheme::Http,
        http2: false,
        hides_cookies: true,
        headers: &headers,
    };
    // A head is read completely before it is interpreted.
    let bytes = match HeadScanner::of_response().scan(bytes) {
        Ok(Some(head)) => &bytes[head],
        _ => return Ok(()),
    };
    let request = request::translate(request_head.as_bytes(), &caller, &mut Vec::new()).expect("it is good");
    let request_head = request_head.as_bytes();
    let upgrade = (!request.upgrade.of_head(request_head).is_empty()).then_some("websocket");
    let to = Recipient {
        request: &request,
        request_head,
        keep_alive,
        upgrade,
        server,
        fields: FIELDS,
        clock: SystemTime::now,
        hsts: None,
        compress: None,
        seeks_page: false,
    };
    let mut out = Vec::new();
    let Ok(understood) = response::translate(bytes, to, &mut out) else { return Ok(()) };
    let (meant, length) =
        Head::read(bytes, Lines::AnyLf).ok_or("accepted, though it is no head by the rules")?;
    if length != bytes.len() {
        return Err(format!("the head ends after {length} bytes"));
    }
    let is_1_0 = request.version == Version::Http10;
    if understood.is_interim() && is_1_0 {
        return if out.is_empty() {
            Ok(())
        } else {
            Err("an old client gets an interim response".to_owned())
        };
    }
    let (came, length) =
        Head::read(&out, Lines::CrLf).ok_or_else(|| format!("no head: {}", out.escape_ascii()))?;
    if length != out.len() {
        return Err(format!("more than a head: {}", out.escape_ascii()));
    }
    is_framed(&meant, &came, &understood, request.method.is_head(), is_1_0)
        .and_then(|()| is_same(&meant, &came, server))
        .and_then(|()| tells_of_the_connection(&came, &understood, is_1_0))
        .map_err(|why| format!("{why}\ncame:  {came:?}\nmeant: {meant:?}\nunderstood: {understood:?}"))
}

fn is_framed(meant: &Head, came: &Head, told: &ResponseHead, head: bool, old: bool) -> Result<(), String> {
    let framing = meant.framing(head).ok_or("accepted, although its end is ambiguous")?;
    if told.framing != framing {
        return Err(format!("its body ends by {framing:?}"));
    }
    let wanted = match framing {
        Framing::Chunked if old => (Framing::UntilClose, Coding::Unchunk),
        Framing::UntilClose if !old && meant.status != 101 => (Framing::Chunked, Coding::Chunk),
        other => (other, Coding::AsItIs),
    };
    let framed = came.framing(head).ok_or("the client can't tell the end")?;
    if (framed, told.coding) != wanted {
        return Err(format!("the client sees {framed:?}, coded {:?}", told.coding));
    }
    let framings = came.count("content-length") + came.count("transfer-encoding");
    if framings > 1 {
        return Err("two framings".to_owned());
    }
    // RFC 9110 §8.6, RFC 9112 §6.1.
    if framings > 0 && (meant.status < 200 || meant.status == 204) {
        return Err("a framing where there never is a body".to_owned());
    }
    Ok(())
}

fn is_same(meant: &Head, came: &Head, server: ServerField) -> Result<(), String> {
    // Nobody needs a reason that is not ASCII.
    let same_reason = came.reason == meant.reason || (came.reason.is_empty() && !meant.reason.is_ascii());
    if meant.status != came.status || !same_reason {
        return Err("another status".to_owned());
    }
    let kept = |head: &Head| {
        let passes = |name: &str| {
            let ours =
                ["connection", "keep-alive", "te", "proxy", "proxy-connection", "upgrade", "content-length"];
            let known = ours.contains(&name) || ["transfer-encoding", "date", "x-request-id"].contains(&name);
            let dropped = name == "server" && server == ServerField::Drop;
            !(known || dropped || meant.names(name))
        };
        head.fields.iter().filter(|(name, _)| passes(name)).cloned().collect::<Vec<_>>()
    };
    if kept(meant) != kept(came) {
        return Err("other fields".to_owned());
    }
    if server == ServerField::Drop && came.count("server") > 0 {
        return Err("the server's name goes on".to_owned());
    }
    Ok(())
}

fn tells_of_the_connection(came: &Head, told: &ResponseHead, old: bool) -> Result<(), String> {
    let of_this_hop = ["keep-alive", "te", "proxy", "proxy-connection"];
    if of_this_hop.iter().any(|name| came.count(name) > 0) {
        return Err("what is for one hop goes on".to_owned());
    }
    if told.is_interim() {
        return if came.count("connection") == 0 {
            Ok(())
        } else {
            Err("an interim response closes".to_owned())
        };
    }
    if came.count("date") == 0 || came.count("x-request-id") == 0 {
        return Err("no date, or no id".to_owned());
    }
    let said: Vec<_> = came.values("connection").collect();
    let wanted: &[&[u8]] = match (told.is_tunnel(), told.client_keep_alive) {
        (true, _) => &[b"upgrade"],
        (false, false) => &[b"close"],
        (false, true) if old => &[b"keep-alive"],
        (false, true) => &[],
    };
    if said != wanted || (told.client_keep_alive && told.ends_with_connection()) {
        return Err("the client is sent something else about its connection".to_owned());
    }
    Ok(())
}
