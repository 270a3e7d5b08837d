//! Every configuration key stands in the commented file and in the reference, with the same default.

use std::collections::{BTreeMap, BTreeSet};

use super::{quoted, root, rows, text};

/// A configuration file, its reference, and the code that reads it.
struct Reference {
    file: &'static str,
    page: &'static str,
    code: &'static str,
}

const REFERENCES: [Reference; 2] = [
    Reference { file: "config/uh-proxy.toml", page: "docs/configuration.md", code: "proxy/src/config" },
    Reference {
        file: "config/uh-deploy.toml",
        page: "docs/deploy-configuration.md",
        code: "controller/src/config",
    },
];

/// The sources of a module with its parts, without its tests.
fn sources(module: &str) -> Vec<String> {
    let parts = root().join(module).read_dir().into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let parts = parts.filter_map(|name| name.into_string().unwrap().strip_suffix(".rs").map(str::to_owned));
    let parts = parts.filter(|name| name != "tests");
    let below = parts.flat_map(|name| sources(&format!("{module}/{name}")));
    [format!("{module}.rs")].into_iter().chain(below).collect()
}

/// How the code asks for a key: the methods of a section, and one closure of that kind.
fn readers() -> Vec<String> {
    let source = text("proxy/settings/src/section.rs");
    let methods = source.split("pub fn ").skip(1).filter_map(|rest| rest.split_once('('));
    let with_key = methods.filter(|(_, rest)| rest.split('{').next().unwrap().contains("key: &'static str"));
    let names = with_key.map(|(name, _)| name.split('<').next().unwrap().to_owned());
    names.chain(["command".to_owned()]).collect()
}

/// The table of a key, with free names written as NAME.
fn table(header: &str) -> String {
    let mut parts: Vec<&str> = header.trim_matches(|c| c == '[' || c == ']').split('.').collect();
    for at in 1..parts.len() {
        if ["services", "backends"].contains(&parts[at - 1]) {
            parts[at] = "NAME";
        }
    }
    parts.join(".")
}

/// `table.key` → value, of all keys in a commented file, those that are commented out too.
fn keys(file: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    let mut current = String::new();
    for line in file.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        if bare.starts_with('[') && bare.ends_with(']') {
            current = table(bare);
        } else if let Some((name, value)) = bare.split_once(" = ")
            && name.trim_end().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            let value = value.split("  #").next().unwrap_or(value).trim();
            // The first one is the example; others of the same table, such as green's, repeat it.
            keys.entry(format!("{current}.{}", name.trim_end())).or_insert_with(|| value.to_owned());
        }
    }
    keys
}

/// `table.key` → the cell with its default, in a reference.
fn documented(page: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for chapter in page.split("\n## `[").skip(1) {
        let (table, rest) = chapter.split_once("]`").unwrap();
        let table = table.trim_matches(['[', ']']);
        for row in rows(rest).filter(|row| row.len() >= 3 && row[0].starts_with('`')) {
            keys.insert(format!("{table}.{}", row[0].trim_matches('`')), row[1].to_owned());
        }
    }
    keys
}

/// The keys that the code asks for, without their tables.
fn read_by<'a>(code: &'a str, readers: &[String]) -> BTreeSet<&'a str> {
    let code = code.split("#[cfg(test)]").next().unwrap_or(code);
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices('(') {
        let before = &code[..at];
        // `list::<String>(` is asked for as `list(` is.
        let before =
            before.strip_suffix('>').and_then(|b| b.rsplit_once("::<")).map_or(before, |(name, _)| name);
        let name =
            before.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default();
        let called =
            readers.iter().any(|reader| reader == name) && !before.trim_end_matches(name).ends_with("fn ");
        if called
            && let Some(rest) = code[at + 1..].trim_start().strip_prefix('"')
            && let Some((key, _)) = rest.split_once('"')
            && !key.is_empty()
            && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            found.insert(key);
        }
    }
    found
}

#[test]
fn every_key_that_the_code_reads_is_in_the_commented_file() {
    let readers = readers();
    assert!(readers.len() > 10, "{readers:?}");
    for Reference { file, code, .. } in REFERENCES {
        let keys = keys(&text(file));
        // `access_log = { path = … }` has keys of its own.
        let inline: String = keys.values().map(|value| format!("{{{value},")).collect();
        for source in sources(code) {
            let source_text = text(&source);
            let asked = read_by(&source_text, &readers);
            for key in &asked {
                let known = keys.keys().any(|known| known.split('.').any(|part| part == *key))
                    || inline.contains(&format!("{key} = "));
                assert!(known, "{source} reads {key:?}, which is not in {file}");
            }
        }
    }
}

#[test]
fn every_key_stands_in_the_reference_with_its_default() {
    for Reference { file, page, .. } in REFERENCES {
        let (keys, documented) = (keys(&text(file)), documented(&text(page)));
        assert!(keys.len() > 40, "{keys:?}");
        let mut wrong = Vec::new();
        for (key, value) in &keys {
            match documented.get(key) {
                None => wrong.push(format!("{key} is not in {page}")),
                // "–" and "required": there is no default, and the file shows an example.
                Some(cell) => {
                    if let Some(default) = quoted(cell).next()
                        && default != value
                    {
                        wrong.push(format!("{key} is {value} in {file}, and {default} in {page}"));
                    }
                }
            }
        }
        let unknown = documented.keys().filter(|key| !keys.contains_key(*key));
        wrong.extend(unknown.map(|key| format!("{page} has {key}, and {file} has not")));
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
