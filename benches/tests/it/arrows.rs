//! Which package may depend on which. A new arrow needs a line here, and a reason.

use std::collections::BTreeSet;

use super::workspace::{Workspace, is_pingora};

/// For every member: the members it uses, and those that only its tests use.
const ARROWS: [(&str, &[&str], &[&str]); 14] = [
    ("uh-http1", &[], &[]),
    ("uh-keeper", &["uh-system"], &["uh-testkit"]),
    ("uh-protocol", &[], &[]),
    ("uh-settings", &[], &[]),
    ("uh-switching", &["uh-protocol"], &[]),
    ("uh-system", &[], &[]),
    ("uh-trial", &[], &[]),
    (
        "uh-proxy",
        &["uh-http1", "uh-keeper", "uh-protocol", "uh-settings", "uh-switching", "uh-system", "uh-trial"],
        &["uh-sample-app", "uh-testkit"],
    ),
    ("uh-controller", &["uh-protocol", "uh-settings", "uh-system", "uh-trial"], &["uh-testkit"]),
    ("uh-app-shim", &["uh-protocol", "uh-settings", "uh-system"], &["uh-sample-app", "uh-testkit"]),
    ("uh-sample-app", &["uh-app-shim"], &["uh-testkit"]),
    // It knows the programs only from outside.
    ("uh-testkit", &["uh-protocol"], &[]),
    ("uh-benches", &["uh-protocol", "uh-testkit"], &["uh-app-shim", "uh-controller", "uh-http1", "uh-proxy"]),
    ("uh-e2e", &["uh-protocol", "uh-testkit"], &[]),
];

#[test]
fn members_depend_on_each_other_only_along_the_arrows() {
    let workspace = Workspace::load();
    let members: BTreeSet<&str> = workspace.members().map(|member| member.name.as_str()).collect();
    let listed: BTreeSet<&str> = ARROWS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(members, listed, "every member, and no other, has a line in ARROWS");
    for (name, uses, tests_use) in ARROWS {
        for dependency in &workspace.member(name).dependencies {
            let to = dependency.name.as_str();
            let allowed = uses.contains(&to) || dependency.is_dev() && tests_use.contains(&to);
            assert!(!members.contains(to) || allowed, "{name} must not depend on {to}");
        }
    }
}

#[test]
fn without_its_client_the_protocol_needs_only_serde_and_thiserror() {
    let workspace = Workspace::load();
    let protocol = workspace.member("uh-protocol");
    let needed: BTreeSet<&str> = protocol
        .dependencies
        .iter()
        .filter(|dependency| !dependency.optional && !dependency.is_dev())
        .map(|dependency| dependency.name.as_str())
        .collect();
    assert_eq!(needed, BTreeSet::from(["serde", "serde_json", "thiserror"]));
    assert_eq!(protocol.features.keys().collect::<Vec<_>>(), ["client"], "nothing is on by default");
}

#[test]
fn pingora_is_used_by_the_proxy_alone() {
    let workspace = Workspace::load();
    for member in workspace.members().filter(|member| member.name != "uh-proxy") {
        // Not in its tests either.
        let direct = member.dependencies.iter().find(|dependency| is_pingora(&dependency.name));
        assert!(direct.is_none(), "{} must not depend on pingora", member.name);
        let reached = workspace.reachable_from(&member.name).into_iter().find(|package| package.is_pingora());
        assert!(reached.is_none(), "{} must not reach {}", member.name, reached.map_or("", |p| &p.name));
    }
}

#[test]
fn bollard_is_used_by_the_controller_alone() {
    let workspace = Workspace::load();
    for member in workspace.members().filter(|member| member.name != "uh-controller") {
        let direct = member.dependencies.iter().find(|dependency| dependency.name.starts_with("bollard"));
        assert!(direct.is_none(), "{} must not depend on bollard", member.name);
        let reached = workspace.reachable_from(&member.name);
        let bollard = reached.iter().find(|package| package.name.starts_with("bollard"));
        assert!(bollard.is_none(), "{} must not reach {}", member.name, bollard.map_or("", |p| &p.name));
    }
}

#[test]
fn the_demo_and_the_sample_app_reach_the_proxy_only_as_a_process() {
    let workspace = Workspace::load();
    for member in ["uh-benches", "uh-sample-app", "uh-testkit"] {
        let reached = workspace.reachable_from(member);
        assert!(reached.iter().all(|package| package.name != "uh-proxy"), "{member} must not link uh-proxy");
    }
}

#[test]
fn pingora_is_pinned_and_brings_no_proxy_of_its_own() {
    let workspace = Workspace::load();
    let pingora = workspace.member("uh-proxy").dependencies.iter().find(|d| d.name == "pingora").unwrap();
    assert!(pingora.req.starts_with("=0.9."), "pingora is pinned exactly, not {}", pingora.req);
    assert!(!pingora.features.iter().any(|feature| feature == "proxy"), "{:?}", pingora.features);
    assert!(!workspace.resolved().contains("pingora-proxy"), "something turned on pingora's proxy feature");
}
