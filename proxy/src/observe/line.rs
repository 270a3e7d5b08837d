//! One line of the access log, in each of its formats.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::termination::Termination;
use crate::config::AccessLogFormat;
use uh_http1::field::write_number;

/// The fields of an access log line. Byte strings are as the client sent them: they are escaped here.
#[derive(Debug, Clone, Copy)]
pub struct AccessLine<'a> {
    /// When the exchange ended.
    pub time: SystemTime,
    /// The client's address.
    pub client: &'a str,
    /// Its method.
    pub method: &'a [u8],
    /// Its target, as sent.
    pub target: &'a [u8],
    /// `HTTP/1.1`
    pub protocol: &'a str,
    /// Its host.
    pub host: &'a [u8],
    /// The status answered; 499 if the client left before.
    pub status: u16,
    /// Body bytes sent to the client.
    pub bytes: u64,
    /// From the request head to the last byte of the response.
    pub request_time: Duration,
    /// From the request head to the response head, if one arrived.
    pub upstream_time: Option<Duration>,
    /// The service, if one was found.
    pub service: Option<&'a str>,
    /// The backend, if one was picked.
    pub backend: Option<&'a str>,
    /// Its version, if it was registered with one.
    pub version: Option<&'a str>,
    /// Which of its endpoints answered, or was tried last.
    pub endpoint: Option<&'a str>,
    /// The request's id.
    pub request_id: &'a [u8],
    /// `Referer`
    pub referer: &'a [u8],
    /// `User-Agent`
    pub user_agent: &'a [u8],
    /// Why it ended.
    pub termination: Termination,
    /// Whether it was a preview of a standby.
    pub preview: bool,
    /// The backend on the new side of a split for which this one has answered.
    pub rescued_from: Option<&'a str>,
    /// Why connecting to the backend failed, or its response was invalid.
    pub reason: Option<&'a str>,
    /// What the TLS handshake negotiated; `None` for plain HTTP.
    pub tls: Option<TlsFields<'a>>,
}

/// What a TLS handshake negotiated.
#[derive(Debug, Clone, Copy)]
pub struct TlsFields<'a> {
    /// `TLSv1.3`
    pub version: &'a str,
    /// The cipher suite.
    pub cipher: &'a str,
    /// The host that the client asked for; empty: none.
    pub sni: &'a str,
    /// The protocol; empty: none was negotiated.
    pub alpn: &'a str,
}

/// Formats times; the part down to the second is cached until the second changes.
#[derive(Debug)]
pub struct Clock {
    second: i64,
    utc: String,
    local: String,
    zone: TimeZone,
}

impl Default for Clock {
    fn default() -> Self {
        Self { second: i64::MIN, utc: String::new(), local: String::new(), zone: TimeZone::system() }
    }
}

impl Clock {
    /// Brings the clock to this time, and returns the milliseconds beyond the second.
    fn set(&mut self, time: SystemTime) -> u32 {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since.as_secs()).unwrap_or_default();
        if second != self.second {
            let at = Timestamp::from_second(second).unwrap_or_default();
            self.utc = at.strftime("%Y-%m-%dT%H:%M:%S").to_string();
            self.local = at.to_zoned_datetime(self.zone.clone()).strftime("%d/%b/%Y:%H:%M:%S %z").to_string();
            self.second = second;
        }
        since.subsec_millis()
    }
}

impl AccessLine<'_> {
    /// Appends the line with its line end.
    pub fn write(&self, format: AccessLogFormat, clock: &mut Clock, out: &mut Vec<u8>) {
        match format {
            AccessLogFormat::Json => self.write_json(clock, out),
            AccessLogFormat::Combined => self.write_combined(clock, out),
            AccessLogFormat::TimedCombined => {
                self.write_combined(clock, out);
                out.push(b' ');
                write_seconds(out, self.request_time);
            }
            AccessLogFormat::Off => return,
        }
        out.push(b'\n');
    }

    fn write_json(&self, clock: &mut Clock, out: &mut Vec<u8>) {
        let millis = clock.set(self.time);
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(clock.utc.as_bytes());
        out.push(b'.');
        write_millis(out, millis);
        out.extend_from_slice(b"Z\"");
        let text = |out: &mut Vec<u8>, key: &str, value: &[u8]| {
            out.extend_from_slice(key.as_bytes());
            json_text(out, value);
        };
        text(out, ",\"client\":", self.client.as_bytes());
        text(out, ",\"method\":", self.method);
        text(out, ",\"host\":", self.host);
        text(out, ",\"path\":", self.target);
        text(out, ",\"protocol\":", self.protocol.as_bytes());
        out.extend_from_slice(b",\"status\":");
        write_number(out, u64::from(self.status));
        out.extend_from_slice(b",\"bytes\":");
        write_number(out, self.bytes);
        out.extend_from_slice(b",\"request_time\":");
        write_seconds(out, self.request_time);
        out.extend_from_slice(b",\"upstream_time\":");
        match self.upstream_time {
            Some(time) => write_seconds(out, time),
            None => out.extend_from_slice(b"null"),
        }
        for (key, value) in [
            (",\"service\":", self.service),
            (",\"backend\":", self.backend),
            (",\"version\":", self.version),
            (",\"endpoint\":", self.endpoint),
        ] {
            match value {
                Some(value) => text(out, key, value.as_bytes()),
                None => {
                    out.extend_from_slice(key.as_bytes());
                    out.extend_from_slice(b"null");
                }
            }
        }
        text(out, ",\"request_id\":", self.request_id);
        text(out, ",\"referer\":", self.referer);
        text(out, ",\"user_agent\":", self.user_agent);
        text(out, ",\"termination\":", self.termination.as_str().as_bytes());
        if self.preview {
            out.extend_from_slice(b",\"preview\":true");
        }
        if let Some(backend) = self.rescued_from {
            text(out, ",\"rescued_from\":", backend.as_bytes());
        }
        if let Some(reason) = self.reason {
            text(out, ",\"reason\":", reason.as_bytes());
        }
        if let Some(tls) = &self.tls {
            text(out, ",\"tls_version\":", tls.version.as_bytes());
            text(out, ",\"cipher\":", tls.cipher.as_bytes());
            text(out, ",\"sni\":", tls.sni.as_bytes());
            text(out, ",\"alpn\":", tls.alpn.as_bytes());
        }
        out.push(b'}');
    }

    /// nginx's `combined`: `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent
    /// "$http_referer" "$http_user_agent"`.
    fn write_combined(&self, clock: &mut Clock, out: &mut Vec<u8>) {
        clock.set(self.time);
        out.extend_from_slice(self.client.as_bytes());
        out.extend_from_slice(b" - - [");
        out.extend_from_slice(clock.local.as_bytes());
        out.extend_from_slice(b"] \"");
        nginx_text(out, self.method);
        out.push(b' ');
        nginx_text(out, self.target);
        out.push(b' ');
        out.extend_from_slice(self.protocol.as_bytes());
        out.extend_from_slice(b"\" ");
        write_number(out, u64::from(self.status));
        out.push(b' ');
        write_number(out, self.bytes);
        for value in [self.referer, self.user_agent] {
            out.extend_from_slice(b" \"");
            nginx_text(out, if value.is_empty() { b"-" } else { value });
            out.push(b'"');
        }
    }
}

fn write_seconds(out: &mut Vec<u8>, time: Duration) {
    write_number(out, time.as_secs());
    out.push(b'.');
    write_millis(out, time.subsec_millis());
}

fn write_millis(out: &mut Vec<u8>, millis: u32) {
    let digit = |divisor| b'0' + (millis / divisor % 10) as u8;
    out.extend_from_slice(&[digit(100), digit(10), digit(1)]);
}

/// Whether no byte needs to be escaped, as in almost every field: printable ASCII without `"` and `\`. Eight bytes at a
/// time, since it is asked about every text of every line.
fn is_plain(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    // The high bit of each byte that is zero (and perhaps of a byte after one, which changes nothing here).
    let zeros = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes;
    let special = |bytes: [u8; 8]| {
        let bytes = u64::from_le_bytes(bytes);
        let control = bytes.wrapping_sub(ONES * u64::from(b' ')) & !bytes;
        let delete = zeros(bytes ^ (ONES * 0x7f));
        let escaped = zeros(bytes ^ (ONES * u64::from(b'"'))) | zeros(bytes ^ (ONES * u64::from(b'\\')));
        (bytes | control | delete | escaped) & (ONES << 7)
    };
    let (chunks, rest) = text.as_chunks();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    chunks.iter().fold(special(last), |found, &chunk| found | special(chunk)) == 0
}

/// As nginx escapes variables in its logs: `"`, `\` and bytes that are not printable ASCII become `\xHH`.
fn nginx_text(out: &mut Vec<u8>, text: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if is_plain(text) {
        return out.extend_from_slice(text);
    }
    for byte in text.iter().copied() {
        if is_plain(&[byte]) {
            out.push(byte);
        } else {
            out.extend_from_slice(&[
                b'\\',
                b'x',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]);
        }
    }
}

/// A JSON string. What is not UTF-8 becomes U+FFFD.
fn json_text(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else if serde_json::to_writer(&mut *out, &String::from_utf8_lossy(text)).is_err() {
        out.extend_from_slice(b"\"\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &[u8] = b"a\"b\\c\n\x1b[31m\xff";

    fn line() -> AccessLine<'static> {
        AccessLine {
            time: UNIX_EPOCH + Duration::from_millis(1_764_757_800_042),
            client: "192.0.2.7",
            method: b"GET",
            target: b"/a?b=c",
            protocol: "HTTP/1.1",
            host: b"app.example",
            status: 200,
            bytes: 12,
            request_time: Duration::from_micros(1_234_567),
            upstream_time: Some(Duration::from_millis(7)),
            service: Some("app"),
            backend: Some("blue"),
            version: None,
            endpoint: Some("127.0.0.1:3008"),
            request_id: b"id",
            referer: b"",
            user_agent: NASTY,
            termination: Termination::Done,
            preview: false,
            rescued_from: None,
            reason: None,
            tls: None,
        }
    }

    fn written(format: AccessLogFormat) -> String {
        let mut clock = Clock { zone: TimeZone::UTC, ..Clock::default() };
        let mut out = Vec::new();
        line().write(format, &mut clock, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_lines_parse_back() {
        let text = written(AccessLogFormat::Json);
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["time"], "2025-12-03T10:30:00.042Z");
        assert_eq!(json["request_time"], 1.234);
        assert_eq!(json["upstream_time"], 0.007);
        assert_eq!(json["version"], serde_json::Value::Null);
        assert_eq!(json["user_agent"], String::from_utf8_lossy(NASTY).as_ref());
        assert_eq!(json["termination"], "-");
        assert_eq!(json["endpoint"], "127.0.0.1:3008");
        assert!(json.get("reason").is_none(), "it is there only where there is one");
        assert!(json.get("preview").is_none(), "it is there only for previews");
    }

    #[test]
    fn timed_combined_is_as_nginx_writes_it() {
        assert_eq!(
            written(AccessLogFormat::TimedCombined),
            "192.0.2.7 - - [03/Dec/2025:10:30:00 +0000] \"GET /a?b=c HTTP/1.1\" 200 12 \"-\" \
             \"a\\x22b\\x5Cc\\x0A\\x1B[31m\\xFF\" 1.234\n"
        );
        assert!(
            written(AccessLogFormat::TimedCombined)
                .starts_with(written(AccessLogFormat::Combined).trim_end())
        );
    }

    #[test]
    fn every_byte_that_is_escaped_is_found_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            let plain = matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
            for at in 0..17 {
                let mut text = *b"a plain text, 17.";
                text[at] = byte;
                assert_eq!(is_plain(&text), plain, "{byte:#x} at {at}");
                assert_eq!(is_plain(&text[at..]), plain, "{byte:#x} first of {}", 17 - at);
            }
        }
        assert!(is_plain(b""));
    }

    #[test]
    fn off_writes_nothing() {
        assert_eq!(written(AccessLogFormat::Off), "");
    }
}
