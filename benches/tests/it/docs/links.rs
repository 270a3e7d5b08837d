//! Every relative link leads to a file, and to a heading of it; every page is in the table of contents.

use std::fs;
use std::path::{Path, PathBuf};

use super::{root, text};

/// Every page for people, relative to the top folder.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut open = vec![root()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir()
                && !name.starts_with('.')
                && name != "target"
                && name != "out"
                && name != "node_modules"
            {
                open.push(path);
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The targets of `[text](target)` outside of code blocks.
fn links(page: &str) -> Vec<&str> {
    let prose = page.split("```").step_by(2);
    let after = prose.flat_map(|prose| prose.split("](").skip(1));
    after.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// The anchors that GitHub gives the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let prose: String = page.split("\n```").step_by(2).collect();
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    let slug = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        words.chars().filter(|c| kept(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_of_the_documentation_resolves() {
    let mut broken = Vec::new();
    let pages = pages();
    assert!(pages.len() > 20, "{pages:?}");
    for page in &pages {
        let source = fs::read_to_string(page).unwrap();
        for link in links(&source).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let there = if anchor.is_empty() {
                target.exists()
            } else {
                fs::read_to_string(&target).is_ok_and(|target| anchors(&target).iter().any(|a| a == anchor))
            };
            if !there {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_page_is_in_the_table_of_contents() {
    let summary = text("docs/SUMMARY.md");
    let listed: Vec<&str> = links(&summary);
    for page in pages() {
        let docs = root().join("docs");
        let Ok(page) = page.strip_prefix(docs) else { continue };
        if page != Path::new("SUMMARY.md") {
            assert!(
                listed.iter().any(|link| Path::new(link) == page),
                "{} is not in docs/SUMMARY.md",
                page.display()
            );
        }
    }
}

#[test]
fn the_readme_stays_short() {
    assert!(text("README.md").lines().count() <= 200, "move details to docs/");
}
