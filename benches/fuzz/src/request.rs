//! Requests as they come → uh-proxy's head scanner, check, rewriting and body scanner → the reference parser, which
//! must find in the forwarded bytes what was meant.

use uh_http1::body::{BodyScanner, Framing};
use uh_http1::field::{self, HeadScanner};
use uh_http1::forwarded::{Caller, Scheme};
use uh_http1::policy::{HeaderPolicy, Traceparent, Underscores};
use uh_http1::{prefix, request};
use uh_testkit::fuzz::reference::{Demand, Message, Read, is_same, read, read_all};
use uh_testkit::fuzz::words::{HTTP_WORDS, KNOWN_REQUESTS, REQUEST_WORDS, REQUESTS};

use crate::target::{Target, behind};

pub(crate) const TARGET: Target =
    Target { name: "request", check, seeds, words: &[HTTP_WORDS, REQUEST_WORDS, WORDS] };

const CALLER: &str = "192.0.2.7";
const PREFIX: &str = "/a";

/// Chunk framing that is shorter is below every limit.
const LONG: usize = 1024;

const WORDS: &[&str] = &[
    "X-Forwarded-For: 192.0.2.1, 192.0.2.7\r\n",
    "X-Forwarded-Proto: https\r\n",
    "X-Forwarded-Host: b:81\r\n",
    "X-Forwarded-Port: 81\r\n",
    "X-Forwarded-Prefix: /outer/\r\n",
    "X-Real-IP: 6.6.6.6\r\n",
    "X_Forwarded_For: 6.6.6.6\r\n",
    "Forwarded: for=6.6.6.6\r\n",
    "X-Request-Start: t=1600000000000\r\n",
    "X-Request-Id: a-b\r\n",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
    "tracestate: a=b\r\n",
    "Via: 1.1 edge\r\n",
    "TE: trailers\r\n",
    "Proxy: x\r\n",
    "User-Agent: x\r\n",
    "Referer: x\r\n",
    "Upgrade: websocket\r\n",
    "Connection: upgrade\r\n",
    "[2001:db8::1]:80",
    "https://",
];

/// Only a trusted proxy may send this over plain HTTP.
const SECURED: &str = "GET https://b.example/a/x?y HTTP/1.1\r\nHost: a\r\n\r\n";

fn seeds() -> Vec<Vec<u8>> {
    let worded = WORDS.iter().map(|word| format!("GET /a/b HTTP/1.1\r\nHost: a\r\n{word}\r\n"));
    let known = REQUESTS.iter().chain(KNOWN_REQUESTS).chain(&[SECURED]).map(|&text| text.to_owned());
    behind(&[0, 0xff, 0b1101, 0b0101_0010], known.chain(worded))
}

/// What the first byte of a case chooses.
struct Circumstances {
    headers: HeaderPolicy,
    trusted: bool,
    strips: bool,
    piece: usize,
}

impl Circumstances {
    fn of(byte: u8) -> Self {
        let is = |bit: u8| byte & (1 << bit) != 0;
        let underscores = match byte & 3 {
            0 | 3 => Underscores::Drop,
            1 => Underscores::Pass,
            _ => Underscores::Refuse,
        };
        let headers = HeaderPolicy {
            trusted_proxies: if is(2) {
                vec!["192.0.2.0/29".parse().expect("a network")]
            } else {
                Vec::new()
            },
            forwarded: is(3),
            via: is(3),
            request_start: is(3),
            traceparent: if is(4) { Traceparent::Make } else { Traceparent::Pass },
            underscores,
            ..HeaderPolicy::default()
        };
        let piece = [usize::MAX, 1, 7, 64][usize::from(byte >> 6)];
        Self { headers, trusted: is(2), strips: is(5), piece }
    }

    fn caller(&self) -> Caller<'_> {
        let request_start = self.headers.request_start.then_some(1_700_000_000_123);
        Caller {
            address: CALLER.parse().expect("an address"),
            text: CALLER,
            request_start,
            scheme: Scheme::Http,
            http2: false,
            hides_cookies: true,
            headers: &self.headers,
        }
    }
}

/// Why nothing more is forwarded.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// More bytes are needed.
    More,
    /// The next request was rejected.
    Refused(String),
    /// The client has said that it was its last one, or it is a tunnel now.
    Last,
}

fn check(case: &[u8]) -> Result<(), String> {
    let Some((&first, sent)) = case.split_first() else { return Ok(()) };
    let around = Circumstances::of(first);
    let (out, end) = front_door(sent, &around)?;
    let (meant, _) = read_all(sent);
    let mut rest = out.as_slice();
    let mut came = 0;
    while !rest.is_empty() {
        let message = match read(rest) {
            Read::Whole(message, length) => {
                rest = &rest[length..];
                message
            }
            Read::More if end != End::Last => break,
            Read::More => return Err(format!("half a request: {}", rest.escape_ascii())),
            Read::Bad(why) => return Err(format!("{why}: {}", out.escape_ascii())),
        };
        let meant = meant.get(came).ok_or_else(|| format!("nobody meant {message:?}"))?;
        is_what_was_meant(meant, &message, &around)
            .map_err(|why| format!("{why}\ncame:  {message:?}\nmeant: {meant:?}"))?;
        came += 1;
    }
    match (end, meant.get(came)) {
        (End::More, Some(meant)) => Err(format!("waits for more of {meant:?}")),
        (End::Refused(why), Some(meant)) if !may_be_refused(meant, sent.len(), &around) => {
            Err(format!("refused ({why}): {meant:?}"))
        }
        _ => Ok(()),
    }
}

/// What uh-proxy does with a connection's bytes, without sockets.
fn front_door(mut bytes: &[u8], around: &Circumstances) -> Result<(Vec<u8>, End), String> {
    let mut out = Vec::new();
    loop {
        let head = match scan(bytes, around.piece)? {
            Ok(Some(range)) => range,
            Ok(None) => return Ok((out, End::More)),
            Err(why) => return Ok((out, End::Refused(why))),
        };
        let mut translated = Vec::new();
        let caller = around.caller();
        let understood = match request::translate(&bytes[head.clone()], &caller, &mut translated) {
            Ok(understood) => understood,
            Err(bad) => return Ok((out, End::Refused(bad.to_string()))),
        };
        if understood.path.of_head(&bytes[head.clone()]).starts_with(PREFIX.as_bytes()) && around.strips {
            prefix::strip(&mut translated, PREFIX.as_bytes());
        }
        // What a service allows where nothing else is configured.
        let upgrade = understood.upgrade.of_head(&bytes[head.clone()]).eq_ignore_ascii_case(b"websocket");
        if upgrade {
            request::write_upgrade(b"websocket", &mut translated);
        }
        out.extend(translated);
        bytes = &bytes[head.end..];
        let mut scanner = BodyScanner::new(understood.framing);
        while !scanner.is_done() && !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(around.piece)];
            match scanner.take(piece) {
                Ok(taken) => {
                    out.extend_from_slice(&piece[..taken]);
                    bytes = &bytes[taken..];
                }
                // What stood before the mistake may have gone on, which is no more than the start of a body.
                Err(bad) => return Ok((out, End::Refused(bad.to_string()))),
            }
        }
        if !scanner.is_done() {
            return Ok((out, End::More));
        }
        if !understood.keep_alive || upgrade {
            return Ok((out, End::Last));
        }
        if matches!(understood.framing, Framing::UntilClose) {
            return Err("a request that ends with its connection".to_owned());
        }
    }
}

/// Where the head is, however its bytes are cut.
#[allow(clippy::type_complexity, reason = "the outer one is a failure of the test")]
fn scan(bytes: &[u8], piece: usize) -> Result<Result<Option<std::ops::Range<usize>>, String>, String> {
    let whole = HeadScanner::default().scan(bytes);
    let mut scanner = HeadScanner::default();
    let mut cut = Ok(None);
    let mut seen = 0;
    while seen < bytes.len() && cut == Ok(None) {
        seen = seen.saturating_add(piece).min(bytes.len());
        cut = scanner.scan(&bytes[..seen]);
    }
    if whole != cut {
        return Err(format!("in one piece: {whole:?}, in pieces of {piece}: {cut:?}"));
    }
    Ok(whole.map_err(|_| "a bare line feed".to_owned()))
}

fn is_what_was_meant(meant: &Message, came: &Message, around: &Circumstances) -> Result<(), String> {
    let mut meant = meant.clone();
    let (_, path) = meant.meant();
    if around.strips && path.starts_with(PREFIX) && meant.method != "CONNECT" {
        let rest = &path[PREFIX.len()..];
        let stripped = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
        let (host, _) = meant.meant();
        meant.target = format!("http://{host}{stripped}");
        if count(came, "x-forwarded-prefix") == 0 {
            return Err("the prefix is not told".to_owned());
        }
    }
    if !is_same(&meant, came, Demand::Strict) {
        return Err("it is another".to_owned());
    }
    for name in
        ["host", "x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-port", "x-request-id"]
    {
        if count(came, name) != 1 {
            return Err(format!("{} {name}", count(came, name)));
        }
    }
    let value = |name: &'static str| came.values(name).next().unwrap_or_default().to_owned();
    let list = value("x-forwarded-for");
    if list != CALLER && !(around.trusted && list.ends_with(&format!(", {CALLER}"))) {
        return Err(format!("the client is {list}"));
    }
    if !around.trusted {
        let prefixes = usize::from(around.strips);
        let told = count(came, "x-forwarded-server") > 0 || value("x-real-ip") != CALLER;
        if value("x-forwarded-proto") != "http" || told || count(came, "x-forwarded-prefix") > prefixes {
            return Err("a stranger is believed".to_owned());
        }
    }
    let of_this_hop = ["keep-alive", "te", "proxy-connection", "proxy"];
    let upgrades = count(came, "upgrade");
    if of_this_hop.iter().any(|name| count(came, name) > 0) || count(came, "connection") != upgrades {
        return Err("what is for one hop goes on".to_owned());
    }
    for (name, _) in &came.fields {
        let folded: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        if *name != folded && (around.headers.underscores != Underscores::Pass || is_ours(&folded)) {
            return Err(format!("{name} goes on"));
        }
    }
    Ok(())
}

fn count(message: &Message, name: &str) -> usize {
    message.fields.iter().filter(|(key, _)| key == name).count()
}

/// Headers that apps trust because uh-proxy sets them.
fn is_ours(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || ["host", "content-length", "transfer-encoding", "forwarded", "x-real-ip", "x-request-id"]
            .contains(&name)
}

/// Whether a valid request is one that uh-proxy rejects for a documented reason; see docs/http-semantics.md.
fn may_be_refused(meant: &Message, length: usize, around: &Circumstances) -> bool {
    let (host, _) = meant.meant();
    let named: Vec<_> =
        meant.values("connection").flat_map(|value| value.split(',')).map(str::trim).collect();
    let odd_target = |c: char| !c.is_ascii() || "\"<>\\^`{|}".contains(c);
    ["CONNECT", "TRACE"].contains(&meant.method.as_str())
        || meant.target.contains(odd_target)
        || (!around.trusted
            && meant.target.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://")))
        || !(field::is_host(host.as_bytes()) || host.is_empty() && count(meant, "host") == 0)
        || meant.values("expect").any(|value| !value.eq_ignore_ascii_case("100-continue"))
        || named.iter().any(|name| !field::classify(name.as_bytes()).is_end_to_end())
        || named.len() > 8
        || meant.fields.len() > field::MAX_FIELDS
        || meant.values("content-length").any(|length| length.len() > 18)
        || meant.trailers.iter().any(|(name, _)| !field::classify_folded(name.as_bytes()).is_end_to_end())
        || (around.headers.underscores == Underscores::Refuse
            && meant.fields.iter().any(|(name, _)| !field::is_plain_name(name.as_bytes())))
        || (meant.chunked && length > LONG)
}
