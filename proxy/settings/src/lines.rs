//! The line of each key in a file.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Full keys with their lines: `services.app.health.interval`, and `hosts[1]` for what is in a list.
#[derive(Debug, Default)]
pub(crate) struct Lines(HashMap<String, usize>);

impl Lines {
    /// The lines of a text; empty if it isn't TOML.
    pub(crate) fn of(text: &str) -> Self {
        let mut found = Self::default();
        if let Ok(root) = DeTable::parse(text) {
            let starts: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
            found.table("", root.get_ref(), &|at| 1 + starts.partition_point(|start| *start <= at));
        }
        found
    }

    /// The line of a key, or of the table that should contain it.
    pub(crate) fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.0.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    fn table(&mut self, path: &str, table: &DeTable<'_>, line: &dyn Fn(usize) -> usize) {
        for (key, value) in table {
            let path =
                if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
            self.0.insert(path.clone(), line(key.span().start));
            self.value(&path, value, line);
        }
    }

    fn value(&mut self, path: &str, value: &Spanned<DeValue<'_>>, line: &dyn Fn(usize) -> usize) {
        match value.get_ref() {
            DeValue::Table(table) => self.table(path, table, line),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.0.insert(path.clone(), line(item.span().start));
                    self.value(&path, item, line);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_line_and_a_missing_one_its_tables() {
        let text = "a = 1\n\n[server]\nlisten = [\n  \"x\",\n  \"y\",\n]\nlog = { path = \"-\" }\n[s.app.health]\ninterval = 3\n";
        let lines = Lines::of(text);
        for (key, line) in [
            ("a", Some(1)),
            ("server.listen", Some(4)),
            ("server.listen[1]", Some(6)),
            ("server.log.path", Some(8)),
            ("server.log.format", Some(8)),
            ("server.threads", Some(3)),
            ("s.app.health.interval", Some(10)),
            ("s.app.health.timeout", Some(9)),
            ("unknown", None),
        ] {
            assert_eq!(lines.line(key), line, "{key}");
        }
    }
}
