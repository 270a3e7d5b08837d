//! Coverage-guided fuzzing of everything that reads bytes from outside. `UH_FUZZ_TARGET` says what this process fuzzes;
//! `run` runs all of it, one after the other.
//!
//! Each target is a seed list, words to put in, and a property that must hold for all bytes. The words, the seeds, the
//! reference reader and the properties of files are those of the ordinary fuzz tests, which run on stable.
#![no_main]

mod admin;
mod body;
mod change;
mod exchange;
mod files;
mod front_door;
mod request;
mod response;
mod shim;
mod target;

#[allow(dead_code, reason = "shared with the fuzz tests, which need more of it")]
#[path = "../../../proxy/tests/it/fuzz/reference.rs"]
mod reference;
#[path = "../../../proxy/tests/it/fuzz/shipped.rs"]
mod shipped;
#[path = "../../../proxy/tests/it/fuzz/words.rs"]
mod words;

libfuzzer_sys::fuzz_target!(init: target::prepare(), |bytes: &[u8]| target::check(bytes));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    let mut random = fastrand::Rng::with_seed(u64::from(seed));
    if random.bool() {
        return libfuzzer_sys::fuzzer_mutate(data, size, most);
    }
    let mut bytes = data[..size].to_vec();
    for _ in 0..random.u8(1..=3) {
        change::change(&mut bytes, target::words(), &mut random);
    }
    bytes.truncate(most);
    data[..bytes.len()].copy_from_slice(&bytes);
    bytes.len()
});
