//! The layers of modules within packages: earlier modules may use later ones, never the other way round. And no package
//! compiles another one's files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::workspace::root;

/// One package's modules in order, users first.
struct Layers {
    src: &'static str,
    order: &'static [&'static str],
}

const LAYERS: [Layers; 3] = [
    Layers {
        src: "proxy/src",
        order: &[
            "cli", "import", "run", "admin", "health", "handover", "front", "acme", "tls", "observe",
            "state", "config", "keeper", "fault", "lock", "random", "systemd",
        ],
    },
    Layers {
        src: "controller/src",
        order: &[
            "cli", "validate", "deploy", "proxy", "gate", "probe", "notice", "runtime", "command", "lines",
            "assets", "evidence", "verdict", "counters", "redact", "config", "env_file", "files", "check",
            "downtime", "fault", "waiting", "names", "time",
        ],
    },
    Layers {
        src: "app-shim/src",
        order: &[
            "fuzzing",
            "cli",
            "health_client",
            "run",
            "status_server",
            "lifecycle",
            "forward",
            "checks",
            "server",
            "metrics",
            "sockets",
            "signals",
            "app_link",
            "settings",
            "process",
            "exit",
            "phase",
            "drain",
            "health",
            "log",
        ],
    },
];

/// The folders with sources.
const FOLDERS: [&str; 5] = ["app-shim", "benches", "controller", "docker", "proxy"];

#[test]
fn modules_use_only_those_below_them() {
    for Layers { src, order } in LAYERS {
        let files = sources(&root().join(src));
        let modules: BTreeSet<&str> = order.iter().copied().collect();
        let found: BTreeSet<&str> = files
            .keys()
            .map(|file| module(file))
            .filter(|module| !matches!(*module, "lib" | "main"))
            .collect();
        assert_eq!(found, modules, "every module of {src}, and no other, has its place in the order");
        let place = |module: &str| order.iter().position(|other| *other == module);
        let mut breaches = BTreeSet::new();
        for (file, text) in &files {
            // The crate's root lists all of them.
            let Some(from) = place(module(file)) else { continue };
            for used in used(file, text) {
                if place(&used).is_some_and(|to| to < from) {
                    breaches.insert((file.as_str(), used));
                }
            }
        }
        assert!(breaches.is_empty(), "in {src}, these imports violate the order: {breaches:?}");
    }
}

#[test]
fn no_package_compiles_the_files_of_another() {
    let mut breaches = BTreeSet::new();
    for folder in FOLDERS {
        for (file, text) in sources(&root().join(folder)) {
            let file = format!("{folder}/{file}");
            for named in paths(&text) {
                let target = normal(&Path::new(&file).parent().unwrap().join(named));
                if package(Path::new(&file)) != package(&target) {
                    breaches.insert((file.clone(), target.display().to_string()));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "these files of other packages are compiled, too: {breaches:?}");
}

#[test]
fn imports_are_found_in_every_form() {
    let text = "use crate::config;\nuse crate::{front::Board, observe::{line, meters}, plain};\n// crate::cli\n\
                fn f() -> crate::state::Time { super::super::health::now() }\nmacro!($crate::run);\n";
    let found = used("admin/api.rs", text);
    let expected = ["config", "front", "health", "observe", "plain", "state"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(used("admin.rs", "use super::cli;").into_iter().collect::<Vec<_>>(), ["cli"]);
    assert_eq!(paths("#[path = \"../a.rs\"]\nmod a;"), ["../a.rs"]);
}

/// All sources below a folder, by their path in it.
fn sources(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// The top-level module that a file belongs to.
fn module(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The top-level modules of its package that a file uses, except its own.
fn used(file: &str, text: &str) -> BTreeSet<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect();
    let depth = file.trim_end_matches("/mod.rs").split('/').count();
    let up = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for root in ["crate::", up.as_str()] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '_' | '$' | ':')) {
                found.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    found.remove(module(file));
    found
}

/// The name at the start of a text, or the first names in a group.
fn first_names(text: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = text.strip_prefix('{') else { return vec![name(text)] };
    let (mut names, mut depth, mut fresh) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

/// The files named by `#[path]` attributes.
fn paths(text: &str) -> Vec<&str> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.split('"').next());
    named.collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

/// The folder of the package that a file belongs to.
fn package(file: &Path) -> PathBuf {
    let folders = file.ancestors().skip(1);
    let mut packages = folders.filter(|folder| root().join(folder).join("Cargo.toml").exists());
    packages.next().unwrap().to_owned()
}
