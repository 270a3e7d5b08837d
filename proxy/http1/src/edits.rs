//! Fields that an operator sets, defaults or removes in a complete head: what a request or a response has after uh-proxy
//! has written it.

use std::fmt;

use memchr::memchr;

use super::field::write_field;

/// The most edits of a head: each is one bit of a word.
pub const MAX_EDITS: usize = 64;

/// What happens to the fields with a name. Its value may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Edit {
    /// All of them are replaced by one with this value.
    Set(String),
    /// If there is none, one with this value is added.
    Default(String),
    /// They are removed.
    Remove,
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set(_) => "Set(…)",
            Self::Default(_) => "Default(…)",
            Self::Remove => "Remove",
        })
    }
}

/// A name as an app sees it that can't distinguish `_` and others from `-`.
#[must_use]
pub fn folded_name(name: &str) -> String {
    folded(name.as_bytes()).map(char::from).collect()
}

/// How names are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// Without case.
    #[default]
    Exact,
    /// As an app sees them that can't distinguish `_` and others from `-`: for requests, where a client could otherwise
    /// send a name that the app takes for the edited one.
    Folded,
}

/// The edits of a head.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldEdits {
    /// Bit `n` is set if there is a name with `n` bytes, modulo 64. Most fields need no other comparison.
    lengths: u64,
    names: Names,
    edits: Box<[NamedEdit]>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq)]
struct NamedEdit {
    name: Box<str>,
    kind: Kind,
    /// The line to be added, if there is one.
    line: Box<[u8]>,
}

impl fmt::Debug for NamedEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Set,
    Default,
    Remove,
}

impl FieldEdits {
    /// These edits, by name. Names must differ, and names and values must be valid. Those beyond [`MAX_EDITS`] are left
    /// out.
    #[must_use]
    pub fn new<'a>(edits: impl IntoIterator<Item = (&'a str, &'a Edit)>, names: Names) -> Self {
        let named = |(name, edit): (&str, &Edit)| {
            let (kind, value) = match edit {
                Edit::Set(value) => (Kind::Set, Some(value)),
                Edit::Default(value) => (Kind::Default, Some(value)),
                Edit::Remove => (Kind::Remove, None),
            };
            let mut line = Vec::new();
            if let Some(value) = value {
                write_field(&mut line, name.as_bytes(), value.as_bytes());
            }
            NamedEdit { name: name.into(), kind, line: line.into() }
        };
        let edits: Box<[NamedEdit]> = edits.into_iter().take(MAX_EDITS).map(named).collect();
        let lengths = edits.iter().fold(0, |lengths, edit| lengths | length_bit(edit.name.len()));
        Self { lengths, names, edits }
    }

    /// Whether nothing is edited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Edits the complete head that begins at `start` and ends with these bytes. What is added comes last.
    pub fn apply(&self, head: &mut Vec<u8>, start: usize) {
        if self.is_empty() {
            return;
        }
        let (end, found) = self.remove(head, start);
        head.truncate(end);
        for (number, edit) in self.edits.iter().enumerate() {
            if edit.kind == Kind::Set || edit.kind == Kind::Default && found & (1 << number) == 0 {
                head.extend_from_slice(&edit.line);
            }
        }
        head.extend_from_slice(b"\r\n");
    }

    /// Removes the fields that are to be removed or replaced. Returns where the remaining ones end, and which edits'
    /// names were found.
    fn remove(&self, head: &mut [u8], start: usize) -> (usize, u64) {
        let (mut kept, mut found) = (start, 0);
        // What is kept together is moved together, and isn't moved at all before the first removed field.
        let (mut run, mut at) = (start, start);
        while let Some(length) = memchr(b'\n', head.get(at..).unwrap_or_default()) {
            let (line, next) = (&head[at..at + length], at + length + 1);
            if line == b"\r" {
                break;
            }
            let edit = memchr(b':', line).and_then(|colon| self.of(&line[..colon]));
            if let Some((number, kind)) = edit {
                found |= 1 << number;
                if kind != Kind::Default {
                    kept = move_to(head, kept, run..at);
                    run = next;
                }
            }
            at = next;
        }
        (move_to(head, kept, run..at), found)
    }

    fn of(&self, name: &[u8]) -> Option<(usize, Kind)> {
        if self.lengths & length_bit(name.len()) == 0 {
            return None;
        }
        let same = |edit: &&NamedEdit| match self.names {
            Names::Exact => name.eq_ignore_ascii_case(edit.name.as_bytes()),
            Names::Folded => folded(name).eq(folded(edit.name.as_bytes())),
        };
        let number = self.edits.iter().position(|edit| same(&edit))?;
        Some((number, self.edits[number].kind))
    }
}

fn length_bit(length: usize) -> u64 {
    1 << (length % 64)
}

fn folded(name: &[u8]) -> impl Iterator<Item = u8> {
    name.iter().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' })
}

/// Moves a part of the head forward to `to`, and returns where it then ends.
fn move_to(head: &mut [u8], to: usize, part: std::ops::Range<usize>) -> usize {
    let end = to + part.len();
    if to != part.start {
        head.copy_within(part, to);
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(value: &str) -> Edit {
        Edit::Set(value.to_owned())
    }

    fn default(value: &str) -> Edit {
        Edit::Default(value.to_owned())
    }

    fn edited(edits: &[(&str, Edit)], names: Names, fields: &str) -> String {
        let edits = edits.iter().map(|(name, edit)| (*name, edit));
        let before = "HTTP/1.1 103 Early Hints\r\nX-A: hint\r\n\r\n";
        let mut head = format!("{before}HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes();
        FieldEdits::new(edits, names).apply(&mut head, before.len());
        let head = String::from_utf8(head).unwrap();
        let rest = head.strip_prefix(before).unwrap().strip_prefix("HTTP/1.1 200 OK\r\n").unwrap();
        rest.strip_suffix("\r\n").unwrap().to_owned()
    }

    #[test]
    fn set_replaces_all_default_adds_to_none_and_remove_removes_all() {
        let edits = [("X-A", set("1")), ("X-B", default("2")), ("X-C", Edit::Remove)];
        for (fields, expected) in [
            ("", "X-A: 1\r\nX-B: 2\r\n"),
            ("Y: 0\r\n", "Y: 0\r\nX-A: 1\r\nX-B: 2\r\n"),
            ("x-a: 8\r\nY: 0\r\nX-A: 9\r\n", "Y: 0\r\nX-A: 1\r\nX-B: 2\r\n"),
            ("x-b: 8\r\nX-B: 9\r\n", "x-b: 8\r\nX-B: 9\r\nX-A: 1\r\n"),
            ("X-B:\r\n", "X-B:\r\nX-A: 1\r\n"),
            ("X-C: 8\r\nY: 0\r\nx-C: 9\r\nZ: 1\r\nx-c: 9\r\n", "Y: 0\r\nZ: 1\r\nX-A: 1\r\nX-B: 2\r\n"),
            ("X_A: 8\r\nX-Ab: 8\r\nX-D: 8\r\n", "X_A: 8\r\nX-Ab: 8\r\nX-D: 8\r\nX-A: 1\r\nX-B: 2\r\n"),
            ("Y: x-c: 1\r\n", "Y: x-c: 1\r\nX-A: 1\r\nX-B: 2\r\n"),
        ] {
            assert_eq!(edited(&edits, Names::Exact, fields), expected, "{fields:?}");
        }
        assert_eq!(edited(&[], Names::Exact, "X-A: 1\r\n"), "X-A: 1\r\n");
    }

    #[test]
    fn a_name_that_an_app_takes_for_another_is_that_other_one() {
        let edits = [("X-User", set("1")), ("X-Team", Edit::Remove)];
        let fields = "x_user: 8\r\nX.Team: 8\r\nXXUser: 9\r\n";
        assert_eq!(edited(&edits, Names::Folded, fields), "XXUser: 9\r\nX-User: 1\r\n");
    }

    proptest! {
        /// Compared with a plain implementation.
        #[test]
        fn edits_are_what_a_list_of_fields_would_give(
            fields in prop::collection::vec(("[abAB]{1,2}", "[ -~]{0,5}"), 0..12),
            edits in prop::collection::btree_map("[ab]{1,2}", prop_oneof![
                Just(Edit::Remove), "[x-z]".prop_map(Edit::Set), "[x-z]".prop_map(Edit::Default)
            ], 0..5),
        ) {
            let lines = |fields: &[(String, String)]| {
                fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>()
            };
            let mut expected: Vec<(String, String)> = fields.clone();
            expected.retain(|(name, _)| !matches!(edits.get(&name.to_lowercase()), Some(Edit::Set(_) | Edit::Remove)));
            for (name, edit) in &edits {
                let there = fields.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
                match edit {
                    Edit::Set(value) => expected.push((name.clone(), value.clone())),
                    Edit::Default(value) if !there => expected.push((name.clone(), value.clone())),
                    Edit::Default(_) | Edit::Remove => {}
                }
            }
            let mut head = format!("HTTP/1.1 200 OK\r\n{}\r\n", lines(&fields)).into_bytes();
            FieldEdits::new(edits.iter().map(|(name, edit)| (name.as_str(), edit)), Names::Exact).apply(&mut head, 0);
            let text = String::from_utf8(head).unwrap();
            prop_assert_eq!(text, format!("HTTP/1.1 200 OK\r\n{}\r\n", lines(&expected)));
        }

        #[test]
        fn no_bytes_panic(mut head in prop::collection::vec(any::<u8>(), 0..80), start in 0usize..90) {
            let edits = [("a", &Edit::Remove), ("b", &default("c"))];
            FieldEdits::new(edits, Names::Folded).apply(&mut head, start);
        }
    }
}
