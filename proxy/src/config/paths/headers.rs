//! `request_headers` and `response_headers`: fields that are set, set by default or removed.

use std::collections::BTreeMap;

use hyper::header::{HeaderName, HeaderValue};
use uh_http1::edits::{Edit, FieldEdits, MAX_EDITS, Names, folded_name};
use uh_http1::field::{Known, classify_folded};
use uh_settings::Section;

/// The most fields that requests get in addition: app-shim accepts no more together with a client's.
pub const MAX_REQUEST_EDITS: usize = 16;

/// Longer than any `Content-Security-Policy` in use.
const MAX_VALUE_BYTES: usize = 8 << 10;

/// The edits of a service, or of some of its paths together with its service's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// By the name that decides whether two are the same; with the name as it is sent.
    by_name: BTreeMap<String, (String, Edit)>,
    edits: FieldEdits,
}

impl HeaderEdits {
    /// Whether this field is set or removed.
    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// What is done to a head.
    #[must_use]
    pub fn edits(&self) -> &FieldEdits {
        &self.edits
    }
}

/// The heads to be edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Requests,
    Responses,
}

/// Reads `request_headers`, which add to those of `outer`.
pub(super) fn of_requests(section: &mut Section, outer: &HeaderEdits) -> HeaderEdits {
    read(section, "request_headers", Of::Requests, outer)
}

/// Reads `response_headers`, which add to those of `outer`.
pub(super) fn of_responses(section: &mut Section, outer: &HeaderEdits) -> HeaderEdits {
    read(section, "response_headers", Of::Responses, outer)
}

/// A response that is compressed must say so, whatever is done to its head.
pub(super) fn check_coding(section: &mut Section, responses: &HeaderEdits, compressed: bool) {
    if compressed && responses.has("content-encoding") {
        let reason = "changes Content-Encoding, which compress sets: leave it out, or set compress = false";
        section.mistake("response_headers", reason);
    }
}

fn read(parent: &mut Section, key: &'static str, of: Of, outer: &HeaderEdits) -> HeaderEdits {
    let mut reading = Reading { section: parent.section(key), of, own: BTreeMap::new() };
    for (name, value) in reading.section.texts("set") {
        reading.add(&format!("set.{name}"), name, Edit::Set(value));
    }
    for (name, value) in reading.section.texts("default") {
        reading.add(&format!("default.{name}"), name, Edit::Default(value));
    }
    for (at, name) in reading.section.list::<String>("remove").unwrap_or_default().into_iter().enumerate() {
        reading.add(&format!("remove[{at}]"), name, Edit::Remove);
    }
    let mut by_name = outer.by_name.clone();
    by_name.extend(reading.own);
    let (names, most) = match of {
        Of::Requests => (Names::Folded, MAX_REQUEST_EDITS),
        Of::Responses => (Names::Exact, MAX_EDITS),
    };
    if by_name.len() > most {
        reading.section.mistake("", format!("more than {most} fields, including those of the service"));
    }
    let edits = FieldEdits::new(by_name.values().map(|(name, edit)| (name.as_str(), edit)), names);
    HeaderEdits { by_name, edits }
}

struct Reading {
    section: Section,
    of: Of,
    own: BTreeMap<String, (String, Edit)>,
}

impl Reading {
    fn add(&mut self, key: &str, name: String, edit: Edit) {
        let same = match self.of {
            Of::Requests => folded_name(&name),
            Of::Responses => name.to_ascii_lowercase(),
        };
        let twice = || self.own.contains_key(&same).then(|| format!("{name} is listed more than once"));
        match mistake(&name, &edit, self.of).or_else(twice) {
            Some(mistake) => self.section.mistake(key, mistake),
            None => drop(self.own.insert(same, (name, edit))),
        }
    }
}

/// Why a field can't be edited like this.
pub(crate) fn mistake(name: &str, edit: &Edit, of: Of) -> Option<String> {
    if HeaderName::try_from(name).is_err() {
        return Some(format!("{name:?} isn't a valid header field name"));
    }
    // The value may be a secret, so it is never repeated.
    let mistake = match edit {
        Edit::Set(value) | Edit::Default(value) => reserved(name, of).or_else(|| bad_value(value)),
        Edit::Remove => reserved(name, of),
    };
    mistake.map(str::to_owned)
}

fn bad_value(value: &str) -> Option<&'static str> {
    if value.is_empty() {
        Some("empty: to remove the field, list it in remove")
    } else if value.len() > MAX_VALUE_BYTES {
        Some("the value is longer than 8 KiB")
    } else if value.trim() != value || HeaderValue::try_from(value).is_err() {
        Some(
            "the value has a line break, another character that isn't allowed, or a space at an end: remove it",
        )
    } else {
        None
    }
}

/// Why a field can't be edited, and what to do instead.
fn reserved(name: &str, of: Of) -> Option<&'static str> {
    const FRAMING: &str =
        "it concerns the connection or the body's length, which uh-proxy sets itself: remove it here";
    const OWN: &str = "uh-proxy sets this field itself: remove it here";
    if name.eq_ignore_ascii_case("trailer") {
        return Some(FRAMING);
    }
    let known = classify_folded(name.as_bytes());
    match (known, of) {
        (
            Known::ContentLength
            | Known::TransferEncoding
            | Known::Connection
            | Known::KeepAlive
            | Known::Upgrade
            | Known::HopByHop,
            _,
        )
        | (Known::Expect, Of::Requests) => Some(FRAMING),
        (Known::RequestId, _) | (Known::Date, Of::Responses) => Some(OWN),
        (Known::Host, _) => Some("the app gets the client's Host: remove it here"),
        (
            Known::ForwardedFor
            | Known::ForwardedProto
            | Known::ForwardedHost
            | Known::ForwardedPort
            | Known::ForwardedOther
            | Known::RealIp,
            Of::Requests,
        ) => Some("uh-proxy sets this field itself, and believes server.trusted_proxies: remove it here"),
        (Known::Forwarded, Of::Requests) => {
            Some("uh-proxy sets this field itself: use server.headers.forwarded")
        }
        (Known::RequestStart, Of::Requests) => {
            Some("uh-proxy sets this field itself: use server.headers.request_start")
        }
        (Known::Traceparent | Known::Tracestate, Of::Requests) => {
            Some("uh-proxy checks this field itself: use server.headers.traceparent")
        }
        _ if of == Of::Requests && name.eq_ignore_ascii_case("via") => {
            Some("uh-proxy sets this field itself: use server.headers.via")
        }
        _ => None,
    }
}
