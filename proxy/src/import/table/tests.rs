//! The table agrees with the importer, and the documentation with the table.

use std::fs;
use std::path::Path;

use super::*;
use crate::import::import;

/// A value that a directive without an example accepts.
fn argument(name: &str) -> &'static str {
    if name.starts_with("ssl_certificate") { "/x.pem" } else { "60" }
}

/// A configuration with an example at its place.
fn around(context: Context, example: &str) -> String {
    const TLS: &str = "listen 80; listen 443 ssl; server_name a.example.com; set_real_ip_from 10.0.0.1;\n\
                       ssl_certificate /c.pem; ssl_certificate_key /k.pem;\n";
    const APP: &str = "location / { proxy_pass http://127.0.0.1:3000; }\n";
    const OTHER: &str =
        "server { listen 80; server_name example.com; location / { proxy_pass http://127.0.0.1:3002; } }\n";
    let pass = match example {
        example if example.starts_with("proxy_pass") => "",
        example if example.starts_with("root") || example.starts_with("alias") => "",
        example
            if ["try_files", "index", "autoindex", "gzip_static"]
                .iter()
                .any(|name| example.starts_with(name)) =>
        {
            "root /srv;"
        }
        example if example.starts_with("set ") => "proxy_pass $target;",
        _ => "proxy_pass http://127.0.0.1:3001;",
    };
    let zone = if example.contains("zone=api") {
        "limit_req_zone $binary_remote_addr zone=api:10m rate=10r/s;\n"
    } else {
        ""
    };
    let named =
        if example.contains("@app") { "location @app { proxy_pass http://127.0.0.1:3000; }" } else { "" };
    match context {
        Context::Main => format!("{example}\nhttp {{ server {{ {TLS} {APP} }} {OTHER} }}\n"),
        Context::Http if example.starts_with("upstream") => {
            format!("{example}\nserver {{ {TLS} location / {{ proxy_pass http://app; }} }} {OTHER}\n")
        }
        Context::Http => format!("{example}\nserver {{ {TLS} {APP} }} {OTHER}\n"),
        Context::Server => format!("server {{ {TLS}\n{example}\n{APP} }} {OTHER}\n"),
        Context::Location => {
            format!(
                "{zone}server {{ {TLS} {APP} {named} location /api/ {{\n{example}\n{pass} }} }} {OTHER}\n"
            )
        }
        Context::Upstream => {
            format!(
                "upstream app {{ server 127.0.0.1:3000;\n{example}\n}}\nserver {{ location / {{ proxy_pass http://app; }} }}\n"
            )
        }
    }
}

/// The class of the directive that an example begins with.
fn class(context: Context, example: &str) -> Class {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nginx.conf");
    let text = around(context, example);
    fs::write(&path, &text).unwrap();
    let imported = import(&path).unwrap_or_else(|error| panic!("{text}: {error}"));
    let line = text.lines().position(|line| line == example).unwrap() + 1;
    let place = format!("nginx.conf:{line}");
    let note = imported.notes.iter().find(|note| note.place == place);
    note.unwrap_or_else(|| panic!("{example} isn't in the report")).class
}

#[test]
fn each_row_is_what_the_importer_does() {
    let mut wrong = Vec::new();
    for row in rows() {
        let examples: Vec<String> = if row.example.is_empty() {
            row.names.iter().map(|name| format!("{name} {};", argument(name))).collect()
        } else {
            vec![row.example.to_owned()]
        };
        for example in examples {
            let found = class(row.context, &example);
            if found != row.class {
                wrong.push(format!("{example}: {found}, but the table says: {}", row.class));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_directive_is_in_one_row_unless_its_form_matters() {
    for (at, row) in rows().enumerate().filter(|(_, row)| row.example.is_empty()) {
        for name in row.names {
            let others = rows().enumerate().filter(|(other, _)| *other != at);
            let twice = others
                .filter(|(_, other)| other.example.is_empty())
                .any(|(_, other)| other.names.contains(name));
            assert!(!twice, "{name} is in two rows");
        }
    }
}

/// The table of the documentation.
fn documented() -> String {
    let mut table = String::from("| nginx | | uh-proxy |\n|---|---|---|\n");
    for row in rows() {
        let names = row.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let form = match row.example {
            "" => names,
            example => format!("`{}`", example.replace('|', "\\|")),
        };
        table += &format!("| {form} | {} | {} |\n", row.class, row.what.replace('|', "\\|"));
    }
    table
}

#[test]
fn the_documentation_has_this_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/from-nginx.md");
    let table = documented();
    assert!(
        fs::read_to_string(page).unwrap().contains(&table),
        "replace the table of docs/from-nginx.md by this one:\n{table}"
    );
}

#[test]
fn links_are_for_the_documentation_only() {
    let row = Row {
        names: &["x"],
        example: "",
        context: Context::Main,
        class: Class::Look,
        what: "`a = [\"b\"]`: see [C d](e.md#f) and [`[g.h]`](i.md), or [j]",
    };
    assert_eq!(row.plain(), "`a = [\"b\"]`: see C d and `[g.h]`, or [j]");
}
