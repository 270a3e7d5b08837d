//! Configuration: accepted values, and the message of each mistake.

use std::time::Duration;

use uh_http1::policy::HeaderPolicy;

use super::*;

const SMALLEST: &str = r#"
[server]
listen = ["127.0.0.1:0"]
[services.app]
active = "blue"
[services.app.backends.blue]
endpoints = ["127.0.0.1:3008"]
"#;

fn mistakes(text: &str) -> Vec<(String, String)> {
    match parse(text) {
        Err(ConfigError::Mistakes(mistakes)) => mistakes.0.into_iter().map(|m| (m.key, m.reason)).collect(),
        other => panic!("expected mistakes, got {other:?}"),
    }
}

#[test]
fn the_smallest_configuration_gets_the_documented_defaults() {
    let config = parse(SMALLEST).unwrap();
    let service = &config.services[0];
    assert_eq!(service.health.interval, Duration::from_secs(1));
    assert_eq!(service.rules.own().timeouts.idle, Duration::from_secs(4));
    assert_eq!(config.server.shutdown_timeout, Duration::from_secs(30));
    assert!(config.server.threads >= 1);
    assert_eq!(config.server.headers, HeaderPolicy::default());
    assert_eq!(config.server.admin_socket, Path::new("/run/uh-proxy/admin.sock"));
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_its_key() {
    let found = mistakes(
        r#"
        colour = "red"
        [server]
        listen = ["80"]
        threads = -1
        shutdown_timeout = "30"
        access_log = { path = "-", format = "xml" }
        trusted_proxies = ["10.0.0.0/8", "10.0.0.1/8"]
        headers = { underscores = "keep", forwarded = "yes" }
        [services.app]
        active = "red"
        path_prefix = "app"
        [services.app.backends.blue]
        endpoints = ["nowhere", 3]
        [services.app.backends.Green]
        [services.app.health]
        intervall = "1s"
        timeout = 2
        "#,
    );
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    for key in [
        "colour",
        "server.listen[0]",
        "server.threads",
        "server.shutdown_timeout",
        "server.access_log.format",
        "server.trusted_proxies[1]",
        "server.headers.underscores",
        "server.headers.forwarded",
        "services.app.active",
        "services.app.path_prefix",
        "services.app.backends.blue.endpoints[0]",
        "services.app.backends.blue.endpoints[1]",
        "services.app.backends.Green.endpoints",
        "services.app.health.intervall",
        "services.app.health.timeout",
    ] {
        assert!(keys.contains(&key), "{key} is missing in {found:#?}");
    }
}

#[test]
fn an_unknown_key_names_the_known_ones() {
    let found = mistakes(&format!("{SMALLEST}\n[services.app.timeouts]\nconect = \"1s\"\n"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1.contains("connect"), "{found:?}");
}

#[test]
fn two_services_with_the_same_host_and_path_are_a_conflict() {
    let second = "[services.b]\nactive=\"x\"\npath_prefix=\"//\"\n[services.b.backends.x]\nendpoints=[\"127.0.0.1:1\"]\n";
    let found = mistakes(&format!("{SMALLEST}\n{second}"));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1.contains("app"), "{found:?}");
}

fn service(name: &str, lines: &str) -> String {
    format!(
        "[services.{name}]\nactive=\"x\"\n{lines}\n[services.{name}.backends.x]\nendpoints=[\"127.0.0.1:1\"]\n"
    )
}

#[test]
fn the_same_host_in_another_spelling_is_a_conflict_too() {
    for (one, other, conflict) in [
        ("hosts=[\"a.test\"]", "hosts=[\"b.test\", \"A.TEST.\"]", true),
        ("hosts=[\"*.a.test\"]", "hosts=[\"*.A.test\"]", true),
        ("hosts=[\"[::1]\"]", "hosts=[\"[0:0::1]\"]", true),
        ("hosts=[\"a.test\"]\npath_prefix=\"/x\"", "hosts=[\"a.test\"]\npath_prefix=\"/x/\"", true),
        ("hosts=[\"*.a.test\"]", "hosts=[\"b.a.test\"]", false),
        ("hosts=[\"a.test\"]\npath_prefix=\"/x\"", "hosts=[\"a.test\"]\npath_prefix=\"/X\"", false),
        ("hosts=[\"a.test\"]", "hosts=[]", false),
    ] {
        let text =
            format!("[server]\nlisten=[\"127.0.0.1:0\"]\n{}{}", service("one", one), service("other", other));
        let found = parse(&text).map_or_else(|e| e.to_string(), |_| String::new());
        assert_eq!(
            found.contains("services.other: service one already handles"),
            conflict,
            "{one} {other}: {found}"
        );
    }
}

#[test]
fn what_can_never_match_is_a_mistake() {
    for (lines, key) in [
        ("hosts=[\"a.test:80\"]", "hosts[0]"),
        ("hosts=[\"*\"]", "hosts[0]"),
        ("hosts=[\"a.*.test\"]", "hosts[0]"),
        ("hosts=[\"[::x]\"]", "hosts[0]"),
        ("hosts=[\"*.[::1]\"]", "hosts[0]"),
        ("hosts=[\"a.test\", \"A.test\"]", "hosts"),
        ("path_prefix=\"/a/../b\"", "path_prefix"),
        ("path_prefix=\"/a?b\"", "path_prefix"),
    ] {
        let found = mistakes(&format!("[server]\nlisten=[\"127.0.0.1:0\"]\n{}", service("app", lines)));
        assert_eq!(found.len(), 1, "{lines}: {found:?}");
        assert_eq!(found[0].0, format!("services.app.{key}"), "{found:?}");
    }
}

#[test]
fn a_probe_header_that_would_break_the_probe_is_a_mistake_and_its_value_is_not_repeated() {
    let health = |lines: &str| format!("{SMALLEST}\n[services.app.health]\n{lines}");
    let good =
        parse(&health("headers = { \"X-Forwarded-Proto\" = \"https\" }\nswitch_probe_timeout = \"0s\""))
            .unwrap();
    let check = &good.services[0].health;
    assert_eq!(
        (check.headers[0].0.as_str(), check.headers[0].1.to_str().unwrap()),
        ("x-forwarded-proto", "https")
    );
    assert!(check.switch_probe_timeout.is_zero());
    assert_eq!(parse(SMALLEST).unwrap().services[0].health.switch_probe_timeout, Duration::from_millis(250));
    for name in
        ["Host", "content-length", "Transfer-Encoding", "Connection", "TE", "Upgrade", "Expect", "a b", ""]
    {
        let found = mistakes(&health(&format!("headers = {{ {name:?} = \"1\" }}")));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(found[0].0, format!("services.app.health.headers.{name}"), "{found:?}");
    }
    let found = mistakes(&health("headers = { Authorization = \"secret\\r\\nX: y\" }"));
    assert!(found.len() == 1 && !found[0].1.contains("secret"), "{found:?}");
    let found = mistakes(&health("headers = { X-A = \"1\", x-a = \"2\" }"));
    assert_eq!(found.len(), 1, "{found:?}");
    let found = mistakes(&health("switch_probe_timeout = \"3s\""));
    assert_eq!(found[0].0, "services.app.health.switch_probe_timeout");
}

#[test]
fn a_backend_without_endpoints_is_a_mistake() {
    let found = mistakes(&SMALLEST.replace("[\"127.0.0.1:3008\"]", "[]"));
    assert_eq!(found[0].0, "services.app.backends.blue.endpoints");
}

#[test]
fn a_syntax_error_names_its_position() {
    let error = parse("[server\nlisten=1").unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nonexistent/uh-proxy.toml")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/uh-proxy.toml"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics_the_parser(text in ".{0,300}") {
        let _ = parse(&text);
    }
}

const TLS: &str =
    "[server]\nlisten_tls=[\"127.0.0.1:0\"]\n[server.tls]\ncertificates=[{cert=\"a.crt\",key=\"a.key\"}]\n";

#[test]
fn https_needs_certificates_and_certificates_need_a_listener() {
    let app = service("app", "");
    assert_eq!(parse(&format!("{TLS}{app}")).unwrap().server.listen, []);
    for (server, keys) in [
        ("listen_tls=[\"127.0.0.1:0\"]\n", &["server.listen_tls"][..]),
        ("listen=[\"127.0.0.1:0\"]\n[server.tls]\ncertificates=[{cert=\"a\",key=\"b\"}]\n", &["server.tls"]),
        ("listen_tls=[\"127.0.0.1:0\"]\n[server.tls]\n", &["server.tls.certificates"]),
        ("listen_tls=[\"127.0.0.1:0\"]\n[server.tls]\ncertificates=[]\n", &["server.tls.certificates"]),
        (
            "listen_tls=[\"127.0.0.1:0\"]\n[server.tls]\ncertificates=[{cert=\"a\",kez=\"b\"}]\nmin_version=\"1.1\"\n",
            &["server.tls.certificates[0].kez", "server.tls.certificates[0].key", "server.tls.min_version"],
        ),
        (
            "listen_tls=[\"127.0.0.1:0\"]\n[server.tls]\ncertificates=[\"a.pem\"]\n",
            &["server.tls.certificates[0]"],
        ),
        (
            "listen=[\"127.0.0.1:81\"]\nlisten_tls=[\"127.0.0.1:81\"]\n[server.tls]\ncertificates=[{cert=\"a\",key=\"b\"}]\n",
            &["server.listen_tls"],
        ),
    ] {
        let found = mistakes(&format!("[server]\n{server}{app}"));
        for key in keys {
            assert!(found.iter().any(|(found, _)| found == key), "{server}: {key} is missing in {found:?}");
        }
    }
}

#[test]
fn hsts_is_what_browsers_take() {
    let hsts = |hsts: &str| parse(&format!("{TLS}hsts={hsts}\n{}", service("app", "")));
    let value = |text: &str| hsts(text).unwrap().server.tls.unwrap().hsts.unwrap().value();
    assert_eq!(value("{max_age=\"24h\"}"), "max-age=86400");
    assert_eq!(value("{max_age=\"0s\"}"), "max-age=0");
    assert_eq!(
        value("{max_age=\"8760h\",include_subdomains=true,preload=true}"),
        "max-age=31536000; includeSubDomains; preload"
    );
    for bad in
        ["{}", "{max_age=\"1h\"}", "{max_age=\"24h\",preload=true}", "{max_age=\"8760h\",preload=true}"]
    {
        assert!(hsts(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_service_redirects_as_it_says_or_as_the_server_says() {
    let redirects = |tls: &str, lines: &str| {
        let config = parse(&format!("{TLS}{tls}\n{}", service("app", lines))).unwrap();
        config.services[0].redirect_https
    };
    assert!(!redirects("", ""));
    assert!(redirects("redirect=true", ""));
    assert!(!redirects("redirect=true", "redirect_https=false"));
    assert!(redirects("", "redirect_https=true"));
}

#[test]
fn hosts_that_are_redirected_belong_to_one_service_and_lead_to_its_first_host() {
    let good = "hosts=[\"a.test\"]\nredirect_hosts=[\"www.a.test\"]";
    assert!(parse(&format!("{TLS}{}", service("app", good))).is_ok());
    for bad in [
        "redirect_hosts=[\"www.a.test\"]",
        "hosts=[\"*.a.test\"]\nredirect_hosts=[\"a.test\"]",
        "hosts=[\"a.test\"]\nredirect_hosts=[\"A.test\"]",
    ] {
        let found = mistakes(&format!("{TLS}{}", service("app", bad)));
        assert!(
            found.iter().all(|(key, _)| key == "services.app.redirect_hosts") && !found.is_empty(),
            "{bad}: {found:?}"
        );
    }
    let other = service("other", "hosts=[\"www.a.test\"]");
    assert_eq!(mistakes(&format!("{TLS}{}{other}", service("app", good))).len(), 1);
}

const WITH_ACME: &str = r#"
[server]
listen = ["127.0.0.1:0"]
listen_tls = ["127.0.0.1:0"]
[server.acme]
[services.app]
hosts = ["example.com"]
active = "blue"
[services.app.backends.blue]
endpoints = ["127.0.0.1:3008"]
"#;

#[test]
fn acme_needs_nothing_but_a_host_and_a_tls_listener() {
    let config = parse(WITH_ACME).unwrap();
    let acme = config.server.acme.unwrap();
    assert_eq!(acme.directory, "https://acme-v02.api.letsencrypt.org/directory");
    assert_eq!(acme.state_dir, Path::new("/var/lib/uh-proxy/acme"));
    assert_eq!((acme.challenge, acme.contact.len(), acme.certificates), (AcmeChallenge::Http01, 0, None));
    assert!(config.server.tls.unwrap().certificates.is_empty());
}

#[test]
fn mistakes_in_the_acme_settings_are_reported() {
    let with = |old: &str, new: &str| mistakes(&WITH_ACME.replace(old, new));
    for (old, new, key, reason) in [
        ("listen_tls = [\"127.0.0.1:0\"]", "", "server.acme", "no listener uses its certificates"),
        ("listen = [\"127.0.0.1:0\"]", "", "server.acme.challenge", "http-01 needs a plain HTTP listener"),
        ("hosts = [\"example.com\"]", "", "server.acme", "no service has a host"),
        ("hosts = [\"example.com\"]", "hosts = [\"*.example.com\"]", "server.acme", "no service has a host"),
        (
            "[server.acme]",
            "[server.acme]\ndirectory = \"http://ca.test\"",
            "server.acme.directory",
            "https://",
        ),
        ("[server.acme]", "[server.acme]\ncontact = [\"ops\"]", "server.acme.contact[0]", "mailto:"),
        ("[server.acme]", "[server.acme]\nchallenge = \"dns-01\"", "server.acme.challenge", "http-01"),
        ("[server.acme]", "[server.acme]\ncertificates = []", "server.acme.certificates", "at least one"),
        (
            "[server.acme]",
            "[server.acme]\ncertificates = [{ hosts = [\"*.a.test\"] }]",
            "server.acme.certificates[0].hosts",
            "without a wildcard",
        ),
        ("[server.acme]", "[server.acme]\nemail = \"ops@example.com\"", "server.acme.email", ""),
    ] {
        let found = with(old, new);
        assert!(
            found.iter().any(|(at, why)| at == key && why.contains(reason)),
            "{key}: {reason} is missing in {found:?}"
        );
    }
}
