//! uh-proxy's own answers, sent when no backend can answer.
//!
//! A page for a browser, a problem (RFC 9457) for a client that prefers JSON, and text for everything else; the page can
//! be replaced by the operator's.
//! The only client input in them is the request id, which is checked and also escaped.

mod accept;
pub(crate) mod pages;
mod words;

use std::time::SystemTime;

use serde::Serialize;

pub(crate) use accept::Form;
use pages::{Pages, Values};

use hyper::StatusCode;
use uh_http1::date;
use uh_http1::edits::FieldEdits;
use uh_http1::field::{write_field, write_number};

/// `Retry-After` for conditions that may pass quickly.
const SOON_S: u32 = 1;

/// The body of a health answer in maintenance, when no backend can give one.
const HEALTHY: &[u8] = b"{\"status\":\"maintenance\"}\n";

const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// For the built-in page, which only needs its inline style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// A body with its content type and policy.
struct Body<'a> {
    media_type: &'a str,
    policy: Option<&'static str>,
    bytes: Vec<u8>,
}

impl<'a> Body<'a> {
    fn new(media_type: &'a str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { media_type, policy: None, bytes: bytes.into() }
    }
}

/// The body of an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Content<'a> {
    /// Its type.
    pub(crate) media_type: &'a str,
    /// The body itself.
    pub(crate) text: &'a str,
}

impl<'a> Content<'a> {
    /// Plain text.
    pub(crate) fn plain(text: &'a str) -> Self {
        Self { media_type: TEXT, text }
    }
}

/// An answer without a backend.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Answer<'a> {
    /// Its status.
    pub status: u16,
    /// The explanation for humans.
    pub detail: &'a str,
    /// The request's id, so that a report can be matched with the logs.
    pub request_id: &'a [u8],
    /// Whether the connection is kept.
    pub keep_alive: bool,
    /// Whether the request was `HEAD`.
    pub head_only: bool,
    /// What the client prefers.
    pub form: Form,
    /// `Retry-After`, in seconds; `None`: the status's default.
    pub retry_after_s: Option<u32>,
    /// The `Strict-Transport-Security` field, if there is to be one.
    pub hsts: Option<&'a str>,
    /// Where a redirect leads.
    pub location: Option<&'a str>,
    /// The allowed methods, with 405; `None`: those that uh-proxy forwards.
    pub allow: Option<&'a str>,
    /// Whether it says that the service is in maintenance.
    pub maintenance: bool,
    /// The whole body, instead of an explanation.
    pub content: Option<Content<'a>>,
    /// A cookie of uh-proxy's for the client, whatever is done to its other fields.
    pub set_cookie: Option<&'a str>,
    /// What is done to its fields.
    pub edits: Option<&'a FieldEdits>,
    /// What is done to them in the end.
    pub last_edits: Option<&'a FieldEdits>,
}

/// An answer as a problem document.
#[derive(Serialize)]
struct ProblemBody<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_s: Option<u32>,
}

impl Answer<'_> {
    /// Writes the answer, and returns the length of its body.
    pub(crate) fn write(&self, pages: &Pages, out: &mut Vec<u8>) -> u64 {
        let retry_after_s = self.retry_after_s.or(match self.status {
            429 | 503 => Some(SOON_S),
            _ => None,
        });
        let Body { media_type, policy, bytes: body } = self.body(pages, retry_after_s);
        out.extend_from_slice(b"HTTP/1.1 ");
        write_number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(reason(self.status).as_bytes());
        out.extend_from_slice(b"\r\n");
        date::write(SystemTime::now(), out);
        out.extend_from_slice(b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n");
        // RFC 9110 §8.6: no length in a 204.
        if self.status != 204 {
            write_field(out, b"Content-Type", media_type.as_bytes());
            out.extend_from_slice(b"Content-Length: ");
            write_number(out, body.len() as u64);
            out.extend_from_slice(b"\r\n");
        }
        if let Some(policy) = policy {
            write_field(out, b"Content-Security-Policy", policy.as_bytes());
        }
        if !self.request_id.is_empty() {
            write_field(out, b"X-Request-Id", self.request_id);
        }
        if self.status == 405 {
            let forwarded = "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS";
            write_field(out, b"Allow", self.allow.unwrap_or(forwarded).as_bytes());
        }
        if let Some(location) = self.location {
            write_field(out, b"Location", location.as_bytes());
        }
        if let Some(hsts) = self.hsts {
            write_field(out, b"Strict-Transport-Security", hsts.as_bytes());
        }
        if let Some(seconds) = retry_after_s {
            out.extend_from_slice(b"Retry-After: ");
            write_number(out, u64::from(seconds));
            out.extend_from_slice(b"\r\n");
        }
        write_field(out, b"Connection", if self.keep_alive { b"keep-alive" } else { b"close" });
        out.extend_from_slice(b"\r\n");
        if let Some(edits) = self.edits {
            edits.apply(out, 0);
        }
        if let Some(cookie) = self.set_cookie {
            out.truncate(out.len() - 2);
            write_field(out, b"Set-Cookie", cookie.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if let Some(edits) = self.last_edits {
            edits.apply(out, 0);
        }
        if self.head_only {
            return 0;
        }
        out.extend_from_slice(&body);
        body.len() as u64
    }

    fn body(&self, pages: &Pages, retry_after_s: Option<u32>) -> Body<'_> {
        let request_id = str::from_utf8(self.request_id).unwrap_or_default();
        let (status, reason, detail) = (self.status, reason(self.status), self.detail);
        if let Some(Content { media_type, text }) = self.content {
            return Body::new(media_type, text);
        }
        if status == 200 {
            return Body::new("application/json", HEALTHY);
        }
        let maintenance = self.maintenance;
        let values = Values { status, reason, detail, request_id, retry_after_s, maintenance };
        match self.form {
            Form::Json => {
                let (r#type, title) = ("about:blank", reason);
                let problem = ProblemBody { r#type, title, status, detail, request_id, retry_after_s };
                Body::new("application/problem+json", serde_json::to_vec(&problem).unwrap_or_default())
            }
            Form::Text => Body::new(TEXT, text(&values)),
            Form::Any => match pages.own(&values) {
                Some(page) => Body::new(HTML, page),
                None => Body::new(TEXT, text(&values)),
            },
            Form::Html => match pages.own(&values) {
                Some(page) => Body::new(HTML, page),
                None => Body { policy: Some(POLICY), ..Body::new(HTML, Pages::built_in(&values)) },
            },
        }
    }
}

/// The plain text for a terminal: what happened, the id, and when to retry.
fn text(values: &Values<'_>) -> String {
    let Values { status, reason, detail, request_id, retry_after_s, .. } = values;
    let mut text = format!("{status} {reason}: {detail}\n");
    if !request_id.is_empty() {
        text.push_str(&format!("request id: {request_id}\n"));
    }
    if let Some(seconds) = retry_after_s {
        text.push_str(&format!("retry after: {seconds} s\n"));
    }
    text
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        403 => "Forbidden",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => {
            StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(answer: &Answer<'_>) -> String {
        let mut out = Vec::new();
        answer.write(&Pages::default(), &mut out);
        String::from_utf8(out).unwrap()
    }

    const NASTY: Answer<'_> = Answer {
        status: 503,
        detail: "<script>\"&'\n\u{2028}",
        request_id: b"abc-1",
        keep_alive: true,
        head_only: false,
        form: Form::Html,
        retry_after_s: None,
        hsts: None,
        location: None,
        allow: None,
        maintenance: true,
        content: None,
        set_cookie: None,
        edits: None,
        last_edits: None,
    };

    #[test]
    fn a_page_escapes_what_it_shows() {
        let text = written(&NASTY);
        assert!(text.contains("&lt;script&gt;&quot;&amp;&#39;"), "{text}");
        assert!(!text.contains("<script>"), "{text}");
        assert!(text.contains("Retry-After: 1\r\n") && text.contains("X-Request-Id: abc-1\r\n"), "{text}");
    }

    #[test]
    fn a_problem_escapes_what_it_says() {
        let text = written(&Answer { form: Form::Json, retry_after_s: Some(120), ..NASTY });
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("Content-Type: application/problem+json"), "{head}");
        assert!(head.contains("Retry-After: 120\r\n"), "{head}");
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["detail"], NASTY.detail);
        assert_eq!((&problem["status"], &problem["request_id"]), (&503.into(), &"abc-1".into()));
    }

    #[test]
    fn an_answer_in_text_is_what_a_terminal_can_show() {
        for form in [Form::Any, Form::Text] {
            let answer = Answer { form, detail: "gone", retry_after_s: Some(120), ..NASTY };
            let text = written(&answer);
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("Content-Type: text/plain; charset=utf-8\r\n"), "{head}");
            assert!(head.contains("X-Content-Type-Options: nosniff\r\n"), "{head}");
            assert_eq!(head.matches("\r\nDate: ").count(), 1, "{head}");
            assert!(!head.contains("Content-Security-Policy"), "{head}");
            assert_eq!(body, "503 Service Unavailable: gone\nrequest id: abc-1\nretry after: 120 s\n");
            let unknown = written(&Answer { request_id: b"", ..answer });
            assert!(!unknown.contains("request id"), "{unknown}");
        }
    }

    #[test]
    fn an_answer_to_head_has_the_length_and_no_body() {
        let text = written(&Answer { head_only: true, ..NASTY });
        assert!(text.ends_with("\r\n\r\n") && !text.contains("Content-Length: 0"), "{text}");
    }
}
