//! A reference parser: reads requests strictly by RFC 9112, independently of the programs under test. Anything not
//! plainly allowed is bad. It can also read requests as hyper does, which the shim depends on.

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// As it is.
    pub method: String,
    /// As it is, in any form.
    pub target: String,
    /// Whether it is HTTP/1.1, and not 1.0.
    pub is_1_1: bool,
    /// Names in lowercase, values trimmed.
    pub fields: Vec<(String, String)>,
    /// Whether its body came in chunks.
    pub chunked: bool,
    /// Without the framing.
    pub body: Vec<u8>,
    /// Like the fields.
    pub trailers: Vec<(String, String)>,
}

/// What is at the start of some bytes.
pub enum Read {
    /// A request, and where it ends.
    Whole(Message, usize),
    /// The start of a message, as far as it is valid.
    More,
    /// What is wrong.
    Bad(&'static str),
}

/// The parser to imitate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Strictly by the rules.
    Strict,
    /// As hyper: any number of empty lines, lines of a head that end in a bare LF, any target, any number of hosts, the same
    /// length more than once, a coding wins over a length, codings before the last one, and anything in a chunk's extension.
    Lenient,
}

/// Reads one request.
#[must_use]
pub fn read(bytes: &[u8]) -> Read {
    read_in(bytes, Manner::Strict)
}

fn read_in(bytes: &[u8], manner: Manner) -> Read {
    match (Reader { bytes, at: 0, manner }).message() {
        Ok((message, end)) => Read::Whole(message, end),
        Err(None) => Read::More,
        Err(Some(why)) => Read::Bad(why),
    }
}

/// All requests up to the first one that is bad or not whole.
#[must_use]
pub fn read_all(bytes: &[u8]) -> (Vec<Message>, bool) {
    let (all, rest) = read_all_in(bytes, Manner::Strict);
    (all, rest.is_empty())
}

/// All requests, and after the first violation, those that hyper finds.
#[must_use]
pub fn read_leniently(bytes: &[u8]) -> Vec<Message> {
    let (mut all, rest) = read_all_in(bytes, Manner::Strict);
    all.extend(read_all_in(rest, Manner::Lenient).0);
    all
}

fn read_all_in(mut bytes: &[u8], manner: Manner) -> (Vec<Message>, &[u8]) {
    let mut all = Vec::new();
    while let Read::Whole(message, end) = read_in(bytes, manner) {
        all.push(message);
        bytes = &bytes[end..];
    }
    (all, bytes)
}

impl Message {
    /// The values of all fields of a name, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The intended host and path (RFC 9112 §3.2.2).
    #[must_use]
    pub fn meant(&self) -> (String, String) {
        let field = self.values("host").next().unwrap_or_default().to_owned();
        let Some(rest) = absolute(&self.target) else { return (field, self.target.clone()) };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let path = match &rest[end..] {
            "" if self.method == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            query => format!("/{query}"),
        };
        (rest[..end].to_owned(), path)
    }

    /// The fields that a hop must forward unchanged.
    #[must_use]
    pub fn end_to_end(&self) -> Vec<(String, String)> {
        const OF_ONE_HOP: &[&str] = &[
            "connection",
            "keep-alive",
            "te",
            "proxy-connection",
            "upgrade",
            "proxy",
            "forwarded",
            "host",
            "content-length",
            "transfer-encoding",
            "expect",
            "x-request-id",
            "traceparent",
            "tracestate",
            "x-real-ip",
            "x-request-start",
            "via",
        ];
        let named: Vec<String> = self
            .values("connection")
            .flat_map(|value| {
                value.split(',').map(|name| name.trim_matches([' ', '\t']).to_ascii_lowercase())
            })
            .collect();
        let passes = |name: &str| {
            !OF_ONE_HOP.contains(&name)
                && !name.starts_with("x-forwarded-")
                && !named.iter().any(|other| other == name)
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        self.fields.iter().filter(|(name, _)| passes(name)).cloned().collect()
    }
}

/// The requirements for input that violates the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Nothing of it is forwarded, nor anything after the rejected part, and fields keep their order.
    Strict,
    /// What is forwarded of it is what hyper reads, as a valid request; more may follow a rejected part.
    WellFormed,
}

/// Whether a message is what the client meant. The order of fields matters among those of one name (RFC 9110 §5.3).
#[must_use]
pub fn is_same(meant: &Message, came: &Message, demand: Demand) -> bool {
    let (host, path) = meant.meant();
    let fields = |message: &Message| {
        let mut fields = message.end_to_end();
        if demand == Demand::WellFormed {
            fields.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        fields
    };
    let same_trailers = match demand {
        Demand::Strict => came.trailers == meant.trailers,
        // A recipient that doesn't understand a trailer may drop it (RFC 9110 §6.5.1).
        Demand::WellFormed => came.trailers.iter().all(|trailer| meant.trailers.contains(trailer)),
    };
    // HTTP/1.0 has no Host; the shim adds one.
    let any_host = demand == Demand::WellFormed && host.is_empty() && !meant.is_1_1;
    meant.method == came.method
        && came.target == path
        && (any_host || came.values("host").next().unwrap_or_default() == host)
        && came.body == meant.body
        && same_trailers
        && fields(came) == fields(meant)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    manner: Manner,
}

/// `None`: more bytes are needed.
type Found<T> = Result<T, Option<&'static str>>;

impl Reader<'_> {
    fn message(mut self) -> Found<(Message, usize)> {
        let lenient = self.manner == Manner::Lenient;
        let mut blank = 0;
        let line = loop {
            let line = self.line()?;
            if !line.is_empty() {
                break line;
            }
            blank += 1;
            if blank > 4 && !lenient {
                return Err(Some("too many empty lines"));
            }
        };
        let parts: Vec<&str> = line.split(' ').collect();
        let &[method, target, version] = parts.as_slice() else { return Err(Some("the request line")) };
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(Some("the method"));
        }
        let is_1_1 = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return Err(Some("the version")),
        };
        let form =
            target.starts_with('/') || absolute(target).is_some() || (target == "*" && method == "OPTIONS");
        let is_odd = |byte: u8| byte <= b' ' || byte == 0x7f || (byte == b'#' && !lenient);
        // The fragment after a # is for the client only.
        let target = target.split('#').next().filter(|_| lenient).unwrap_or(target);
        if !(form || lenient) || target.bytes().any(is_odd) {
            return Err(Some("the target"));
        }
        let fields = self.fields()?;
        let (method, target) = (method.to_owned(), target.to_owned());
        let mut message = Message {
            method,
            target,
            is_1_1,
            fields,
            chunked: false,
            body: Vec::new(),
            trailers: Vec::new(),
        };
        let hosts = message.values("host").count();
        if (hosts > 1 || (is_1_1 && hosts == 0)) && !lenient {
            return Err(Some("the Host field"));
        }
        let mut lengths: Vec<&str> = message.values("content-length").collect();
        let mut codings: Vec<&str> = message.values("transfer-encoding").collect();
        if lenient {
            lengths.dedup();
            if !codings.is_empty() {
                lengths.clear();
            }
            codings = codings
                .last()
                .and_then(|value| value.split(',').next_back())
                .map(str::trim)
                .into_iter()
                .collect();
        }
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => {}
            ([length], []) => {
                let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
                let length = length.parse::<u64>().ok().filter(|_| digits).ok_or(Some("the length"))?;
                message.body = self.take(usize::try_from(length).map_err(|_| Some("the length"))?)?.to_vec();
            }
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") && is_1_1 => {
                message.chunked = true;
                self.chunks(&mut message)?;
            }
            _ => return Err(Some("the framing")),
        }
        Ok((message, self.at))
    }

    /// A line without its end, which must be CR LF.
    fn line(&mut self) -> Found<String> {
        self.line_ending(self.manner == Manner::Lenient, false)
    }

    fn line_ending(&mut self, in_bare_lf: bool, with_nul: bool) -> Found<String> {
        let rest = &self.bytes[self.at..];
        let ends = |&byte: &u8| matches!(byte, b'\r' | b'\n') || (byte == 0 && !with_nul);
        let Some(end) = rest.iter().position(ends) else { return Err(None) };
        let length = match rest[end..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r'] => return Err(None),
            [b'\n', ..] if in_bare_lf => 1,
            _ => return Err(Some("a bare CR, LF or NUL")),
        };
        self.at += end + length;
        String::from_utf8(rest[..end].to_vec()).or_else(|_| {
            // Values may have any bytes; one character for each keeps them apart.
            Ok(rest[..end].iter().map(|&byte| char::from(byte)).collect())
        })
    }

    fn fields(&mut self) -> Found<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or(Some("a field without a colon"))?;
            if name.is_empty() || !name.bytes().all(is_token) {
                return Err(Some("a field's name"));
            }
            if value.bytes().any(|byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
                return Err(Some("a field's value"));
            }
            fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    fn take(&mut self, length: usize) -> Found<&[u8]> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len()).ok_or(None)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn chunks(&mut self, message: &mut Message) -> Found<()> {
        loop {
            // No parser accepts a bare LF here.
            let lenient = self.manner == Manner::Lenient;
            let line = self.line_ending(false, lenient)?;
            let (size, extension) = line.split_once(';').unwrap_or((&line, ""));
            // The grammar has blanks here only before an extension. Old servers pad their sizes with them; no parser
            // reads a different size.
            let size = size.trim_end_matches([' ', '\t']);
            let digits =
                !size.is_empty() && size.len() <= 16 && size.bytes().all(|byte| byte.is_ascii_hexdigit());
            let odd = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
            if !digits || (!lenient && extension.bytes().any(odd)) {
                return Err(Some("a chunk's size"));
            }
            let size = usize::from_str_radix(size, 16).map_err(|_| Some("a chunk's size"))?;
            if size == 0 {
                message.trailers = self.fields()?;
                return Ok(());
            }
            let data = self.take(size)?.to_vec();
            message.body.extend(data);
            match self.take(2) {
                Ok(b"\r\n") => {}
                Ok(_) => return Err(Some("a chunk's end")),
                Err(why) => return Err(why),
            }
        }
    }
}

/// What follows the scheme of a target in absolute form.
fn absolute(target: &str) -> Option<&str> {
    let after = |scheme: &str| {
        let is = target.get(..scheme.len())?.eq_ignore_ascii_case(scheme);
        is.then(|| &target[scheme.len()..])
    };
    after("http://").or_else(|| after("https://"))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
