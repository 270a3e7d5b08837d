//! Just enough of WebSocket (RFC 6455) to close a tunnel politely: frame boundaries, and the close frame for "going
//! away". The content of frames is ignored, but for the status code of a close frame.

/// The server's close frame with status 1001, "going away", after which clients reconnect.
pub(crate) const GOING_AWAY: &[u8] = &[0x88, 0x02, 0x03, 0xe9];

/// The opcode of a close frame.
const CLOSE: u8 = 0x8;

/// The status code of a server that closes because of an error of its own (RFC 6455 §7.4.1).
pub(crate) const INTERNAL_ERROR: u16 = 1011;

/// Follows the frames in a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: [u8; 14],
    /// How much of the header is there.
    have: usize,
    /// How much of the payload is still to come.
    left: u64,
    closed: bool,
    /// The status code of the close frame, as far as it is there.
    code: [u8; 2],
    code_have: usize,
}

impl Frames {
    /// Follows the next bytes, and returns how many. All of them, or with `to_boundary` none beyond the end of the
    /// current frame.
    pub(crate) fn follow(&mut self, bytes: &[u8], to_boundary: bool) -> usize {
        let mut at = 0;
        while at < bytes.len() && !(to_boundary && self.at_boundary()) {
            if self.left > 0 {
                let rest = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX);
                let of_payload = self.left.min(rest);
                self.left -= of_payload;
                let end = at + usize::try_from(of_payload).unwrap_or(0);
                if self.closed && self.code_have < self.code.len() {
                    self.read_code(&bytes[at..end]);
                }
                at = end;
                continue;
            }
            self.header[self.have] = bytes[at];
            self.have += 1;
            at += 1;
            if self.have == self.header_length() {
                self.left = self.payload_length();
                self.closed |= self.header[0] & 0x0f == CLOSE;
                self.have = 0;
            }
        }
        at
    }

    /// Whether the next byte would be the first of a frame.
    #[must_use]
    pub(crate) fn at_boundary(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Whether a close frame has passed: no frame may come after it.
    #[must_use]
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    /// The status code of a server's close frame, if it has one.
    #[must_use]
    pub(crate) fn close_code(&self) -> Option<u16> {
        (self.code_have == self.code.len()).then(|| u16::from_be_bytes(self.code))
    }

    /// More of the payload of a frame that may be a close frame. A client's is masked: its code isn't needed.
    fn read_code(&mut self, payload: &[u8]) {
        let [kind, length, ..] = self.header;
        if kind & 0x0f != CLOSE || length & 0x80 != 0 {
            return;
        }
        for &byte in payload.iter().take(self.code.len() - self.code_have) {
            self.code[self.code_have] = byte;
            self.code_have += 1;
        }
    }

    /// The length of the current header, as far as it is known: RFC 6455 §5.2.
    fn header_length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + extended + mask
    }

    fn payload_length(&self) -> u64 {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        match self.header[1] & 0x7f {
            126 => number(&self.header[2..4]),
            127 => number(&self.header[2..10]),
            length => u64::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match length {
            0..126 => frame.push(mask | u8::try_from(length).unwrap()),
            126..0x1_0000 => {
                frame.push(mask | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0; if masked { 4 } else { 0 } + length]);
        frame
    }

    #[test]
    fn a_close_frame_is_noticed() {
        let mut frames = Frames::default();
        frames.follow(&frame(1, 8, false), false);
        assert!(!frames.closed());
        frames.follow(GOING_AWAY, false);
        assert!(frames.closed() && frames.at_boundary());
    }

    #[test]
    fn the_status_code_of_a_servers_close_frame_is_read_however_it_comes() {
        let close = |payload: &[u8], mask: u8| {
            let length = u8::try_from(payload.len()).unwrap();
            [&[0x88, mask | length][..], if mask == 0 { &[] } else { &[1, 2, 3, 4] }, payload].concat()
        };
        for (bytes, code) in [
            (close(b"\x03\xf3", 0), Some(INTERNAL_ERROR)),
            (close(b"\x03\xe8the end", 0), Some(1000)),
            (close(b"", 0), None),
            (close(b"\x03", 0), None),
            (close(b"\x03\xf3", 0x80), None),
            (frame(1, 8, false), None),
        ] {
            for step in 1..=bytes.len() {
                let mut frames = Frames::default();
                frames.follow(&frame(1, 200, false), false);
                bytes.chunks(step).for_each(|chunk| assert_eq!(frames.follow(chunk, false), chunk.len()));
                assert_eq!(frames.close_code(), code, "{bytes:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn boundaries_are_found_however_the_bytes_come(
            lengths in prop::collection::vec((prop_oneof![0usize..200, 65_000usize..70_000], any::<bool>()), 1..6),
            step in 1usize..5_000,
        ) {
            let all: Vec<Vec<u8>> = lengths.iter().map(|&(length, masked)| frame(2, length, masked)).collect();
            let ends: Vec<usize> = all.iter().scan(0, |sum, frame| { *sum += frame.len(); Some(*sum) }).collect();
            let bytes = all.concat();
            let (mut frames, mut at) = (Frames::default(), 0);
            while at < bytes.len() {
                // One frame at a time: a tunnel that must stop at a boundary stops at the next one.
                let chunk = &bytes[at..bytes.len().min(at + step)];
                at += frames.follow(&chunk[..1], false);
                at += frames.follow(&chunk[1..], true);
                prop_assert_eq!(frames.at_boundary(), ends.contains(&at));
            }
            prop_assert_eq!(at, bytes.len());
        }

        #[test]
        fn no_bytes_panic_it(bytes in prop::collection::vec(any::<u8>(), 0..300), to_boundary in any::<bool>()) {
            let mut frames = Frames::default();
            prop_assert!(frames.follow(&bytes, to_boundary) <= bytes.len());
        }
    }
}
