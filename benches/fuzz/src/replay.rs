//! The targets of `make fuzz` without libFuzzer and on stable: what they begin with, and cases near it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod body;
mod change;
mod deploy_properties;
mod exchange;
mod files;
mod front_door;
mod near;
mod proxy_properties;
mod proxy_protocol;
mod request;
mod response;
mod shim;
#[allow(dead_code, reason = "one part is for libFuzzer")]
mod target;

use std::sync::atomic::{AtomicUsize, Ordering};

/// Panics in any thread: one in a uh-proxy thread ends a call without being noticed otherwise.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// For each target, or `UH_FUZZ_CASES`; with `UH_FUZZ_TARGET`, for that one alone. A case takes up to a millisecond.
const CASES: u32 = 2000;

#[test]
fn what_must_hold_holds_for_what_the_targets_begin_with_and_near_it() {
    let cases = std::env::var("UH_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        hook(panic);
    }));
    let only = std::env::var("UH_FUZZ_TARGET").ok();
    for target in target::ALL.iter().filter(|target| only.as_ref().is_none_or(|only| only == target.name)) {
        let (seeds, words) = ((target.seeds)(), target.words.concat());
        let mut random = fastrand::Rng::new();
        let near = (0..cases).map(|_| {
            let mut bytes = random.choice(&seeds).cloned().unwrap_or_default();
            (0..random.u8(1..=4)).for_each(|_| change::change(&mut bytes, &words, &mut random));
            bytes
        });
        for bytes in seeds.iter().cloned().chain(near) {
            let outcome = match (target.check)(&bytes) {
                Ok(()) if PANICS.load(Ordering::Relaxed) > 0 => Err("a thread has panicked".to_owned()),
                outcome => outcome,
            };
            if let Err(why) = outcome {
                panic!("{}: {why}\nof: {}", target.name, bytes.escape_ascii());
            }
        }
    }
}
