//! Lines out of chunks.

use crate::runtime::Lines;

/// A log line that is longer is cut in two.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Puts chunks together and cuts them into lines.
#[derive(Default)]
pub(in crate::runtime) struct LineCutter(Vec<u8>);

impl LineCutter {
    pub(in crate::runtime) fn push(&mut self, chunk: &[u8], line: Lines<'_>) {
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            self.0.extend_from_slice(part);
            if part.ends_with(b"\n") || self.0.len() > MAX_LINE_BYTES {
                self.finish(line);
            }
        }
    }

    pub(in crate::runtime) fn finish(&mut self, line: Lines<'_>) {
        if !self.0.is_empty() {
            line(String::from_utf8_lossy(&self.0).trim_end());
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn chunks_become_lines_wherever_they_are_cut() {
        let seen = RefCell::new(Vec::new());
        let line = |text: &str| seen.borrow_mut().push(text.to_owned());
        let mut lines = LineCutter::default();
        for chunk in ["one\ntw", "o\r\n", "\nthree"] {
            lines.push(chunk.as_bytes(), &line);
        }
        lines.finish(&line);
        assert_eq!(*seen.borrow(), ["one", "two", "", "three"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let seen = RefCell::new(0);
        let mut lines = LineCutter::default();
        for _ in 0..3 {
            lines.push(&[b'x'; MAX_LINE_BYTES], &|_| *seen.borrow_mut() += 1);
        }
        assert!(*seen.borrow() >= 1 && lines.0.len() <= MAX_LINE_BYTES);
    }
}
