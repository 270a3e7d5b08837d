//! Standard output and error that don't block: a slow or stuck reader must not hold up a deploy and its lock.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a command waits for its reader at a time. After that, lines are dropped until it reads again.
const STALL: Duration = Duration::from_secs(2);

/// What a ready pipe accepts without blocking (pipe(7), PIPE_BUF).
const PIECE_BYTES: usize = 4096;

/// How long to wait for the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// At most [`STALL`], for commands that do something.
    Shortly,
    /// As long as it takes, for commands that only show something.
    Indefinitely,
}

/// An output stream.
#[derive(Debug)]
pub(super) struct Output<S> {
    stream: S,
    wait: Wait,
    stalled: bool,
    lost: u64,
    torn: bool,
}

impl<S: AsFd> Output<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, wait: Wait::Shortly, stalled: false, lost: 0, torn: false }
    }

    pub(super) fn wait(&mut self, wait: Wait) {
        self.wait = wait;
    }

    /// How many lines were dropped.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes a line, or counts it as dropped if the reader is stuck. A closed stream is ignored: the deploy
    /// continues.
    pub(super) fn line(&mut self, text: &str) {
        self.raw(&format!("{text}\n"));
    }

    /// The same with text that brings its own line ends.
    pub(super) fn raw(&mut self, text: &str) {
        let deadline = match (self.wait, self.stalled) {
            (Wait::Indefinitely, _) => None,
            (Wait::Shortly, false) => Some(Instant::now() + STALL),
            (Wait::Shortly, true) => Some(Instant::now()),
        };
        let start = if self.torn { "\n" } else { "" };
        let bytes = format!("{start}{text}").into_bytes();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            if !self.is_ready(deadline) {
                self.stalled = true;
                self.lost += 1;
                self.torn |= rest.len() < bytes.len();
                return;
            }
            match rustix::io::write(&self.stream, &rest[..rest.len().min(PIECE_BYTES)]) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
        (self.stalled, self.torn) = (false, false);
    }

    /// Waits until the stream is writable. Errors are left to the write.
    fn is_ready(&self, deadline: Option<Instant>) -> bool {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            let mut asked = [PollFd::new(&self.stream, PollFlags::OUT)];
            match poll(&mut asked, limit.as_ref()) {
                Ok(0) => return false,
                Err(rustix::io::Errno::INTR) => {}
                _ => return true,
            }
        }
    }
}

/// Writes a line to standard error.
pub(super) fn to_standard_error(text: &str) {
    Output::new(io::stderr()).line(text);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_stuck_reader_loses_lines_and_does_not_block() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(writer);
        let start = Instant::now();
        let line = "x".repeat(10_000);
        for _ in 0..100 {
            output.line(&line);
        }
        assert!(output.lost() > 80, "{}", output.lost());
        assert!(start.elapsed() < 10 * STALL, "{:?}", start.elapsed());
        let mut read = vec![0; 1 << 20];
        let _ = reader.read(&mut read).unwrap();
        output.line("again");
        let length = reader.read(&mut read).unwrap();
        let text = String::from_utf8_lossy(&read[..length]).into_owned();
        assert!(text.ends_with("\nagain\n"), "a new line, also after a torn one: {text:?}");
    }

    #[test]
    fn a_line_longer_than_a_pipe_arrives_whole_if_it_is_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        let mut output = Output::new(writer);
        output.line(&"y".repeat(1 << 20));
        assert_eq!(output.lost(), 0);
        drop(output);
        assert_eq!(read.join().unwrap().unwrap().len(), (1 << 20) + 1);
    }
}
