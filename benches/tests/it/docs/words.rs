//! Words that programs rely on: problem codes, termination codes and app-shim's metrics. uh-proxy's own metrics are
//! asked for in `examples`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use uh_protocol::Code;

use super::{chapter, quoted, root, rows, text};

/// The first cells of a chapter's tables.
fn first_cells(page: &str, heading: &str) -> BTreeSet<String> {
    let cells =
        rows(chapter(page, heading)).flat_map(|row| quoted(row[0]).map(str::to_owned).collect::<Vec<_>>());
    cells.collect()
}

fn snake_case(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}

#[test]
fn every_problem_code_is_documented_with_its_status() {
    let source = text("proxy/protocol/src/problem.rs");
    let (_, body) = source.split_once("pub enum Code {").unwrap();
    let body = body.split("\n}").next().unwrap();
    let variants = body.lines().filter_map(|line| line.trim().strip_suffix(','));
    let codes: Vec<String> = variants.map(snake_case).collect();
    assert!(codes.len() > 10, "{codes:?}");
    let page = text("docs/admin-api.md");
    let errors = chapter(&page, "## Errors");
    for code in &codes {
        let parsed: Code = serde_json::from_value(code.as_str().into()).unwrap();
        let row = rows(errors).find(|row| row[0] == format!("`{code}`"));
        let row = row.unwrap_or_else(|| panic!("{code} is not in docs/admin-api.md"));
        assert!(row[1].contains(&parsed.status().to_string()), "{code}: {} in docs/admin-api.md", row[1]);
    }
    for code in first_cells(&page, "## Errors") {
        assert!(codes.contains(&code), "docs/admin-api.md has the code {code}, and uh-protocol has not");
    }
}

#[test]
fn every_termination_code_is_documented() {
    let source = text("proxy/src/observe/termination.rs");
    let codes = source.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
    let codes: BTreeSet<String> = codes.map(str::to_owned).collect();
    assert!(codes.len() > 10, "{codes:?}");
    assert_eq!(
        codes,
        first_cells(&text("docs/logging.md"), "### Termination codes"),
        "the code, and docs/logging.md"
    );
}

#[test]
fn every_reason_of_a_broken_request_is_documented() {
    let source = text("proxy/src/observe/broken.rs");
    let reasons = source.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
    let reasons: BTreeSet<String> = reasons.map(str::to_owned).collect();
    assert!(reasons.len() > 5, "{reasons:?}");
    let page = text("docs/metrics.md");
    assert_eq!(reasons, first_cells(&page, "### Broken requests"), "the code, and docs/metrics.md");
}

/// The text of all files in a folder and below.
fn all_text(folder: &Path) -> String {
    let paths = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    paths
        .map(|path| if path.is_dir() { all_text(&path) } else { fs::read_to_string(path).unwrap() })
        .collect()
}

#[test]
fn every_invariant_is_a_test() {
    let sources = ["proxy/tests/it", "controller/tests/it"].map(|folder| all_text(&root().join(folder)));
    let page = text("docs/invariants.md");
    let mut seen = 0;
    for row in rows(&page).filter(|row| row[0].parse::<u32>().is_ok()) {
        seen += 1;
        assert_eq!(row[0], seen.to_string(), "the invariants are numbered");
        let test = row[2].trim_matches('`');
        assert!(sources.concat().contains(&format!("fn {test}()")), "there is no test {test}");
    }
    assert!(seen > 10);
}

#[test]
fn every_metric_of_the_shim_is_documented() {
    let source = text("app-shim/src/metrics.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let listed = source.split("\", \"").filter_map(|part| part.rsplit('"').next());
    let rendered = source.split("# TYPE app_shim_").skip(1).filter_map(|rest| rest.split(' ').next());
    let is_name = |name: &&str| name.len() > 4 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let names: BTreeSet<&str> = listed.chain(rendered).filter(is_name).collect();
    let documented = first_cells(&text("docs/metrics.md"), "## app-shim");
    for name in names.iter().filter(|name| !["gauge", "counter"].contains(*name)) {
        assert!(documented.contains(*name), "app_shim_{name} is not in docs/metrics.md");
    }
    for name in documented {
        assert!(source.contains(&name), "docs/metrics.md has app_shim_{name}, and the shim has not");
    }
}
