//! Request heads that uh-proxy writes itself, for clients that don't speak HTTP/1: they aren't parsed again.

use super::{BadRequest, RequestHead, rewrite};
use crate::field::{MAX_FIELDS, Span};
use crate::forwarded::Caller;

/// Most requests have no more fields than this.
const FEW_FIELDS: usize = 16;

/// Where the parts of a request head are that uh-proxy writes itself. It may only have bytes that may stand there in
/// HTTP/1.1.
#[derive(Debug, Default)]
pub struct Places {
    method: Span,
    target: Span,
    fields: Vec<FieldPlace>,
}

#[derive(Debug)]
struct FieldPlace {
    name: Span,
    value: Span,
}

impl Places {
    /// Begins a head: writes its first line.
    pub fn write_line(&mut self, method: &str, target: &str, out: &mut Vec<u8>) {
        self.fields.clear();
        out.extend_from_slice(method.as_bytes());
        self.method = Span::last(method.len(), out);
        out.push(b' ');
        out.extend_from_slice(target.as_bytes());
        self.target = Span::last(target.len(), out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
    }

    /// Adds a field, whose value is in parts.
    pub fn write_field<'a>(
        &mut self,
        name: &str,
        value: impl IntoIterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        out.extend_from_slice(name.as_bytes());
        let name = Span::last(name.len(), out);
        out.extend_from_slice(b": ");
        let start = out.len();
        for part in value {
            out.extend_from_slice(part);
        }
        let value = Span::last(out.len() - start, out);
        out.extend_from_slice(b"\r\n");
        self.fields.push(FieldPlace { name, value });
    }
}

/// [`translate`](super::translate) for a head that was written here. `places` is where its parts are.
///
/// # Errors
/// See [`translate`](super::translate).
pub fn translate_written(
    head: &[u8],
    places: &Places,
    caller: &Caller<'_>,
    out: &mut Vec<u8>,
) -> Result<RequestHead, BadRequest> {
    let malformed = BadRequest::Malformed("malformed head");
    // At once, which is cheaper than by parts. Values may be anything.
    let whole = std::str::from_utf8(head).ok();
    let text = |place: Span| match whole {
        Some(whole) => whole.get(place.start()..place.end()).ok_or(malformed),
        None => std::str::from_utf8(place.of_head(head)).map_err(|_| malformed),
    };
    let count = places.fields.len();
    if count > MAX_FIELDS {
        return Err(BadRequest::TooLarge);
    }
    let mut few = [httparse::EMPTY_HEADER; FEW_FIELDS];
    let mut many = Vec::new();
    let fields = if let Some(few) = few.get_mut(..count) {
        few
    } else {
        many.resize(count, httparse::EMPTY_HEADER);
        many.as_mut_slice()
    };
    for (field, place) in fields.iter_mut().zip(&places.fields) {
        *field = httparse::Header { name: text(place.name)?, value: place.value.of_head(head) };
    }
    let mut request = httparse::Request::new(fields);
    request.method = Some(text(places.method)?);
    request.path = Some(text(places.target)?);
    request.version = Some(1);
    rewrite(head, &request, caller, out)
}
