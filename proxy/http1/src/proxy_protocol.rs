//! The PROXY protocol, versions 1 and 2: a header before the first byte of a connection, in which a load balancer
//! names the client. Specified in `proxy-protocol.txt` of HAProxy.
//!
//! Its extensions (TLVs) are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest header that is accepted. Version 2 allows 64 KiB, but addresses take at most 216 bytes, and senders use
/// few extensions; nginx has the same limit.
pub const MAX_HEADER: usize = 4096;

/// The longest header of version 1, line end included.
const MAX_TEXT: usize = 107;

/// How a header of version 1 begins.
const TEXT: &[u8] = b"PROXY ";

/// How a header of version 2 begins.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length of the rest.
const BINARY_FIXED: usize = BINARY.len() + 4;

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's address; `None`: the sender names none, as in its own health checks.
    pub client: Option<IpAddr>,
    /// The length of the header. What follows belongs to the client.
    pub length: usize,
}

/// Why bytes aren't a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadProxyHeader {
    /// They don't begin like one.
    Missing,
    /// They begin like one, but break a rule of the protocol.
    Malformed,
    /// The header is longer than [`MAX_HEADER`], or than version 1 allows.
    TooLong,
}

/// Parses a header at the start of `bytes`; `None`: more bytes are needed. Every byte of an incomplete header belongs to
/// the header.
///
/// # Errors
/// If the bytes can't become a header, whatever follows.
pub fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    if is_start(bytes, TEXT) {
        text(bytes)
    } else if is_start(bytes, BINARY) {
        binary(bytes)
    } else {
        Err(BadProxyHeader::Missing)
    }
}

/// Whether bytes begin with a signature, as far as they go.
fn is_start(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(byte, wanted)| byte == wanted)
}

fn text(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    let Some(end) = bytes.iter().take(MAX_TEXT).position(|&b| b == b'\n') else {
        return if bytes.len() < MAX_TEXT { Ok(None) } else { Err(BadProxyHeader::TooLong) };
    };
    let line = bytes[..end].strip_suffix(b"\r").and_then(|line| line.strip_prefix(TEXT));
    let line = line.and_then(|line| std::str::from_utf8(line).ok()).ok_or(BadProxyHeader::Malformed)?;
    let client = text_client(line).ok_or(BadProxyHeader::Malformed)?;
    Ok(Some(ProxyHeader { client, length: end + 1 }))
}

/// The client in `TCP4 192.0.2.1 198.51.100.1 56324 443`; `Some(None)` in `UNKNOWN`, whatever follows it.
fn text_client(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let mut address = || -> Option<IpAddr> {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (client, _server) = (address()?, address()?);
    let ports_are_good = words.by_ref().take(2).filter(|word| is_port(word)).count() == 2;
    (ports_are_good && words.next().is_none()).then_some(Some(client))
}

fn is_port(word: &str) -> bool {
    let is_number = word.bytes().all(|b| b.is_ascii_digit()) && (word.len() == 1 || !word.starts_with('0'));
    is_number && word.parse::<u16>().is_ok()
}

fn binary(bytes: &[u8]) -> Result<Option<ProxyHeader>, BadProxyHeader> {
    let Some((fixed, rest)) = bytes.split_at_checked(BINARY_FIXED) else { return Ok(None) };
    let [command, kind, high, low] = fixed[BINARY.len()..] else { return Ok(None) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(BadProxyHeader::Malformed),
    };
    // The family (none, IPv4, IPv6, Unix) and the transport (none, stream, datagram).
    let (family, transport) = (kind >> 4, kind & 15);
    if family > 3 || transport > 2 {
        return Err(BadProxyHeader::Malformed);
    }
    let rest_length = usize::from(u16::from_be_bytes([high, low]));
    let length = BINARY_FIXED + rest_length;
    // Both addresses, and in the Internet families both ports.
    let addresses = [0, 12, 36, 216][usize::from(family)];
    if !is_local && rest_length < addresses {
        return Err(BadProxyHeader::Malformed);
    }
    if length > MAX_HEADER {
        return Err(BadProxyHeader::TooLong);
    }
    let Some(rest) = rest.get(..rest_length) else { return Ok(None) };
    let client = if is_local || transport != 1 { None } else { binary_client(family, rest) };
    Ok(Some(ProxyHeader { client, length }))
}

fn binary_client(family: u8, addresses: &[u8]) -> Option<IpAddr> {
    match family {
        1 => addresses.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        2 => addresses.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [BINARY, &[command, kind], &length, rest].concat()
    }

    const IPV4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 187];

    fn ipv6() -> Vec<u8> {
        let address = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        [&address[..], &address[..], &[0xdc, 4, 1, 187]].concat()
    }

    /// Headers that are valid, and their clients.
    fn good() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let text = |line: &str| format!("{line}\r\n").into_bytes();
        vec![
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443"), Some("192.0.2.1")),
            (text("PROXY TCP4 255.255.255.255 255.255.255.255 65535 0"), Some("255.255.255.255")),
            (text("PROXY TCP6 2001:db8::1 ::1 56324 443"), Some("2001:db8::1")),
            (text("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2"), Some("::ffff:192.0.2.1")),
            (text(&format!("PROXY TCP6 {longest} {longest} 65535 65535")), Some(longest)),
            (text("PROXY UNKNOWN"), None),
            (text(&format!("PROXY UNKNOWN {longest} {longest} 65535 65535")), None),
            (v2(0x21, 0x11, &IPV4), Some("192.0.2.1")),
            (v2(0x21, 0x11, &[&IPV4[..], &[4, 0, 1, 0]].concat()), Some("192.0.2.1")),
            (v2(0x21, 0x11, &[&IPV4[..], &[1; MAX_HEADER - 28]].concat()), Some("192.0.2.1")),
            (v2(0x21, 0x21, &ipv6()), Some("2001:db8::1")),
            (v2(0x21, 0x12, &IPV4), None),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, b"anything"), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &[]), None),
            (v2(0x20, 0x11, &IPV4), None),
        ]
    }

    #[test]
    fn valid_headers_name_the_client_and_every_prefix_needs_more() {
        for (header, client) in good() {
            let wanted =
                ProxyHeader { client: client.map(|text| text.parse().unwrap()), length: header.len() };
            let followed = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse(&followed), Ok(Some(wanted)), "{}", header.escape_ascii());
            for cut in 0..header.len() {
                assert_eq!(parse(&header[..cut]), Ok(None), "{cut} of {}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        use BadProxyHeader::{Malformed, Missing, TooLong};
        let text = |line: &str| format!("{line}\r\n").into_bytes();
        let mut next_version = v2(0x21, 0x11, &IPV4);
        next_version[12] = 0x31;
        for (bytes, why) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), Missing),
            (b"PROXZ".to_vec(), Missing),
            (b"proxy TCP4".to_vec(), Missing),
            (b"\x16\x03\x01".to_vec(), Missing),
            (b"\r\n\r\nGET".to_vec(), Missing),
            (text("PROXY "), Malformed),
            (text("PROXY TCP4"), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 56324"), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 "), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 1"), Malformed),
            (text("PROXY TCP4  192.0.2.1 198.51.100.1 56324 443"), Malformed),
            (text("PROXY TCP4 192.0.2.01 198.51.100.1 56324 443"), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 056 443"), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 +56 443"), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1 65536 443"), Malformed),
            (text("PROXY TCP4 192.0.2.1 198.51.100.1  443"), Malformed),
            (text("PROXY TCP4 ::1 ::1 56324 443"), Malformed),
            (text("PROXY TCP6 192.0.2.1 192.0.2.2 56324 443"), Malformed),
            (text("PROXY TCP6 fe80::1%eth0 ::1 56324 443"), Malformed),
            (text("PROXY UDP4 192.0.2.1 198.51.100.1 56324 443"), Malformed),
            (text("PROXY UNKNOWNS"), Malformed),
            (b"PROXY UNKNOWN\n".to_vec(), Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n".to_vec(), Malformed),
            (b"PROXY TCP4 \xff\r\n".to_vec(), Malformed),
            (format!("PROXY UNKNOWN{}\r\n", " ".repeat(93)).into_bytes(), TooLong),
            (format!("PROXY UNKNOWN{}", " ".repeat(94)).into_bytes(), TooLong),
            (next_version, Malformed),
            (v2(0x22, 0x11, &IPV4), Malformed),
            (v2(0x21, 0x41, &IPV4), Malformed),
            (v2(0x21, 0x13, &IPV4), Malformed),
            (v2(0x21, 0x11, &IPV4[1..]), Malformed),
            (v2(0x21, 0x21, &IPV4), Malformed),
            (v2(0x21, 0x11, &[1; MAX_HEADER - 15]), TooLong),
            (v2(0x20, 0x00, &[1; u16::MAX as usize]), TooLong),
        ] {
            assert_eq!(parse(&bytes), Err(why), "{}", bytes.escape_ascii());
        }
        let longest = format!("PROXY UNKNOWN{}\r\n", " ".repeat(MAX_TEXT - 15));
        assert_eq!(parse(longest.as_bytes()), Ok(Some(ProxyHeader { client: None, length: MAX_TEXT })));
    }

    #[test]
    fn the_end_of_a_long_header_is_not_waited_for() {
        let header = v2(0x21, 0x11, &[1; 5000]);
        assert_eq!(parse(&header[..BINARY_FIXED]), Err(BadProxyHeader::TooLong));
    }

    proptest! {
        /// However a header arrives, the result is the same: what follows can't change it.
        #[test]
        fn more_bytes_change_no_result(bytes in prop::collection::vec(any::<u8>(), 0..120), which in 0usize..18) {
            let (header, _) = &good()[which];
            let mut bytes = bytes;
            let kept = bytes.first().map_or(0, |b| usize::from(*b) % (header.len() + 1));
            bytes.splice(..0, header[..kept].iter().copied());
            let first = (0..=bytes.len()).map(|cut| parse(&bytes[..cut])).find(|result| *result != Ok(None));
            prop_assert_eq!(parse(&bytes), first.unwrap_or(Ok(None)));
        }
    }
}
