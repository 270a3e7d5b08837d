//! The defaults of all programs, held against each other: what one passes on, the next must take, and what one waits for,
//! the other must not outlast.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uh_http1::field::{MAX_FIELDS, MOST_ADDED_FIELDS};
use uh_http1::forwarded::{Caller, Scheme};
use uh_http1::policy::{HeaderPolicy, Traceparent};
use uh_http1::{prefix, request};

fn shipped(path: &str) -> (String, PathBuf) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    (fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())), path)
}

fn front_door() -> uh_proxy::config::Config {
    let text = "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n\
                [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n";
    uh_proxy::config::parse(text).unwrap()
}

fn deploy_tool() -> uh_controller::config::Config {
    let (text, path) = shipped("config/uh-deploy.toml");
    uh_controller::config::parse(&text, path.parent().unwrap()).unwrap()
}

/// The default of one of the shim's options.
fn shim(option: &str) -> Duration {
    let command = uh_app_shim::cli::command();
    let argument = command.get_arguments().find(|argument| argument.get_long() == Some(option));
    let defaults = argument.unwrap_or_else(|| panic!("no --{option}")).get_default_values();
    duration(defaults[0].to_str().unwrap())
}

fn duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().unwrap_or_else(|_| panic!("{text:?} is no duration"));
    match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(60 * number),
        _ => panic!("{text:?} is no duration"),
    }
}

/// A setting of a shipped unit file.
fn unit(path: &str, key: &str) -> Duration {
    let (text, _) = shipped(path);
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    duration(value.unwrap_or_else(|| panic!("{path} has no {key}")))
}

/// The longest time app-shim takes from SIGTERM to its exit.
fn shim_stops_within() -> Duration {
    shim("drain-timeout") + shim("kill-after")
}

#[test]
fn no_unit_kills_an_app_before_its_shim_is_done() {
    let margin = Duration::from_secs(1);
    assert!(deploy_tool().deploy.stop_timeout >= shim_stops_within() + margin);
    assert!(unit("config/systemd/uh-app@.service", "TimeoutStopSec") >= shim_stops_within() + margin);
    let (compose, _) = shipped("docker/docker-compose.yml");
    let graces = compose.lines().filter_map(|line| line.trim().strip_prefix("stop_grace_period: "));
    let graces: Vec<Duration> = graces.map(duration).collect();
    assert!(
        !graces.is_empty() && graces.iter().all(|grace| *grace >= shim_stops_within() + margin),
        "{graces:?}"
    );
}

#[test]
fn no_unit_kills_uh_proxy_while_it_finishes_requests() {
    let stops_within = front_door().server.shutdown_timeout + Duration::from_secs(6);
    assert!(unit("config/uh-proxy.service", "TimeoutStopSec") >= stops_within);
}

#[test]
fn the_shim_accepts_every_head_that_uh_proxy_forwards() {
    const { assert!(MAX_FIELDS + MOST_ADDED_FIELDS <= uh_app_shim::server::REQUEST_FIELDS_MAX) };
    let limits = front_door().server.limits;
    assert!(limits.header_fields <= MAX_FIELDS);
    let most = front_door().services[0].rules.own().limits.response_fields;
    assert!(most <= uh_app_shim::server::RESPONSE_FIELDS_MAX, "the shim rejects what uh-proxy forwards");
}

#[test]
fn uh_proxy_adds_no_more_fields_than_its_limit() {
    let headers = HeaderPolicy {
        trusted_proxies: vec!["192.0.2.0/24".parse().unwrap()],
        forwarded: true,
        via: true,
        request_start: true,
        traceparent: Traceparent::Make,
        ..HeaderPolicy::default()
    };
    let caller = Caller {
        address: [192, 0, 2, 1].into(),
        text: "192.0.2.1",
        request_start: Some(1),
        scheme: Scheme::Http,
        http2: false,
        hides_cookies: false,
        headers: &headers,
    };
    let fields = |head: &[u8]| head.iter().filter(|&&byte| byte == b'\n').count() - 2;
    for sent in [
        "GET http://a.test/app/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /app/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "GET /app/x HTTP/1.0\r\n\r\n",
    ] {
        let mut out = Vec::new();
        request::translate(sent.as_bytes(), &caller, &mut out).unwrap();
        prefix::strip(&mut out, b"/app");
        let added = fields(&out) - fields(sent.as_bytes());
        assert!(added <= MOST_ADDED_FIELDS, "{added}: {}", String::from_utf8_lossy(&out));
    }
}

#[test]
fn who_waits_for_health_waits_longer_than_health_takes() {
    let health = front_door().services[0].health.clone();
    // app-shim gives the app 1.5 s to answer a health check.
    assert!(health.timeout > Duration::from_millis(1500));
    let known_after = health.interval * health.healthy_after + health.timeout;
    assert!(
        deploy_tool().deploy.ready_timeout > known_after,
        "a deploy would give up on a healthy candidate"
    );
    assert!(
        deploy_tool().gate.within >= shim("start-timeout"),
        "a deploy would give up on an app that still starts"
    );
}

#[test]
fn an_idle_connection_is_closed_by_the_side_that_sends_the_next_request() {
    // The shim keeps one for 75 s, Node for 5 s.
    assert!(front_door().services[0].rules.own().timeouts.idle < Duration::from_secs(5));
}
