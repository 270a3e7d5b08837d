//! Nearly valid bytes for everything that reads external input. `UH_FUZZ_CASES=1000000 cargo test fuzz::` takes longer.

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/properties.rs"]
mod properties;
#[path = "fuzz/reference.rs"]
mod reference;
#[path = "fuzz/shipped.rs"]
mod shipped;
#[path = "fuzz/witness.rs"]
mod witness;
#[path = "fuzz/words.rs"]
mod words;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use uh_proxy::config;
use uh_proxy::state::file::StateFile;

use crate::harness::{Home, Proxy, SampleApp};
use mutate::{fuzz, near};
use properties::{of_answer, of_config, of_state};
use reference::Demand;
use shipped::with_all_keys;
use witness::{Witness, all_came, compare};
use words::{
    CALL_WORDS, CALLS, CONFIG_WORDS, GUIDE_STATE, KNOWN_REQUESTS, REQUEST_WORDS, REQUESTS, STATE_WORDS, call,
    with_right_length,
};

fn owned(seeds: &[&str]) -> Vec<String> {
    seeds.iter().map(|&seed| seed.to_owned()).collect()
}

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

#[test]
fn no_call_of_the_admin_socket_does_harm() {
    let runtime = runtime();
    let (blue, green) = runtime
        .block_on(async { (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await) });
    let home = Home::new(blue.address, green.address);
    let mut proxy = runtime.block_on(home.start());
    let seeds = CALLS.iter().map(|(line, body)| call(line, body));
    let calls = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(home.socket()).map_err(|e| format!("no connection: {e}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        if stream.read_to_end(&mut reply).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
            return Err("it neither responds nor closes".to_owned());
        }
        of_answer(&reply)
    };
    fuzz(2000, near(seeds, CALL_WORDS), &[], |bytes| {
        calls(bytes).and_then(|()| with_right_length(bytes).map_or(Ok(()), |right| calls(&right)))
    });
    still_well(&home, &mut proxy);
    runtime.block_on(async { assert!(proxy.client.status().await.is_ok(), "{}", home.messages()) });
}

#[test]
fn no_configuration_panics_and_what_is_accepted_can_be_meant() {
    let shipped = include_str!("../../../config/uh-proxy.toml");
    let all_keys = with_all_keys(shipped);
    let seeds = vec![Home::new("127.0.0.1:1", "127.0.0.1:2").config(), shipped.to_owned(), all_keys];
    fuzz(3000, near(seeds, CONFIG_WORDS), &[], of_config);
}

#[test]
fn no_state_file_panics_and_what_is_read_can_be_written() {
    let sealed = StateFile::parse(crate::damage::WHOLE.as_bytes()).unwrap().text().unwrap();
    let seeds =
        vec![crate::damage::WHOLE.to_owned(), GUIDE_STATE.to_owned(), String::from_utf8(sealed).unwrap()];
    let config = config::parse(&Home::new("127.0.0.1:1", "127.0.0.1:2").config()).unwrap();
    fuzz(5000, near(seeds, STATE_WORDS), &[], |bytes| of_state(bytes, &config));
}
