//! Answers and redirects: defaults, and what can't be combined.

use super::{Reply, mistakes, service};
use crate::config::{FixedAnswer, PathRedirect};

fn reply(lines: &str) -> Reply {
    let service = service("", &format!("[[paths]]\nmatch = \"/a\"\n{lines}\n"));
    service.rules.at(service.rules.find(b"/a")).reply.clone().unwrap()
}

fn redirect(lines: &str) -> (u16, String, bool) {
    match reply(&format!("redirect = {{ {lines} }}")) {
        Reply::Redirect(PathRedirect { status, to, keeps_query }) => (status, to, keeps_query),
        other @ Reply::Fixed(_) => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_has_defaults() {
    let text = "text/plain; charset=utf-8".to_owned();
    let fixed = |status, body: Option<&str>, content_type: &str| {
        Reply::Fixed(FixedAnswer {
            status,
            body: body.map(str::to_owned),
            content_type: content_type.to_owned(),
        })
    };
    assert_eq!(reply("answer = {}"), fixed(200, None, &text));
    assert_eq!(reply("answer = { body = \"ok\" }"), fixed(200, Some("ok"), &text));
    assert_eq!(
        reply("answer = { status = 410, body = \"{}\", content_type = \"application/json\" }"),
        fixed(410, Some("{}"), "application/json")
    );
}

#[test]
fn a_redirect_is_permanent_and_keeps_the_query_unless_it_says_otherwise() {
    for (lines, expected) in [
        ("to = \"/new\"", (308, "/new", true)),
        ("to = \"/new\", status = 302", (302, "/new", true)),
        ("to = \"/new?\"", (308, "/new", false)),
        ("to = \"/new?a=b\"", (308, "/new?a=b", false)),
        ("to = \"/new#top\"", (308, "/new#top", false)),
        ("to = \"https://example.com\"", (308, "https://example.com", true)),
        ("to = \"https://example.com:8443/x\"", (308, "https://example.com:8443/x", true)),
    ] {
        let (status, to, keeps_query) = redirect(lines);
        assert_eq!((status, to.as_str(), keeps_query), expected, "{lines}");
    }
}

#[test]
fn what_cannot_be_answered_or_combined_is_a_mistake() {
    for (lines, key, reason) in [
        ("answer = { status = 100 }", "answer.status", "out of range"),
        ("answer = { status = 302 }", "answer.status", "use redirect"),
        ("answer = { status = 204, body = \"x\" }", "answer.body", "has no body"),
        ("answer = { content_type = \"text/html\" }", "answer.content_type", "there is no body"),
        ("answer = { body = \"x\", content_type = \"a\\r\\nb\" }", "answer.content_type", "media type"),
        ("redirect = {}", "redirect.to", "missing"),
        ("redirect = { to = \"new\" }", "redirect.to", "isn't a target"),
        ("redirect = { to = \"//evil.test\" }", "redirect.to", "isn't a target"),
        ("redirect = { to = \"/\\\\evil.test\" }", "redirect.to", "isn't a target"),
        ("redirect = { to = \"http://a.test\" }", "redirect.to", "https://"),
        ("redirect = { to = \"https://\" }", "redirect.to", "isn't a target"),
        ("redirect = { to = \"/a\\r\\nb\" }", "redirect.to", "isn't a target"),
        ("redirect = { to = \"/b\", status = 304 }", "redirect.status", "isn't a redirect"),
        ("answer = {}\nredirect = { to = \"/b\" }", "redirect", "leave out one"),
        ("answer = {}\ntimeouts = { read = \"1s\" }", "timeouts", "the rule has answer"),
        ("answer = {}\nlimits = { body_bytes = \"1B\" }", "limits", "the rule has answer"),
        ("redirect = { to = \"/b\" }\nreplace_prefix = \"/c\"", "replace_prefix", "the rule has redirect"),
        (
            "answer = {}\nrequest_headers = { remove = [\"Cookie\"] }",
            "request_headers",
            "the rule has answer",
        ),
        ("replace_prefix = \"c\"", "replace_prefix", "start with /"),
        ("replace_prefix = \"/c?d\"", "replace_prefix", "no query"),
        ("allow = [\"10.0.0.1/8\"]", "allow[0]", "bits set"),
        ("allow = \"10.0.0.0/8\"", "allow", "list"),
    ] {
        let found = mistakes(&format!("[[paths]]\nmatch = \"/a\"\n{lines}\n"));
        let expected = format!("services.app.paths[0].{key}");
        assert!(
            found.len() == 1 && found[0].0 == expected && found[0].1.contains(reason),
            "{lines}: {expected}: {reason} is missing in {found:?}"
        );
    }
    let found = mistakes("[[paths]]\nsuffixes = [\".js\"]\nreplace_prefix = \"/b\"\n");
    assert!(found[0].1.contains("needs match"), "{found:?}");
}
