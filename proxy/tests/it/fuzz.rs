//! Nearly valid bytes over the sockets of a real uh-proxy. `UH_FUZZ_CASES=1000000 cargo test fuzz::` takes longer; files are
//! in `benches/fuzz`.

use std::sync::atomic::{AtomicUsize, Ordering};

use uh_testkit::fuzz::calls::{CALLS, ask, call};
use uh_testkit::fuzz::mutate::{fuzz, near};
use uh_testkit::fuzz::reference::Demand;
use uh_testkit::fuzz::witness::{Witness, all_came, compare};
use uh_testkit::fuzz::words::{CALL_WORDS, HTTP_WORDS, JSON_WORDS, KNOWN_REQUESTS, REQUEST_WORDS, REQUESTS};

use crate::harness::{Home, Proxy, SampleApp};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// It must still run at the end, and must not have panicked.
fn still_well(home: &Home, proxy: &mut Proxy) {
    assert!(proxy.is_running(), "uh-proxy has ended:\n{}", home.messages());
    assert!(!home.messages().contains("panicked"), "{}", home.messages());
}

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
    fuzz(3000, near(REQUESTS.iter().copied(), &[HTTP_WORDS, REQUEST_WORDS]), KNOWN_REQUESTS, |bytes| {
        let seen = witness.send(proxy.address, bytes, None)?;
        cases.fetch_add(1, Ordering::Relaxed);
        came.fetch_add(usize::from(!seen.messages.is_empty()), Ordering::Relaxed);
        compare(bytes, &seen, Demand::Strict)
    });
    still_well(&home, &mut proxy);
    let (cases, came) = (cases.into_inner(), came.into_inner());
    assert!(came > cases / 20, "of {cases} cases, only {came} got anything through: they say nothing");
}

#[test]
fn no_call_of_the_admin_socket_does_harm() {
    let runtime = runtime();
    let (blue, green) = runtime
        .block_on(async { (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await) });
    let home = Home::new(blue.address, green.address);
    let mut proxy = runtime.block_on(home.start());
    let seeds = CALLS.iter().map(|(line, body)| call(line, body));
    fuzz(2000, near(seeds, &[JSON_WORDS, CALL_WORDS]), &[], |bytes| ask(&home.socket(), bytes));
    still_well(&home, &mut proxy);
    runtime.block_on(async { assert!(proxy.client.status().await.is_ok(), "{}", home.messages()) });
}
