//! Whatever the parts and the pauses, a decoder gets the content again.

use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress};
use proptest::prelude::*;

use super::*;

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut all).unwrap();
    all
}

/// A client that reads what has arrived.
struct Reader {
    inflate: Decompress,
    read: Vec<u8>,
}

impl Reader {
    fn new() -> Self {
        Self { inflate: Decompress::new_gzip(15), read: Vec::new() }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        loop {
            self.read.reserve(64 << 10);
            let (taken, made) = (self.inflate.total_in(), self.inflate.total_out());
            self.inflate.decompress_vec(bytes, &mut self.read, FlushDecompress::Sync).unwrap();
            bytes = &bytes[(self.inflate.total_in() - taken) as usize..];
            if bytes.is_empty() && self.inflate.total_out() == made {
                return;
            }
        }
    }
}

/// Takes what is out, in pieces.
fn drain(gzip: &mut Gzip, out: &mut Vec<u8>, piece: usize) {
    while !gzip.output().is_empty() {
        let part = piece.min(gzip.output().len());
        out.extend_from_slice(&gzip.output()[..part]);
        gzip.consume(part);
    }
}

/// Compresses parts, with a flush after those that say so.
fn packed(gzip: &mut Gzip, parts: &[(Vec<u8>, bool)], piece: usize) -> Vec<u8> {
    let (mut out, mut reader, mut before) = (Vec::new(), Reader::new(), Vec::new());
    for (part, flush) in parts {
        let mut rest = part.as_slice();
        while !rest.is_empty() {
            let taken = gzip.step(rest, false).unwrap();
            rest = &rest[taken..];
            drain(gzip, &mut out, piece);
        }
        before.extend_from_slice(part);
        if *flush {
            while gzip.flush().unwrap() {
                drain(gzip, &mut out, piece);
                gzip.step(b"", false).unwrap();
            }
            assert_eq!(gzip.state, State::Open { held: false });
            let known = reader.inflate.total_in() as usize;
            reader.take(&out[known..]);
            assert!(reader.read == before, "a client could read {} of {}", reader.read.len(), before.len());
        }
    }
    while !gzip.is_done() {
        gzip.step(b"", true).unwrap();
        drain(gzip, &mut out, piece);
    }
    out
}

/// Words, as in most content, and bytes that can't be compressed.
fn part() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let words = prop::collection::vec("[a-e]{1,9}", 0..800).prop_map(|words| words.join(" ").into_bytes());
    let noise = (0..80_000usize, any::<u64>()).prop_map(|(length, seed)| {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..length).map(|_| random.u8(..)).collect::<Vec<u8>>()
    });
    (prop_oneof![3 => words, 1 => noise], any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_split_and_any_pause_gives_the_content_again(
        parts in prop::collection::vec(part(), 0..12),
        level in 1..=9u8,
        piece in 1..70_000usize,
    ) {
        let mut gzip = Gzip::new(level);
        let out = packed(&mut gzip, &parts, piece);
        let content: Vec<u8> = parts.into_iter().flat_map(|(part, _)| part).collect();
        prop_assert!(unpacked(&out) == content);
        prop_assert_eq!(gzip.bytes(), (content.len() as u64, out.len() as u64));
    }
}

#[test]
fn a_pause_without_content_adds_nothing() {
    let mut gzip = Gzip::new(6);
    assert!(!gzip.flush().unwrap());
    gzip.step(b"one", false).unwrap();
    assert!(gzip.flush().unwrap());
    let mut out = Vec::new();
    drain(&mut gzip, &mut out, 10);
    assert!(!gzip.flush().unwrap() && !gzip.flush().unwrap());
    gzip.step(b" two", true).unwrap();
    drain(&mut gzip, &mut out, 10);
    assert!(gzip.is_done() && unpacked(&out) == b"one two");
}

#[test]
fn a_compressor_that_is_used_again_remembers_nothing() {
    let content = b"the same content, compressed twice".repeat(50);
    let once = |content: &[u8]| packed(&mut Gzip::new(5), &[(content.to_vec(), false)], 1 << 20);
    let first = once(&content);
    let mut broken_off = Gzip::new(5);
    broken_off.step(&content, false).unwrap();
    drop(broken_off);
    assert_eq!(once(&content), first);
}

#[test]
fn a_worker_has_so_many_compressors_and_many_take_shorter_turns() {
    assert_eq!(Gzip::turn_bytes(), TURN_BYTES);
    let mut all: Vec<Gzip> = Vec::new();
    while has_room() {
        all.push(Gzip::new(1));
    }
    assert_eq!((all.len(), Gzip::turn_bytes()), (MOST, STEP_BYTES));
    let step = all[0].step(&[b'x'; 100_000], false).unwrap();
    assert_eq!(step, STEP_BYTES);
    all.pop();
    assert!(has_room());
    drop(all);
    STOCK.with_borrow(|stock| assert_eq!((stock.lent, stock.kept.len()), (0, KEPT)));
}
