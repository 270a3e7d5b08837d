//! `uh-proxy import nginx`: what it carries over, what it reports, and what it exits with. The fixtures in `tests/nginx`
//! have the shapes that real projects have. Their first line names the directives that change behaviour.

mod nginx;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use uh_proxy::config;
use uh_proxy::import::{Class, Imported, import};

use super::harness::cli;

/// The fewest fixtures that cover what is in use.
const FIXTURES: usize = 30;

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nginx")
}

/// Each fixture with its text.
fn fixtures() -> Vec<(PathBuf, String)> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let with_text = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    found.into_iter().map(with_text).collect()
}

/// The directives that a fixture's first line names.
fn expected(text: &str) -> BTreeSet<&str> {
    let names = text.lines().next().and_then(|line| line.strip_prefix("# expect:"));
    names.expect("the first line names what changes behaviour").split_whitespace().collect()
}

fn changes(imported: &Imported) -> BTreeSet<&str> {
    let notes = imported.notes.iter().filter(|note| note.class == Class::Changes);
    notes.filter_map(|note| note.directive.split_whitespace().next()).collect()
}

/// Counts directives in another way than the importer: by the `;` and `{` that are neither in quotes nor in comments.
fn directives(text: &str) -> usize {
    let (mut count, mut quote, mut previous, mut lua) = (0, None, ' ', 0_usize);
    let mut line_start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (_, '\\') => drop(chars.next()),
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '#') if previous.is_whitespace() => while chars.next_if(|(_, c)| *c != '\n').is_some() {},
            (None, '{') if lua > 0 => lua += 1,
            (None, '}') if lua > 0 => lua -= 1,
            _ if lua > 0 => {}
            (None, '"' | '\'') if previous.is_whitespace() || previous == '(' => quote = Some(c),
            (None, '{') if previous == '$' => {}
            (None, ';') => count += 1,
            (None, '{') => {
                count += 1;
                lua = usize::from(text[line_start..at].contains("_by_lua_block"));
            }
            _ => {}
        }
        if c == '\n' {
            line_start = at + 1;
        }
        previous = c;
    }
    count
}

#[test]
fn every_directive_of_each_fixture_is_carried_over_or_reported() {
    let (mut all, mut by_class) = (0, [0; 4]);
    let fixtures = fixtures();
    assert!(fixtures.len() >= FIXTURES, "{} fixtures", fixtures.len());
    for (path, text) in fixtures {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let imported = import(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let own = imported.notes.iter().filter(|note| note.place.starts_with(&format!("{name}:")));
        assert_eq!(own.clone().count(), directives(&text), "{name}");
        all += directives(&text);
        for (class, count) in
            [Class::Carried, Class::NotNeeded, Class::Look, Class::Changes].into_iter().zip(&mut by_class)
        {
            *count += own.clone().filter(|note| note.class == class).count();
        }
        for note in own.filter(|note| note.class != Class::Carried) {
            assert!(!note.why.is_empty(), "{note} has no reason");
            assert!(!note.why.contains("not understood at this place"), "{note}: nobody has read it");
        }
        assert_eq!(changes(&imported), expected(&text), "{name}: {:#?}", imported.notes);
    }
    let [carried, needless, look, changes] = by_class;
    let classified = carried + needless + look + changes;
    println!(
        "{all} directives: {carried} carried over, {needless} not needed, {look} to look at, {changes} change behaviour"
    );
    assert_eq!(classified, all, "the share of directives with a class is 100 %");
}

#[test]
fn what_is_written_passes_the_check_and_has_a_comment_for_the_rest() {
    for (path, _) in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let imported = import(&path).unwrap();
        let Some(toml) = &imported.toml else {
            assert!(imported.changes_behaviour(), "{name}: nothing to import, and no reason for it");
            continue;
        };
        config::parse(toml).unwrap_or_else(|error| panic!("{name}: {error}\n{toml}"));
        for note in imported.notes.iter().filter(|note| note.class != Class::Carried) {
            assert!(toml.contains(&note.place), "{name}: no comment for {note}\n{toml}");
        }
    }
}

#[tokio::test]
async fn the_command_prints_the_configuration_and_reports_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in fixtures() {
        let imported = import(&path).unwrap();
        let (code, out, err) = cli(dir.path(), &["import", "nginx", path.to_str().unwrap()]).await;
        assert_eq!(code, if expected(&text).is_empty() { 0 } else { 3 }, "{}: {err}", path.display());
        assert_eq!(out.trim_end(), imported.toml.unwrap_or_default().trim_end());
        for note in imported.notes.iter().filter(|note| note.class != Class::Carried) {
            assert!(err.lines().any(|line| line == note.to_string()), "{note} is missing in {err}");
        }
    }
}

#[tokio::test]
async fn a_file_that_can_not_be_read_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("open.conf", "server {\n  listen 80;\n");
    write("quote.conf", "server {\n  server_name 'a;\n}\n");
    write("word.conf", "server {\n  listen 80\n}\n");
    write("inner.conf", "include gone.conf;\n");
    write("outer.conf", "events {}\nhttp {\n  include open.conf;\n}\n");
    for (name, expected) in [
        ("none.conf", "none.conf: file not found"),
        ("open.conf", "open.conf:3: the file ends, but a } is missing"),
        ("quote.conf", "quote.conf:2: this quote isn't closed"),
        ("word.conf", "word.conf:2: expected ; or { after this directive"),
        ("inner.conf", "inner.conf:1: cannot read the included file"),
        ("outer.conf", "open.conf:3: the file ends"),
    ] {
        let path = dir.path().join(name);
        let (code, out, err) = cli(dir.path(), &["import", "nginx", path.to_str().unwrap()]).await;
        assert_eq!((code, out.as_str()), (2, ""), "{name}: {err}");
        let found = name == "none.conf" && err.contains("cannot read") || err.contains(expected);
        assert!(found, "{name}: {expected:?} is missing in {err}");
    }
}
