//! Rules that keep clients out hold for everything that an app may read as one of their paths.

use proptest::prelude::*;

use super::service;
use crate::config::Service;

/// Whether a rule that keeps clients out holds for a path.
fn is_kept(service: &Service, path: &str) -> bool {
    let rules = &service.rules;
    let own = rules.find(path.as_bytes());
    rules.other_readings(path.as_bytes()).into_iter().chain([own]).any(|id| rules.at(id).restricts())
}

#[test]
fn no_spelling_of_a_path_gets_around_the_rule() {
    let service = service(
        "",
        "[[paths]]\nmatch = [\"/Metrics\", \"/.git\"]\nallow = [\"10.0.0.0/8\"]\n\
         [[paths]]\nmatch = \"/metrics/public\"\n\
         [[paths]]\nmatch = \"/one\"\nexact = true\nanswer = { status = 404 }\n\
         [[paths]]\nsuffixes = [\".bak\"]\nanswer = { status = 404 }\n\
         [[paths]]\nmatch = \"/fine\"\nanswer = { status = 200 }\n",
    );
    for path in [
        "/Metrics",
        "/Metrics/x",
        "/metrics",
        "/METRICS",
        "/%6Detrics",
        "/%256Detrics",
        "/%2525%36Detrics",
        "//metrics",
        "/./metrics",
        "/x/../metrics",
        "/x/..;y/metrics",
        "/x/%2e%2e/metrics",
        "/x/..%2fmetrics",
        "/x%2f..%5cmetrics",
        "/\\metrics",
        "/;a/metrics",
        "/metrics;a=b",
        "/metrics%3Ba",
        "/metrics/",
        "/metrics?x",
        "/%6Detrics?x=/fine",
        "/metrics/../x",
        "/metrics/..;/x",
        "/%6Detrics/..%2f..",
        "/fine/../metrics",
        "/metrics/public/../x",
        "/.git/config",
        "/.GIT/config",
        "/%2egit",
        "/one",
        "/One",
        "/one/",
        "/one//",
        "/x/../one",
        "/a.bak",
        "/a.BAK",
        "/a.b%61k",
        "/a.bak;x",
    ] {
        assert!(is_kept(&service, path), "{path}");
    }
    for path in [
        "/",
        "/x",
        "*",
        "",
        "?metrics",
        "/metricsx",
        "/x/metrics",
        "/metrics/public",
        "/metrics/public/X",
        "/metrics/public/%61",
        "/one/x",
        "/onE/x",
        "/x?y=/metrics",
        "/x?y=%2e%2e/Metrics",
        "/a.bak.txt",
        "/fine/X",
        "/git",
        "/..git",
        "/%",
        "/%2",
        "/%zz",
    ] {
        assert!(!is_kept(&service, path), "{path}");
    }
}

#[test]
fn a_pattern_is_found_however_it_is_written_itself() {
    let service = service(
        "",
        "[[paths]]\nmatch = [\"/my%20docs\", \"/%61dmin\"]\nallow = []\n\
         [[paths]]\nmatch = \"/MY%20docs\"\n[[paths]]\nmatch = [\"/\", \"/P\"]\nexact = true\nallow = []\n\
         [[paths]]\nmatch = \"/p\"\nexact = true\n",
    );
    for path in [
        "/my%20docs/x",
        "/m%79%20docs",
        "/My%20Docs",
        "/admin",
        "/Admin",
        "/%61dmin",
        "/",
        "//",
        "/./",
        "/x/..",
        "/p",
        "/P",
    ] {
        assert!(is_kept(&service, path), "{path}");
    }
    assert!(!is_kept(&service, "/x") && !is_kept(&service, "/my"));
}

#[test]
fn a_service_in_which_nothing_is_kept_has_no_other_readings() {
    let service = service("", "[[paths]]\nmatch = \"/fine\"\nanswer = { status = 200 }\n");
    assert_eq!(service.rules.other_readings(b"/%66ine"), [crate::config::PathId::default(); 2]);
}

proptest! {
    /// However its bytes are encoded, and whatever comes before it and is left again.
    #[test]
    fn every_encoding_is_found(encode in prop::collection::vec(0u8..4, 8), before in "(/[a-c]{1,2}/\\.\\.){0,2}", long in 0usize..600) {
        let service = service("", "[[paths]]\nmatch = \"/private\"\nallow = []\n");
        let encoded: String = "/private".chars().zip(encode).map(|(letter, how)| match how {
            0 if letter != '/' => format!("%{:02x}", u32::from(letter)),
            1 if letter != '/' => format!("%25{:02X}", u32::from(letter)),
            2 => letter.to_uppercase().to_string(),
            _ => letter.to_string(),
        }).collect();
        let path = format!("{before}{encoded}/{}", "x".repeat(long));
        prop_assert!(is_kept(&service, &path), "{}", path);
    }

    #[test]
    fn no_path_panics(path in prop::collection::vec(any::<u8>(), 0..700), tail in "[/.%25e;\\\\]{0,40}") {
        let service = service("", "[[paths]]\nmatch = \"/a\"\nallow = []\n");
        let _ = service.rules.other_readings(&path);
        let _ = service.rules.other_readings(format!("/{tail}").as_bytes());
    }
}
