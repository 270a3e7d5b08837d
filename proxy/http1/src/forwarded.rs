//! The sender of a request: which forwarding headers are trusted, and which ones the app gets.
//!
//! Every proxy appends its peer's address to `X-Forwarded-For`. Read from the right, the list is reliable as long as
//! its writers are trusted; the first address that isn't a trusted proxy is the client's.

use std::net::IpAddr;

use httparse::Header;

use super::field::{self, Known, classify, tokens, write_field};
use crate::policy::HeaderPolicy;

/// The peer, and what is trusted about it.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The same as text.
    pub text: &'a str,
    /// When the request arrived, in milliseconds since 1970, for `X-Request-Start`; `None`: not sent to the app.
    pub request_start: Option<u64>,
    /// The scheme of the connection.
    pub scheme: Scheme,
    /// Whether the request arrived over HTTP/2. Its head is then uh-proxy's own transcript of it.
    pub http2: bool,
    /// Whether uh-proxy has ever set cookies of its own, which the app must not get.
    pub hides_cookies: bool,
    /// Which headers are trusted, and which ones are sent.
    pub headers: &'a HeaderPolicy,
}

/// Whether a client's words are encrypted on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// They are not.
    #[default]
    Http,
    /// They are.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn port(self) -> &'static [u8] {
        match self {
            Self::Http => b"80",
            Self::Https => b"443",
        }
    }
}

impl Caller<'_> {
    /// Whether the peer is a trusted proxy.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.headers.trusts(self.address)
    }
}

/// How the client speaks, to us or to the trusted proxy before us.
#[must_use]
pub fn scheme(fields: &[Header<'_>], caller: &Caller<'_>) -> Scheme {
    let believed = if caller.is_trusted() { fields } else { &[] };
    proto(believed).unwrap_or(caller.scheme)
}

/// The client's address in the `X-Forwarded-For` fields of a trusted proxy: the right-most address that isn't a trusted
/// proxy. If all are, the left-most. An invalid entry ends the search.
pub fn client<'a>(fields: &[Header<'a>], headers: &HeaderPolicy) -> Option<&'a [u8]> {
    let mut last = None;
    for field in fields.iter().rev().filter(|field| classify(field.name.as_bytes()) == Known::ForwardedFor) {
        let value: &'a [u8] = field.value;
        for node in value.rsplit(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|node| !node.is_empty()) {
            let Some((address, text)) = node_address(node) else { return last };
            last = Some(text);
            if !headers.trusts(address) {
                return last;
            }
        }
    }
    last
}

/// The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1` or `[2001:db8::1]:80`.
fn node_address(node: &[u8]) -> Option<(IpAddr, &[u8])> {
    let parse = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<IpAddr>().ok();
    if let Some(address) = parse(node) {
        return Some((address, node));
    }
    let (name, port) = field::split_port(node);
    let text = match name.strip_prefix(b"[") {
        Some(rest) => rest.strip_suffix(b"]")?,
        None => name,
    };
    let good_port = port.is_none_or(|port| port.iter().all(u8::is_ascii_digit));
    parse(text).filter(|_| good_port).map(|address| (address, text))
}

/// Appends the forwarding headers for the app. `client` is the client's address, `scheme` its scheme, `host` the
/// request's, or empty.
pub fn write(
    fields: &[Header<'_>],
    caller: &Caller<'_>,
    (client, scheme): (&str, Scheme),
    host: &[u8],
    out: &mut Vec<u8>,
) {
    let believed = if caller.is_trusted() { fields } else { &[] };
    out.extend_from_slice(b"X-Forwarded-For: ");
    write_list(believed, Known::ForwardedFor, out);
    out.extend_from_slice(caller.text.as_bytes());
    out.extend_from_slice(b"\r\n");
    write_field(out, b"X-Real-IP", client.as_bytes());
    write_field(out, b"X-Forwarded-Proto", scheme.as_str().as_bytes());
    let host_before = the_one(believed, Known::ForwardedHost, field::is_host).unwrap_or(host);
    if !host_before.is_empty() {
        write_field(out, b"X-Forwarded-Host", host_before);
    }
    let port = the_one(believed, Known::ForwardedPort, is_port)
        .or(field::split_port(host_before).1.filter(|port| is_port(port)))
        .unwrap_or(scheme.port());
    write_field(out, b"X-Forwarded-Port", port);
    for field in believed.iter().filter(|field| is_other(field.name.as_bytes())) {
        write_field(out, field.name.as_bytes(), field.value);
    }
    if caller.headers.forwarded {
        write_forwarded(believed, caller, host, out);
    }
    write_request_start(believed, caller, out);
}

/// The scheme that the client used. Every proxy on the way may have added one to the list; if they differ, none is
/// trusted. The WebSocket schemes (RFC 6455 §3) use the same ports and mean the same to an app.
fn proto(believed: &[Header<'_>]) -> Option<Scheme> {
    let known = |value: &[u8]| {
        let is = |text: &str| value.eq_ignore_ascii_case(text.as_bytes());
        match value.len() {
            2 if is("ws") => Some(Scheme::Http),
            3 if is("wss") => Some(Scheme::Https),
            4 if is("http") => Some(Scheme::Http),
            5 if is("https") => Some(Scheme::Https),
            _ => None,
        }
    };
    let fields = believed.iter().filter(|field| classify(field.name.as_bytes()) == Known::ForwardedProto);
    let mut said = fields.flat_map(|field| tokens(field.value)).map(known);
    let first = said.next()??;
    said.all(|other| other == Some(first)).then_some(first)
}

/// Whether a field is another `X-Forwarded-…`. Look-alike names are excluded, since a trusted proxy forwards fields it
/// doesn't know.
fn is_other(name: &[u8]) -> bool {
    classify(name) == Known::ForwardedOther && field::is_plain_name(name)
}

/// RFC 7239: one element per hop, uh-proxy's last.
fn write_forwarded(believed: &[Header<'_>], caller: &Caller<'_>, host: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"Forwarded: ");
    write_list(believed, Known::Forwarded, out);
    out.extend_from_slice(b"for=");
    match caller.address.to_canonical() {
        // §6: an IPv6 address is in brackets and therefore quoted.
        IpAddr::V6(_) => {
            out.extend_from_slice(b"\"[");
            out.extend_from_slice(caller.text.as_bytes());
            out.extend_from_slice(b"]\"");
        }
        IpAddr::V4(_) => out.extend_from_slice(caller.text.as_bytes()),
    }
    if !host.is_empty() {
        // Quoted because of the colon; a host has nothing that needs escaping.
        out.extend_from_slice(b";host=\"");
        out.extend_from_slice(host);
        out.push(b'"');
    }
    out.extend_from_slice(b";proto=");
    out.extend_from_slice(caller.scheme.as_str().as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_request_start(believed: &[Header<'_>], caller: &Caller<'_>, out: &mut Vec<u8>) {
    let Some(now) = caller.request_start else { return };
    let digits = |value: &[u8]| value.len() <= 20 && value.iter().all(|b| b.is_ascii_digit() || *b == b'.');
    let before =
        the_one(believed, Known::RequestStart, |value| value.strip_prefix(b"t=").is_some_and(digits));
    if let Some(before) = before {
        return write_field(out, b"X-Request-Start", before);
    }
    out.extend_from_slice(b"X-Request-Start: t=");
    field::write_number(out, now);
    out.extend_from_slice(b"\r\n");
}

/// The values of all fields of a kind as one list, with a comma after each.
fn write_list(fields: &[Header<'_>], kind: Known, out: &mut Vec<u8>) {
    for field in fields.iter().filter(|field| classify(field.name.as_bytes()) == kind) {
        if tokens(field.value).next().is_some() {
            out.extend_from_slice(field.value);
            out.extend_from_slice(b", ");
        }
    }
}

/// The value of a field, if there is exactly one of its kind and it is valid.
fn the_one<'a>(fields: &[Header<'a>], kind: Known, good: impl Fn(&[u8]) -> bool) -> Option<&'a [u8]> {
    let mut values =
        fields.iter().filter(|field| classify(field.name.as_bytes()) == kind).map(|field| field.value);
    match (values.next(), values.next()) {
        (Some(value), None) if good(value) => Some(value),
        _ => None,
    }
}

fn is_port(value: &[u8]) -> bool {
    std::str::from_utf8(value)
        .is_ok_and(|text| text.parse::<u16>().is_ok_and(|port| port > 0 && !text.starts_with('+')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trusting(networks: &[&str]) -> HeaderPolicy {
        let trusted_proxies = networks.iter().map(|network| network.parse().unwrap()).collect();
        HeaderPolicy { trusted_proxies, ..HeaderPolicy::default() }
    }

    fn field<'a>(name: &'a str, value: &'a str) -> Header<'a> {
        Header { name, value: value.as_bytes() }
    }

    fn told(fields: &[Header<'_>], headers: &HeaderPolicy, from: &str, host: &str) -> String {
        let caller = Caller {
            address: from.parse().unwrap(),
            text: from,
            request_start: headers.request_start.then_some(1_700_000_000_123),
            scheme: Scheme::Http,
            http2: false,
            hides_cookies: false,
            headers,
        };
        let mut out = Vec::new();
        let client = client(fields, headers).filter(|_| headers.trusts(caller.address));
        let client = client.map_or(from, |client| std::str::from_utf8(client).unwrap());
        write(fields, &caller, (client, scheme(fields, &caller)), host.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let fields = [
            field("X-Forwarded-For", "6.6.6.6"),
            field("X-Forwarded-Proto", "https"),
            field("X-Forwarded-Host", "evil"),
            field("X-Forwarded-Port", "666"),
            field("X-Forwarded-Prefix", "/evil"),
            field("X-Real-IP", "6.6.6.6"),
            field("Forwarded", "for=6.6.6.6"),
            field("X-Request-Start", "t=6"),
        ];
        let headers = HeaderPolicy { forwarded: true, request_start: true, ..trusting(&["10.0.0.0/8"]) };
        assert_eq!(
            told(&fields, &headers, "192.0.2.7", "a.example:8080"),
            "X-Forwarded-For: 192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: a.example:8080\r\n\
             X-Forwarded-Port: 8080\r\nForwarded: for=192.0.2.7;host=\"a.example:8080\";proto=http\r\n\
             X-Request-Start: t=1700000000123\r\n"
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_added_to_the_list() {
        let fields = [
            field("X-Forwarded-For", "6.6.6.6"),
            field("x-forwarded-for", "192.0.2.1, 10.0.0.2"),
            field("X-Forwarded-Proto", "https"),
            field("X-Forwarded-Host", "www.example"),
            field("X-Forwarded-Prefix", "/app"),
            field("X-Real-IP", "6.6.6.6"),
            field("X-Forwarded-Client_Cert", "evil"),
            field("Forwarded", "for=192.0.2.1"),
            field("X-Request-Start", "t=1600000000000"),
        ];
        let headers = HeaderPolicy { forwarded: true, request_start: true, ..trusting(&["10.0.0.0/8"]) };
        assert_eq!(
            told(&fields, &headers, "10.0.0.1", "inner:81"),
            "X-Forwarded-For: 6.6.6.6, 192.0.2.1, 10.0.0.2, 10.0.0.1\r\nX-Real-IP: 192.0.2.1\r\n\
             X-Forwarded-Proto: https\r\n\
             X-Forwarded-Host: www.example\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /app\r\n\
             Forwarded: for=192.0.2.1, for=10.0.0.1;host=\"inner:81\";proto=http\r\n\
             X-Request-Start: t=1600000000000\r\n"
        );
        assert_eq!(client(&fields, &headers), Some(b"192.0.2.1".as_slice()));
    }

    #[test]
    fn what_even_a_trusted_proxy_can_not_mean_is_replaced() {
        let headers = trusting(&["10.0.0.0/8"]);
        for (name, value, wanted) in [
            ("X-Forwarded-Proto", "gopher", "X-Forwarded-Proto: http\r\n"),
            ("X-Forwarded-Proto", "https, http", "X-Forwarded-Proto: http\r\n"),
            ("X-Forwarded-Host", "a b", "X-Forwarded-Host: inner\r\n"),
            ("X-Forwarded-Port", "0", "X-Forwarded-Port: 80\r\n"),
            ("X-Forwarded-Port", "+1", "X-Forwarded-Port: 80\r\n"),
            ("X-Forwarded-Port", "65536", "X-Forwarded-Port: 80\r\n"),
        ] {
            let told = told(&[field(name, value)], &headers, "10.0.0.1", "inner");
            assert!(told.contains(wanted), "{name}: {value}: {told}");
        }
        let twice = [field("X-Forwarded-Host", "a"), field("X-Forwarded-Host", "b")];
        assert!(told(&twice, &headers, "10.0.0.1", "inner").contains("X-Forwarded-Host: inner\r\n"));
    }

    #[test]
    fn a_scheme_is_believed_in_every_spelling_that_proxies_use() {
        let headers = trusting(&["10.0.0.0/8"]);
        for (value, proto, port) in [
            ("https", "https", 443),
            ("HTTPS", "https", 443),
            ("wss", "https", 443),
            ("ws", "http", 80),
            ("https,https", "https", 443),
            ("https, wss ,", "https", 443),
            ("http, http", "http", 80),
            ("https,http", "http", 80),
            ("https,gopher", "http", 80),
            ("", "http", 80),
        ] {
            let told = told(&[field("X-Forwarded-Proto", value)], &headers, "10.0.0.1", "inner");
            let wanted = format!(
                "X-Forwarded-Proto: {proto}\r\nX-Forwarded-Host: inner\r\nX-Forwarded-Port: {port}\r\n"
            );
            assert!(told.contains(&wanted), "{value:?}: {told}");
        }
        let twice = [field("X-Forwarded-Proto", "https"), field("X-Forwarded-Proto", "https")];
        assert!(told(&twice, &headers, "10.0.0.1", "inner").contains("X-Forwarded-Proto: https\r\n"));
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        let headers = trusting(&["10.0.0.0/8", "fd00::/8"]);
        for (value, wanted) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("6.6.6.6, 192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1, 10.0.0.9", Some("192.0.2.1")),
            ("10.0.0.8, 10.0.0.9", Some("10.0.0.8")),
            ("192.0.2.1:4711, 10.0.0.9", Some("192.0.2.1")),
            ("2001:db8::1, fd00::9", Some("2001:db8::1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("192.0.2.1, unknown, 10.0.0.9", Some("10.0.0.9")),
            ("192.0.2.1, unknown", None),
            ("192.0.2.1,, 10.0.0.9 ,", Some("192.0.2.1")),
            ("", None),
            ("[::1", None),
            ("1.2.3.4:x", None),
        ] {
            let found = client(&[field("X-Forwarded-For", value)], &headers);
            assert_eq!(found, wanted.map(str::as_bytes), "{value:?}");
        }
    }

    #[test]
    fn an_ipv6_caller_is_quoted_where_it_has_to_be() {
        let headers = HeaderPolicy { forwarded: true, ..HeaderPolicy::default() };
        let told = told(&[], &headers, "2001:db8::1", "");
        assert!(told.starts_with("X-Forwarded-For: 2001:db8::1\r\nX-Real-IP: 2001:db8::1\r\n"), "{told}");
        assert!(told.contains("Forwarded: for=\"[2001:db8::1]\";proto=http\r\n"), "{told}");
        assert!(!told.contains("X-Forwarded-Host"), "{told}");
    }

    proptest! {
        /// Whatever an untrusted client puts at the left of the list, the client is the one that the proxy saw.
        #[test]
        fn no_claim_moves_the_client(claim in "[ -~]{0,60}") {
            let headers = trusting(&["10.0.0.0/8"]);
            let value = format!("{claim}, 192.0.2.1");
            let fields = [field("X-Forwarded-For", &claim), field("X-Forwarded-For", &value)];
            prop_assert_eq!(client(&fields, &headers), Some(b"192.0.2.1".as_slice()));
        }
    }
}
