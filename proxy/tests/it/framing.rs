//! Bytes sent, bytes received, and what a recording backend saw: one row per way to write a request or a response. The
//! rule behind all of them: the backend never sees a request that the client didn't mean.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Home, Proxy, Scripted, Then, until};
use crate::recorder::{End, OK, Recorder, Script, Seen};
use crate::wire::Wire;

/// Appended to every request that must be rejected: no backend may see it.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Requests that are rejected by their head, and the status. Nothing of them reaches the backend.
#[rustfmt::skip]
const REFUSED: &[(&str, u16)] = &[
    // Two lengths, or an invalid one.
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0.0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999999999\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\u{b}\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 0\r\n\r\n", 400),
    // A coding other than chunked, or chunked in another spelling.
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    // Lines and the characters in them.
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tz\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\nHost: a\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", 400),
    ("GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\u{1}z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: y\u{7f}z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nÄ: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX(y): z\r\n\r\n", 400),
    // Hosts.
    ("GET / HTTP/1.1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: ä\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    // Targets.
    ("GET http://a/ HTTP/1.1\r\n\r\n", 400),
    ("GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 505),
    ("GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a\u{1}b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    // Request lines.
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("GET /\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("GET / http/1.1\r\nHost: a\r\n\r\n", 505),
    ("GET / HTTP/1,1\r\nHost: a\r\n\r\n", 505),
    ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GARBAGE\r\n\r\n", 400),
    ("\u{16}\u{3}\u{1}\0\u{a5}\u{1}\0\0\u{a1}\u{3}\u{3}\r\n\r\n", 400),
    // Methods and expectations that aren't allowed.
    ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nExpect: tea\r\n\r\n", 417),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Content-Length\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-for\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e,f,g,h,i\r\n\r\n", 400),
];

/// Chunked bodies that are rejected with 400. The backend may see the head of their request, but never a complete
/// request.
const BAD_CHUNKS: &[&str] = &[
    "ZZ\r\n",
    "\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "5 6\r\nhello\r\n0\r\n\r\n",
    "5_0\r\nhello\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhelloX0\r\n\r\n",
    "5\r\nhello\r\r\n0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    "4\r\nhello\r\n0\r\n\r\n",
    "00000000000000005\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "5;\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;a\0b\r\nhello\r\n0\r\n\r\n",
    "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
    "0\r\n\n",
    "0\n\r\n",
    "0\r\nX\r\n\r\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\nX: y\r\n z\r\n\r\n",
    "0\r\nX: y\nZ: z\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "0\r\ntransfer_encoding: chunked\r\n\r\n",
    "0\r\nHost: b\r\n\r\n",
    "0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
];

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Kept,
    Closed,
}
use After::{Closed, Kept};

/// A request that is served: what is sent, the statuses that come back, whether the connection was kept, and what the
/// backend saw. Of the head, only the part before the fields that uh-proxy adds.
type Served = (&'static str, &'static [u16], After, &'static [(&'static str, &'static str)]);

#[rustfmt::skip]
const SERVED: &[Served] = &[
    // Targets and methods are forwarded unchanged.
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET /p?p1=a;b;c&p2=%x&p3=ok HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /p?p1=a;b;c&p2=%x&p3=ok HTTP/1.1|Host: a", "")]),
    ("GET //a/../b/./c//?d?e HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET //a/../b/./c//?d?e HTTP/1.1|Host: a", "")]),
    ("GET /%00%2e%2E%2f%ff HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /%00%2e%2E%2f%ff HTTP/1.1|Host: a", "")]),
    ("GET /ä\"<>\\^`{|} HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /ä\"<>\\^`{|} HTTP/1.1|Host: a", "")]),
    ("PURGE / HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("PURGE / HTTP/1.1|Host: a", "")]),
    ("get / HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("get / HTTP/1.1|Host: a", "")]),
    ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("OPTIONS * HTTP/1.1|Host: a", "")]),
    ("OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("OPTIONS * HTTP/1.1|Host: a", "")]),
    // The host of an absolute target replaces the Host field.
    ("GET http://b.example:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /x?y HTTP/1.1|Host: b.example:81", "")]),
    ("GET HTTP://b HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: b", "")]),
    ("GET http://b?x=/y HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /?x=/y HTTP/1.1|Host: b", "")]),
    ("OPTIONS http://b?x HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("OPTIONS /?x HTTP/1.1|Host: b", "")]),
    ("GET / HTTP/1.1\r\nHost: A.Example:8080\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: A.Example:8080", "")]),
    ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: [::1]:80", "")]),
    // Fields keep their names, order and number; white space around a value is removed.
    ("GET / HTTP/1.1\r\nx-B: 2\r\nHost: a\r\nX-a:1 \r\nX-A:\t3\t\r\nX-E:\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a|x-B: 2|X-a: 1|X-A: 3|X-E: ", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a|Cookie: a=1|Cookie: b=2", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: é\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a|X: é", "")]),
    // For this hop only, or untrusted, or ambiguous.
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop, TE\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nProxy: http://evil\r\nX: y\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a|X: y", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nx-forwarded-proto: https\r\nX-Forwarded-Host: b\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /b\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Forwarded_For: 6.6.6.6\r\nX.Y: z\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: a b\r\ntraceparent: 00-1-2-3\r\ntracestate: s=1\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx", &[200], Kept, &[("POST / HTTP/1.1|Host: a|Content-Length: 1", "x")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    ("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", &[200], Closed, &[("POST / HTTP/1.1|Host: a|Content-Length: 1", "x")]),
    ("POST / HTTP/1.0\r\nHost: a\r\nExpect: tea\r\nContent-Length: 1\r\n\r\nx", &[200], Closed, &[("POST / HTTP/1.1|Host: a|Content-Length: 1", "x")]),
    // Bodies.
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", &[200], Kept, &[("POST / HTTP/1.1|Host: a|Content-Length: 3", "abc")]),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0003\r\n\r\nabc", &[200], Kept, &[("POST / HTTP/1.1|Host: a|Content-Length: 3", "abc")]),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", &[200], Kept, &[("POST / HTTP/1.1|Host: a|Content-Length: 0", "")]),
    ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("POST / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", &[200], Kept, &[("GET / HTTP/1.1|Host: a|Content-Length: 3", "abc")]),
    ("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\nA;x=\"y;z\"\r\n0123456789\r\n0\r\n\r\n", &[200], Kept, &[("POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked", "3\r\nabc\r\nA;x=\"y;z\"\r\n0123456789\r\n0\r\n\r\n")]),
    ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3 \r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", &[200], Kept, &[("POST / HTTP/1.1|Host: a|Trailer: X-Sum|Transfer-Encoding: chunked", "3 \r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n")]),
    ("DELETE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n000\r\n\r\n", &[200], Kept, &[("DELETE / HTTP/1.1|Host: a|Transfer-Encoding: chunked", "000\r\n\r\n")]),
    // Whether the connection is kept.
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", &[200], Closed, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Close\r\n\r\n", &[200], Closed, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.0\r\n\r\n", &[200], Closed, &[("GET / HTTP/1.1|Host: ", "")]),
    ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", &[200], Closed, &[("GET / HTTP/1.1|Host: a", "")]),
    ("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n", &[200], Kept, &[("GET / HTTP/1.1|Host: a", "")]),
    // Several requests in a row.
    ("\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /1 HTTP/1.1|Host: a", "")]),
    ("\r\n\r\n\r\n\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Kept, &[("GET /1 HTTP/1.1|Host: a", "")]),
    ("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\nGET /3 HTTP/1.1\r\nHost: c\r\n\r\n", &[200, 200, 200], Kept, &[("GET /1 HTTP/1.1|Host: a", ""), ("GET /2 HTTP/1.1|Host: b", ""), ("GET /3 HTTP/1.1|Host: c", "")]),
    ("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", &[200, 200], Kept, &[("POST /1 HTTP/1.1|Host: a|Content-Length: 3", "abc"), ("GET /2 HTTP/1.1|Host: a", "")]),
    ("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", &[200, 200], Kept, &[("POST /1 HTTP/1.1|Host: a|Content-Length: 3", "abc"), ("GET /2 HTTP/1.1|Host: a", "")]),
    ("POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", &[200, 200], Kept, &[("POST /1 HTTP/1.1|Host: a|Transfer-Encoding: chunked", "0\r\n\r\n"), ("GET /2 HTTP/1.1|Host: a", "")]),
    ("GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", &[200], Closed, &[("GET /1 HTTP/1.1|Host: a", "")]),
    ("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n", &[200, 400], Closed, &[("GET /1 HTTP/1.1|Host: a", "")]),
    ("POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 44\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nX: 123456\r\n\r\n", &[200], Kept, &[("POST /1 HTTP/1.1|Host: a|Content-Length: 44", "GET /smuggled HTTP/1.1\r\nHost: a\r\nX: 123456\r\n")]),
    // An upgrade that the backend doesn't accept is an ordinary request, and so is what follows it.
    ("GET /1 HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", &[200, 200], Kept, &[("GET /1 HTTP/1.1|Host: a|Connection: upgrade|Upgrade: websocket", ""), ("GET /2 HTTP/1.1|Host: a", "")]),
];

/// uh-proxy in front of a recorder.
async fn before(script: Script) -> (Home, Proxy, Recorder) {
    let recorder = Recorder::start(script).await;
    let home = Home::new(recorder.address, "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    (home, proxy, recorder)
}

fn ok(_target: &str) -> (Vec<u8>, End) {
    (OK.to_vec(), End::Keep)
}

#[tokio::test]
async fn whatever_is_malformed_or_ambiguous_is_refused_and_reaches_no_backend() {
    let (_home, proxy, recorder) = before(ok).await;
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40 << 10));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(40 << 10));
    let invalid = b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n";
    let rows = REFUSED.iter().map(|(bytes, status)| (bytes.as_bytes().to_vec(), *status));
    let made =
        [(fields(100), 431), (large, 431), (long, 431)].map(|(text, status)| (text.into_bytes(), status));
    for (bytes, status) in rows.chain(made).chain([(invalid.to_vec(), 400)]) {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let mut wire = Wire::connect(proxy.address).await;
        wire.send([&bytes, SMUGGLED.as_bytes()].concat()).await;
        let response = wire.response().await;
        assert_eq!(response.status, status, "{shown:?}");
        assert_eq!(response.header("connection"), Some("close"), "{shown:?}");
        assert!(wire.is_closed().await, "{shown:?}: something came after the refusal");
        assert_eq!(recorder.take(), [], "{shown:?} reached the backend");
    }
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(fields(99)).await;
    assert_eq!(wire.response().await.status, 200, "as many fields as are allowed");
    assert_eq!(recorder.take().len(), 1);
}

#[tokio::test]
async fn a_body_that_is_malformed_is_refused_and_never_whole_for_the_backend() {
    let (_home, proxy, recorder) = before(ok).await;
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(2000));
    let long_trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(3000));
    let made = [long_extension.as_str(), &long_trailers];
    for body in BAD_CHUNKS.iter().copied().chain(made) {
        let head = "POST /bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        // All at once, and with the body sent after the head.
        for apart in [false, true] {
            let shown = &body[..body.len().min(100)];
            let mut wire = Wire::connect(proxy.address).await;
            if apart {
                wire.send(head).await;
                until("the request is on its way", async || {
                    (proxy.backend("blue").await.requests_in_flight == 1).then_some(())
                })
                .await;
                wire.send(format!("{body}{SMUGGLED}")).await;
            } else {
                wire.send(format!("{head}{body}{SMUGGLED}")).await;
            }
            let response = wire.response().await;
            assert_eq!(response.status, 400, "{shown:?}");
            assert_eq!(response.header("connection"), Some("close"), "{shown:?}");
            assert!(wire.is_closed().await, "{shown:?}: something came after the refusal");
            proxy.until_idle("blue").await;
        }
    }
    until("the backend has seen them all end", async || {
        (proxy.backend("blue").await.connections.active == 0).then_some(())
    })
    .await;
    for seen in recorder.take() {
        assert!(!seen.complete && seen.head.starts_with("POST /bad "), "{seen:?}");
    }
}

#[tokio::test]
async fn what_is_served_reaches_the_backend_as_it_was_meant() {
    let (_home, proxy, recorder) = before(ok).await;
    for (bytes, statuses, after, requests) in SERVED {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(bytes).await;
        for status in *statuses {
            let response = wire.response().await;
            assert_eq!(response.status, *status, "{bytes:?}");
            assert!(response.complete, "{bytes:?}");
        }
        let mut wanted: Vec<Seen> = requests.iter().map(|(head, body)| seen(head, body)).collect();
        match after {
            Closed => assert!(wire.is_closed().await, "{bytes:?}: it was kept"),
            Kept => {
                assert_eq!(wire.get("/after").await.status, 200, "{bytes:?}: it was not kept");
                wanted.push(seen("GET /after HTTP/1.1|Host: app.test", ""));
            }
        }
        assert_eq!(recorder.take(), wanted, "{bytes:?}");
    }
}

/// What the backend sees of a request, with the fields that uh-proxy adds.
fn seen(head: &str, body: &str) -> Seen {
    let host = head.split("|Host: ").nth(1).and_then(|rest| rest.split('|').next()).unwrap_or_default();
    let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
    let forwarded_host = if host.is_empty() { String::new() } else { format!("|X-Forwarded-Host: {host}") };
    let added = format!(
        "|X-Forwarded-For: 127.0.0.1|X-Real-IP: 127.0.0.1|X-Forwarded-Proto: http{forwarded_host}|X-Forwarded-Port: {port}|X-Request-Id: *"
    );
    // The upgrade is written last, once the service is known.
    let upgrade = head.find("|Connection: upgrade").unwrap_or(head.len());
    let (head, upgrade) = head.split_at(upgrade);
    Seen { head: format!("{head}{added}{upgrade}"), body: body.to_owned(), complete: true }
}

/// The request for a scripted response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Get,
    Head,
    /// From an HTTP/1.0 client that keeps its connection.
    Old,
    WebSocket,
}
use Asked::{Get, Head, Old, WebSocket};

/// How the client sees a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Whole(&'static str),
    /// Detectably incomplete.
    Broken(&'static str),
}
use Body::{Broken, Whole};

/// The backend's response and what it does next, the request, and what the client gets: the status, the body, and
/// whether its connection was kept.
type Answered = (&'static str, End, Asked, u16, Body, After);

#[rustfmt::skip]
const ANSWERED: &[Answered] = &[
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", End::Close, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 200, Whole(""), Kept),
    ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", End::Close, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 Schön\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    // Lines that end in a bare LF, all or some.
    ("HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.0 200 OK\nContent-Type: text/plain\n\nabc", End::Close, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\n\r\nabc", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 3\n\nabc", End::Keep, Get, 103, Whole(""), Kept),
    ("HTTP/1.1 600 Odd\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 600, Whole("abc"), Kept),
    ("HTTP/1.1 999 Odd\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 999, Whole("abc"), Kept),
    ("HTTP/1.1 599 Odd\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 599, Whole("abc"), Kept),
    // Bodies that end with the backend's connection.
    ("HTTP/1.1 200 OK\r\n\r\nabc", End::Close, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.0 200 OK\r\n\r\nabc", End::Close, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 200 OK\r\n\r\n", End::Close, Get, 200, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\n\r\nabc", End::Reset, Get, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\n\r\nabc", End::Close, Old, 200, Whole("abc"), Closed),
    ("HTTP/1.1 200 OK\r\n\r\nabc", End::Reset, Old, 200, Broken("abc"), Closed),
    // Truncated bodies.
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", End::Close, Get, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", End::Reset, Get, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", End::Close, Old, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", End::Close, Get, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n", End::Close, Get, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", End::Close, Old, 200, Broken("abc"), Closed),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", End::Reset, Old, 200, Broken("abc"), Closed),
    // An HTTP/1.0 client gets no chunks and no interim responses.
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n", End::Keep, Old, 200, Whole("abcde"), Closed),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Old, 200, Whole("abc"), Kept),
    ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Old, 200, Whole("abc"), Kept),
    ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", End::Keep, Get, 103, Whole(""), Kept),
    // Responses without a body, whatever their head announces.
    ("HTTP/1.1 204 No Content\r\n\r\n", End::Keep, Get, 204, Whole(""), Kept),
    ("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", End::Keep, Get, 204, Whole(""), Kept),
    ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", End::Keep, Get, 204, Whole(""), Kept),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", End::Keep, Get, 304, Whole(""), Kept),
    ("HTTP/1.1 304 Not Modified\r\n\r\n", End::Keep, Old, 304, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", End::Keep, Head, 200, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", End::Keep, Head, 200, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\n\r\n", End::Keep, Head, 200, Whole(""), Kept),
    // Bytes after the end are discarded, and their connection isn't reused.
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", End::Keep, Get, 200, Whole("abc"), Kept),
    ("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", End::Keep, Get, 204, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", End::Keep, Head, 200, Whole(""), Kept),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", End::Keep, Get, 304, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nevil", End::Keep, Get, 200, Whole(""), Kept),
    // Invalid responses.
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\nX: y\n z\nContent-Length: 0\n\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3\nabc\n0\n\n", End::Close, Get, 502, Whole(""), Closed),
    ("HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nX: y\rSet-Cookie: evil=1\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nX: y\0z\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 1000 OK\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n", End::Keep, Get, 502, Whole(""), Kept),
    ("ICY 200 OK\r\n\r\nabc", End::Close, Get, 502, Whole(""), Kept),
    ("<html>\r\n\r\n", End::Close, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nContent-Le", End::Close, Get, 502, Whole(""), Kept),
    ("", End::Close, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nevil", End::Keep, Get, 502, Whole(""), Kept),
    ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nevil", End::Keep, WebSocket, 502, Whole(""), Kept),
    ("HTTP/1.1 101 Switching Protocols\r\n\r\nevil", End::Keep, WebSocket, 502, Whole(""), Kept),
    ("HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", End::Keep, WebSocket, 426, Whole(""), Kept),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n", End::Keep, Get, 502, Whole(""), Closed),
];

fn answered(target: &str) -> (Vec<u8>, End) {
    let index = target.strip_prefix("/row/").and_then(|index| index.parse::<usize>().ok());
    match index.and_then(|index| ANSWERED.get(index)) {
        Some((bytes, end, ..)) => (bytes.as_bytes().to_vec(), *end),
        None => (OK.to_vec(), End::Keep),
    }
}

#[tokio::test]
async fn what_a_backend_answers_reaches_the_client_as_it_was_meant() {
    let (_home, proxy, _recorder) = before(answered).await;
    for (index, (bytes, end, asked, status, body, after)) in ANSWERED.iter().enumerate() {
        let row = format!("row {index}, {asked:?} ← {end:?} {bytes:?}");
        let (method, version, fields) = match asked {
            Get => ("GET", "HTTP/1.1", ""),
            Head => ("HEAD", "HTTP/1.1", ""),
            Old => ("GET", "HTTP/1.0", "Connection: keep-alive\r\n"),
            WebSocket => ("GET", "HTTP/1.1", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
        };
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("{method} /row/{index} {version}\r\nHost: a\r\n{fields}\r\n")).await;
        let response = wire.read(*asked == Head).await.unwrap_or_else(|| panic!("{row}: no response"));
        assert_eq!(response.status, *status, "{row}");
        let (text, complete) = match body {
            Whole(text) => (*text, true),
            Broken(text) => (*text, false),
        };
        assert_eq!(response.complete, complete, "{row}: {response:?}");
        if response.status != 502 {
            // uh-proxy's own answers have their own body.
            assert!(
                response.text() == text || response.text().contains(text) && bytes.contains("chunked"),
                "{row}: {response:?}"
            );
        }
        if *asked == Old {
            assert!(!response.head.to_lowercase().contains("transfer-encoding"), "{row}: {response:?}");
        }
        if response.status == 103 {
            assert_eq!(wire.response().await.text(), "abc", "{row}");
        }
        match after {
            Closed => assert!(wire.is_closed().await, "{row}: it was kept"),
            Kept => {
                let next = wire.get("/next").await;
                assert_eq!((next.status, next.text().as_str()), (200, "ok"), "{row}: what came next");
            }
        }
    }
}

#[tokio::test]
async fn interim_responses_have_a_limit() {
    let many: Script = |target| {
        let count = if target == "/few" { 64 } else { 65 };
        (["HTTP/1.1 103 Early Hints\r\n\r\n".repeat(count).as_bytes(), OK].concat(), End::Keep)
    };
    let (_home, proxy, _recorder) = before(many).await;
    for (target, last) in [("/few", 200), ("/many", 502)] {
        let mut wire = Wire::connect(proxy.address).await;
        let mut response = wire.get(target).await;
        while response.status == 103 {
            response = wire.response().await;
        }
        assert_eq!(response.status, last, "{target}");
    }
}

#[tokio::test]
async fn a_final_answer_instead_of_100_continue_ends_the_connection() {
    let (_home, proxy, recorder) = before(ok).await;
    let early = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
        (stream, Then::KeepAlive)
    })
    .await;
    let home = Home::new(early.address, "127.0.0.1:9").server("threads = 1");
    let refusing = home.start().await;
    let length = SMUGGLED.len();
    let head =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n");
    let mut wire = Wire::connect(refusing.address).await;
    wire.send(&head).await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("connection")), (401, Some("close")));
    // What is still sent is a body, not a request.
    let _ = wire.stream.write_all(SMUGGLED.as_bytes()).await;
    assert!(wire.is_closed().await);
    assert_eq!(early.seen(), 1);
    // The same request to a backend that reads the body first, from a client that doesn't wait.
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("{head}{SMUGGLED}")).await;
    assert_eq!(wire.response().await.status, 200);
    let expected = format!("POST / HTTP/1.1|Host: a|Expect: 100-continue|Content-Length: {length}");
    assert_eq!(recorder.take(), [seen(&expected, SMUGGLED)]);
}

#[tokio::test]
async fn half_a_request_is_never_a_request() {
    let (_home, proxy, recorder) = before(ok).await;
    for half in [
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(half).await;
        wire.stream.shutdown().await.unwrap();
        assert!(wire.is_closed().await, "{half:?} was answered");
        proxy.until_idle("blue").await;
        assert!(recorder.take().iter().all(|seen| !seen.complete), "{half:?}");
    }
}

/// For an HTTP/1.0 client, the end of the connection is the end of the body, so only a reset can mark a truncated one.
#[tokio::test]
async fn a_body_that_breaks_off_is_a_reset_to_an_old_client() {
    let (_home, proxy, _recorder) = before(answered).await;
    let broken =
        |row: &Answered| row.2 == Old && matches!(row.4, Broken(_)) && !row.0.contains("Content-Length");
    let rows: Vec<usize> = (0..ANSWERED.len()).filter(|index| broken(&ANSWERED[*index])).collect();
    assert!(rows.len() >= 3);
    for index in rows {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("GET /row/{index} HTTP/1.0\r\n\r\n")).await;
        let response = wire.response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "abc"), "{:?}", ANSWERED[index]);
        assert!(wire.is_reset(), "{:?}", ANSWERED[index]);
    }
}

/// RUSTSEC-2025-0037: the unread rest of a request's body was read as the next request.
#[tokio::test]
async fn rustsec_2025_0037_the_rest_of_a_body_is_never_the_next_request() {
    // Answers as soon as it has a head, keeps its connection, and reads whatever comes next as a request.
    let app = Scripted::start(|head, mut stream| async move {
        let answer = if head.contains("/smuggled") { "evil" } else { "good" };
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{answer}");
        let _ = stream.write_all(reply.as_bytes()).await;
        (stream, Then::KeepAlive)
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    for round in 0..20 {
        let mut wire = Wire::connect(proxy.address).await;
        // The last byte of the body is missing, so the request isn't complete when the response arrives.
        let length = SMUGGLED.len() + 1;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}")).await;
        assert_eq!(wire.response().await.text(), "good", "round {round}");
        drop(wire);
        proxy.until_idle("blue").await;
        assert_eq!(Wire::connect(proxy.address).await.get("/next").await.text(), "good", "round {round}");
    }
}

/// RUSTSEC-2025-0070: streams of HTTP/2 that are reset as fast as they are made. There is no HTTP/2 to make them in.
#[tokio::test]
async fn rustsec_2025_0070_there_is_no_http2() {
    let (_home, proxy, recorder) = before(ok).await;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(wire.response().await.status, 505);
    assert!(wire.is_closed().await);
    assert_eq!(recorder.take(), []);
    let mut wire = Wire::connect(proxy.address).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n")
        .await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("upgrade")), (200, None));
    assert_eq!(recorder.take(), [seen("GET / HTTP/1.1|Host: a", "")]);
}

/// RUSTSEC-2026-0033: what a client sent after a request for an upgrade reached the backend before it had agreed.
#[tokio::test]
async fn rustsec_2026_0033_bytes_after_an_upgrade_wait_for_the_101() {
    // Reads for a while before it answers: whatever arrives before that is too early.
    let app = Scripted::start(|head, mut stream| async move {
        let mut early = vec![0; 1024];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut early)).await;
        let early = read.map_or(0, |read| read.unwrap_or(0));
        if head.contains("/refused") {
            let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Early: {early}\r\n\r\n.");
            let _ = stream.write_all(reply.as_bytes()).await;
            return (stream, Then::KeepAlive);
        }
        let reply = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Early: {early}\r\n\r\n"
        );
        let _ = stream.write_all(reply.as_bytes()).await;
        let mut echoed = vec![0; SMUGGLED.len()];
        let _ = stream.read_exact(&mut echoed).await;
        let _ = stream.write_all(&echoed).await;
        (stream, Then::Close)
    })
    .await;
    let home = Home::new(app.address, "127.0.0.1:9").server("threads = 1");
    let proxy = home.start().await;
    let upgrade = "HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("GET /agreed {upgrade}{SMUGGLED}")).await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("x-early")), (101, Some("0")));
    wire.read_until(SMUGGLED.as_bytes()).await;
    assert_eq!(app.seen(), 1, "what went into the tunnel was read as a request");
    // Without an upgrade it is a request that must be valid like any other; this one isn't.
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("GET /refused {upgrade}GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")).await;
    let response = wire.response().await;
    assert_eq!((response.status, response.header("x-early")), (200, Some("0")));
    assert_eq!(wire.response().await.status, 400);
    assert_eq!(app.seen(), 2);
}

/// RUSTSEC-2026-0034: a request of HTTP/1.0 with `Transfer-Encoding` was read differently by proxy and backend.
#[tokio::test]
async fn rustsec_2026_0034_http_1_0_has_no_transfer_encoding() {
    let (_home, proxy, recorder) = before(ok).await;
    for fields in [
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n",
        "Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n",
    ] {
        let mut wire = Wire::connect(proxy.address).await;
        wire.send(format!("POST / HTTP/1.0\r\nHost: a\r\n{fields}\r\n0\r\n\r\n{SMUGGLED}")).await;
        assert_eq!(wire.response().await.status, 400, "{fields:?}");
        assert!(wire.is_closed().await, "{fields:?}");
        assert_eq!(recorder.take(), [], "{fields:?}");
    }
    // Without a length there is no body, and without keep-alive there is no next request.
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("POST / HTTP/1.0\r\nHost: a\r\n\r\n{SMUGGLED}")).await;
    assert_eq!(wire.response().await.status, 200);
    assert!(wire.is_closed().await);
    assert_eq!(recorder.take(), [seen("POST / HTTP/1.1|Host: a", "")]);
}

/// RUSTSEC-2026-0035: a cache answered one host's request with another host's response. There is no cache.
#[tokio::test]
async fn rustsec_2026_0035_there_is_no_cache() {
    let cacheable: Script = |_| {
        let reply = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=3600\r\nETag: \"x\"\r\nContent-Length: 2\r\n\r\nok";
        (reply.to_vec(), End::Keep)
    };
    let (_home, proxy, recorder) = before(cacheable).await;
    let mut wire = Wire::connect(proxy.address).await;
    for host in ["a", "b", "a", "b"] {
        wire.send(format!("GET /same HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let response = wire.response().await;
        assert_eq!((response.status, response.header("age")), (200, None));
        assert_eq!(recorder.take(), [seen(&format!("GET /same HTTP/1.1|Host: {host}"), "")]);
    }
}
