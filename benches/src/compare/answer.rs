//! A response as the load checks it: its status, its announced length and the bytes that really came. Pure.

/// More header fields than any proxy here sends.
const MAX_FIELDS: usize = 64;

/// What the answer to a request must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Status 200 and a body of so many bytes, announced by `Content-Length`.
    Body(u64),
    /// So many bytes, whatever they are: a message in a tunnel.
    Raw(u64),
}

/// Why an answer is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not 200.
    #[error("status {0}")]
    Status(u16),
    /// Not the length that was asked for.
    #[error("Content-Length {0:?}")]
    Length(Option<u64>),
    /// Not HTTP.
    #[error("malformed")]
    Malformed,
    /// More bytes than announced.
    #[error("bytes beyond the end")]
    TooMuch,
}

/// One answer as it comes.
#[derive(Debug, Default)]
pub struct Answer {
    head: Vec<u8>,
    left: Option<u64>,
    /// `x-backend` of the last head.
    pub green: bool,
}

impl Answer {
    /// Takes the next bytes, and says whether the answer is complete.
    ///
    /// # Errors
    /// It is wrong.
    pub fn feed(&mut self, mut bytes: &[u8], expected: Expected) -> Result<bool, Wrong> {
        let left = match (self.left, expected) {
            (Some(left), _) | (None, Expected::Raw(left)) => left,
            (None, Expected::Body(length)) if self.head.is_empty() => {
                match self.parse(bytes, length)? {
                    Some(end) => bytes = &bytes[end..],
                    None => {
                        self.head.extend_from_slice(bytes);
                        return Ok(false);
                    }
                }
                length
            }
            (None, Expected::Body(length)) => {
                let before = self.head.len();
                self.head.extend_from_slice(bytes);
                let head = std::mem::take(&mut self.head);
                match self.parse(&head, length)? {
                    Some(end) => bytes = &bytes[end - before..],
                    None => {
                        self.head = head;
                        return Ok(false);
                    }
                }
                length
            }
        };
        let left = left.checked_sub(bytes.len() as u64).ok_or(Wrong::TooMuch)?;
        self.left = (left > 0).then_some(left);
        Ok(left == 0)
    }

    /// Whether no byte has arrived.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.left.is_none() && self.head.is_empty()
    }

    /// Where the head ends, if it is there as a whole and right.
    fn parse(&mut self, bytes: &[u8], length: u64) -> Result<Option<usize>, Wrong> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let end = match response.parse(bytes).map_err(|_| Wrong::Malformed)? {
            httparse::Status::Complete(end) => end,
            httparse::Status::Partial => return Ok(None),
        };
        let status = response.code.unwrap_or_default();
        if status != 200 {
            return Err(Wrong::Status(status));
        }
        let mut announced = None;
        for field in response.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                announced = std::str::from_utf8(field.value).ok().and_then(|text| text.trim().parse().ok());
            } else if field.name.eq_ignore_ascii_case("x-backend") {
                self.green = field.value == b"green";
            }
        }
        if announced == Some(length) { Ok(Some(end)) } else { Err(Wrong::Length(announced)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-backend: green\r\n\r\nabc";

    #[test]
    fn an_answer_is_complete_at_its_last_byte_however_it_is_cut() {
        for cut in 1..GOOD.len() {
            let mut answer = Answer::default();
            assert_eq!(answer.feed(&GOOD[..cut], Expected::Body(3)), Ok(false), "cut at {cut}");
            assert_eq!(answer.feed(&GOOD[cut..], Expected::Body(3)), Ok(true), "cut at {cut}");
            assert!(answer.is_fresh() && answer.green);
        }
    }

    #[test]
    fn a_wrong_status_length_or_surplus_is_found() {
        let feed = |bytes: &[u8], expected| Answer::default().feed(bytes, expected);
        assert_eq!(feed(b"HTTP/1.1 502 Bad\r\n\r\n", Expected::Body(3)), Err(Wrong::Status(502)));
        assert_eq!(feed(GOOD, Expected::Body(4)), Err(Wrong::Length(Some(3))));
        assert_eq!(feed(&[GOOD, b"d"].concat(), Expected::Body(3)), Err(Wrong::TooMuch));
        assert_eq!(feed(b"abc", Expected::Raw(3)), Ok(true));
        assert_eq!(feed(b"nonsense\r\n\r\n", Expected::Body(3)), Err(Wrong::Malformed));
    }
}
