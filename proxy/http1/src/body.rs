//! Finds the end of a body. [`BodyScanner`] reads bytes as they arrive and returns how many of them belong to the body.
//!
//! Chunked bodies are checked strictly (RFC 9112 §7.1) and forwarded unchanged, including extensions and trailers:
//! anything that two parsers could read differently is rejected. A trailer that has a meaning in a head is rejected,
//! because some apps merge trailers into the head.

use super::field::{classify_folded, is_token_byte};

/// The longest chunk-size line, including extensions: a size has at most 16 digits, and extensions are rarely used.
const MAX_CHUNK_LINE: u32 = 1024;

/// The most bytes of trailers.
const MAX_TRAILER_BYTES: u32 = 8 << 10;

/// The part of a trailer's name that is kept to recognise known fields, whose names or prefixes are shorter.
const TRAILER_NAME_BYTES: usize = 24;

/// How the end of a message's body is marked (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// When the sender closes. Only for responses and tunnels.
    UntilClose,
}

/// What is wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not a chunk size, or a chunk does not end where it should.
    #[error("malformed chunked body")]
    BadChunk,
    /// A trailer names a field that only a head may have (RFC 9110 §6.5.1).
    #[error("a field that isn't allowed in trailers")]
    BadTrailer,
    /// The sender closed too early.
    #[error("the body ended too early")]
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    /// At the first digit of a size, or after `digits` of them.
    Size {
        size: u64,
        digits: u32,
    },
    /// White space after a size: an extension may follow, another digit may not.
    Space {
        size: u64,
        bytes: u32,
    },
    Extension {
        size: u64,
        bytes: u32,
    },
    SizeLf {
        size: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    TrailerStart {
        bytes: u32,
    },
    TrailerName {
        bytes: u32,
    },
    TrailerValue {
        bytes: u32,
    },
    TrailerLf {
        bytes: u32,
    },
    EndLf,
    Done,
}

impl State {
    /// Whether the last chunk is over.
    fn is_trailer(self) -> bool {
        use State::{EndLf, TrailerLf, TrailerName, TrailerStart, TrailerValue};
        matches!(
            self,
            TrailerStart { .. } | TrailerName { .. } | TrailerValue { .. } | TrailerLf { .. } | EndLf
        )
    }
}

/// Follows a body until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyScanner {
    state: State,
    content: u64,
    /// The start of the trailer name that is being read.
    name: [u8; TRAILER_NAME_BYTES],
    name_length: usize,
}

/// The result of [`BodyScanner::step`]: a number of bytes and their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Body content.
    Data(usize),
    /// Chunk framing.
    Frame(usize),
    /// Trailers, up to and with the empty line that ends them.
    Trailer(usize),
}

impl BodyScanner {
    /// A scanner at the start of a body.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, content: 0, name: [0; TRAILER_NAME_BYTES], name_length: 0 }
    }

    /// Bytes of content so far, without chunk framing.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.content
    }

    /// How many of the next bytes are content in any case, because a length has announced them.
    #[must_use]
    pub fn announced(&self) -> u64 {
        if let State::Length(left) = self.state { left } else { 0 }
    }

    /// This many of the [`BodyScanner::announced`] bytes were forwarded without being scanned.
    pub fn skip(&mut self, bytes: u64) {
        let left = self.announced();
        let bytes = bytes.min(left);
        self.content += bytes;
        if left > 0 {
            self.state = if left == bytes { State::Done } else { State::Length(left - bytes) };
        }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Handles the sender's close.
    ///
    /// # Errors
    /// If the body wasn't complete.
    pub fn end_of_input(&mut self) -> Result<(), BodyError> {
        if matches!(self.state, State::UntilClose) {
            self.state = State::Done;
        }
        if self.is_done() { Ok(()) } else { Err(BodyError::Truncated) }
    }

    /// Returns how many of these bytes belong to the body: all of them, unless it ends among them.
    ///
    /// # Errors
    /// If the chunked framing is invalid.
    pub fn take(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        let mut taken = 0;
        while taken < input.len() && !self.is_done() {
            taken += match self.step(&input[taken..])? {
                Step::Data(n) | Step::Frame(n) | Step::Trailer(n) => n,
            };
        }
        Ok(taken)
    }

    /// Scans the next piece of a non-empty input: one run of content, of framing, or of trailers.
    ///
    /// # Errors
    /// If the chunked framing is invalid.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        match self.state {
            State::Done => Ok(Step::Frame(0)),
            State::UntilClose => {
                self.content += input.len() as u64;
                Ok(Step::Data(input.len()))
            }
            State::Length(left) => {
                let n = clamp(left, input.len());
                self.skip(n as u64);
                Ok(Step::Data(n))
            }
            State::Data(left) => {
                let n = clamp(left, input.len());
                self.content += n as u64;
                self.state = if left == n as u64 { State::DataCr } else { State::Data(left - n as u64) };
                Ok(Step::Data(n))
            }
            _ => self.frame(input),
        }
    }

    /// A run of framing bytes, up to the next content or the trailers; or of trailers, up to their end.
    fn frame(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let in_trailers = self.state.is_trailer();
        let run = |length| if in_trailers { Step::Trailer(length) } else { Step::Frame(length) };
        for (index, &byte) in input.iter().enumerate() {
            let before = self.state;
            self.state = next(before, byte).ok_or(BodyError::BadChunk)?;
            if matches!(before, State::TrailerStart { .. } | State::TrailerName { .. }) {
                self.read_trailer_name(byte)?;
            }
            if matches!(self.state, State::Data(_) | State::Done) || self.state.is_trailer() != in_trailers {
                return Ok(run(index + 1));
            }
        }
        Ok(run(input.len()))
    }

    /// Records a byte of a trailer's name, and checks the name when it is complete.
    fn read_trailer_name(&mut self, byte: u8) -> Result<(), BodyError> {
        if byte != b':' {
            if let Some(place) = self.name.get_mut(self.name_length) {
                *place = byte;
                self.name_length += 1;
            }
            return Ok(());
        }
        let length = std::mem::take(&mut self.name_length);
        let known = classify_folded(&self.name[..length]);
        if known.is_end_to_end() { Ok(()) } else { Err(BodyError::BadTrailer) }
    }
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

/// Handles one byte of framing; `None`: it isn't allowed here.
fn next(state: State, byte: u8) -> Option<State> {
    match state {
        State::Size { size, digits } => match (char::from(byte).to_digit(16), byte) {
            (Some(digit), _) if digits < 16 => {
                Some(State::Size { size: (size << 4) | u64::from(digit), digits: digits + 1 })
            }
            (None, b'\r') if digits > 0 => Some(State::SizeLf { size }),
            (None, b' ' | b'\t') if digits > 0 => Some(State::Space { size, bytes: digits }),
            (None, b';') if digits > 0 => Some(State::Extension { size, bytes: digits }),
            _ => None,
        },
        State::Space { size, bytes } if bytes < MAX_CHUNK_LINE => match byte {
            b' ' | b'\t' => Some(State::Space { size, bytes: bytes + 1 }),
            b';' => Some(State::Extension { size, bytes: bytes + 1 }),
            b'\r' => Some(State::SizeLf { size }),
            _ => None,
        },
        State::Extension { size, .. } if byte == b'\r' => Some(State::SizeLf { size }),
        State::Extension { size, bytes } if is_text(byte) && bytes < MAX_CHUNK_LINE => {
            Some(State::Extension { size, bytes: bytes + 1 })
        }
        State::SizeLf { size: 0 } if byte == b'\n' => Some(State::TrailerStart { bytes: 0 }),
        State::SizeLf { size } if byte == b'\n' && size <= i64::MAX as u64 => Some(State::Data(size)),
        State::DataCr if byte == b'\r' => Some(State::DataLf),
        State::DataLf if byte == b'\n' => Some(State::Size { size: 0, digits: 0 }),
        State::TrailerStart { .. } if byte == b'\r' => Some(State::EndLf),
        State::TrailerStart { bytes } | State::TrailerName { bytes }
            if is_token_byte(byte) && bytes < MAX_TRAILER_BYTES =>
        {
            Some(State::TrailerName { bytes: bytes + 1 })
        }
        State::TrailerName { bytes } if byte == b':' => Some(State::TrailerValue { bytes: bytes + 1 }),
        State::TrailerValue { bytes } if byte == b'\r' => Some(State::TrailerLf { bytes }),
        State::TrailerValue { bytes } if is_text(byte) && bytes < MAX_TRAILER_BYTES => {
            Some(State::TrailerValue { bytes: bytes + 1 })
        }
        State::TrailerLf { bytes } if byte == b'\n' => Some(State::TrailerStart { bytes }),
        State::EndLf if byte == b'\n' => Some(State::Done),
        _ => None,
    }
}

/// Any byte except control bytes; a tab is allowed.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(input: &[u8]) -> Result<(usize, bool, Vec<u8>), BodyError> {
        let mut scanner = BodyScanner::new(Framing::Chunked);
        let (mut at, mut content) = (0, Vec::new());
        while at < input.len() && !scanner.is_done() {
            match scanner.step(&input[at..])? {
                Step::Data(n) => {
                    content.extend_from_slice(&input[at..at + n]);
                    at += n;
                }
                Step::Frame(n) | Step::Trailer(n) => at += n,
            }
        }
        Ok((at, scanner.is_done(), content))
    }

    #[test]
    fn chunked_bodies_end_where_they_end() {
        let whole = b"5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\nGET /";
        assert_eq!(scan(whole), Ok((whole.len() - 5, true, b"hello0123456789".to_vec())));
        assert_eq!(scan(b"0\r\n\r\n"), Ok((5, true, vec![])));
    }

    #[test]
    fn trailers_are_told_apart_from_framing_wherever_the_input_is_cut() {
        let whole = b"5\r\nhello\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\nGET /";
        for cut in 0..whole.len() {
            let mut scanner = BodyScanner::new(Framing::Chunked);
            let mut trailers = Vec::new();
            for part in [&whole[..cut], &whole[cut..]] {
                let mut at = 0;
                while at < part.len() && !scanner.is_done() {
                    at += match scanner.step(&part[at..]).unwrap() {
                        Step::Trailer(n) => {
                            trailers.extend_from_slice(&part[at..at + n]);
                            n
                        }
                        Step::Data(n) | Step::Frame(n) => n,
                    };
                }
            }
            assert!(scanner.is_done(), "{cut}");
            assert_eq!(trailers, b"x-sum: 1\r\nx-more: 2\r\n\r\n", "{cut}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            "5\nhello",
            "5\r\nhello\n",
            "5\r\nhelloX",
            "-1\r\n",
            "0x5\r\n",
            "+5\r\n",
            " 5\r\n",
            "11111111111111111\r\n",
            "ffffffffffffffff\r\nx",
            "5;\n\r\n",
            "5;\0\r\n",
            "5 \rx",
            "5 6\r\n",
            "5\t6;a\r\n",
            "5\u{b}\r\n",
            "0\r\nfolded: a\r\n b: c\r\n\r\n",
            "0\r\n:no-name\r\n\r\n",
            "0\r\nname : x\r\n\r\n",
            "0\r\nname\r\n\r\n",
            "0\r\n\n",
        ] {
            assert_eq!(scan(bad.as_bytes()), Err(BodyError::BadChunk), "{bad:?}");
        }
    }

    #[test]
    fn a_trailer_must_not_mean_anything_in_a_head() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "Transfer_Encoding",
            "Host",
            "X-Forwarded-For",
            "x_forwarded_for",
            "X-Forwarded-Something-With-A-Long-Name",
            "X-Request-Id",
            "Connection",
        ] {
            let body = format!("0\r\nA: b\r\n{name}: x\r\n\r\n");
            assert_eq!(scan(body.as_bytes()), Err(BodyError::BadTrailer), "{name}");
        }
        for name in
            ["X-Checksum", "Server-Timing", "Content-Length-Of-The-Whole-Upload", "Transfer-Encoding-2"]
        {
            let body = format!("0\r\n{name}: x\r\n\r\n");
            assert_eq!(scan(body.as_bytes()), Ok((body.len(), true, vec![])), "{name}");
        }
    }

    #[test]
    fn endless_framing_is_refused() {
        for filler in ["x", " "] {
            assert_eq!(scan(format!("1 ;{}", filler.repeat(2000)).as_bytes()), Err(BodyError::BadChunk));
            assert_eq!(scan(format!("1{}", " ".repeat(2000)).as_bytes()), Err(BodyError::BadChunk));
        }
        assert_eq!(scan(format!("0\r\n{}", "a: b\r\n".repeat(3000)).as_bytes()), Err(BodyError::BadChunk));
    }

    #[test]
    fn an_early_end_is_seen() {
        let mut scanner = BodyScanner::new(Framing::Length(5));
        assert_eq!(scanner.take(b"abc"), Ok(3));
        assert_eq!(scanner.end_of_input(), Err(BodyError::Truncated));
        let mut scanner = BodyScanner::new(Framing::UntilClose);
        assert_eq!(scanner.take(b"abc"), Ok(3));
        assert_eq!(scanner.end_of_input(), Ok(()));
    }

    proptest! {
        #[test]
        fn any_split_of_the_input_gives_the_same(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), cut in any::<prop::sample::Index>()) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(scan(&wire), Ok((wire.len(), true, chunks.concat())));
            let cut = cut.index(wire.len());
            let mut scanner = BodyScanner::new(Framing::Chunked);
            prop_assert_eq!(scanner.take(&wire[..cut]), Ok(cut));
            prop_assert_eq!(scanner.take(&wire[cut..]), Ok(wire.len() - cut));
            prop_assert!(scanner.is_done());
        }

        #[test]
        fn no_bytes_panic_the_scanner(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = scan(&input);
        }
    }
}
