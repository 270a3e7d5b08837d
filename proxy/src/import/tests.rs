//! Small configurations, and what they become.

mod extras;
mod files;

use std::fs;

use proptest::prelude::*;

use super::*;

fn of(text: &str) -> Imported {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nginx.conf");
    fs::write(&path, text).unwrap();
    import(&path).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The lines that say something, without comments.
fn lines(text: &str) -> Vec<String> {
    let toml = of(text).toml.unwrap();
    let lines = toml.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// A server with this in it, and an app for the rest.
fn server(inner: &str) -> String {
    format!(
        "server {{ listen 80; server_name a.example.com; {inner} location / {{ proxy_pass http://127.0.0.1:3000; }} }}"
    )
}

fn has(text: &str, expected: &[&str]) {
    let lines = lines(text);
    for line in expected {
        assert!(lines.iter().any(|found| found == line), "{line} is missing in {lines:#?}");
    }
}

fn class_of(text: &str, directive: &str) -> Class {
    let imported = of(text);
    let note = imported.notes.iter().find(|note| note.directive.starts_with(directive));
    note.unwrap_or_else(|| panic!("no {directive} in {:#?}", imported.notes)).class
}

#[test]
fn locations_of_one_app_become_rules_of_one_service() {
    let text = server(
        "client_max_body_size 2m; location /slow/ { proxy_pass http://127.0.0.1:3000; proxy_read_timeout 5m; }\n\
         location = /ping { access_log off; proxy_pass http://127.0.0.1:3000; }\n\
         location /same { proxy_pass http://127.0.0.1:3000; }",
    );
    let expected = [
        "[server]",
        "listen = [\"0.0.0.0:80\"]",
        "[services.app]",
        "hosts = [\"a.example.com\"]",
        "active = \"blue\"",
        "[services.app.backends.blue]",
        "endpoints = [\"127.0.0.1:3000\"]",
        "[services.app.health]",
        "[services.app.limits]",
        "body_bytes = \"2MiB\"",
        "[[services.app.paths]]",
        "match = \"/slow/\"",
        "timeouts = { read = \"5m\" }",
        "[[services.app.paths]]",
        "match = \"/ping\"",
        "exact = true",
        "access_log = false",
    ];
    assert_eq!(lines(&text), expected);
}

#[test]
fn a_location_with_the_services_settings_below_a_rule_gets_a_rule_of_its_own() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let text =
        server(&format!("location /a/ {{ {pass} client_max_body_size 9m; }} location /a/b/ {{ {pass} }}"));
    has(&text, &["match = \"/a/\"", "match = \"/a/b/\""]);
}

#[test]
fn a_suffix_rule_is_repeated_below_the_prefixes_that_nginx_would_prefer_it_to() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let text = server(&format!(
        "location ~ \\.js$ {{ {pass} access_log off; }} location /a/ {{ {pass} client_max_body_size 9m; }}\n\
         location ^~ /b/ {{ {pass} client_max_body_size 8m; }}"
    ));
    has(&text, &["match = [\"/\", \"/a/\"]", "suffixes = [\".js\"]"]);
}

#[test]
fn another_app_within_a_prefix_is_a_service_of_its_own() {
    let text = server(
        "location /api/ { proxy_pass http://127.0.0.1:4000; } location /api/auth/ { proxy_pass http://127.0.0.1:3000; }",
    );
    has(&text, &["path_prefix = \"/api\"", "path_prefix = \"/api/auth\""]);
    assert!(of(&text).toml.unwrap().contains("The same app as services."));
}

#[test]
fn hosts_redirects_and_tls_are_carried_over() {
    let tls = "listen 443 ssl; ssl_certificate /c; ssl_certificate_key /k;";
    let text = format!(
        "server {{ listen 80; server_name example.com www.example.com; return 301 https://example.com$request_uri; }}\n\
         server {{ {tls} server_name www.example.com; return 301 $scheme://example.com$request_uri; }}\n\
         server {{ {tls} server_name example.com; location / {{ proxy_pass http://127.0.0.1:3000; }} }}"
    );
    has(
        &text,
        &[
            "listen_tls = [\"0.0.0.0:443\"]",
            "certificates = [{ cert = \"/c\", key = \"/k\" }]",
            "redirect = true",
            "hosts = [\"example.com\"]",
            "redirect_hosts = [\"www.example.com\"]",
        ],
    );
    assert!(!of(&text).changes_behaviour());
}

#[test]
fn what_needs_tls_is_reported_without_it() {
    let redirect = "server { listen 80; server_name a.example.com; return 301 https://$host$request_uri; }";
    assert_eq!(class_of(&format!("{redirect} {}", server("")), "return"), Class::Changes);
    let hsts = "add_header Strict-Transport-Security max-age=31536000;";
    assert_eq!(class_of(&server(hsts), "add_header"), Class::Changes);
    assert_eq!(
        class_of("server { listen 80 proxy_protocol; location / { proxy_pass http://a:1; } }", "listen"),
        Class::Changes
    );
}

#[test]
fn two_servers_that_only_differ_by_port_are_reported() {
    let text = "server { listen 80; location / { proxy_pass http://a:1; } }\n\
                server { listen 81; location / { proxy_pass http://b:1; } }";
    let imported = of(text);
    assert!(imported.notes.iter().any(|note| note.why.contains("chosen by port")), "{:#?}", imported.notes);
}

#[test]
fn the_location_that_is_written_twice_is_reported() {
    let pass = "proxy_pass http://127.0.0.1:3000;";
    let text = server(&format!(
        "location /a {{ {pass} send_timeout 5s; }} location /a/ {{ {pass} send_timeout 6s; }}"
    ));
    assert!(of(&text).changes_behaviour());
}

#[test]
fn a_variable_that_leads_to_an_upstream_is_followed() {
    let text = "upstream green { server b:1; } upstream blue { server a:1; }\n\
                server { set $active green; location / { proxy_pass http://$active$request_uri; } }";
    has(text, &["active = \"green\"", "[services.app.backends.blue]"]);
    assert_eq!(class_of(text, "set"), Class::Carried);
    let doubling: String = (0..60).map(|n| format!("set $v{n} $v{}$v{};\n", n + 1, n + 1)).collect();
    assert!(of(&server(&format!("{doubling} location /x {{ proxy_pass http://$v0; }}"))).changes_behaviour());
}

#[test]
fn nothing_to_import_is_said() {
    let imported = of("server { listen 80; root /srv; location / { try_files $uri /index.html; } }");
    assert!(imported.toml.is_none() && imported.changes_behaviour());
}

/// Lines of a server. Any selection of them is accepted by nginx's grammar.
const SERVER: [&str; 35] = [
    "listen 80;",
    "listen 8080 default_server;",
    "listen [::]:80;",
    "listen 443 ssl;",
    "listen 80 proxy_protocol;",
    "server_name a.example.com;",
    "server_name b.example.com www.a.example.com;",
    "server_name .c.example.com _;",
    "server_name \"\";",
    "ssl_certificate /c.pem;",
    "ssl_certificate_key rel.pem;",
    "return 301 https://$host$request_uri;",
    "return 301 https://a.example.com$request_uri;",
    "if ($host = www.a.example.com) { return 301 https://a.example.com$request_uri; }",
    "if ($scheme = http) { return 301 https://$host$request_uri; }",
    "return 444;",
    "client_max_body_size 0;",
    "proxy_read_timeout 100d;",
    "access_log off;",
    "access_log \"/var/log/a b\\\"c.log\" combined;",
    "set_real_ip_from 10.0.0.0/8;",
    "add_header Strict-Transport-Security \"max-age=63072000; includeSubDomains; preload\" always;",
    "add_header X-A \"a \\\"b\\\"\" always;",
    "proxy_hide_header x-a;",
    "proxy_set_header X-B \"\";",
    "allow 10.1.2.3/8;",
    "deny all;",
    "limit_req zone=z burst=9;",
    "expires -1;",
    "root /srv/www;",
    "try_files $uri @named;",
    "gzip on;",
    "gzip_types text/css *;",
    "gzip_min_length 0;",
    "return 200 ok;",
];

const PATTERNS: [&str; 14] = [
    "/",
    "/api",
    "/api/",
    "/api/v1/",
    "= /",
    "= /api/health",
    "^~ /static/",
    "~ ^/(api|admin)/",
    "~* \\.(js|css)$",
    "~ ^/api/.*\\.js$",
    "~ ^/(a|b)$",
    "~ ^/user/\\d+$",
    "@named",
    "/.well-known/acme-challenge/",
];

const INNER: [&str; 45] = [
    "proxy_pass http://app;",
    "proxy_pass http://app/;",
    "proxy_pass http://blue;",
    "proxy_pass http://127.0.0.1:3000;",
    "proxy_pass http://127.0.0.1:3000/x/;",
    "proxy_pass http://unix:/run/a.sock:/;",
    "proxy_pass https://back.example.com;",
    "proxy_pass http://$host;",
    "rewrite ^/api/(.*)$ /$1 break;",
    "return 301 https://$host$request_uri;",
    "return 204;",
    "root /srv;",
    "try_files $uri @named;",
    "try_files $uri $uri/ /index.html;",
    "try_files $uri /api/index.html;",
    "try_files $uri =404;",
    "alias /srv/x/;",
    "index index.php;",
    "autoindex on;",
    "proxy_set_header Host $host;",
    "proxy_set_header Upgrade $http_upgrade;",
    "proxy_read_timeout 1h;",
    "proxy_connect_timeout 0;",
    "client_max_body_size 5m;",
    "access_log off;",
    "send_timeout 9s;",
    "deny all;",
    "allow 127.0.0.1;",
    "allow all;",
    "limit_req zone=z burst=5 nodelay;",
    "limit_req zone=y;",
    "add_header X-A b;",
    "add_header Cache-Control public;",
    "proxy_hide_header X-Powered-By;",
    "proxy_set_header X-B c;",
    "expires 1d;",
    "gzip on;",
    "gzip off;",
    "gzip_comp_level 3;",
    "return 404;",
    "return 200 \"a\\n\";",
    "return 301 /new$is_args$args;",
    "default_type \"text/html; charset=utf-8\";",
    "proxy_pass http://app/y;",
    "location /api/in { proxy_pass http://app; send_timeout 1s; }",
];

fn some(lines: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(lines), 0..most).prop_map(|lines| lines.join("\n"))
}

fn location() -> impl Strategy<Value = String> {
    (prop::sample::select(&PATTERNS[..]), some(&INNER, 4))
        .prop_map(|(pattern, inner)| format!("location {pattern} {{ {inner} }}"))
}

fn configuration() -> impl Strategy<Value = String> {
    let server = (some(&SERVER, 6), prop::collection::vec(location(), 0..6))
        .prop_map(|(lines, locations)| format!("server {{\n{lines}\n{}\n}}", locations.join("\n")));
    prop::collection::vec(server, 1..4).prop_map(|servers| {
        let upstreams = "limit_req_zone $binary_remote_addr zone=z:1m rate=3r/s;\n\
                         limit_req_zone $binary_remote_addr zone=y:1m rate=3r/m;\n\
                         upstream app { server a:1; server b:1 backup; }\n\
                         upstream blue { server a:1; } upstream green { server b:1; # server c:1;\n }\n";
        format!("{upstreams}{}", servers.join("\n"))
    })
}

proptest! {
    /// Whatever is imported passes the check, and every directive has a class.
    #[test]
    fn any_configuration_becomes_a_valid_one(text in configuration()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nginx.conf");
        fs::write(&path, &text).unwrap();
        let imported = import(&path).map_err(|error| TestCaseError::fail(format!("{text}\n{error}")))?;
        for note in imported.notes {
            prop_assert!(!note.why.contains("not understood at this place"), "{}\n{note}", text);
        }
    }
}
