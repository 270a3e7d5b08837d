//! Nearly right bytes for everything that reads bytes from outside. `UH_FUZZ_CASES=1000000 cargo test fuzz::` takes longer.

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/reference.rs"]
mod reference;
#[path = "fuzz/witness.rs"]
mod witness;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use uh_proxy::config;
use uh_proxy::state::file::StateFile;

use crate::harness::{Home, Proxy, SampleApp};
use mutate::{fuzz, near, with_all_keys};
use witness::{Demand, Witness, all_came, compare};

fn owned(seeds: &[&str]) -> Vec<String> {
    seeds.iter().map(|&seed| seed.to_owned()).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// It must be there at the end, and must not have panicked meanwhile.
fn still_well(home: &Home, proxy: &mut Proxy) {
    assert!(proxy.is_running(), "the front door is gone:\n{}", home.messages());
    assert!(!home.messages().contains("panicked"), "{}", home.messages());
}

const REQUESTS: &[&str] = &[
    "GET /a?b=c HTTP/1.1\r\nHost: app.test\r\nUser-Agent: x\r\nCookie: a=b; c=d\r\n\r\n",
    "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX-Two: 2\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /after HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nX-T: t\r\n\r\n",
    "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\nGET /after HTTP/1.1\r\nHost: b:80\r\n\r\n",
    "GET http://b.example:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "HEAD /h HTTP/1.1\r\nHost: [::1]:80\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-Stay: 2\r\n\r\n",
    "POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    "GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "\r\nDELETE /d HTTP/1.1\r\nhost: a\r\nX-Empty:\r\nX-Blank: \t a \t \r\nX_Under: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Request-Id: abc\r\n\r\n",
];

const REQUEST_WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "#",
    "?",
    "/",
    "//",
    "..",
    "%2e",
    "%00",
    "0",
    "5",
    "-1",
    "+5",
    "0x5",
    "18446744073709551616",
    "ffffffffffffffff",
    "0\r\n\r\n",
    "\r\n\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "content-length : 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding:\tchunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Host: evil\r\n",
    "Connection: close\r\n",
    "Connection: content-length\r\n",
    "Connection: host, te\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: h2c\r\n",
    " folded\r\n",
    "HTTP/1.0",
    "HTTP/1.1",
    "HTTP/2.0",
    "http://u@b/",
    "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    "\u{e9}",
    "\u{7f}",
    "\u{b}",
    "chunked",
    "identity",
    "\"",
    "\\",
    "X: y\r\n",
];

/// Found by this test, or by what others have found in other programs.
const KNOWN_REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nx\r\nhello\r\n0\r\n\r\n",
    "GET /a\nHost: b HTTP/1.1\r\nHost: a\r\n\r\n",
    "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0 \r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
];

#[test]
fn what_the_backend_sees_is_what_was_meant() {
    let runtime = runtime();
    let witness = Witness::start();
    let home = Home::new(witness.address, "127.0.0.1:9").service("[services.app.health]\nenabled = false");
    let mut proxy = runtime.block_on(home.start());
    for request in REQUESTS.iter().map(|request| request.as_bytes()) {
        all_came(request, &witness.send(proxy.address, request, None).unwrap(), Demand::Strict).unwrap();
    }
    let (cases, came) = (AtomicUsize::new(0), AtomicUsize::new(0));
    fuzz(3000, near(owned(REQUESTS), REQUEST_WORDS), KNOWN_REQUESTS, |bytes| {
        let seen = witness.send(proxy.address, bytes, None)?;
        cases.fetch_add(1, Ordering::Relaxed);
        came.fetch_add(usize::from(!seen.messages.is_empty()), Ordering::Relaxed);
        compare(bytes, &seen, Demand::Strict)
    });
    still_well(&home, &mut proxy);
    let (cases, came) = (cases.into_inner(), came.into_inner());
    assert!(came > cases / 20, "of {cases} cases, only {came} got anything through: they say nothing");
}

const CALLS: &[(&str, &str)] = &[
    ("GET /v1/status", ""),
    ("POST /v1/services/app/switch", r#"{"to":"green","expect_active":"blue"}"#),
    ("POST /v1/services/app/switch", r#"{"to":"blue","force":true}"#),
    ("POST /v1/services/app/backends/blue/drain", r#"{"timeout_ms":10,"cut":false}"#),
    ("PUT /v1/services/app/backends/green", r#"{"endpoints":["127.0.0.1:9"],"version":"1.0.1"}"#),
    ("POST /v1/services/app/maintenance", r#"{"on":true,"message":"x","retry_after_s":10}"#),
    ("POST /v1/reload", ""),
    ("GET /metrics", ""),
];

fn call(call: &str, body: &str) -> String {
    format!("{call} HTTP/1.1\r\nHost: uh\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

const CALL_WORDS: &[&str] = &[
    "\r\n",
    "\0",
    " ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "0.5",
    "\\u0000",
    "\\ud800",
    "[[[[[[[[[[[[[[[[",
    "{\"to\":\"green\"}",
    "{\"to\":\"no such\"}",
    "../",
    "%2f",
    "/v1/",
    "//",
    "unix:",
    "unix:/x",
    "a..b:80",
    "127.0.0.1:99999",
    "[::1]:1",
    "\"force\":true",
    "\"timeout_ms\":999999999999999999",
    "\"to\":\"green\",",
    "Content-Length: 1\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "\u{1b}[31m",
    "\u{e9}",
    "services",
    "app",
    "blue",
    "drain",
];

#[test]
fn no_call_of_the_admin_socket_does_harm() {
    let runtime = runtime();
    let (blue, green) = runtime
        .block_on(async { (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await) });
    let home = Home::new(blue.address, green.address);
    let mut proxy = runtime.block_on(home.start());
    let seeds = CALLS.iter().map(|(line, body)| call(line, body)).collect();
    fuzz(2000, near(seeds, CALL_WORDS), &[], |bytes| {
        let mut stream = UnixStream::connect(home.socket()).map_err(|e| format!("no connection: {e}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        if stream.read_to_end(&mut reply).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
            return Err("it neither answers nor closes".to_owned());
        }
        let text = String::from_utf8_lossy(&reply);
        let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return if reply.is_empty() { Ok(()) } else { Err(format!("half a reply: {text}")) };
        };
        let status = head.split(' ').nth(1).unwrap_or_default();
        if !["200", "400", "403", "404", "405", "409", "413", "414", "417", "422", "431", "503", "505"]
            .contains(&status)
        {
            return Err(format!("status {status}: {text}"));
        }
        // JSON, or the text of the metrics.
        if body.chars().any(|c| c < ' ' && c != '\n') {
            return Err(format!("a control character in {body:?}"));
        }
        Ok(())
    });
    still_well(&home, &mut proxy);
    runtime.block_on(async { assert!(proxy.client.status().await.is_ok(), "{}", home.messages()) });
}

const CONFIG_WORDS: &[&str] = &[
    "\n",
    "=",
    "[",
    "]",
    "[[",
    "\"",
    "'",
    "\"\"\"",
    "{",
    "}",
    ",",
    ".",
    "#",
    "0",
    "-1",
    "9223372036854775808",
    "1e400",
    "nan",
    "inf",
    "true",
    "\"1s\"",
    "\"0s\"",
    "\"99999999999h\"",
    "\"1GiB\"",
    "\"18446744073709551615GiB\"",
    "\"1.5s\"",
    "[services.app]\n",
    "[services.other]\nactive = \"blue\"\n",
    "[server]\n",
    "active = \"blue\"\n",
    "endpoints = []\n",
    "endpoints = [\"[::1]:80\"]\n",
    "hosts = [\"*.example.com\", \"*\", \"a..b\", \"xn--\"]\n",
    "path_prefix = \"/a/\"\n",
    "\\u0000",
    "\u{0}",
    "\u{feff}",
    "\u{e9}",
    "127.0.0.0/8",
    "::/0",
    "0.0.0.0/0",
    "unix:/x",
    "127.0.0.1:0",
    "1979-05-27",
];

#[test]
fn no_configuration_panics_and_what_is_accepted_can_be_meant() {
    let shipped = include_str!("../../../config/uh-proxy.toml");
    let all_keys = with_all_keys(shipped);
    let seeds = vec![Home::new("127.0.0.1:1", "127.0.0.1:2").config(), shipped.to_owned(), all_keys];
    fuzz(3000, near(seeds, CONFIG_WORDS), &[], |bytes| {
        let Ok(config) = config::parse(&String::from_utf8_lossy(bytes)) else { return Ok(()) };
        for service in &config.services {
            let names: Vec<_> = service.backends.iter().map(|backend| &backend.name).collect();
            let well = names.contains(&&service.active)
                && service.backends.iter().all(|backend| !backend.endpoints.is_empty())
                && (1..names.len()).all(|at| !names[at..].contains(&names[at - 1]));
            if !well {
                return Err(format!("accepted: {service:?}"));
            }
        }
        Ok(())
    });
}

const STATE_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "\"schema\": 1,",
    "\"schema\": 2,",
    "\"services\": {},",
    "\"checksum\": \"00000000\",",
    "\"active\": \"blue\",",
    "\"registered\": {},",
    "\\u0000",
    "\\ud800",
    "[[[[[[[[",
    "\u{e9}",
    "\u{0}",
    "\"maintenance\": {\"since\": \"x\", \"message\": \"\", \"retryAfterS\": 1},",
];

#[test]
fn no_state_file_panics_and_what_is_read_can_be_written() {
    let guide = r#"{"active":"green","previous":"blue","lastSwitch":"2025-12-03T10:30:00Z","version":"1","healthy":true}"#;
    let sealed = StateFile::parse(crate::damage::WHOLE.as_bytes()).unwrap().text().unwrap();
    let seeds = vec![crate::damage::WHOLE.to_owned(), guide.to_owned(), String::from_utf8(sealed).unwrap()];
    let config = config::parse(&Home::new("127.0.0.1:1", "127.0.0.1:2").config()).unwrap();
    fuzz(5000, near(seeds, STATE_WORDS), &[], |bytes| {
        let Ok(mut state) = StateFile::parse(bytes) else { return Ok(()) };
        for service in &config.services {
            let _ = state.restored(service, true);
        }
        // One of the old scripts is written as one of ours.
        state.schema = 1;
        let text = state.text().map_err(|e| e.to_string())?;
        match StateFile::parse(&text) {
            Ok(again) if again == state => Ok(()),
            other => Err(format!("{state:?} became {other:?}")),
        }
    });
}
