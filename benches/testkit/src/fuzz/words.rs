//! The seeds of the fuzz tests, and the words they insert, which parsers stumble over.

/// Requests that are valid, some of them one after the other.
pub const REQUESTS: &[&str] = &[
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

/// The same for app-shim, which understands fewer of them.
pub const SHIM_REQUESTS: &[&str] = &[
    "GET /a?b=c HTTP/1.1\r\nHost: app.test\r\nCookie: a=b; c=d\r\n\r\n",
    "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX-Two: 2\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /after HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
    "HEAD /h HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-Stay: 2\r\n\r\n",
    "POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    "DELETE /d HTTP/1.1\r\nhost: a\r\nX-Blank: \t a \t \r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
];

/// Found by these tests, or known from other programs.
pub const KNOWN_REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nx\r\nhello\r\n0\r\n\r\n",
    "GET /a\nHost: b HTTP/1.1\r\nHost: a\r\n\r\n",
    "PUT /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0 \r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
    "DELETE /d HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: \u{80}, x-hop\r\nX-Hop: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "GET b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\u{7}\0=\u{7f}\r\nhello\r\n0\r\n\r\n",
];

/// What any HTTP/1 message is made of.
pub const HTTP_WORDS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "-1",
    "0x5",
    "0\r\n\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: content-length\r\n",
    " folded\r\n",
    "HTTP/1.0",
    "HTTP/2.0",
    "\u{e9}",
    "\u{7f}",
    "\u{b}",
    "X: y\r\n",
];

/// For requests.
pub const REQUEST_WORDS: &[&str] = &[
    "#",
    "?",
    "/",
    "//",
    "..",
    "%2e",
    "%00",
    "0",
    "5",
    "+5",
    "18446744073709551616",
    "ffffffffffffffff",
    "\r\n\r\n",
    "content-length : 5\r\n",
    "Transfer-Encoding:\tchunked\r\n",
    "Host: evil\r\n",
    "Connection: host, te\r\n",
    "Expect: 100-continue\r\n",
    "Upgrade: h2c\r\n",
    "HTTP/1.1",
    "http://u@b/",
    "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    "chunked",
    "identity",
    "\"",
    "\\",
    "Connection: transfer-encoding\r\n",
    "Connection: host\r\n",
];

/// For JSON.
pub const JSON_WORDS: &[&str] = &[
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
    "\\u0000",
    "\\ud800",
    "\u{e9}",
];

/// For calls of uh-proxy's admin socket.
pub const CALL_WORDS: &[&str] = &[
    "\r\n",
    "\0",
    " ",
    "18446744073709551615",
    "0.5",
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
    "services",
    "app",
    "blue",
    "drain",
];

/// For uh-proxy's state file.
pub const STATE_WORDS: &[&str] = &[
    "\"schema\": 1,",
    "\"schema\": 2,",
    "\"services\": {},",
    "\"checksum\": \"00000000\",",
    "\"active\": \"blue\",",
    "\"registered\": {},",
    "[[[[[[[[",
    "\u{0}",
    "\"maintenance\": {\"since\": \"x\", \"message\": \"\", \"retryAfterS\": 1},",
];

/// For TOML.
pub const TOML_WORDS: &[&str] = &[
    "\n",
    "=",
    "[",
    "]",
    "[[",
    "\"",
    "'",
    "{",
    "}",
    ",",
    ".",
    "#",
    "0",
    "-1",
    "9223372036854775808",
    "1e400",
    "true",
    "\"1s\"",
    "\"99999999999999h\"",
    "\"1GiB\"",
    "endpoints = []\n",
    "\\u0000",
    "\u{0}",
    "\u{e9}",
];

/// For uh-proxy's configuration.
pub const CONFIG_WORDS: &[&str] = &[
    "\"\"\"",
    "nan",
    "inf",
    "\"0s\"",
    "\"18446744073709551615GiB\"",
    "\"1.5s\"",
    "[services.app]\n",
    "[services.other]\nactive = \"blue\"\n",
    "[server]\n",
    "active = \"blue\"\n",
    "endpoints = [\"[::1]:80\"]\n",
    "hosts = [\"*.example.com\", \"*\", \"a..b\", \"xn--\"]\n",
    "path_prefix = \"/a/\"\n",
    "\u{feff}",
    "127.0.0.0/8",
    "::/0",
    "0.0.0.0/0",
    "unix:/x",
    "127.0.0.1:0",
    "1979-05-27",
];

/// For `uh-deploy`'s files.
pub const DEPLOY_WORDS: &[&str] = &[
    "null",
    "[backends.blue]\n",
    "[runtime.docker]\n",
    "\"Begun\"",
    "\"event\":",
    "\"schema\":2",
    "\"operation\":\"x\"",
    "}\n{",
    "\"begun\":\"deploy\"",
];

/// A state with every possible field.
pub const WHOLE_STATE: &str = r#"{
  "active": "green", "previous": "blue", "lastSwitch": "2026-11-23T17:18:13Z", "version": "1.0.1", "healthy": true,
  "schema": 1, "generation": 17,
  "services": {
    "app": {"active": "green", "previous": "blue", "lastSwitch": "2026-11-23T17:18:13Z",
      "registered": {"blue": {"endpoints": ["127.0.0.1:3010", "unix:/run/blue.sock"], "version": "1.0.2"}}, "withdrawn": ["blue"]},
    "web": {"active": "one", "previous": null, "lastSwitch": null,
      "maintenance": {"since": "2026-11-23T17:18:13Z", "message": "Back at noon.", "retryAfterS": 300}}
  }
}"#;

/// A state as the guide's scripts wrote it.
pub const GUIDE_STATE: &str = r#"{"active":"green","previous":"blue","lastSwitch":"2025-12-03T10:30:00Z","version":"1","healthy":true}"#;

/// A shipped configuration with its tables and keys that are commented out.
#[must_use]
pub fn with_all_keys(shipped: &str) -> String {
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
    let is_table =
        |rest: &str| rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(is_name);
    let is_pair = |rest: &str| rest.split_once(" = ").is_some_and(|(key, _)| is_name(key));
    let is_shown = |rest: &&str| is_table(rest) || is_pair(rest);
    let shown = |line: &str| line.strip_prefix("# ").filter(is_shown).unwrap_or(line).to_owned();
    shipped.lines().map(|line| shown(line) + "\n").collect()
}
