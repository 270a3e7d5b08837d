//! Whether a response is compressed for its client, and what that changes in its head.
//!
//! Compressing changes the content, so the response is another representation of the resource: it has no strong `ETag`,
//! no length that is known in advance, and no ranges. That it depends on the request's `Accept-Encoding` is said in `Vary`,
//! also in the responses that aren't compressed.

use std::str::FromStr;

use httparse::Header;

use super::accept::quality;
use super::field::{Known, tokens, values, write_field};
use super::request::{RequestHead, Version};

/// A media type, such as `text/html`, or all of a group, such as `text/*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaType(String);

impl FromStr for MediaType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        match text.split_once('/') {
            Some((group, name)) if is_name(group) && (is_name(name) || name == "*") => {
                Ok(Self(text.to_ascii_lowercase()))
            }
            _ => Err(format!("{text:?} isn't a media type: use text/html or text/*, without parameters")),
        }
    }
}

impl MediaType {
    /// Whether this media type, which has no parameters, is meant.
    fn matches(&self, name: &[u8]) -> bool {
        let own = self.0.as_bytes();
        match own.strip_suffix(b"*") {
            Some(group) => name.get(..group.len()).is_some_and(|start| start.eq_ignore_ascii_case(group)),
            None => own.eq_ignore_ascii_case(name),
        }
    }
}

/// Which responses are compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression {
    /// Those of these types.
    pub types: Vec<MediaType>,
    /// If their length is known, those that have so many bytes.
    pub min_bytes: u64,
    /// From 1, fast, to 9, small.
    pub level: u8,
}

impl Default for Compression {
    fn default() -> Self {
        let types = DEFAULT_TYPES.into_iter().map(|name| MediaType(name.to_owned())).collect();
        Self { types, min_bytes: 1024, level: 6 }
    }
}

/// The types that are compressed unless others are listed: text in all its forms, and the few binary formats that aren't
/// compressed by themselves.
pub const DEFAULT_TYPES: [&str; 27] = [
    "text/html",
    "text/css",
    "text/plain",
    "text/javascript",
    "text/xml",
    "text/csv",
    "text/markdown",
    "text/calendar",
    "text/x-component",
    "application/javascript",
    "application/x-javascript",
    "application/json",
    "application/ld+json",
    "application/geo+json",
    "application/manifest+json",
    "application/problem+json",
    "application/vnd.api+json",
    "application/graphql-response+json",
    "application/xml",
    "application/xhtml+xml",
    "application/rss+xml",
    "application/atom+xml",
    "application/wasm",
    "application/vnd.ms-fontobject",
    "font/ttf",
    "font/otf",
    "image/svg+xml",
];

/// Whether responses may be compressed.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Which ones.
    pub rules: &'a Compression,
    /// Whether there is room for another one that is being compressed.
    pub has_room: bool,
}

/// What happens to a response's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Content {
    /// It is passed on as it is.
    #[default]
    Plain,
    /// It is compressed.
    Gzip,
    /// It would be compressed if there were room.
    NoRoom,
}

/// What is decided about a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    pub(crate) content: Content,
    /// Whether its `ETag` is weak.
    weak: bool,
    /// Whether another `Accept-Encoding` could get another response.
    varies: bool,
}

/// The fields of a response that matter here.
#[derive(Default)]
struct Fields<'a> {
    media_type: &'a [u8],
    is_encoded: bool,
    is_range: bool,
    is_fixed: bool,
    etag: &'a [u8],
}

impl Verdict {
    /// About a final response. `length`: its content's, if it is known.
    pub(crate) fn new(
        offer: Offer<'_>,
        status: u16,
        fields: &[Header<'_>],
        length: Option<u64>,
        request: &RequestHead,
        request_head: &[u8],
    ) -> Self {
        let facts = Fields::of(fields);
        if status == 304 {
            return Self::of_not_modified(&facts, request_head);
        }
        let has_content = status >= 200 && status != 204 && status != 205;
        // The length of a part says nothing.
        let is_part = status == 206 || facts.is_range;
        let is_type = || offer.rules.types.iter().any(|known| known.matches(facts.media_type));
        let is_small = !is_part && length.is_some_and(|length| length < offer.rules.min_bytes.max(1));
        let may_change = !facts.is_encoded && !facts.is_fixed;
        if !has_content || is_small || !may_change || !is_type() {
            return Self::default();
        }
        let varies = Self { varies: true, ..Self::default() };
        // A body without a length can't be ended for HTTP/1.0 except by closing.
        if is_part || request.version == Version::Http10 || !accepts_gzip(request_head) {
            varies
        } else if offer.has_room {
            Self { content: Content::Gzip, weak: true, varies: true }
        } else {
            Self { content: Content::NoRoom, ..varies }
        }
    }

    /// A `304` names the response that the client holds: by a weak tag, if that one was compressed.
    fn of_not_modified(facts: &Fields<'_>, request_head: &[u8]) -> Self {
        let is_weakened = |tag: &[u8]| tag.strip_prefix(b"W/") == Some(facts.etag);
        let mut held = values(request_head, b"if-none-match").flat_map(tokens);
        let weak = facts.etag.starts_with(b"\"") && held.any(is_weakened);
        Self { content: Content::Plain, weak, varies: weak }
    }

    /// Whether it changes any field.
    pub(crate) fn changes_fields(self) -> bool {
        self.varies
    }

    /// Whether a field of the response is left out, or replaced by what [`Verdict::write`] adds.
    pub(crate) fn drops(self, kind: Known, name: &[u8]) -> bool {
        let gzip = self.content == Content::Gzip;
        match kind {
            Known::ContentLength => gzip,
            Known::Other if gzip && name.eq_ignore_ascii_case(b"accept-ranges") => true,
            Known::Other => self.weak && name.eq_ignore_ascii_case(b"etag"),
            _ => false,
        }
    }

    /// Appends the fields that say what has changed.
    pub(crate) fn write(self, fields: &[Header<'_>], out: &mut Vec<u8>) {
        if self.content == Content::Gzip {
            write_field(out, b"Content-Encoding", b"gzip");
        }
        if self.weak {
            write_weak(Fields::of(fields).etag, out);
        }
        if self.varies && !is_said_to_vary(fields) {
            write_field(out, b"Vary", b"Accept-Encoding");
        }
    }
}

impl<'a> Fields<'a> {
    fn of(fields: &[Header<'a>]) -> Self {
        let mut facts = Self::default();
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            match field.name.len() {
                4 if is("etag") => facts.etag = field.value,
                12 if is("content-type") => facts.media_type = without_parameters(field.value),
                13 if is("content-range") => facts.is_range = true,
                13 if is("cache-control") => {
                    facts.is_fixed |=
                        tokens(field.value).any(|token| token.eq_ignore_ascii_case(b"no-transform"));
                }
                16 if is("content-encoding") => {
                    facts.is_encoded |= !field.value.eq_ignore_ascii_case(b"identity");
                }
                // A digest of the content as it is.
                6 if is("digest") => facts.is_fixed = true,
                11 if is("content-md5") || is("repr-digest") => facts.is_fixed = true,
                14 if is("content-digest") => facts.is_fixed = true,
                _ => {}
            }
        }
        facts
    }
}

fn without_parameters(value: &[u8]) -> &[u8] {
    memchr::memchr(b';', value).map_or(value, |at| &value[..at]).trim_ascii()
}

/// Writes a tag as a weak one. What isn't a tag is left out.
fn write_weak(tag: &[u8], out: &mut Vec<u8>) {
    if tag.starts_with(b"W/\"") {
        write_field(out, b"ETag", tag);
    } else if tag.starts_with(b"\"") {
        out.extend_from_slice(b"ETag: W/");
        out.extend_from_slice(tag);
        out.extend_from_slice(b"\r\n");
    }
}

fn is_said_to_vary(fields: &[Header<'_>]) -> bool {
    let vary = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("vary"));
    let says = |name: &[u8]| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding");
    vary.flat_map(|field| tokens(field.value)).any(says)
}

/// Whether a request accepts gzip (RFC 9110 §12.5.3), and likes nothing better of what there is: the content as it is.
fn accepts_gzip(head: &[u8]) -> bool {
    let (mut gzip, mut any, mut identity) = (None, None, None);
    for token in values(head, b"accept-encoding").flat_map(tokens) {
        let mut parts = token.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(quality).unwrap_or(1000);
        if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") {
            gzip = Some(quality);
        } else if name.eq_ignore_ascii_case(b"identity") {
            identity = Some(quality);
        } else if name == b"*" {
            any = Some(quality);
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

#[cfg(test)]
mod tests;
