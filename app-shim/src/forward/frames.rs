//! Finds where the frames of a WebSocket begin and end (RFC 6455, 5.2), so that a close frame can be sent between
//! two.
//!
//! Payloads aren't inspected, and only what is needed for counting is validated: the endpoints validate each other.

/// `Going Away`: a server is going down (RFC 6455, 7.4.1).
const GOING_AWAY: u16 = 1001;
const FIN_CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;
const OPCODE: u8 = 0x0F;
const OPCODE_CLOSE: u8 = 0x8;
/// Two bytes, 8 of an extended length, 4 of a mask.
const HEAD_MAX: usize = 14;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD_MAX],
    head_length: usize,
    /// Remaining bytes of the payload, once the head is complete.
    left: u64,
    in_payload: bool,
    closed: bool,
}

/// The sender of a direction. A client must mask its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Server,
}

impl Frames {
    /// Follows the next bytes. Returns where in them the last complete frame ends, or `None` if no frame ends in
    /// them.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut boundary = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.in_payload {
                let take = self.left.min((bytes.len() - at) as u64);
                self.left -= take;
                at += take as usize;
            } else {
                self.head[self.head_length] = bytes[at];
                self.head_length += 1;
                at += 1;
                let Some(payload) = payload_length(&self.head[..self.head_length]) else { continue };
                self.in_payload = true;
                self.left = payload;
            }
            if self.in_payload && self.left == 0 {
                self.closed |= self.head[0] & OPCODE == OPCODE_CLOSE;
                (self.in_payload, self.head_length) = (false, 0);
                boundary = Some(at);
            }
        }
        boundary
    }

    /// Whether the direction is between two frames.
    pub(super) fn is_between(&self) -> bool {
        !self.in_payload && self.head_length == 0
    }

    /// Whether a close frame has passed.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// The length of the payload, once the head is complete.
fn payload_length(head: &[u8]) -> Option<u64> {
    let second = *head.get(1)?;
    let (length, end) = match second & !MASKED {
        126 => (u64::from(u16::from_be_bytes(*head.get(2..)?.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*head.get(2..)?.first_chunk()?), 10),
        short => (u64::from(short), 2),
    };
    let end = if second & MASKED == 0 { end } else { end + 4 };
    (head.len() >= end).then_some(length)
}

/// A close frame with the code 1001 (going away).
pub(super) fn going_away(sender: Sender) -> Vec<u8> {
    let [high, low] = GOING_AWAY.to_be_bytes();
    match sender {
        Sender::Server => vec![FIN_CLOSE, 2, high, low],
        // The mask is required but need not be secret: it protects caches, and there are none between the shim and
        // the app.
        Sender::Client => vec![FIN_CLOSE, MASKED | 2, 0, 0, 0, 0, high, low],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { MASKED } else { 0 };
        let mut frame = vec![first];
        match payload {
            0..=125 => frame.push(mask | payload as u8),
            126..=0xFFFF => {
                frame.push(mask | 126);
                frame.extend((payload as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((payload as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0xAA; payload + if masked { 4 } else { 0 }]);
        frame
    }

    #[test]
    fn every_boundary_is_found_however_the_bytes_are_split() {
        let frames: Vec<Vec<u8>> =
            [(0, true), (5, false), (125, true), (126, false), (70_000, true), (0, false)]
                .map(|(payload, masked)| frame(0x82, masked, payload))
                .to_vec();
        let mut ends: Vec<usize> = frames
            .iter()
            .scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            })
            .collect();
        let bytes = frames.concat();
        for piece in [1, 2, 3, 7, 130, 4096, bytes.len()] {
            let mut found = Vec::new();
            let mut follower = Frames::default();
            for (index, chunk) in bytes.chunks(piece).enumerate() {
                let boundary = follower.follow(chunk);
                found.extend(boundary.map(|boundary| index * piece + boundary));
                assert_eq!(follower.is_between(), boundary == Some(chunk.len()));
            }
            // For a piece with several ends, the last one is returned.
            ends.dedup();
            assert!(found.iter().all(|end| ends.contains(end)), "{piece}: {found:?}");
            assert_eq!(found.last(), ends.last());
            if piece == 1 {
                assert_eq!(found, ends);
            }
        }
    }

    #[test]
    fn a_close_frame_is_recognised_once_complete_including_our_own() {
        for sender in [Sender::Client, Sender::Server] {
            let close = going_away(sender);
            let mut frames = Frames::default();
            assert_eq!(frames.follow(&close[..3]), None);
            assert!(!frames.is_closed() && !frames.is_between());
            assert_eq!(frames.follow(&close[3..]), Some(close.len() - 3));
            assert!(frames.is_closed() && frames.is_between());
        }
    }

    #[test]
    fn the_largest_length_that_can_be_claimed_only_means_a_long_payload() {
        let mut frames = Frames::default();
        let mut claim = vec![0x82, 127];
        claim.extend([0xFF; 8]);
        assert_eq!(frames.follow(&claim), None);
        assert_eq!(frames.follow(&[0; 100]), None);
        assert_eq!(frames.left, u64::MAX - 100);
    }
}
