//! Header fields: where heads end, names, values and lists.

use super::*;

#[test]
fn a_head_is_found_however_it_is_cut() {
    let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nbody";
    for cut in 0..head.len() {
        let mut scanner = HeadScanner::default();
        let first = scanner.scan(&head[..cut]).unwrap();
        let found = first.or_else(|| scanner.scan(head).unwrap());
        assert_eq!(found, Some(2..head.len() - 4), "cut at {cut}");
    }
}

#[test]
fn a_response_may_end_its_lines_in_bare_line_feeds() {
    for (head, range) in [
        ("HTTP/1.0 200 OK\nA: b\n\nbody", 0..22),
        ("HTTP/1.0 200 OK\r\nA: b\n\r\nbody", 0..24),
        ("\n\r\nHTTP/1.0 200 OK\n\nbody", 3..20),
    ] {
        assert_eq!(HeadScanner::of_response().scan(head.as_bytes()), Ok(Some(range.clone())), "{head:?}");
        let mut scanner = HeadScanner::of_response();
        let mut found = None;
        for end in 1..=head.len() {
            found = scanner.scan(&head.as_bytes()[..end]).unwrap();
            if found.is_some() {
                break;
            }
        }
        assert_eq!(found, Some(range), "{head:?} in pieces");
    }
}

#[test]
fn bare_line_feeds_are_refused_at_once() {
    for head in ["\n", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nA: b\n"] {
        assert_eq!(HeadScanner::default().scan(head.as_bytes()), Err(BareLineFeed), "{head:?}");
    }
}

#[test]
fn numbers_are_decimal_or_hexadecimal() {
    for number in [0, 7, 10, 16, 65_535, 65_536, u64::MAX] {
        let mut out = Vec::new();
        write_number(&mut out, number);
        assert_eq!(out, number.to_string().as_bytes());
        out.clear();
        write_hex(&mut out, number);
        assert_eq!(out, format!("{number:x}").as_bytes());
    }
}

#[test]
fn a_name_that_an_app_may_mistake_for_a_known_one_is_known() {
    assert_eq!(classify_folded(b"Content_Length"), Known::ContentLength);
    assert_eq!(classify_folded(b"x.forwarded_for"), Known::ForwardedFor);
    assert_eq!(classify_folded(b"x_forwarded_a_very_long_name"), Known::ForwardedOther);
    assert_eq!(classify_folded(b"transfer-encoding-2"), Known::Other);
}

#[test]
fn hosts_are_names_or_addresses_with_perhaps_a_port() {
    for good in ["a", "a.b-c_d", "a:80", "1.2.3.4:65535", "[::1]", "[::1]:80", "a.", "a:"] {
        assert!(is_host(good.as_bytes()), "{good}");
    }
    for bad in [
        "", ":80", "a b", "a/b", "a@b", "a:b", "a:1:2", "a:123456", "[::1", "::1", "[::1]x", "[g]", "a,b",
        "é",
    ] {
        assert!(!is_host(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn lengths_are_digits_only() {
    assert_eq!(parse_length(b"10"), Some(10));
    for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "1,1", "9999999999999999999"] {
        assert_eq!(parse_length(bad.as_bytes()), None, "{bad:?}");
    }
}
