//! The form that a client prefers, by its `Accept` fields (RFC 9110 §12.5.1): a page for a browser, a problem for a
//! program that asks for JSON, and plain text for everything else, such as curl with its `*/*`.

use uh_http1::accept::quality;
use uh_http1::field::values;

/// The form of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// No preference: the operator's page if there is one, otherwise text.
    #[default]
    Any,
    /// A page for humans.
    Html,
    /// A problem for programs.
    Json,
    /// Plain text.
    Text,
}

/// A preference: the quality in thousandths, and how specific the range is.
type Preference = (u16, u8);

impl Form {
    /// The preference of the client that sent this head, which need not be complete or well-formed.
    #[must_use]
    pub(crate) fn preferred(head: &[u8]) -> Self {
        let (mut html, mut json, mut text) = (Weight::default(), Weight::default(), Weight::default());
        for value in values(head, b"accept") {
            for range in value.split(|&b| b == b',') {
                let mut parts = range.split(|&b| b == b';').map(<[u8]>::trim_ascii);
                let Some(name) = parts.next() else { continue };
                let quality = parts.find_map(quality).unwrap_or(1000);
                html.consider(name, quality, &[b"text/html", b"application/xhtml+xml"], b"text/*");
                json.consider(
                    name,
                    quality,
                    &[b"application/problem+json", b"application/json"],
                    b"application/*",
                );
                text.consider(name, quality, &[b"text/plain"], b"text/*");
            }
        }
        let (page, problem, plain) = (html.preference(), json.preference(), text.preference());
        if problem > page && problem >= plain {
            Self::Json
        } else if html.is_named() && page >= plain {
            Self::Html
        } else if text.is_named() {
            Self::Text
        } else {
            Self::Any
        }
    }
}

/// The most specific range that covers a form, and its quality.
#[derive(Default)]
struct Weight {
    quality: u16,
    exactness: u8,
}

impl Weight {
    fn consider(&mut self, name: &[u8], quality: u16, names: &[&[u8]], group: &[u8]) {
        let exactness = if names.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            3
        } else if name.eq_ignore_ascii_case(group) {
            2
        } else if name == b"*/*" {
            1
        } else {
            return;
        };
        if exactness > self.exactness || (exactness == self.exactness && quality > self.quality) {
            *self = Self { quality, exactness };
        }
    }

    /// Whether it is accepted by a more specific range than `*/*`.
    fn is_named(&self) -> bool {
        self.quality > 0 && self.exactness > 1
    }

    fn preference(&self) -> Preference {
        // A quality of 0 has no specificity.
        if self.quality == 0 { (0, 0) } else { (self.quality, self.exactness) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_gets_a_page_a_program_json_and_the_rest_text() {
        for (accept, form) in [
            ("", Form::Any),
            ("*/*", Form::Any),
            ("text/plain", Form::Text),
            ("text/*", Form::Html),
            ("text/plain, text/html;q=0.9", Form::Text),
            ("text/html, text/plain", Form::Html),
            ("text/plain, application/json;q=0.9, */*", Form::Text),
            ("text/html;q=0, text/plain;q=0", Form::Any),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Form::Html),
            ("application/json", Form::Json),
            ("Application/JSON", Form::Json),
            ("application/problem+json", Form::Json),
            ("application/json, text/plain, */*", Form::Json),
            ("application/*", Form::Json),
            ("text/html, application/json", Form::Html),
            ("text/html;q=0.5, application/json", Form::Json),
            ("text/html; q=0.5 , application/json ;q=0.4", Form::Html),
            ("text/html;q=0, */*", Form::Json),
            ("application/json;q=0", Form::Any),
            ("application/json;q=0, */*;q=0.1", Form::Any),
            ("application/json;q=7", Form::Any),
            ("application/json;q=", Form::Any),
            ("application/json;q=1.0000, text/html;q=0.001", Form::Html),
            ("image/png", Form::Any),
            (",;,q=1;;", Form::Any),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\naCCept: {accept}\r\n\r\n");
            assert_eq!(Form::preferred(head.as_bytes()), form, "{accept}");
        }
        assert_eq!(Form::preferred(b""), Form::Any);
        let two = b"GET / HTTP/1.1\r\nAccept: text/html;q=0.1\r\nAccept: application/json\r\n\r\n";
        assert_eq!(Form::preferred(two), Form::Json);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_it(head in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Form::preferred(&head);
        }
    }
}
