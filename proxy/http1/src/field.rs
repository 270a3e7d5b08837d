//! Header fields: where a head ends, which names matter, and lists of tokens.

use std::ops::Range;

use httparse::Header;

/// More header fields than any real request has.
pub const MAX_FIELDS: usize = 128;

/// The most fields that a backend gets in addition to the client's: `Host` for a client that sent none, the five of
/// `X-Forwarded-…`, `X-Real-IP`, `X-Request-Id`, and the optional `Forwarded`, `Via`, `X-Request-Start`,
/// `traceparent`.
pub const MOST_ADDED_FIELDS: usize = 12;

/// Empty lines that are skipped before a head (RFC 9112 §2.2 requires at least one before a request).
pub const MAX_LEADING_LINES: u8 = 4;

/// A part of a head as offsets, so that it stays valid when the head is moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The position of `part` in `whole`; empty if it isn't inside.
    #[must_use]
    pub fn of(part: &[u8], whole: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        match start.checked_add(part.len()) {
            Some(end) if end <= whole.len() => {
                Self { start: u32::try_from(start).unwrap_or(0), end: u32::try_from(end).unwrap_or(0) }
            }
            _ => Self::default(),
        }
    }

    /// The last `length` bytes of what was written so far.
    #[must_use]
    pub(crate) fn last(length: usize, written: &[u8]) -> Self {
        let end = written.len();
        Self { start: position(end.saturating_sub(length)), end: position(end) }
    }

    /// Where it starts.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// Where it ends.
    #[must_use]
    pub fn end(&self) -> usize {
        self.end as usize
    }

    /// The bytes.
    #[must_use]
    pub fn of_head<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        head.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// A line of the head doesn't end in CR LF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BareLineFeed;

/// Finds the end of a head that arrives in pieces, and rejects bare line feeds, except in responses.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadScanner {
    /// Lines may end in a bare line feed.
    lenient: bool,
    start: u32,
    line: u32,
    seen: u32,
    lines: u32,
    skipped: u8,
}

impl HeadScanner {
    /// For a response: old apps end lines in a bare line feed, which a recipient may accept (RFC 9112 §2.2). Never for
    /// requests, where parsers that disagree about it are a security hole.
    #[must_use]
    pub fn of_response() -> Self {
        Self { lenient: true, ..Self::default() }
    }

    /// Where the head begins, after empty lines.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// How many header lines have arrived.
    #[must_use]
    pub fn fields(&self) -> usize {
        (self.lines as usize).saturating_sub(1)
    }

    /// Whether more than empty lines has arrived, in `len` bytes so far.
    #[must_use]
    pub fn has_begun(&self, len: usize) -> bool {
        len > self.start()
    }

    /// Scans all bytes so far, part of which earlier calls have seen. Returns the head, including its empty line.
    ///
    /// # Errors
    /// If a line ends in a bare line feed and this isn't a response.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<Range<usize>>, BareLineFeed> {
        let seen = self.seen as usize;
        for offset in memchr::memchr_iter(b'\n', &bytes[seen..]) {
            let at = seen + offset;
            let begins = self.line as usize;
            let end = if at > begins && bytes[at - 1] == b'\r' {
                at - 1
            } else if self.lenient {
                at
            } else {
                return Err(BareLineFeed);
            };
            let empty = end == begins;
            self.line = position(at + 1);
            if empty && begins == self.start() && self.skipped < MAX_LEADING_LINES {
                self.skipped += 1;
                self.start = self.line;
            } else if empty {
                return Ok(Some(self.start()..at + 1));
            } else {
                self.lines += 1;
            }
        }
        self.seen = position(bytes.len());
        Ok(None)
    }
}

/// A position in a head. Every head has a limit far below this type's.
fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The fields that uh-proxy reads, replaces or removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Forwarded unchanged.
    Other,
    /// `Host`
    Host,
    /// `Content-Length`
    ContentLength,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Connection`
    Connection,
    /// `Keep-Alive`
    KeepAlive,
    /// `Upgrade`
    Upgrade,
    /// `Expect`
    Expect,
    /// `TE`, `Proxy-Connection`, `Proxy`: for the next hop only, and never forwarded.
    HopByHop,
    /// `X-Request-Id`
    RequestId,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `X-Forwarded-Proto`
    ForwardedProto,
    /// `X-Forwarded-Host`
    ForwardedHost,
    /// `X-Forwarded-Port`
    ForwardedPort,
    /// `Forwarded`
    Forwarded,
    /// Any other `X-Forwarded-…`.
    ForwardedOther,
    /// `X-Real-IP`
    RealIp,
    /// `traceparent`
    Traceparent,
    /// `tracestate`
    Tracestate,
    /// `X-Request-Start`
    RequestStart,
    /// `Cookie`
    Cookie,
    /// `User-Agent`
    UserAgent,
    /// `Referer`
    Referer,
    /// `Server`
    Server,
    /// `Date`
    Date,
    /// `Strict-Transport-Security`
    Hsts,
    /// `X-UH-Preview`: for uh-proxy alone, and never forwarded.
    Preview,
}

impl Known {
    /// Whether the field is end-to-end and has no meaning for uh-proxy.
    #[must_use]
    pub fn is_end_to_end(self) -> bool {
        matches!(
            self,
            Self::Other
                | Self::Traceparent
                | Self::Tracestate
                | Self::RequestStart
                | Self::Cookie
                | Self::UserAgent
                | Self::Referer
                | Self::Server
                | Self::Date
                | Self::Hsts
        )
    }
}

/// Identifies a field by its name. Most names differ in length or first letter from all others.
#[must_use]
pub fn classify(name: &[u8]) -> Known {
    let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
    let first = name.first().map_or(0, u8::to_ascii_lowercase);
    match (name.len(), first) {
        (2, b't') if is("te") => Known::HopByHop,
        (4, b'h') if is("host") => Known::Host,
        (4, b'd') if is("date") => Known::Date,
        (5, b'p') if is("proxy") => Known::HopByHop,
        (6, b'c') if is("cookie") => Known::Cookie,
        (6, b'e') if is("expect") => Known::Expect,
        (6, b's') if is("server") => Known::Server,
        (7, b'u') if is("upgrade") => Known::Upgrade,
        (7, b'r') if is("referer") => Known::Referer,
        (9, b'f') if is("forwarded") => Known::Forwarded,
        (9, b'x') if is("x-real-ip") => Known::RealIp,
        (10, b'c') if is("connection") => Known::Connection,
        (10, b'k') if is("keep-alive") => Known::KeepAlive,
        (10, b'u') if is("user-agent") => Known::UserAgent,
        (10, b't') if is("tracestate") => Known::Tracestate,
        (11, b't') if is("traceparent") => Known::Traceparent,
        (12, b'x') if is("x-request-id") => Known::RequestId,
        (12, b'x') if is("x-uh-preview") => Known::Preview,
        (14, b'c') if is("content-length") => Known::ContentLength,
        (15, b'x') if is("x-forwarded-for") => Known::ForwardedFor,
        (15, b'x') if is("x-request-start") => Known::RequestStart,
        (16, b'x') if is("x-forwarded-host") => Known::ForwardedHost,
        (16, b'x') if is("x-forwarded-port") => Known::ForwardedPort,
        (16, b'p') if is("proxy-connection") => Known::HopByHop,
        (17, b'x') if is("x-forwarded-proto") => Known::ForwardedProto,
        (17, b't') if is("transfer-encoding") => Known::TransferEncoding,
        (25, b's') if is("strict-transport-security") => Known::Hsts,
        (12.., b'x') if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Known::ForwardedOther,
        _ => Known::Other,
    }
}

/// The kinds of a head's fields, so that each is classified once. Fields beyond [`MAX_FIELDS`], which only responses have,
/// are classified again.
#[derive(Debug)]
pub(crate) struct Kinds([Known; MAX_FIELDS]);

impl Kinds {
    /// Of these fields.
    pub(crate) fn of(fields: &[Header<'_>]) -> Self {
        let mut kinds = [Known::Other; MAX_FIELDS];
        for (kind, field) in kinds.iter_mut().zip(fields) {
            *kind = classify(field.name.as_bytes());
        }
        Self(kinds)
    }

    /// The fields with their kinds.
    pub(crate) fn with<'k, 'f, 'b>(
        &'k self,
        fields: &'f [Header<'b>],
    ) -> impl Iterator<Item = (Known, &'f Header<'b>)> + use<'k, 'f, 'b> {
        fields.iter().enumerate().map(|(at, field)| {
            let kind = self.0.get(at).copied();
            (kind.unwrap_or_else(|| classify(field.name.as_bytes())), field)
        })
    }
}

/// Copies parts of a head to another one. What stands together in both is copied together, which is most of a head.
#[derive(Debug)]
pub(crate) struct Copier<'h> {
    head: &'h [u8],
    /// What is to be copied and hasn't been yet.
    run: Range<usize>,
}

impl<'h> Copier<'h> {
    /// A copier that begins with the first line of the head, up to `end`, or with nothing of it.
    pub(crate) fn new(head: &'h [u8], end: usize) -> Self {
        Self { head, run: 0..end }
    }

    /// Copies a field in the form in which uh-proxy writes fields.
    pub(crate) fn field(&mut self, field: &Header<'_>, out: &mut Vec<u8>) {
        let (name, value) = (Span::of(field.name.as_bytes(), self.head), Span::of(field.value, self.head));
        let end = value.end() + 2;
        let as_written = value.start() == name.end() + 2
            && self.head.get(name.end()..value.start()) == Some(b": ".as_slice())
            && self.head.get(value.end()..end) == Some(b"\r\n".as_slice());
        if as_written && name.start() == self.run.end {
            self.run.end = end;
            return;
        }
        self.finish(out);
        if as_written {
            self.run = name.start()..end;
        } else {
            write_field(out, field.name.as_bytes(), field.value);
        }
    }

    /// Copies what is left. Must be called before anything else is written.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.get(self.run.clone()).unwrap_or_default());
        self.run = 0..0;
    }
}

/// Where the first line of a head ends: where its first field begins.
pub(crate) fn first_line_end(head: &[u8], fields: &[Header<'_>]) -> usize {
    let first = fields.first().map(|field| Span::of(field.name.as_bytes(), head).start());
    first.unwrap_or(head.len().saturating_sub(2))
}

/// The length of the longest known name plus one.
const FOLDED_BYTES: usize = 26;

/// [`classify`] as an app sees the name that, like CGI and its successors, can't distinguish `_` and others from `-`.
#[must_use]
pub fn classify_folded(name: &[u8]) -> Known {
    let mut folded = [0; FOLDED_BYTES];
    let length = name.len().min(FOLDED_BYTES);
    for (to, &from) in folded.iter_mut().zip(name) {
        *to = if from.is_ascii_alphanumeric() { from } else { b'-' };
    }
    classify(&folded[..length])
}

/// The bytes of letters, digits, and others: a lookup is all that a byte costs.
const fn letters_digits_and(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
}

fn all_in(bytes: &[u8], table: &[bool; 256]) -> bool {
    bytes.iter().all(|&byte| table[usize::from(byte)])
}

/// Whether the name is unambiguous for every app: letters, digits and hyphens only.
#[must_use]
pub fn is_plain_name(name: &[u8]) -> bool {
    const PLAIN: [bool; 256] = letters_digits_and(b"-");
    all_in(name, &PLAIN)
}

/// The most names that a `Connection` field may nominate.
const MAX_NOMINATED: usize = 8;

/// The options in the `Connection` fields of a message.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectionOptions<'a> {
    /// `close`
    pub close: bool,
    /// `keep-alive`
    pub keep_alive: bool,
    /// `upgrade`
    pub upgrade: bool,
    nominated: [&'a [u8]; MAX_NOMINATED],
    nominations: usize,
}

/// A `Connection` field that can't be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadConnection;

impl<'a> ConnectionOptions<'a> {
    /// Adds one `Connection` field.
    ///
    /// # Errors
    /// If it nominates too many fields, or one that the message's meaning depends on. The rest of it is still added.
    pub fn add(&mut self, value: &'a [u8]) -> Result<(), BadConnection> {
        let mut result = Ok(());
        for token in tokens(value) {
            match token {
                _ if token.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if token.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                _ if token.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                _ if classify(token) == Known::HopByHop => {}
                _ if classify(token).is_end_to_end() && self.nominations < MAX_NOMINATED => {
                    self.nominated[self.nominations] = token;
                    self.nominations += 1;
                }
                _ => result = Err(BadConnection),
            }
        }
        result
    }

    /// Whether a field is for this hop only (RFC 9110 §7.6.1).
    #[must_use]
    pub fn nominates(&self, name: &[u8]) -> bool {
        self.nominated[..self.nominations].iter().any(|nominated| nominated.eq_ignore_ascii_case(name))
    }
}

/// Where the last of several complete heads begins: interim ones may come before a response's.
#[must_use]
pub fn last_head(heads: &[u8]) -> usize {
    let end = heads.len().saturating_sub(4);
    memchr::memmem::rfind(&heads[..end], b"\r\n\r\n").map_or(0, |at| at + 4)
}

/// The members of a comma-separated list, trimmed and without empty ones.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// The values of all fields with this name, in a head that need not be complete or well-formed. Scans the whole head,
/// so it is only for rare cases.
pub fn values<'a>(head: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    // From each line feed to the next one; only what has the name is read to its end.
    memchr::memchr_iter(b'\n', head).filter_map(move |line_feed| {
        let (field, rest) = head.get(line_feed + 1..)?.split_at_checked(name.len())?;
        let value = rest.strip_prefix(b":").filter(|_| field.eq_ignore_ascii_case(name))?;
        let end = memchr::memchr(b'\n', value).unwrap_or(value.len());
        Some(value.get(..end)?.trim_ascii())
    })
}

/// Whether this can be a `Host` (RFC 9110 §7.2): a name, an IPv4 address or an IPv6 address in brackets, and perhaps a
/// port.
#[must_use]
pub fn is_host(value: &[u8]) -> bool {
    const NAME: [bool; 256] = letters_digits_and(b"-._~%");
    let (name, port) = split_port(value);
    let bracketed = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
    let good_name = match bracketed {
        Some(address) => address.iter().all(|&b| b.is_ascii_hexdigit() || b == b':' || b == b'.'),
        None => all_in(name, &NAME),
    };
    let good_port = port.is_none_or(|port| port.len() <= 5 && port.iter().all(u8::is_ascii_digit));
    !name.is_empty() && good_name && good_port
}

/// Splits a host into its name and its port, if it has one.
#[must_use]
pub fn split_port(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    // Only an address in brackets has colons of its own.
    let bracketed = host.first() == Some(&b'[');
    let end_of_address = if bracketed { host.iter().rposition(|&b| b == b']').unwrap_or(0) } else { 0 };
    match host[end_of_address..].iter().position(|&b| b == b':') {
        Some(at) => (&host[..end_of_address + at], Some(&host[end_of_address + at + 1..])),
        None => (host, None),
    }
}

/// A body length: only digits.
#[must_use]
pub fn parse_length(value: &[u8]) -> Option<u64> {
    let fits = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    fits.then(|| value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// A byte of a token (RFC 9110 §5.6.2).
#[must_use]
pub const fn is_token_byte(byte: u8) -> bool {
    const TOKEN: [bool; 256] = letters_digits_and(b"!#$%&'*+-.^_`|~");
    TOKEN[byte as usize]
}

/// Appends one header line. Inlined wherever it is called, so that a constant name is no call: left to itself, the compiler
/// stops doing so when there are more callers, which costs some 300 instructions a request.
#[inline(always)]
pub fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal.
pub fn write_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a number in hexadecimal.
pub fn write_hex(out: &mut Vec<u8>, number: u64) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(number >> (4 * place) & 15) as usize]);
    }
}

#[cfg(test)]
mod tests;
