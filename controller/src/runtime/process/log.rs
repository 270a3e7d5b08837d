//! Log files: rotated when they are large, and read back in order.
//!
//! The app keeps its log open, so the file can't be renamed: it is copied and then emptied. What the app writes
//! between the two is lost: a short moment, once in many megabytes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a followed log is read.
pub(super) const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// The longest line that isn't split.
const MAX_LINE_BYTES: u64 = 64 << 10;

fn aside(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// Rotates a log that is larger than `size`, and keeps `kept` rotated files.
pub(super) fn rotate(path: &Path, size: u64, kept: u32) -> io::Result<()> {
    if fs::metadata(path)?.len() <= size {
        return Ok(());
    }
    for number in (1..kept).rev() {
        match fs::rename(aside(path, number), aside(path, number + 1)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    if kept > 0 {
        fs::copy(path, aside(path, 1))?;
    }
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// A log that is being read.
#[derive(Debug)]
pub(super) struct LogReader {
    path: PathBuf,
    position: u64,
}

impl LogReader {
    /// Passes on the existing lines, or the last ones, and remembers the position.
    pub(super) fn open(path: &Path, tail: Option<usize>, line: &mut dyn FnMut(&str)) -> io::Result<Self> {
        let mut older = 0;
        while aside(path, older + 1).exists() {
            older += 1;
        }
        let mut lines = std::collections::VecDeque::new();
        let mut keep = |text: &str| {
            if tail.is_some_and(|tail| lines.len() >= tail) {
                lines.pop_front();
            }
            lines.push_back(text.to_owned());
        };
        for number in (1..=older).rev() {
            read_from(&aside(path, number), 0, &mut keep)?;
        }
        let position = read_from(path, 0, &mut keep)?;
        if tail != Some(0) {
            lines.iter().for_each(|text| line(text));
        }
        Ok(Self { path: path.to_owned(), position })
    }

    /// Passes on what was written since then.
    pub(super) fn read_on(&mut self, line: &mut dyn FnMut(&str)) -> io::Result<()> {
        let length = fs::metadata(&self.path).map_or(0, |found| found.len());
        if length < self.position {
            self.position = 0;
        }
        self.position = read_from(&self.path, self.position, line)?;
        Ok(())
    }
}

/// Passes on the lines from a position on, and returns the new position.
fn read_from(path: &Path, position: u64, line: &mut dyn FnMut(&str)) -> io::Result<u64> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut position = file.seek(SeekFrom::Start(position))?;
    let mut reader = BufReader::new(file);
    loop {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Ok(position);
        }
        position += read as u64;
        line(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path, tail: Option<usize>) -> Vec<String> {
        let mut found = Vec::new();
        LogReader::open(path, tail, &mut |line| found.push(line.to_owned())).unwrap();
        found
    }

    #[test]
    fn a_large_log_is_rotated_and_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        for round in 0..4 {
            fs::write(&path, format!("first of {round}\nlast of {round}\n")).unwrap();
            rotate(&path, 10, 2).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        }
        fs::write(&path, "now\n").unwrap();
        rotate(&path, 10, 2).unwrap();
        assert_eq!(lines(&path, None), ["first of 2", "last of 2", "first of 3", "last of 3", "now"]);
        assert_eq!(lines(&path, Some(2)), ["last of 3", "now"]);
        assert!(lines(&path, Some(0)).is_empty());
    }

    #[test]
    fn reading_on_survives_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        fs::write(&path, "one\ntwo\n").unwrap();
        let mut found = Vec::new();
        let mut reader = LogReader::open(&path, Some(0), &mut |_| panic!("not asked for")).unwrap();
        fs::write(&path, "new\n").unwrap();
        reader.read_on(&mut |line| found.push(line.to_owned())).unwrap();
        assert_eq!(found, ["new"]);
    }
}
