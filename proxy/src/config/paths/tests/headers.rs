//! Which fields can be set, and how a rule's add to its service's.

use super::{mistakes, mistakes_of, service};

/// The head of a response to this path with these fields, edited.
fn response(service: &crate::config::Service, path: &str, fields: &str) -> String {
    let mut head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n").into_bytes();
    let settings = service.rules.at(service.rules.find(path.as_bytes()));
    settings.response_headers.edits().apply(&mut head, 0);
    String::from_utf8(head).unwrap().replace("\r\n", "|")
}

#[test]
fn a_rule_adds_to_its_service_and_wins_where_both_name_a_field() {
    let service = service(
        "response_headers = { set = { X-A = \"service\", X-B = \"service\" }, remove = [\"Server\"] }",
        "[[paths]]\nmatch = \"/p\"\nresponse_headers = { set = { x-a = \"path\" }, default = { Server = \"path\", X-C = \"path\" }, remove = [\"X-b\"] }\n",
    );
    let app = "Server: app\r\nX-C: app\r\nX-B: app\r\n";
    assert_eq!(response(&service, "/", app), "HTTP/1.1 200 OK|X-C: app|X-A: service|X-B: service||");
    assert_eq!(response(&service, "/p", app), "HTTP/1.1 200 OK|Server: app|X-C: app|x-a: path||");
    assert_eq!(response(&service, "/p", ""), "HTTP/1.1 200 OK|Server: path|x-a: path|X-C: path||");
}

#[test]
fn the_coding_of_a_response_that_is_compressed_is_not_edited() {
    const EDITED: &str = "response_headers = { set = { Content-Encoding = \"gzip\" } }\n";
    let rule = |more: &str| format!("[[paths]]\nmatch = \"/a\"\n{more}{EDITED}");
    let found = mistakes(&rule("compress = true\n"));
    assert!(found.len() == 1 && found[0].0 == "services.app.paths[0].response_headers", "{found:?}");
    assert_eq!(mistakes_of("compress = true", &rule("")).len(), 1);
    let allowed = service("compress = true", &rule("compress = false\n"));
    let head = response(&allowed, "/a", "");
    assert!(head.contains("Content-Encoding: gzip"), "{head}");
}

#[test]
fn fields_that_uh_proxy_sets_cannot_be_edited_and_the_remedy_is_named() {
    for (direction, name, remedy) in [
        ("response", "Content-Length", "remove it here"),
        ("response", "transfer-encoding", "remove it here"),
        ("response", "Connection", "remove it here"),
        ("response", "Keep-Alive", "remove it here"),
        ("response", "Upgrade", "remove it here"),
        ("response", "TE", "remove it here"),
        ("response", "Trailer", "remove it here"),
        ("response", "Date", "remove it here"),
        ("response", "X-Request-Id", "remove it here"),
        ("request", "Host", "the client's Host"),
        ("request", "Content-Length", "remove it here"),
        ("request", "Expect", "remove it here"),
        ("request", "Proxy", "remove it here"),
        ("request", "X-Forwarded-For", "server.trusted_proxies"),
        ("request", "X_Forwarded_For", "server.trusted_proxies"),
        ("request", "X-Forwarded-Prefix", "server.trusted_proxies"),
        ("request", "X-Real-IP", "server.trusted_proxies"),
        ("request", "Forwarded", "server.headers.forwarded"),
        ("request", "Via", "server.headers.via"),
        ("request", "X-Request-Start", "server.headers.request_start"),
        ("request", "traceparent", "server.headers.traceparent"),
        ("response", "a b", "isn't a valid header field name"),
        ("response", "", "isn't a valid header field name"),
        ("request", "X\u{e4}", "isn't a valid header field name"),
    ] {
        for (edit, key) in [
            (format!("set = {{ {name:?} = \"x\" }}"), format!("set.{name}")),
            (format!("default = {{ {name:?} = \"x\" }}"), format!("default.{name}")),
            (format!("remove = [{name:?}]"), "remove[0]".to_owned()),
        ] {
            let table = format!("{direction}_headers");
            let found = mistakes(&format!("[[paths]]\nmatch = \"/a\"\n{table} = {{ {edit} }}\n"));
            let expected = format!("services.app.paths[0].{table}.{key}");
            assert!(
                found.len() == 1 && found[0].0 == expected && found[0].1.contains(remedy),
                "{edit}: {expected}: {remedy} is missing in {found:?}"
            );
            assert_eq!(mistakes_of(&format!("{table} = {{ {edit} }}"), "").len(), 1);
        }
    }
}

#[test]
fn a_value_that_would_break_the_head_is_a_mistake_and_is_not_repeated() {
    let long = "x".repeat(8193);
    for value in
        ["secret\\r\\nX: y", "secret\\n", "secret\\u0000", "", " secret", "secret ", "secret\\u007f", &long]
    {
        for kind in ["set", "default"] {
            let edits = format!("response_headers = {{ {kind} = {{ X-A = \"{value}\" }} }}");
            let found = mistakes(&format!("[[paths]]\nmatch = \"/a\"\n{edits}\n"));
            assert_eq!(found.len(), 1, "{value}: {found:?}");
            assert_eq!(found[0].0, format!("services.app.paths[0].response_headers.{kind}.X-A"));
            assert!(!found[0].1.contains("secret"), "{found:?}");
        }
    }
    let service = service("request_headers = { set = { Authorization = \"a secret\" } }", "");
    assert!(!format!("{service:?}").contains("a secret"));
}

#[test]
fn a_field_is_edited_once_and_the_number_of_edits_is_limited() {
    for edits in [
        "response_headers = { set = { X-A = \"1\", x-a = \"2\" } }",
        "response_headers = { set = { X-A = \"1\" }, remove = [\"x-A\"] }",
        "request_headers = { set = { X-A = \"1\", X_A = \"2\" } }",
    ] {
        let found = mistakes_of(edits, "");
        assert!(found.len() == 1 && found[0].1.contains("more than once"), "{edits}: {found:?}");
    }
    let fields = |count: usize| {
        let fields: Vec<String> = (0..count).map(|n| format!("X-{n} = \"1\"")).collect();
        format!("request_headers = {{ set = {{ {} }} }}", fields.join(", "))
    };
    let _ = service(&fields(16), "");
    assert!(mistakes_of(&fields(17), "")[0].1.contains("more than 16 fields"));
    let both = format!("[[paths]]\nmatch = \"/a\"\n{}\n", fields(10).replace("X-", "Y-"));
    let found = mistakes_of(&fields(10), &both);
    assert!(
        found[0].0.ends_with("paths[0].request_headers") && found[0].1.contains("of the service"),
        "{found:?}"
    );
}
