//! Coverage-guided fuzzing of everything that reads bytes from outside. `UH_FUZZ_TARGET` says what this process fuzzes;
//! `run` runs all of it, one after the other.
//!
//! Each target is a seed list, words to put in, and a property that must hold for all bytes. On stable,
//! `replay` tries all of them, and what is near them, in each `make test`.
#![no_main]

mod admin;
mod body;
mod change;
mod deploy_properties;
mod exchange;
mod files;
mod front_door;
mod proxy_properties;
mod proxy_protocol;
mod request;
mod response;
mod shim;
mod target;

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
