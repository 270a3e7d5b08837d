//! Nearly valid requests through the shim into an app with a strict parser.

use std::time::Duration;

use uh_testkit::fuzz::mutate::{fuzz, near};
use uh_testkit::fuzz::reference::{Demand, is_same, read_leniently};
use uh_testkit::fuzz::witness::{Witness, all_came, compare};
use uh_testkit::fuzz::words::{HTTP_WORDS, KNOWN_REQUESTS, REQUEST_WORDS, SHIM_REQUESTS};

use crate::shim::{Shim, TALKER};

/// How long a client that hasn't sent everything waits for the shim before it leaves.
const PATIENCE: Duration = Duration::from_millis(30);

/// hyper may accept what uh-proxy would reject. But whatever the app gets is valid, and a valid request reaches the
/// app unchanged.
#[test]
fn the_app_receives_what_the_client_meant() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let witness = Witness::start();
    let (shim, address) = runtime.block_on(async {
        let shim = Shim::start(&witness.address.to_string(), &[], TALKER);
        let address = shim.address().await;
        shim.log.wait_for("App accepts connections").await;
        (shim, address)
    });
    let seeds = SHIM_REQUESTS.iter().copied();
    // The test's app never sends 100 Continue, and the shim waits for it.
    let unasked = SHIM_REQUESTS.iter().filter(|request| !request.contains("Expect:"));
    for request in unasked.map(|request| request.as_bytes()) {
        all_came(request, &witness.send(address, request, Some(PATIENCE)).unwrap(), Demand::WellFormed)
            .unwrap();
    }
    // For the shim, a client that closes its sending side has left, so its request may reach the app late or not at
    // all.
    let mut before = Vec::new();
    fuzz(200, near(seeds, &[HTTP_WORDS, REQUEST_WORDS]), KNOWN_REQUESTS, |bytes| {
        let bytes = [bytes, b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat();
        let mut seen = witness.send(address, &bytes, Some(PATIENCE))?;
        let late = seen
            .messages
            .iter()
            .take_while(|came| before.iter().any(|meant| is_same(meant, came, Demand::WellFormed)))
            .count();
        let meant = read_leniently(&bytes);
        if late > 0 && compare(&bytes, &seen, Demand::WellFormed).is_err() {
            seen.messages.drain(..late);
        }
        before = meant;
        compare(&bytes, &seen, Demand::WellFormed)
    });
    assert!(!shim.log.all().iter().any(|line| line.contains("panicked")), "{:?}", shim.log.all());
}
