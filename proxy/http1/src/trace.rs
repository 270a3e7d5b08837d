//! `traceparent`: the trace that a request belongs to (W3C Trace Context).

use super::request::RequestId;

/// Whether a `traceparent` is valid (§3.2.2): version, trace id, parent id and flags in lowercase hexadecimal, with
/// non-zero ids. A later version may have more after another hyphen.
#[must_use]
pub fn is_traceparent(value: &[u8]) -> bool {
    let Some((known, more)) = value.split_at_checked(55) else { return false };
    let mut parts = known.split(|&b| b == b'-');
    let mut part = |length: usize| {
        let is_hex = |part: &&[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        parts.next().filter(|part| part.len() == length).filter(is_hex)
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (part(2), part(32), part(16), part(2))
    else {
        return false;
    };
    let good_end = if version == b"00" { more.is_empty() } else { more.is_empty() || more[0] == b'-' };
    version != b"ff" && good_end && trace.iter().any(|&b| b != b'0') && parent.iter().any(|&b| b != b'0')
}

/// Appends a `traceparent` for a new trace, with the sampled flag set: without it, an app whose sampler follows the
/// parent would record nothing. If uh-proxy generated the request id, it is also the trace id.
pub fn write_new(id: &RequestId, out: &mut Vec<u8>) {
    let made = RequestId::make();
    let fallback = made.text(&[]);
    let trace = if let RequestId::Made(text) = id { text.as_slice() } else { fallback };
    let parent = RequestId::make();
    out.extend_from_slice(b"traceparent: 00-");
    out.extend_from_slice(trace);
    out.push(b'-');
    out.extend_from_slice(&parent.text(&[])[..16]);
    out.extend_from_slice(b"-01\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_format_is_that_of_the_specification() {
        assert!(is_traceparent(GOOD.as_bytes()));
        assert!(is_traceparent(GOOD.replacen("00", "cc", 1).as_bytes()));
        assert!(is_traceparent(
            format!("{}-what-the-future-will-be-like", GOOD.replacen("00", "cc", 1)).as_bytes()
        ));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}0"),
            &format!("{GOOD}-00"),
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replace('-', "_"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace("4bf9", "4bg9"),
            &format!("{}.x", GOOD.replacen("00", "cc", 1)),
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn a_new_one_is_valid_and_follows_the_request_id() {
        for id in [RequestId::make(), RequestId::FromClient(crate::field::Span::default())] {
            let mut out = Vec::new();
            write_new(&id, &mut out);
            let value = out.strip_prefix(b"traceparent: ").unwrap().strip_suffix(b"\r\n").unwrap();
            assert!(is_traceparent(value), "{value:?}");
            if let RequestId::Made(text) = id {
                assert_eq!(&value[3..35], text);
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_check(value in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = is_traceparent(&value);
        }

        #[test]
        fn every_well_formed_one_is_accepted(text in "[0-9a-e]{2}-[1-9a-f][0-9a-f]{31}-[1-9a-f][0-9a-f]{15}-[0-9a-f]{2}") {
            prop_assert!(is_traceparent(text.as_bytes()));
        }
    }
}
