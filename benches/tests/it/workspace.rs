//! The workspace as cargo tells it, and as it lies on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// The top folder of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// What `cargo metadata` says: every package, and which of them the workspace really resolves to.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: Vec<String>,
    workspace_root: PathBuf,
}

/// A package as its manifest describes it.
#[derive(Deserialize)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a manifest's dependency tables.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) req: String,
    kind: Option<String>,
    pub(crate) optional: bool,
    pub(crate) features: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

impl Edge {
    /// Whether it is only there for tests.
    fn is_dev(&self) -> bool {
        self.dep_kinds.iter().all(|of| of.kind.as_deref() == Some("dev"))
    }
}

impl Dependency {
    /// Whether it is only there for tests.
    pub(crate) fn is_dev(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

impl Package {
    /// Whether it is pingora or one of its parts.
    pub(crate) fn is_pingora(&self) -> bool {
        is_pingora(&self.name)
    }
}

/// Whether a package of this name is pingora or one of its parts.
pub(crate) fn is_pingora(name: &str) -> bool {
    name == "pingora" || name.starts_with("pingora-")
}

impl Workspace {
    /// Asks the cargo that runs this test. Only packages of this platform: others need not be on this machine.
    pub(crate) fn load() -> Self {
        let platform = host();
        let arguments =
            ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform];
        serde_json::from_slice(&cargo(&arguments)).unwrap()
    }

    /// Its members.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// The member of this name.
    pub(crate) fn member(&self, name: &str) -> &Package {
        let mut members = self.members();
        members.find(|package| package.name == name).unwrap_or_else(|| panic!("there is no member {name}"))
    }

    /// Every package that is really used, by name.
    pub(crate) fn resolved(&self) -> BTreeSet<&str> {
        self.resolve.nodes.iter().map(|node| self.package(&node.id).name.as_str()).collect()
    }

    /// Everything that a member's programs are built from or with, directly or not. What its tests alone use is not among
    /// it: `ARROWS` has that.
    pub(crate) fn reachable_from(&self, member: &str) -> Vec<&Package> {
        let mut found = BTreeSet::new();
        let mut open = vec![self.member(member).id.as_str()];
        while let Some(id) = open.pop() {
            let node = self.resolve.nodes.iter().find(|node| node.id == id).unwrap();
            let edges = node.deps.iter().filter(|edge| !edge.is_dev());
            open.extend(edges.map(|edge| edge.pkg.as_str()).filter(|pkg| found.insert(*pkg)));
        }
        found.into_iter().map(|id| self.package(id)).collect()
    }

    fn package(&self, id: &str) -> &Package {
        self.packages.iter().find(|package| package.id == id).unwrap()
    }

    /// All Rust files of the workspace, but for those of tests.
    pub(crate) fn sources(&self) -> Vec<PathBuf> {
        let mut sources = Vec::new();
        collect_sources(&self.workspace_root, &mut sources);
        sources
    }
}

fn collect_sources(directory: &Path, sources: &mut Vec<PathBuf>) {
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "tests" {
                collect_sources(&path, sources);
            }
        } else if name.ends_with(".rs") {
            sources.push(path);
        }
    }
}

fn host() -> String {
    let version = String::from_utf8(cargo(&["-vV"])).unwrap();
    version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

fn cargo(arguments: &[&str]) -> Vec<u8> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
