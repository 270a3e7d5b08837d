//! Nearly valid bytes: seeds with a few changes that parsers stumble over.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};

/// What is inserted or removed somewhere.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Copy(Index, usize, Index),
    Cut(Index),
    Join(Index, Index),
}

fn change(words: Vec<&'static str>) -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, 1 << (bit % 8))),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), at()).prop_map(move |(at, word)| Change::Insert(at, word.get(&words).as_bytes().to_vec())),
        2 => (at(), 1..9usize).prop_map(|(at, length)| Change::Remove(at, length)),
        2 => (at(), 1..40usize, at()).prop_map(|(from, length, to)| Change::Copy(from, length, to)),
        1 => at().prop_map(Change::Cut),
        1 => (at(), at()).prop_map(|(seed, from)| Change::Join(seed, from)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change, seeds: &[Vec<u8>]) {
    let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
    match change {
        Change::Flip(at, bits) => {
            let at = place(at, bytes);
            bytes[at..].iter_mut().take(1).for_each(|byte| *byte ^= bits);
        }
        Change::Set(at, value) => {
            let at = place(at, bytes);
            bytes[at..].iter_mut().take(1).for_each(|byte| *byte = *value);
        }
        Change::Insert(at, word) => {
            let at = place(at, bytes);
            bytes.splice(at..at, word.iter().copied());
        }
        Change::Remove(at, length) => {
            let at = place(at, bytes);
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        Change::Copy(from, length, to) => {
            let from = place(from, bytes);
            let part = bytes[from..(from + length).min(bytes.len())].to_vec();
            let to = place(to, bytes);
            bytes.splice(to..to, part);
        }
        Change::Cut(at) => bytes.truncate(place(at, bytes)),
        Change::Join(seed, from) => {
            let seed = seed.get(seeds);
            bytes.extend_from_slice(&seed[place(from, seed)..]);
        }
    }
}

/// Seeds with up to five changes; now and then random bytes.
pub fn near(
    seeds: impl IntoIterator<Item = impl Into<Vec<u8>>>,
    words: &[&[&'static str]],
) -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(Into::into).collect();
    let nearly = (any::<Index>(), vec(change(words.concat()), 0..6)).prop_map(move |(seed, changes)| {
        let mut bytes = seed.get(&seeds).clone();
        changes.iter().for_each(|change| apply(&mut bytes, change, &seeds));
        bytes
    });
    prop_oneof![30 => nearly, 1 => vec(any::<u8>(), 0..300)]
}

/// Runs a check on this many of them, or on `UH_FUZZ_CASES`. The first failure is minimised; add it to the known cases.
pub fn fuzz(
    cases: u32,
    strategy: impl Strategy<Value = Vec<u8>>,
    known: &[&str],
    mut check: impl FnMut(&[u8]) -> Result<(), String>,
) {
    for case in known {
        check(case.as_bytes()).unwrap_or_else(|why| panic!("{why}\nof a known case: {case:?}"));
    }
    let cases = std::env::var("UH_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(cases);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    };
    let check = std::cell::RefCell::new(&mut check);
    let result = TestRunner::new(config)
        .run(&strategy, |bytes| (check.borrow_mut())(&bytes).map_err(TestCaseError::fail));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, bytes)) => panic!("{why}\nof: {:?}", String::from_utf8_lossy(&bytes)),
        Err(error) => panic!("{error}"),
    }
}
