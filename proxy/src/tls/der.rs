//! Parses the parts of an X.509 certificate that rustls doesn't expose: its dates and its DNS names (RFC 5280 §4.1).
//!
//! rustls has accepted the certificate before. Anything unexpected is treated as absent.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const INTEGER: u8 = 0x02;
const INTEGER_OR_SEQUENCE: [u8; 2] = [INTEGER, SEQUENCE];
const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT`: the certificate's version.
const VERSION: u8 = 0xa0;
/// `[3] EXPLICIT`: its extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[0]` of an `AuthorityKeyIdentifier`.
const KEY_IDENTIFIER: u8 = 0x80;
/// `[2]` of a `GeneralName`: a DNS name.
const DNS_NAME: u8 = 0x82;

/// `id-ce-subjectAltName`, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// `id-ce-authorityKeyIdentifier`, 2.5.29.35.
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];

/// The validity period of a certificate, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

/// The certificate's validity period.
pub(super) fn validity(certificate: &[u8]) -> Option<Validity> {
    let mut fields = Reader(body(certificate)?);
    fields.skip_optional(VERSION)?;
    // Serial number, signature, issuer.
    for _ in 0..3 {
        let (tag, _) = fields.next()?;
        INTEGER_OR_SEQUENCE.contains(&tag).then_some(())?;
    }
    let mut times = Reader(fields.expect(SEQUENCE)?);
    Some(Validity { not_before: time(times.next()?)?, not_after: time(times.next()?)? })
}

/// The DNS names in the certificate's `subjectAltName`, unchanged.
pub(super) fn dns_names(certificate: &[u8]) -> Vec<&str> {
    let Some(names) = extension(certificate, SUBJECT_ALT_NAME) else { return Vec::new() };
    let mut names = Reader(names);
    std::iter::from_fn(|| names.next())
        .filter(|(tag, _)| *tag == DNS_NAME)
        .filter_map(|(_, name)| std::str::from_utf8(name).ok())
        .collect()
}

/// The certificate's serial number, as the content of its `INTEGER`.
pub(super) fn serial_number(certificate: &[u8]) -> Option<&[u8]> {
    let mut fields = Reader(body(certificate)?);
    fields.skip_optional(VERSION)?;
    fields.expect(INTEGER)
}

/// The identifier of the key that signed the certificate.
pub(super) fn authority_key_identifier(certificate: &[u8]) -> Option<&[u8]> {
    Reader(extension(certificate, AUTHORITY_KEY_IDENTIFIER)?).expect(KEY_IDENTIFIER)
}

/// The content of an extension whose value is a `SEQUENCE`.
fn extension<'a>(certificate: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut fields = Reader(body(certificate)?);
    let extensions = std::iter::from_fn(|| fields.next()).find(|(tag, _)| *tag == EXTENSIONS)?.1;
    let mut extensions = Reader(Reader(extensions).expect(SEQUENCE)?);
    while let Some(extension) = extensions.expect(SEQUENCE) {
        let mut extension = Reader(extension);
        if extension.expect(OBJECT_IDENTIFIER)? == wanted {
            // An optional `critical` flag comes between the two.
            let value = std::iter::from_fn(|| extension.next()).find(|(tag, _)| *tag == OCTET_STRING)?.1;
            return Reader(value).expect(SEQUENCE);
        }
    }
    None
}

/// `TBSCertificate`: the part that the issuer signed.
fn body(certificate: &[u8]) -> Option<&[u8]> {
    Reader(Reader(certificate).expect(SEQUENCE)?).expect(SEQUENCE)
}

/// RFC 5280 §4.1.2.5: `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time((tag, text): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let text = match tag {
        UTC_TIME => {
            let century = if text.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            format!("{century}{text}")
        }
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let at = DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    Some(TimeZone::UTC.to_timestamp(at).ok()?.as_second())
}

/// Reads a sequence of DER elements (X.690 §8.1).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element's tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        let (length, rest) = match *first {
            short @ 0..=0x7f => (usize::from(short), rest),
            long @ 0x81..=0x84 => {
                let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
    }

    fn skip_optional(&mut self, tag: u8) -> Option<()> {
        if self.0.first() == Some(&tag) { self.next().map(drop) } else { Some(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_and_names_are_read_from_a_certificate() {
        let mut params =
            rcgen::CertificateParams::new(vec!["a.example".to_owned(), "*.b.example".to_owned()]);
        let params = params.as_mut().unwrap();
        params.subject_alt_names.push(rcgen::SanType::IpAddress([192, 0, 2, 1].into()));
        // Dates from 2050 on use GeneralizedTime.
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(1999, 1, 2), rcgen::date_time_ymd(2070, 3, 4));
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let validity = validity(certificate.der()).unwrap();
        assert_eq!(validity, Validity { not_before: 915_235_200, not_after: 3_161_116_800 });
        assert_eq!(dns_names(certificate.der()), ["a.example", "*.b.example"]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = validity(&bytes);
            let _ = dns_names(&bytes);
        }

        #[test]
        fn a_damaged_certificate_causes_no_panic(at in 0usize..400, value in any::<u8>()) {
            let certificate = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
            let mut bytes = certificate.cert.der().to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = validity(&bytes);
            let _ = dns_names(&bytes);
        }
    }
}
