//! Reads configuration files into a program's settings.

use std::io::Read as _;
use std::path::Path;

use crate::lines::Lines;
use crate::mistakes::ConfigError;
use crate::section::{self, Section};

/// The largest configuration file: thousands of services.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Reads a configuration file without checking it.
///
/// # Errors
/// The file can't be read.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

/// Parses a text into a program's settings with `take_apart`, and returns them if there are no mistakes. Relative paths
/// are resolved against `directory`; an empty one leaves them unchanged.
///
/// # Errors
/// The text is not TOML, or has mistakes.
pub fn parse<T>(
    text: &str,
    directory: &Path,
    take_apart: impl FnOnce(&mut Section) -> T,
) -> Result<T, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
    let mut root = Section::root(table, Lines::of(text), directory);
    let mistakes = root.mistakes();
    let settings = take_apart(&mut root);
    // Unknown keys are found when a section is dropped.
    drop(root);
    let mistakes = section::collect(&mistakes);
    if mistakes.0.is_empty() { Ok(settings) } else { Err(ConfigError::Mistakes(mistakes)) }
}

/// Whether a file has this table.
///
/// # Errors
/// The text is not TOML.
pub fn has_table(text: &str, key: &str) -> Result<bool, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
    Ok(table.get(key).is_some_and(toml::Value::is_table))
}

/// One string from another program's file, by its path of keys. `None`: not there. Nothing else is checked.
///
/// # Errors
/// The text is not TOML.
pub fn text_at(text: &str, keys: &[&str]) -> Result<Option<String>, ConfigError> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax(e.to_string()))?;
    let mut value = Some(toml::Value::Table(table));
    for key in keys {
        value = value.and_then(|value| value.get(key).cloned());
    }
    Ok(value.and_then(|value| value.as_str().map(str::to_owned)))
}
