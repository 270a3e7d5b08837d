//! Fields, access, answers and rates.

use super::*;

#[test]
fn fields_are_added_to_a_rule_and_only_there() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let text = server(&format!(
        "add_header X-A 1; proxy_hide_header X-Powered-By; proxy_set_header X-B 2; proxy_set_header X-C '';\n\
         location /own/ {{ add_header X-A 3 always; add_header X-A 4; expires off; {pass} }}"
    ));
    let requests = "request_headers = { set = { \"X-B\" = \"2\" }, remove = [\"X-C\"] }";
    has(
        &text,
        &["response_headers = { set = { \"X-A\" = \"3, 4\" }, remove = [\"X-Powered-By\"] }", requests],
    );
    has(
        &text,
        &["response_headers = { set = { \"X-A\" = \"1\" }, remove = [\"X-Powered-By\"] }", "match = \"/\""],
    );
    assert!(!of(&text).changes_behaviour());
}

#[test]
fn fields_that_can_not_be_edited_are_reported() {
    let many: String = (0..20).map(|n| format!("add_header X-{n} 1; proxy_hide_header Y-{n};\n")).collect();
    assert!(of(&server(&many)).changes_behaviour());
    for field in [
        "add_header Set-Cookie a=b;",
        "add_header vary Origin;",
        "add_header Date x;",
        "add_header Content-Encoding gzip; gzip on;",
        "proxy_hide_header Content-Encoding; gzip on;",
        "proxy_set_header Via x;",
        "proxy_set_header tracestate x;",
        "proxy_set_header X-A $remote_user;",
        "proxy_set_header X-A 1; proxy_set_header X_A 2;",
    ] {
        assert!(of(&server(field)).changes_behaviour(), "{field}");
    }
    assert!(!of(&server("proxy_set_header X-Request-ID $request_id;")).changes_behaviour());
}

#[test]
fn addresses_are_allowed_only_where_the_others_are_denied() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let of_rule = |access: &str| {
        lines(&server(&format!("location /m {{ {access} access_log off; {pass} }}")))
            .into_iter()
            .find(|line| line.starts_with("allow") || line.starts_with("answer"))
    };
    let allowed = Some("allow = [\"10.0.0.0/8\", \"::1\"]".to_owned());
    assert_eq!(of_rule("allow 10.1.2.3/8; allow ::1; deny all;"), allowed);
    assert_eq!(of_rule("allow 10.0.0.0/8;"), None);
    assert_eq!(of_rule("allow all; deny all;"), None);
    assert_eq!(of_rule("allow 10.0.0.0/8; allow all; deny all;"), None);
    assert_eq!(of_rule("deny all;"), Some("answer = { status = 403 }".to_owned()));
    let inherited = server(&format!("allow 10.0.0.0/8; deny all; location /open {{ allow all; {pass} }}"));
    has(&inherited, &["match = \"/open\"", "match = \"/\"", "allow = [\"10.0.0.0/8\"]"]);
}

#[test]
fn an_answer_comes_before_addresses_and_rates() {
    let text = format!(
        "limit_req_zone $binary_remote_addr zone=z:1m rate=5r/m;\n{}",
        server(
            "deny all; limit_req zone=z; location = /ping { return 200 pong; } location /old { return 302 /new?$args; }"
        )
    );
    has(&text, &["answer = { status = 200, body = \"pong\" }", "redirect = { to = \"/new\", status = 302 }"]);
    has(&text, &["rate = { per_minute = 5, burst = 0 }", "answer = { status = 403 }"]);
}

#[test]
fn an_answer_without_a_type_has_the_default_one() {
    let text = server("location = /ping { default_type ''; return 200 pong; }");
    has(&text, &["answer = { status = 200, body = \"pong\" }"]);
    let text =
        server("location = /a { return 301 https://$host/b; } location = /b { return 301 https://-/; }");
    assert_eq!(class_of(&text, "return"), Class::Changes);
}

#[test]
fn a_burst_that_takes_a_day_is_reported() {
    let limited = |burst: u32| {
        let zone = "limit_req_zone $binary_remote_addr zone=z:1m rate=7r/m;";
        format!("{zone} {}", server(&format!("limit_req zone=z burst={burst} nodelay;")))
    };
    assert_eq!(class_of(&limited(10_000), "limit_req zone"), Class::Carried);
    for burst in 10_078..=10_082 {
        of(&limited(burst));
    }
    assert_eq!(class_of(&limited(10_090), "limit_req zone"), Class::Changes);
}

#[test]
fn files_that_nobody_may_have_are_denied_below_all_prefixes() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let text = server(&format!(
        "location ~ \\.(bak|sql)$ {{ deny all; }} location /a/ {{ {pass} client_max_body_size 9m; }}\n\
         location /api/ {{ proxy_pass http://127.0.0.1:4000; }}"
    ));
    has(&text, &["match = [\"/\", \"/a/\"]", "match = \"/api\"", "suffixes = [\".bak\", \".sql\"]"]);
}

#[test]
fn an_answer_without_an_app_is_reported() {
    let parked = "server { listen 80; server_name b.example.com; return 200 parked; }";
    assert_eq!(class_of(&format!("{parked} {}", server("")), "return"), Class::Changes);
}

#[test]
fn a_rate_is_shared_by_the_service_unless_a_rule_has_another() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let zones = "limit_req_zone $binary_remote_addr zone=a:1m rate=10r/s;\n\
                 limit_req_zone $binary_remote_addr zone=b:1m rate=5r/m;\n";
    let inner = format!(
        "limit_req zone=a burst=20 nodelay; location /up/ {{ add_header X-A 1; {pass} }}\n\
         location /login {{ limit_req zone=b burst=2 nodelay; {pass} }}"
    );
    let text = format!("{zones}{}", server(&inner));
    let found = lines(&text);
    let rates: Vec<&String> = found.iter().filter(|line| line.starts_with("rate")).collect();
    assert_eq!(rates, ["rate = { per_second = 10, burst = 20 }", "rate = { per_minute = 5, burst = 2 }"]);
    assert_eq!(class_of(&text, "limit_req zone=a"), Class::Carried);
    let two =
        format!("location /x/ {{ limit_req zone=a; {pass} }} location /y/ {{ limit_req zone=a; {pass} }}");
    assert_eq!(class_of(&format!("{zones}{}", server(&two)), "limit_req zone=a"), Class::Look);
}

#[test]
fn compression_is_carried_over_with_its_types() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let text = server(&format!(
        "gzip on; gzip_types text/css text/html x; gzip_comp_level 9; gzip_min_length 256;\n\
         location /off/ {{ gzip off; {pass} }} location = /ping {{ return 200 pong; }}\n\
         location /other/ {{ gzip_types application/json; {pass} }}"
    ));
    let found = lines(&text);
    let compress: Vec<&String> = found.iter().filter(|line| line.starts_with("compress")).collect();
    let expected = [
        "compress = { types = [\"text/html\", \"text/css\"], min_bytes = \"256B\", level = 9 }",
        "compress = false",
        "compress = { types = [\"text/html\", \"application/json\"], min_bytes = \"256B\", level = 9 }",
    ];
    assert_eq!(compress, expected);
    assert_eq!(class_of(&text, "gzip_types"), Class::Look);
    let only = format!("gzip_types text/css; location /on/ {{ gzip on; gzip_types text/xml; {pass} }}");
    has(&server(&only), &["compress = { types = [\"text/html\", \"text/xml\"] }"]);
    assert_eq!(lines(&server(&only)).iter().filter(|line| line.starts_with("compress")).count(), 1);
    let back = "gzip on; location / { gzip_comp_level 9; proxy_pass http://a:1; } location /x/ { proxy_pass http://a:1; }";
    let text = format!("server {{ {back} }}");
    has(
        &text,
        &[
            "compress = { types = [\"text/html\"], level = 9 }",
            "compress = { types = [\"text/html\"], level = 6 }",
        ],
    );
}

#[test]
fn a_replaced_prefix_is_a_rule() {
    let text = server(
        "location /v1/ { proxy_pass http://127.0.0.1:4000/api/; } location /in/ { proxy_pass http://127.0.0.1:3000/; }\n\
         location = /healthz { proxy_pass http://127.0.0.1:3000/health/ready; }",
    );
    has(
        &text,
        &["match = \"/v1/\"", "replace_prefix = \"/api/\"", "match = \"/in/\"", "replace_prefix = \"/\""],
    );
    has(&text, &["replace_prefix = \"/health/ready\"", "path = \"/health/ready\""]);
    assert_eq!(
        class_of(&server("location /a/ { proxy_pass http://b:1/c; }"), "proxy_pass http://b"),
        Class::Look
    );
}
