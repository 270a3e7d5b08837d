//! Files next to an app.

use super::*;

#[test]
fn a_page_for_all_paths_is_in_the_service_of_the_servers_app() {
    let text = "server { root /srv/www; index index.html; location / { try_files $uri $uri/ /index.html; }\n\
                location /api/ { proxy_pass http://api:4000/; } location /assets/ { expires 1y; try_files $uri =404; } }";
    let expected = [
        "[services.api]",
        "match = \"/\"",
        "files = \"/srv/www\"",
        "files_only = true",
        "spa = \"/index.html\"",
        "match = \"/api/\"",
        "replace_prefix = \"/\"",
        "match = \"/assets/\"",
        "response_headers = { set = { \"Cache-Control\" = \"max-age=31536000\" } }",
        "files = \"/srv/www/assets\"",
    ];
    has(text, &expected);
    assert_eq!(class_of(text, "try_files $uri $uri/"), Class::Look);
    assert_eq!(class_of(text, "root"), Class::Carried);
    assert!(!of(text).changes_behaviour());
}

#[test]
fn the_app_answers_what_has_no_file_if_try_files_says_so() {
    let text = "server { root /srv/public; try_files $uri @app; client_max_body_size 5m;\n\
                location @app { proxy_pass http://127.0.0.1:3000; proxy_read_timeout 90s; }\n\
                location /static/ { alias /srv/static/; } location = /favicon.ico { access_log off; } }";
    let found = lines(text);
    has(
        text,
        &["files = \"/srv/public\"", "read = \"90s\"", "body_bytes = \"5MiB\"", "files = \"/srv/static\""],
    );
    // try_files isn't inherited, so nginx looks for the icon's file only.
    assert_eq!(found.iter().filter(|line| *line == "files_only = true").count(), 2, "{found:#?}");
    assert!(found.windows(3).any(|lines| {
        let exact = lines[0] == "match = \"/favicon.ico\"" && lines[1] == "exact = true";
        exact && lines[2] == "access_log = false"
    }));
    assert!(!of(text).changes_behaviour());
}

#[test]
fn files_that_clients_must_not_get_are_not_served() {
    let pass = "location /app/ { proxy_pass http://127.0.0.1:3000; } location / { try_files $uri =404; }";
    for guard in [
        "location ~ \\.php$ { fastcgi_pass unix:/run/php.sock; }",
        "auth_basic Admin;",
        "location /a/ { auth_request /auth; }",
        "location ~ /(config|lib)/ { deny all; }",
        "location ~ /\\.git|/lib { deny all; }",
    ] {
        let text = format!("server {{ root /srv/www; {guard} {pass} }}");
        assert!(!lines(&text).iter().any(|line| line.starts_with("files")), "{guard}");
        assert_eq!(class_of(&text, "root"), Class::Changes, "{guard}");
    }
    let text = format!(
        "server {{ root /srv/www; location ~ /\\.ht {{ deny all; }} location /in/ {{ internal; }} {pass} }}"
    );
    has(&text, &["files = \"/srv/www\"", "match = \"/in/\"", "answer = { status = 404 }"]);
}

#[test]
fn files_that_can_not_be_served_are_reported() {
    let pass = "location / { proxy_pass http://127.0.0.1:3000; }";
    for files in [
        "location /a/ { root html; }",
        "location /a/ { root /srv/$host; }",
        "location /a/ { root /srv; try_files $uri $uri.html =404; }",
        "location /a/ { root /srv; try_files $uri /index.php?q=$uri; }",
        "location /a/ { root /srv; autoindex on; }",
        "location /a/ { root /srv; index main.htm; }",
        "location ~ \\.js$ { alias /srv; }",
        "location = /a.ico { alias /srv/b.ico; }",
        "location = /a.html { root /srv; try_files $uri /index.html; }",
        "location ~ \\.js$ { root /srv; try_files $uri @none; }",
        "location /a/ { root /srv; try_files $uri @none; }",
        "location /a/ { try_files $uri =404; }",
    ] {
        assert!(of(&format!("server {{ {files} {pass} }}")).changes_behaviour(), "{files}");
    }
    let two = "server { location / { root /srv; } location /a { proxy_pass http://a:1; } location /b { proxy_pass http://b:1; } }";
    assert_eq!(class_of(two, "root"), Class::Changes);
}

#[test]
fn files_of_single_paths_and_of_suffixes_are_served_from_where_nginx_looks() {
    let text = "server { gzip_static on; location / { proxy_pass http://127.0.0.1:3000; }\n\
                location /docs/ { alias /srv/handbook/; }\n\
                location = /icons/app.ico { root /srv; }\n\
                location = /robots.txt { alias /etc/site/robots.txt; }\n\
                location ~* \\.(css|js)$ { root /srv/www; expires 1d; } }";
    let found = lines(text);
    let rule = |wanted: &[&str]| {
        let matches = |at: usize| {
            wanted.iter().all(|line| {
                let mut rule = found[at + 1..].iter().take_while(|line| !line.starts_with('['));
                rule.any(|found| found == line)
            })
        };
        (0..found.len()).any(|at| found[at].starts_with("[[") && matches(at))
    };
    for wanted in [
        &["match = \"/docs/\"", "files = \"/srv/handbook\"", "precompressed = true"][..],
        &["match = \"/icons/app.ico\"", "exact = true", "files = \"/srv/icons\"", "files_only = true"],
        &["match = \"/robots.txt\"", "exact = true", "files = \"/etc/site\""],
        &["match = \"/\"", "suffixes = [\".css\", \".js\"]", "files = \"/srv/www\""],
        &["match = \"/docs/\"", "suffixes = [\".css\", \".js\"]", "files = \"/srv/www/docs\""],
    ] {
        assert!(rule(wanted), "{wanted:?} in {found:#?}");
    }
    assert!(!of(text).changes_behaviour());
    assert_eq!(class_of(text, "gzip_static"), Class::Carried);
}

#[test]
fn what_nginx_answers_before_it_counts_is_not_limited() {
    let text = "limit_req_zone $binary_remote_addr zone=a:1m rate=1r/s;\n\
                server { limit_req zone=a burst=5 nodelay; location / { proxy_pass http://127.0.0.1:3000; }\n\
                location = /ping { return 200 pong; } }";
    has(text, &["rate = { per_second = 1, burst = 5 }", "rate = false", "match = \"/ping\""]);
}
