//! A pump that compresses, between a source that pauses and a sink that takes little at a time.

use std::collections::VecDeque;
use std::io::Read as _;

use flate2::read::MultiGzDecoder;
use proptest::prelude::*;

use super::*;
use crate::front::pump::ends::PumpSource;
use uh_http1::body::{BodyScanner, Step};

/// Arrives in these pieces; after an empty one there is nothing for now.
struct Pieces(VecDeque<Vec<u8>>);

impl PumpSource for Pieces {
    fn poll_fill(&mut self, cx: &mut Context<'_>, slot: &mut Option<Buffer>) -> Poll<io::Result<usize>> {
        let Some(mut piece) = self.0.pop_front() else { return Poll::Ready(Ok(0)) };
        if piece.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let buffer = slot.get_or_insert_with(Buffer::take);
        let part = piece.len().min(buffer.room().len());
        let rest = piece.split_off(part);
        buffer.room()[..part].copy_from_slice(&piece);
        buffer.grow(part);
        if !rest.is_empty() {
            self.0.push_front(rest);
        }
        Poll::Ready(Ok(part))
    }
}

/// Takes so many bytes at a time, and waits after each.
struct Narrow {
    most: usize,
    full: bool,
    /// It sends frames, and trailers in one of them.
    frames: bool,
    all: Vec<u8>,
    last: bool,
}

impl PumpSink for Narrow {
    fn poll_write(&mut self, cx: &mut Context<'_>, parts: Parts<'_>) -> Poll<io::Result<usize>> {
        self.full = !self.full;
        if self.full {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        assert!(!self.last, "something follows what was the last");
        let all = [parts.head, parts.before, parts.content, parts.after].concat();
        let taken = all.len().min(self.most);
        self.all.extend_from_slice(&all[..taken]);
        self.last = parts.last && parts.after.is_empty() && taken == all.len();
        Poll::Ready(Ok(taken))
    }

    fn poll_end(&mut self, _cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        if self.frames {
            self.all.extend_from_slice(trailers);
        }
        Poll::Ready(Ok(()))
    }
}

/// Pumps until it is over, and returns what was taken.
fn pumped(framing: Framing, coding: Coding, wire: Vec<Vec<u8>>, most: usize) -> Result<Vec<u8>, PumpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut from = Pieces(wire.into());
    let frames = coding == Coding::Frame;
    let mut to = Narrow { most, full: false, frames, all: Vec::new(), last: false };
    let mut pump = Pump::new(Vec::new(), Framing::None, Coding::AsItIs, None);
    pump.begin_body(framing, coding, Some(6), None);
    runtime.block_on(std::future::poll_fn(|cx| pump.poll(cx, &mut from, &mut to)))?;
    assert!(pump.surplus().is_none() && pump.is_flushed());
    assert_eq!(pump.compressed_bytes().unwrap().1, pump.body_sent());
    Ok(to.all)
}

/// The content of a chunked body, and its trailers.
fn unchunked(bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut scanner, mut content, mut trailers, mut at) =
        (BodyScanner::new(Framing::Chunked), Vec::new(), Vec::new(), 0);
    while !scanner.is_done() {
        let step = scanner.step(&bytes[at..]).unwrap();
        match step {
            Step::Data(n) => content.extend_from_slice(&bytes[at..at + n]),
            Step::Trailer(n) => trailers.extend_from_slice(&bytes[at..at + n]),
            Step::Frame(_) => {}
        }
        let (Step::Data(n) | Step::Trailer(n) | Step::Frame(n)) = step;
        at += n;
    }
    assert_eq!(at, bytes.len());
    (content, trailers)
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut all).unwrap();
    all
}

/// A body on the wire, cut at random, with pauses.
fn cut(bytes: &[u8], mut cuts: Vec<(usize, bool)>) -> Vec<Vec<u8>> {
    cuts.sort_unstable();
    let (mut pieces, mut at) = (Vec::new(), 0);
    for (cut, pause) in cuts {
        let cut = (cut % (bytes.len() + 1)).max(at);
        pieces.push(bytes[at..cut].to_vec());
        pieces.extend(pause.then(Vec::new));
        at = cut;
    }
    pieces.push(bytes[at..].to_vec());
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn content_is_the_same_whatever_frames_it_and_however_it_arrives(
        words in prop::collection::vec("[a-h]{1,12}", 0..9000),
        framing in 0..3,
        frames in any::<bool>(),
        cuts in prop::collection::vec((0..100_000usize, any::<bool>()), 0..20),
        most in 1..40_000usize,
    ) {
        let content = words.join(" ").into_bytes();
        let (framing, wire, trailers) = match framing {
            0 => (Framing::Length(content.len() as u64), content.clone(), ""),
            1 => (Framing::UntilClose, content.clone(), ""),
            _ => {
                let chunks = content.chunks(777).flat_map(|chunk| {
                    [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()
                });
                let wire = chunks.chain(*b"0\r\nX-Sum: 1\r\n\r\n").collect();
                (Framing::Chunked, wire, "X-Sum: 1\r\n")
            }
        };
        prop_assume!(framing != Framing::Length(0));
        let coding = if frames { Coding::Frame } else { Coding::Chunk };
        let all = pumped(framing, coding, cut(&wire, cuts), most).unwrap();
        let (packed, found) = match coding {
            Coding::Chunk => unchunked(&all),
            _ => (all[..all.len() - trailers.len()].to_vec(), all[all.len() - trailers.len()..].to_vec()),
        };
        prop_assert!(unpacked(&packed) == content);
        let end = if coding == Coding::Chunk { "\r\n" } else { "" };
        prop_assert_eq!(String::from_utf8(found).unwrap(), format!("{trailers}{end}"));
    }
}

#[test]
fn a_body_that_breaks_off_has_no_end() {
    let pieces = || vec![b"the first half of it".to_vec(), Vec::new()];
    let broken = pumped(Framing::Length(40), Coding::Chunk, pieces(), 100);
    assert!(matches!(broken, Err(PumpError::Truncated)), "{broken:?}");
    let garbage = vec![b"5\r\nhello\r\nnot a size".to_vec()];
    let broken = pumped(Framing::Chunked, Coding::Frame, garbage, 100);
    assert!(matches!(broken, Err(PumpError::BadBody)), "{broken:?}");
}

#[test]
fn no_more_is_compressed_in_one_turn_than_others_can_wait_for() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // In small pieces and in large ones.
    for piece in [1000, 100_000] {
        let pieces = vec![vec![b'x'; piece]; 1_000_000 / piece];
        let mut from = Pieces(pieces.into());
        let mut to = Narrow { most: usize::MAX, full: false, frames: true, all: Vec::new(), last: false };
        let mut pump = Pump::new(Vec::new(), Framing::None, Coding::AsItIs, None);
        pump.begin_body(Framing::Length(1_000_000), Coding::Frame, Some(6), None);
        let mut most = 0;
        runtime
            .block_on(std::future::poll_fn(|cx| {
                let before = pump.compressed_bytes().unwrap().0;
                let polled = pump.poll(cx, &mut from, &mut to);
                most = most.max(pump.compressed_bytes().unwrap().0 - before);
                polled
            }))
            .unwrap();
        assert!(most <= 2 * Gzip::turn_bytes() as u64, "{most} bytes in one turn");
    }
}
