//! Environment files: `NAME=value` lines, as Docker's `--env-file` takes them, plus quotes around a whole value.

use std::collections::BTreeMap;
use std::path::Path;

/// Reads a file. Empty lines and lines that begin with `#` mean nothing. Errors name the line, never its value.
///
/// # Errors
/// It can't be read, or a line is no assignment.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    parse(&text).map_err(|line| format!("{}, line {line}: expected NAME=value", path.display()))
}

fn parse(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut variables = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(index + 1)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if name.is_empty() || !name.bytes().all(fits) || value.contains('\0') {
            return Err(index + 1);
        }
        variables.insert(name.to_owned(), unquoted(value).to_owned());
    }
    Ok(variables)
}

fn unquoted(value: &str) -> &str {
    let within = |quote| value.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    within('"').or_else(|| within('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_and_nonsense_is_named_by_its_line() {
        let read = parse("# comment\n\nA=1\nexport B=\"two words\"\nC='x=y'\nD=\n").unwrap();
        let expected = [("A", "1"), ("B", "two words"), ("C", "x=y"), ("D", "")];
        assert_eq!(read, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(parse("A=1\nsecret words\n"), Err(2));
        assert_eq!(parse("=x"), Err(1));
    }
}
