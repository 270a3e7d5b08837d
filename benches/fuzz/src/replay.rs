//! The targets of `make fuzz` without libFuzzer and on stable: what they begin with, and cases near it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod body;
mod exchange;
mod files;
mod front_door;
mod request;
mod response;
mod shim;
#[allow(dead_code, reason = "one part is for libFuzzer")]
mod target;

#[path = "../../../proxy/tests/it/fuzz/mutate.rs"]
mod mutate;
#[allow(dead_code, reason = "shared with the fuzz tests, which need more of it")]
#[path = "../../../proxy/tests/it/fuzz/reference.rs"]
mod reference;
#[path = "../../../proxy/tests/it/fuzz/shipped.rs"]
mod shipped;
#[path = "../../../proxy/tests/it/fuzz/words.rs"]
mod words;

/// For each target. A case takes up to a millisecond.
const CASES: u32 = 2000;

#[test]
fn what_must_hold_holds_for_what_the_targets_begin_with_and_near_it() {
    for target in target::ALL {
        let seeds = (target.seeds)();
        for seed in &seeds {
            (target.check)(seed)
                .unwrap_or_else(|why| panic!("{}: {why}\nof: {}", target.name, seed.escape_ascii()));
        }
        println!("{}: {} seeds", target.name, seeds.len());
        mutate::fuzz(CASES, mutate::near(seeds, target.words.concat().leak()), &[], target.check);
    }
}
