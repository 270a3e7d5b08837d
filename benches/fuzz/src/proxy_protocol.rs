//! The PROXY header at the start of a connection → uh-proxy's parser, against a reading that is written another way.

use std::net::IpAddr;

use uh_http1::proxy_protocol::{BadProxyHeader, MAX_HEADER, ProxyHeader, parse};

use crate::target::Target;

pub(crate) const TARGET: Target = Target { name: "proxy_protocol", check, seeds, words: &[WORDS] };

const WORDS: &[&str] = &[
    "PROXY ",
    "PROXY TCP4 ",
    "PROXY TCP6 ",
    "PROXY UNKNOWN",
    "192.0.2.1 ",
    "2001:db8::1 ",
    "::ffff:192.0.2.1 ",
    "65535",
    "0",
    " ",
    "\r\n",
    "\n",
    "\r\n\r\n\0\r\nQUIT\n",
    "\x20",
    "\x21",
    "\x11",
    "\x12",
    "\x31",
    "\0\x0c",
    "\0\x24",
    "\x10\0",
];

fn seeds() -> Vec<Vec<u8>> {
    let text =
        ["TCP4 192.0.2.1 198.51.100.1 56324 443", "TCP6 2001:db8::1 ::1 56324 443", "UNKNOWN", "UNKNOWN x y"];
    let text = text.iter().map(|rest| format!("PROXY {rest}\r\nGET / HTTP/1.1\r\n").into_bytes());
    let kinds =
        [(0x21, 0x11, 12), (0x21, 0x11, 20), (0x21, 0x21, 36), (0x21, 0x31, 216), (0x20, 0, 0), (0x21, 0, 3)];
    let binary = kinds.iter().map(|&(command, kind, length)| {
        [b"\r\n\r\n\0\r\nQUIT\n", &[command, kind, 0, length][..], &vec![7; usize::from(length)]].concat()
    });
    text.chain(binary).collect()
}

type Outcome = Result<Option<ProxyHeader>, BadProxyHeader>;

fn check(bytes: &[u8]) -> Result<(), String> {
    let found = parse(bytes);
    if bytes.len() >= MAX_HEADER && found == Ok(None) {
        return Err("it waits for more than it may".to_owned());
    }
    if let Ok(Some(header)) = found {
        if header.length > bytes.len().min(MAX_HEADER) {
            return Err(format!("{header:?} of {} bytes", bytes.len()));
        }
        // A header is complete with its last byte and not before, and what follows doesn't matter.
        let (alone, cut) = (parse(&bytes[..header.length]), parse(&bytes[..header.length - 1]));
        if alone != found || cut != Ok(None) {
            return Err(format!("{found:?}, alone {alone:?}, without its last byte {cut:?}"));
        }
    }
    let half = parse(&bytes[..bytes.len() / 2]);
    if half != Ok(None) && half != found {
        return Err(format!("first {half:?}, then {found:?}"));
    }
    let wanted = if bytes.first() == Some(&b'P') { text(bytes) } else { binary(bytes) };
    if found != wanted { Err(format!("{found:?}, and the reference says {wanted:?}")) } else { Ok(()) }
}

/// Version 1: the line that the parsed values stand for must be the line that came.
fn text(bytes: &[u8]) -> Outcome {
    let start = &b"PROXY "[..bytes.len().min(6)];
    if !bytes.starts_with(start) {
        return Err(BadProxyHeader::Missing);
    }
    let line = &bytes[..bytes.len().min(107)];
    let Some((line, _)) =
        String::from_utf8_lossy(line).split_once('\n').map(|(line, rest)| (line.to_owned(), rest.len()))
    else {
        return if bytes.len() < 107 { Ok(None) } else { Err(BadProxyHeader::TooLong) };
    };
    let length = bytes.iter().position(|&b| b == b'\n').map_or(0, |at| at + 1);
    let valid = || {
        if std::str::from_utf8(&bytes[..length]).is_err() {
            return None;
        }
        if line == "PROXY UNKNOWN\r" || line.starts_with("PROXY UNKNOWN ") && line.ends_with('\r') {
            return Some(None);
        }
        let words: Vec<&str> = line.strip_suffix('\r')?.split(' ').collect();
        let [_, family, client, server, from, to] = words[..] else { return None };
        let (client, server): (IpAddr, IpAddr) = (client.parse().ok()?, server.parse().ok()?);
        let wanted = if client.is_ipv4() { "TCP4" } else { "TCP6" };
        let port = |text: &str| text.parse::<u16>().is_ok_and(|port| port.to_string() == text);
        let good = family == wanted && client.is_ipv4() == server.is_ipv4() && port(from) && port(to);
        good.then_some(Some(client))
    };
    valid().map_or(Err(BadProxyHeader::Malformed), |client| Ok(Some(ProxyHeader { client, length })))
}

/// Version 2, field by field as the specification lists them.
fn binary(bytes: &[u8]) -> Outcome {
    let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
    if bytes.iter().zip(signature).any(|(byte, wanted)| *byte != wanted) {
        return Err(BadProxyHeader::Missing);
    }
    if bytes.len() < 16 {
        return Ok(None);
    }
    let (version, command, kind) = (bytes[12] / 16, bytes[12] % 16, bytes[13]);
    let rest = usize::from(bytes[14]) * 256 + usize::from(bytes[15]);
    let wanted = match kind {
        0x00..=0x02 => 0,
        0x10..=0x12 => 12,
        0x20..=0x22 => 36,
        0x30..=0x32 => 216,
        _ => return Err(BadProxyHeader::Malformed),
    };
    if version != 2 || command > 1 || command == 1 && rest < wanted {
        return Err(BadProxyHeader::Malformed);
    }
    if rest > MAX_HEADER - 16 {
        return Err(BadProxyHeader::TooLong);
    }
    if bytes.len() < 16 + rest {
        return Ok(None);
    }
    let client = match (command, kind) {
        (1, 0x11) => Some(IpAddr::from(<[u8; 4]>::try_from(&bytes[16..20]).expect("four bytes"))),
        (1, 0x21) => Some(IpAddr::from(<[u8; 16]>::try_from(&bytes[16..32]).expect("sixteen bytes"))),
        _ => None,
    };
    Ok(Some(ProxyHeader { client, length: 16 + rest }))
}
