//! Takes a TOML table apart key by key and collects every mistake on the way, instead of stopping at the first.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

use crate::lines::Lines;
use crate::mistakes::{Mistake, Mistakes};
use crate::units;

/// A table under its key. Keys that haven't been read when it is dropped are unknown.
pub struct Section {
    directory: PathBuf,
    path: String,
    table: Table,
    asked: Vec<&'static str>,
    mistakes: Rc<RefCell<Vec<Mistake>>>,
    lines: Rc<Lines>,
}

/// What a key holds that may be a table, or `true` or `false`.
pub enum Given {
    /// A table.
    Table(Section),
    /// Not a table.
    Boolean(bool),
}

impl Section {
    /// The whole file, in this directory. [`Section::mistakes`] is complete once every section is dropped.
    pub(crate) fn root(table: Table, lines: Lines, directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            path: String::new(),
            table,
            asked: Vec::new(),
            mistakes: Rc::default(),
            lines: Rc::new(lines),
        }
    }

    /// The list that collects the mistakes.
    pub(crate) fn mistakes(&self) -> Rc<RefCell<Vec<Mistake>>> {
        Rc::clone(&self.mistakes)
    }

    /// The section's full key.
    pub fn key(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Records a mistake.
    pub fn mistake(&self, key: &str, reason: impl Into<String>) {
        let key = self.key(key);
        let line = self.lines.line(&key);
        self.mistakes.borrow_mut().push(Mistake { file: None, line, key, reason: reason.into() });
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        self.table.remove(key)
    }

    /// A nested table; empty if absent.
    pub fn section(&mut self, key: &'static str) -> Section {
        let value = self.take(key);
        self.child(key, value.unwrap_or_else(|| Value::Table(Table::new())))
    }

    /// All tables in a table, with their names, in file order.
    pub fn sections(&mut self, key: &'static str) -> Vec<(String, Section)> {
        let mut outer = self.section(key);
        let children = std::mem::take(&mut outer.table);
        children.into_iter().map(|(name, value)| (name.clone(), outer.child(&name, value))).collect()
    }

    /// A table, or `true` or `false` instead of one; `None`: absent.
    pub fn given(&mut self, key: &'static str) -> Option<Given> {
        match self.take(key)? {
            Value::Boolean(value) => Some(Given::Boolean(value)),
            value => Some(Given::Table(self.child(key, value))),
        }
    }

    fn child(&self, key: &str, value: Value) -> Section {
        let table = match value {
            Value::Table(table) => table,
            other => {
                self.mistake(key, format!("expected a table, found {}", other.type_str()));
                Table::new()
            }
        };
        Section {
            directory: self.directory.clone(),
            path: self.key(key),
            table,
            asked: Vec::new(),
            mistakes: self.mistakes(),
            lines: Rc::clone(&self.lines),
        }
    }

    /// A list of tables, in the order of the file. What is no table is left out, and is a mistake.
    pub fn tables(&mut self, key: &'static str) -> Vec<Section> {
        let values = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => {
                self.mistake(key, format!("expected a list of tables, found {}", other.type_str()));
                return Vec::new();
            }
        };
        values
            .into_iter()
            .enumerate()
            .map(|(index, value)| self.child(&format!("{key}[{index}]"), value))
            .collect()
    }

    /// Whether the key is present.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the key is an empty list.
    pub fn is_empty_list(&self, key: &str) -> bool {
        self.table.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty)
    }

    /// A string.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => {
                self.mistake(key, format!("expected a string, found {}", other.type_str()));
                None
            }
        }
    }

    /// A string that is parsed further.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        let text = self.text(key)?;
        self.read(key, &text)
    }

    fn read<T: FromStr<Err: Display>>(&self, key: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(e) => {
                self.mistake(key, e.to_string());
                None
            }
        }
    }

    /// A path, resolved against the file's directory.
    pub fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        self.optional_path(key).unwrap_or_else(|| self.directory.join(default))
    }

    /// An optional path.
    pub fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let given = self.text(key)?;
        if given.is_empty() || given.contains('\0') {
            self.mistake(key, "expected a path");
        }
        Some(self.directory.join(given))
    }

    /// A list of paths.
    pub fn paths(&mut self, key: &'static str) -> Vec<PathBuf> {
        let given = self.list::<String>(key).unwrap_or_default();
        given.iter().map(|path| self.resolve(path)).collect()
    }

    /// Resolves a path against the file's directory.
    pub fn resolve(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    /// A list of strings that are parsed further. An invalid item is a mistake and is left out.
    pub fn list<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let Value::Array(values) = self.take(key)? else {
            self.mistake(key, "expected a list of strings");
            return None;
        };
        let item = |(index, value)| match value {
            Value::String(text) => self.read(&format!("{key}[{index}]"), &text),
            other => {
                self.mistake(
                    &format!("{key}[{index}]"),
                    format!("expected a string, found {}", Value::type_str(&other)),
                );
                None
            }
        };
        Some(values.into_iter().enumerate().filter_map(item).collect())
    }

    /// The same, where a string alone is a list of one.
    pub fn one_or_more<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<Vec<T>> {
        if self.table.get(key).is_some_and(Value::is_str) {
            return Some(self.parsed(key).into_iter().collect());
        }
        if self.table.get(key).is_some_and(|value| !value.is_array()) {
            self.mistake(key, "expected a string or a list of strings");
            self.take(key);
            return None;
        }
        self.list(key)
    }

    /// A list of whole numbers.
    pub fn numbers(&mut self, key: &'static str) -> Vec<u32> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let numbers = match &value {
            Value::Array(values) => values
                .iter()
                .map(|v| v.as_integer().and_then(|n| u32::try_from(n).ok()))
                .collect::<Option<Vec<u32>>>(),
            _ => None,
        };
        numbers.unwrap_or_else(|| {
            self.mistake(key, "expected a list of whole numbers");
            Vec::new()
        })
    }

    /// A number with its unit; also a bare number, to report that the unit is missing.
    fn quantity(&mut self, key: &'static str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            Value::Integer(number) => Some(number.to_string()),
            other => Some(other.type_str().to_owned()),
        }
    }

    /// A duration with its unit, within bounds.
    pub fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        bounds: (Duration, Duration),
    ) -> Duration {
        let Some(text) = self.quantity(key) else { return default };
        match units::parse_duration(&text) {
            Ok(value) if (bounds.0..=bounds.1).contains(&value) => return value,
            Ok(_) => self.mistake(key, format!("{text:?} is out of range: {:?} to {:?}", bounds.0, bounds.1)),
            Err(e) => self.mistake(key, e.to_string()),
        }
        default
    }

    /// A duration within bounds, or `"off"`, which is `None`.
    pub fn duration_or_off(
        &mut self,
        key: &'static str,
        default: Option<Duration>,
        bounds: (Duration, Duration),
    ) -> Option<Duration> {
        let given = self.table.get(key);
        if given.is_none() || given.is_some_and(|value| value.as_str() == Some("off")) {
            return self.take(key).map_or(default, |_| None);
        }
        Some(self.duration(key, Duration::ZERO, bounds))
    }

    /// A size with its unit, within bounds.
    pub fn size(&mut self, key: &'static str, default: u64, bounds: (u64, u64)) -> u64 {
        let Some(text) = self.quantity(key) else { return default };
        match units::parse_size(&text) {
            Ok(value) if (bounds.0..=bounds.1).contains(&value) => return value,
            Ok(_) => {
                self.mistake(key, format!("{text:?} is out of range: {} to {} bytes", bounds.0, bounds.1));
            }
            Err(e) => self.mistake(key, e.to_string()),
        }
        default
    }

    /// A whole number within bounds.
    pub fn integer(&mut self, key: &'static str, default: u32, bounds: (u32, u32)) -> u32 {
        match self.take(key) {
            None => return default,
            Some(Value::Integer(value)) => match u32::try_from(value) {
                Ok(value) if (bounds.0..=bounds.1).contains(&value) => return value,
                _ => self.mistake(key, format!("{value} is out of range: {} to {}", bounds.0, bounds.1)),
            },
            Some(other) => self.mistake(key, format!("expected a whole number, found {}", other.type_str())),
        }
        default
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        match self.take(key) {
            None => return default,
            Some(Value::Boolean(value)) => return value,
            Some(other) => self.mistake(key, format!("expected true or false, found {}", other.type_str())),
        }
        default
    }

    /// A percentage such as `"1%"` or `"0.5%"`, as a number from 0 to 1.
    pub fn share(&mut self, key: &'static str, default: f64) -> f64 {
        let Some(text) = self.quantity(key) else { return default };
        match units::parse_share(&text) {
            Ok(value) => value,
            Err(e) => {
                self.mistake(key, e.to_string());
                default
            }
        }
    }

    /// A table of strings, such as an environment.
    pub fn texts(&mut self, key: &'static str) -> std::collections::BTreeMap<String, String> {
        let mut section = self.section(key);
        let table = std::mem::take(&mut section.table);
        let mut texts = std::collections::BTreeMap::new();
        for (name, value) in table {
            match value {
                Value::String(text) => drop(texts.insert(name, text)),
                other => section.mistake(&name, format!("expected a string, found {}", other.type_str())),
            }
        }
        texts
    }

    /// One of a closed set of words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, default: T, choices: &[(&str, T)]) -> T {
        let Some(text) = self.text(key) else { return default };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.mistake(key, format!("{text:?} is not one of {}", words.join(", ")));
        default
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        let unknown: Vec<String> = self.table.keys().cloned().collect();
        for key in unknown {
            self.mistake(&key, format!("unknown key; valid keys here: {}", self.asked.join(", ")));
        }
    }
}

/// What was found, in the order of the keys.
pub(crate) fn collect(mistakes: &RefCell<Vec<Mistake>>) -> Mistakes {
    Mistakes(mistakes.borrow().clone())
}
