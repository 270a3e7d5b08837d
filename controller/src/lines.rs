//! Splits foreign output into lines. All output of other programs is read through this, so every line has a maximum
//! length.

use crate::redact::Foreign;

/// Receives foreign text line by line.
pub(crate) type Lines<'a> = &'a (dyn Fn(&Foreign) + 'a);

/// Longer lines are cut, and the rest is counted. Docker cuts at 16 KiB; stack traces fit many times over.
pub(crate) const MAX_LINE_BYTES: usize = 64 << 10;

/// Joins chunks and splits them into lines.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    kept: Vec<u8>,
    left_out: u64,
}

impl LineSplitter {
    /// Takes a chunk, and passes on the lines that end in it.
    pub(crate) fn push(&mut self, chunk: &[u8], line: &mut dyn FnMut(Foreign)) {
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            let room = MAX_LINE_BYTES - self.kept.len();
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            self.kept.extend_from_slice(&text[..text.len().min(room)]);
            self.left_out += text.len().saturating_sub(room) as u64;
            if part.ends_with(b"\n") {
                self.end(line);
            }
        }
    }

    /// Passes on an incomplete last line, if there is one.
    pub(crate) fn finish(&mut self, line: &mut dyn FnMut(Foreign)) {
        if !self.kept.is_empty() {
            self.end(line);
        }
    }

    fn end(&mut self, line: &mut dyn FnMut(Foreign)) {
        let text = match self.left_out {
            0 => Foreign::from_bytes(&self.kept).trimmed(),
            left_out => Foreign::beginning(&self.kept, left_out),
        };
        line(text);
        self.kept.clear();
        self.left_out = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut cutter, mut seen) = (LineSplitter::default(), Vec::new());
        let mut line = |text: Foreign| seen.push(text.to_string());
        chunks.iter().for_each(|chunk| cutter.push(chunk, &mut line));
        cutter.finish(&mut line);
        seen
    }

    #[test]
    fn chunks_become_lines_wherever_they_are_split() {
        assert_eq!(lines(&[b"one\ntw", b"o\r\n", b"\nthree"]), ["one", "two", "", "three"]);
    }

    #[test]
    fn an_endless_line_takes_no_more_memory_than_its_limit() {
        let mut cutter = LineSplitter::default();
        for _ in 0..100 {
            cutter.push(&[b'x'; MAX_LINE_BYTES], &mut |_| panic!("it has no end"));
        }
        assert!(cutter.kept.capacity() <= 2 * MAX_LINE_BYTES, "{}", cutter.kept.capacity());
        let mut seen = Vec::new();
        cutter.push(b"\nnext\n", &mut |text| seen.push(text.to_string()));
        assert!(seen[0].ends_with(&format!("x … ({} more bytes)", 99 * MAX_LINE_BYTES)));
        assert_eq!(seen[1], "next");
    }
}
