//! Logs and histories of JSON lines, read while a program is writing them.

use std::path::Path;
use std::{fs, io};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The whole lines of a file so far; none, if it isn't there yet.
///
/// A last line without its end is left out. A reader can see half of what one `write` appends: the length of a file grows
/// page by page.
///
/// # Errors
/// The file can't be read, or a whole line isn't JSON.
pub fn json_lines(path: &Path) -> Result<Vec<Value>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
    };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line:?}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::json_lines;

    /// Two lines whose second one crosses the end of the first page.
    fn writes(path: &std::path::Path) {
        let mut file = File::create(path).unwrap();
        for length in [3_700, 1_000] {
            let line = format!("{}\n", serde_json::json!("x".repeat(length)));
            file.write_all(line.as_bytes()).unwrap();
        }
    }

    #[test]
    fn what_is_being_written_is_not_read_in_halves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(json_lines(&path).unwrap().is_empty());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..2_000).for_each(|_| writes(&path));
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                json_lines(&path).unwrap();
            }
        });
        assert_eq!(json_lines(&path).unwrap().len(), 2);
    }

    #[test]
    fn a_whole_line_that_is_not_json_is_an_error_and_half_a_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "{\"a\":1}\n{\"a\"").unwrap();
        assert_eq!(json_lines(&path).unwrap(), [serde_json::json!({"a": 1})]);
        std::fs::write(&path, "{\"a\":1}\n{\"a\"\n").unwrap();
        assert!(json_lines(&path).unwrap_err().to_string().contains("not JSON"));
    }
}
