//! Follows the frames of a connection (RFC 9113 §4.1), by their heads only: they are counted and limited here, what they
//! mean is the business of `h2`.

/// What a client sends first (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;

/// A frame's head.
const HEAD_BYTES: usize = 9;

/// A RST_STREAM frame's payload: its error code.
const CODE_BYTES: usize = 4;

/// END_STREAM (RFC 9113 §6.1).
const END_STREAM: u8 = 1;

// RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;

/// What a frame is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    /// It opens a stream, or ends one with trailers.
    Headers,
    /// It carries a part of a body, or ends one.
    Content,
    /// It lets a response continue.
    WindowUpdate,
    /// It cancels a stream, with this error code. Whether it was answered isn't known here.
    Reset(u32),
    /// Anything else: it moves no request and no response.
    Control,
}

/// Follows frames in a stream of bytes.
#[derive(Debug)]
pub(super) struct FrameScanner {
    /// Bytes until the next head.
    skip: usize,
    /// A head, and the error code that follows the one of a RST_STREAM frame.
    head: [u8; HEAD_BYTES + CODE_BYTES],
    have: usize,
    need: usize,
}

impl FrameScanner {
    /// For what a client sends.
    pub(super) fn of_client() -> Self {
        Self { skip: PREFACE_BYTES, ..Self::of_server() }
    }

    /// For what a server sends.
    pub(super) fn of_server() -> Self {
        Self { skip: 0, head: [0; HEAD_BYTES + CODE_BYTES], have: 0, need: HEAD_BYTES }
    }

    /// Whether the last frame isn't complete.
    pub(super) fn is_in_frame(&self) -> bool {
        self.skip > 0 || self.have > 0
    }

    /// Reads the next bytes, and reports the frames that begin in them.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(FrameKind)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let part = (self.need - self.have).min(bytes.len());
            self.head[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have < self.need {
                return;
            }
            let [a, b, c, kind, flags, _, _, _, _, code @ ..] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let kind = match kind {
                RST_STREAM if length as usize == CODE_BYTES && self.have == HEAD_BYTES => {
                    self.need += CODE_BYTES;
                    continue;
                }
                RST_STREAM if length as usize == CODE_BYTES => FrameKind::Reset(u32::from_be_bytes(code)),
                DATA if length > 0 || flags & END_STREAM != 0 => FrameKind::Content,
                HEADERS => FrameKind::Headers,
                WINDOW_UPDATE => FrameKind::WindowUpdate,
                _ => FrameKind::Control,
            };
            self.skip = length as usize - (self.have - HEAD_BYTES);
            (self.have, self.need) = (0, HEAD_BYTES);
            found(kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + payload, 0xff);
        frame
    }

    fn whole() -> (Vec<u8>, Vec<FrameKind>) {
        use FrameKind::{Content, Control, Headers, Reset, WindowUpdate};
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let frames = [
            (4, 0, 0),
            (1, 4, 70),
            (0, 0, 1000),
            (0, 0, 0),
            (0, 1, 0),
            (6, 0, 8),
            (8, 0, 4),
            (3, 0, 4),
            (9, 4, 3),
            (99, 0, 0),
        ];
        for (kind, flags, payload) in frames {
            bytes.extend(frame(kind, flags, payload));
        }
        let kinds = vec![
            Control,
            Headers,
            Content,
            Control,
            Content,
            Control,
            WindowUpdate,
            Reset(u32::MAX),
            Control,
            Control,
        ];
        (bytes, kinds)
    }

    proptest! {
        #[test]
        fn frames_are_found_wherever_the_input_is_cut(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let (bytes, kinds) = whole();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let (mut scanner, mut found) = (FrameScanner::of_client(), Vec::new());
            for pair in cuts.windows(2) {
                scanner.scan(&bytes[pair[0]..pair[1]], |kind| found.push(kind));
            }
            prop_assert_eq!(found, kinds);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            FrameScanner::of_client().scan(&bytes, |_| {});
        }
    }
}
