//! Which rule a path gets, and what is a mistake.

mod guards;
mod headers;
mod replies;

use proptest::prelude::*;

use super::*;
use crate::config::{ConfigError, Service, parse};

fn text(service: &str, paths: &str) -> String {
    format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n{service}\n\
         [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n{}",
        paths.replace("[[paths]]", "[[services.app.paths]]")
    )
}

fn service(service: &str, paths: &str) -> Service {
    parse(&text(service, paths)).unwrap().services.remove(0)
}

fn mistakes(paths: &str) -> Vec<(String, String)> {
    mistakes_of("", paths)
}

fn mistakes_of(service: &str, paths: &str) -> Vec<(String, String)> {
    match parse(&text(service, paths)) {
        Err(ConfigError::Mistakes(mistakes)) => mistakes.0.into_iter().map(|m| (m.key, m.reason)).collect(),
        other => panic!("expected mistakes, got {other:?}"),
    }
}

/// One rule for each line, told apart by its body limit: 1 for the first, and so on; 0 for the service itself.
fn rule_for(rules: &[&str], path: &str) -> u64 {
    let rule = |(at, lines): (usize, &&str)| {
        format!("[[paths]]\n{lines}\nlimits = {{ body_bytes = \"{}B\" }}\n", at + 1)
    };
    let paths: String = rules.iter().enumerate().map(rule).collect();
    let service = service("[services.app.limits]\nbody_bytes = \"0B\"", &paths);
    let found = service.rules.at(service.rules.find(path.as_bytes()));
    found.limits.body_bytes.unwrap_or(0)
}

#[test]
fn the_most_specific_pattern_wins_in_any_order_of_the_rules() {
    let rules = [
        "suffixes = [\".js\", \".css\"]",
        "match = [\"/api\", \"/admin/\"]",
        "match = \"/api/upload\"",
        "match = \"/api/upload\"\nsuffixes = \".js\"",
        "match = \"/api/upload\"\nsuffixes = \".min.js\"",
        "match = \"/api/upload\"\nexact = true",
        "match = \"/a.js\"\nexact = true",
        "match = \"/exact/\"\nexact = true",
    ];
    for (path, rule) in [
        ("/", 0),
        ("/x", 0),
        ("/x.js", 1),
        ("/x.JS?v=1", 1),
        ("/deep/er/x.css", 1),
        ("/x?y=.js", 0),
        ("/js", 0),
        ("/.js", 1),
        ("/api", 2),
        ("/api?x", 2),
        ("/api/x.js", 2),
        ("/apix", 0),
        ("/admin", 2),
        ("/admin/x", 2),
        ("/api/upload", 6),
        ("/api/upload?x=/", 6),
        ("/api/upload/", 3),
        ("/api/upload/x", 3),
        ("/api/uploads", 2),
        ("/api/upload/x.js", 4),
        ("/api/upload/x.min.js", 5),
        ("/api/upload/min.js", 4),
        ("/a.js", 7),
        ("/a.js/", 0),
        ("/b/a.js", 1),
        ("/exact/", 8),
        ("/exact", 0),
        ("/exact/x", 0),
        ("", 0),
        ("?x.js", 0),
        ("*", 0),
    ] {
        assert_eq!(rule_for(&rules, path), rule, "{path}");
        let mut reversed = rules;
        reversed.reverse();
        let expected = if rule == 0 { 0 } else { 9 - rule };
        assert_eq!(rule_for(&reversed, path), expected, "{path}, the other way round");
    }
}

#[test]
fn a_rule_for_all_paths_holds_for_those_without_another_one() {
    let rules = ["match = \"/\"", "match = \"/\"\nexact = true", "match = \"/x\""];
    for (path, rule) in [("/", 2), ("", 2), ("?a=b", 2), ("/y", 1), ("//", 1), ("*", 1), ("/x/y", 3)] {
        assert_eq!(rule_for(&rules, path), rule, "{path:?}");
    }
}

#[test]
fn paths_are_compared_as_they_are_written_and_dot_segments_lead_out() {
    let rules = ["match = \"/api\"", "match = \"/api/v2\"", "match = \"/api\"\nsuffixes = [\".js\"]"];
    for (path, rule) in [
        ("/%61pi/x", 0),
        ("//api", 0),
        ("/API", 0),
        ("/api/../x", 0),
        ("/api/%2e%2e/x", 0),
        ("/api/..%2fx", 0),
        ("/api/..;/x", 0),
        ("/api/v2/../x", 1),
        ("/api/v2/../../x", 0),
        ("/api/v2/x/../y", 2),
        ("/api/../x.js", 0),
        ("/api/v2/../x.js", 3),
        ("/x/../api", 0),
        ("/api/x.j%73", 1),
    ] {
        assert_eq!(rule_for(&rules, path), rule, "{path}");
    }
}

#[test]
fn a_rule_without_a_prefix_stays_in_its_service() {
    let service = service("path_prefix = \"/shop\"", "[[paths]]\nsuffixes = [\".js\"]\naccess_log = false\n");
    let logged = |path: &str| service.rules.at(service.rules.find(path.as_bytes())).access_log;
    assert!(!logged("/shop/x.js") && logged("/shop/x") && logged("/shop/../x.js"));
}

#[test]
fn what_a_rule_leaves_out_is_the_services() {
    let service = service(
        "[services.app.timeouts]\nread = \"7s\"\noverdue = \"off\"\nidle = \"1s\"\n[services.app.limits]\nmin_body_rate = \"9B\"",
        "[[paths]]\nmatch = \"/slow\"\ntimeouts = { read = \"300s\", half_closed = \"off\" }\n\
         [[paths]]\nmatch = \"/big\"\n[services.app.paths.limits]\nbody_bytes = \"5B\"\n[services.app.paths.timeouts]\noverdue = \"2s\"\n",
    );
    let at = |path: &str| service.rules.at(service.rules.find(path.as_bytes()));
    let own = service.rules.own();
    assert_eq!(at("/other"), own);
    let slow =
        Timeouts { read: std::time::Duration::from_secs(300), half_closed: None, ..own.timeouts.clone() };
    assert_eq!(*at("/slow"), PathSettings { timeouts: slow, ..own.clone() });
    assert_eq!(at("/slow").timeouts.overdue, None);
    let big = at("/big");
    assert_eq!((big.limits.body_bytes, big.limits.min_body_rate), (Some(5), 9));
    assert_eq!(big.timeouts.overdue, Some(std::time::Duration::from_secs(2)));
}

#[test]
fn what_matches_nothing_or_twice_is_a_mistake() {
    for (paths, key, reason) in [
        ("[[paths]]\naccess_log = false\n", "paths[0].match", "missing"),
        ("[[paths]]\nmatch = []\n", "paths[0].match", "empty"),
        ("[[paths]]\nmatch = 1\n", "paths[0].match", "a string or a list"),
        ("[[paths]]\nmatch = \"api\"\n", "paths[0].match", "start with /"),
        ("[[paths]]\nmatch = [\"/a\", \"/b?c\"]\n", "paths[0].match[1]", "no query"),
        ("[[paths]]\nmatch = \"/a/../b\"\n", "paths[0].match", "dot segment"),
        ("[[paths]]\nsuffixes = [\"*.js\"]\n", "paths[0].suffixes[0]", "suffix"),
        ("[[paths]]\nsuffixes = []\n", "paths[0].suffixes", "empty"),
        ("[[paths]]\nsuffixes = [\".js\"]\nexact = true\n", "paths[0].exact", "needs match"),
        (
            "[[paths]]\nmatch = \"/a\"\nsuffixes = [\".js\"]\nexact = true\n",
            "paths[0].exact",
            "without suffixes",
        ),
        (
            "[[paths]]\nmatch = \"/a\"\n[[paths]]\nmatch = [\"/b\", \"/a/\"]\n",
            "paths[1].match",
            "paths[0] has",
        ),
        (
            "[[paths]]\nmatch = \"/a\"\n[[paths]]\nmatch = \"/a\"\nsuffixes=[\".JS\", \".js\"]\n",
            "paths[1].match",
            "paths[1] has",
        ),
        ("[[paths]]\nmatch = \"/a\"\ncolour = \"red\"\n", "paths[0].colour", "unknown key"),
        (
            "[[paths]]\nmatch = \"/a\"\ntimeouts = { connect = \"1s\" }\n",
            "paths[0].timeouts.connect",
            "unknown key",
        ),
    ] {
        let found = mistakes(paths);
        let expected = format!("services.app.{key}");
        assert!(
            found.len() == 1 && found[0].0 == expected && found[0].1.contains(reason),
            "{paths}: {expected}: {reason} is missing in {found:?}"
        );
    }
    let found = mistakes_of("path_prefix = \"/shop\"", "[[paths]]\nmatch = \"/shopping\"\n");
    assert!(found[0].1.contains("isn't under the service's path_prefix /shop"), "{found:?}");
    let many = "[[paths]]\nmatch = \"/a\"\n".repeat(MAX_RULES + 1);
    assert!(
        mistakes(&many).iter().any(|(key, why)| key == "services.app.paths" && why.contains("256 rules"))
    );
}

proptest! {
    #[test]
    fn no_path_panics(path in prop::collection::vec(any::<u8>(), 0..60)) {
        let service = service("", "[[paths]]\nmatch = \"/a\"\nsuffixes = [\".js\"]\n[[paths]]\nmatch = \"/\"\nexact = true\n");
        let _ = service.rules.find(&path);
    }
}
