//! Nearly right requests through the shim into an app that reads by the rules.

#[path = "../../../proxy/tests/it/fuzz/mutate.rs"]
mod mutate;
#[path = "../../../proxy/tests/it/fuzz/reference.rs"]
mod reference;
#[path = "../../../proxy/tests/it/fuzz/witness.rs"]
mod witness;

use std::time::Duration;

use crate::shim::{Shim, TALKER};
use mutate::{fuzz, near};
use reference::read_all;
use witness::{Demand, Witness, all_came, compare, is_same};

/// How long the shim may be silent before a client that has not sent all leaves.
const PATIENCE: Duration = Duration::from_millis(30);

const REQUESTS: &[&str] = &[
    "GET /a?b=c HTTP/1.1\r\nHost: app.test\r\nCookie: a=b; c=d\r\n\r\n",
    "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nX-Two: 2\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /after HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
    "HEAD /h HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-Stay: 2\r\n\r\n",
    "POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    "DELETE /d HTTP/1.1\r\nhost: a\r\nX-Blank: \t a \t \r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
];

const WORDS: &[&str] = &[
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
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Host: evil\r\n",
    "Connection: close\r\n",
    "Connection: content-length\r\n",
    "Connection: transfer-encoding\r\n",
    "Connection: host\r\n",
    " folded\r\n",
    "HTTP/1.0",
    "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    "\u{e9}",
    "\u{7f}",
    "chunked",
    "identity",
    "X: y\r\n",
];

/// Found by this test, or by what others have found in other programs.
const KNOWN: &[&str] = &[
    "DELETE /d HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: \u{80}, x-hop\r\nX-Hop: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nConnection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
];

/// What the front door would refuse, hyper may take; but whatever the app gets is by the rules, and what came by the rules is
/// what the app gets.
#[test]
fn what_the_app_sees_is_what_was_meant() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let witness = Witness::start();
    let (shim, address) = runtime.block_on(async {
        let shim = Shim::start(&witness.address.to_string(), &[], TALKER);
        let address = shim.address().await;
        shim.log.wait_for("App accepts connections").await;
        (shim, address)
    });
    let seeds = REQUESTS.iter().map(|&seed| seed.to_owned()).collect();
    // The witness never asks for a body, and the shim waits until it is asked.
    let unasked = REQUESTS.iter().filter(|request| !request.contains("Expect:"));
    for request in unasked.map(|request| request.as_bytes()) {
        all_came(request, &witness.send(address, request, Some(PATIENCE)).unwrap(), Demand::WellFormed)
            .unwrap();
    }
    // A client that sends its end has left, for the shim, and what is under way may reach the app when nobody waits any more.
    let mut before = Vec::new();
    fuzz(200, near(seeds, WORDS), KNOWN, |bytes| {
        let bytes = [bytes, b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat();
        let mut seen = witness.send(address, &bytes, Some(PATIENCE))?;
        let late = seen
            .messages
            .iter()
            .take_while(|came| before.iter().any(|meant| is_same(meant, came, Demand::WellFormed)))
            .count();
        let (meant, _) = read_all(&bytes);
        if late > 0 && compare(&bytes, &seen, Demand::WellFormed).is_err() {
            seen.messages.drain(..late);
        }
        before = meant;
        compare(&bytes, &seen, Demand::WellFormed)
    });
    assert!(!shim.log.all().iter().any(|line| line.contains("panicked")), "{:?}", shim.log.all());
}
