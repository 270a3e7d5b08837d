//! Answers of our own: what a client gets when no backend can answer.

use crate::http1::field::{write_field, write_number};

/// An answer without a backend.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its status.
    pub status: u16,
    /// What a person should know.
    pub detail: &'a str,
    /// The request's id, so that a report can be matched with the logs.
    pub request_id: &'a [u8],
    /// Whether the connection is kept.
    pub keep_alive: bool,
    /// Whether the request was `HEAD`.
    pub head_only: bool,
}

impl Answer<'_> {
    /// Writes it, and returns the length of its body.
    pub fn write(&self, out: &mut Vec<u8>) -> u64 {
        let mut body = Vec::with_capacity(128);
        write_number(&mut body, u64::from(self.status));
        body.push(b' ');
        body.extend_from_slice(reason(self.status).as_bytes());
        body.extend_from_slice(b"\n");
        body.extend_from_slice(self.detail.as_bytes());
        body.extend_from_slice(b"\n");
        if !self.request_id.is_empty() {
            body.extend_from_slice(b"request id: ");
            body.extend_from_slice(self.request_id);
            body.push(b'\n');
        }
        out.extend_from_slice(b"HTTP/1.1 ");
        write_number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(reason(self.status).as_bytes());
        out.extend_from_slice(b"\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n");
        out.extend_from_slice(b"Content-Length: ");
        write_number(out, body.len() as u64);
        out.extend_from_slice(b"\r\n");
        if !self.request_id.is_empty() {
            write_field(out, b"X-Request-Id", self.request_id);
        }
        if matches!(self.status, 405) {
            write_field(out, b"Allow", b"GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS");
        }
        if matches!(self.status, 503) {
            write_field(out, b"Retry-After", b"1");
        }
        write_field(out, b"Connection", if self.keep_alive { b"keep-alive" } else { b"close" });
        out.extend_from_slice(b"\r\n");
        if self.head_only {
            return 0;
        }
        out.extend_from_slice(&body);
        body.len() as u64
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
