//! What is accepted and what is rejected, with all mistakes at once.

use std::path::Path;
use std::time::Duration;

use super::*;

const SMALLEST: &str = r#"
[backends.blue]
endpoints = ["127.0.0.1:3008"]
[backends.green]
endpoints = ["127.0.0.1:3009"]
[runtime.process]
command = ["node", "server.js"]
"#;

fn read(text: &str) -> Result<Config, String> {
    parse(text, Path::new("/etc/uh")).map_err(|e| e.to_string())
}

#[test]
fn the_smallest_file_gives_the_defaults() {
    let config = read(SMALLEST).unwrap();
    assert_eq!(config.deploy.state_dir, Path::new("/var/lib/uh-deploy"));
    assert_eq!(config.deploy.warm, Duration::from_secs(3600));
    assert_eq!((config.monitor.max_error_rate, config.monitor.max_p95.as_millis()), (0.01, 500));
    assert_eq!((config.validate.min_disk, config.validate.min_memory), (10 << 30, 2 << 30));
    let RuntimeConfig::Process(process) = config.runtime else { panic!("{:?}", config.runtime) };
    assert_eq!(process.directory, Path::new("/etc/uh/."));
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_its_key() {
    let text = r#"
nonsense = 1
[deploy]
drain_timeout = "30"
colour = "blue"
[backends.blue]
endpoints = ["3008"]
[backends.Green]
endpoints = ["127.0.0.1:3009"]
[runtime]
kind = "podman"
[health]
path = "health"
[monitor]
max_error_rate = 1
[notice]
webhook = "https://example.com/"
"#;
    let message = read(text).unwrap_err();
    for key in [
        "line 2: nonsense: unknown key",
        "line 4: deploy.drain_timeout: ",
        "line 5: deploy.colour: unknown key",
        "line 7: backends.blue.endpoints[0]: ",
        "line 8: backends.Green: ",
        "line 11: runtime.kind: \"podman\" is not one of process, docker, compose",
        "line 10: runtime.process.command: missing",
        "line 13: health.path: ",
        "line 15: monitor.max_error_rate: ",
        "line 17: notice.webhook: ",
    ] {
        assert!(message.contains(&format!("\n  {key}")), "{key} is not in {message}");
    }
}

#[test]
fn a_mistake_in_a_file_is_reported_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uh-deploy.toml");
    std::fs::write(&path, format!("{SMALLEST}\n[backends.red]\nendpoints = [\"1.2.3.999:80\"]\n")).unwrap();
    let message = load(&path).unwrap_err().to_string();
    let line = SMALLEST.lines().count() + 3;
    assert!(
        message.contains(&format!("\n  uh-deploy.toml:{line}: backends.red.endpoints[0]: ")),
        "{message}"
    );
}

#[test]
fn two_backends_can_not_share_an_endpoint() {
    let message = read(&SMALLEST.replace("3009", "3008")).unwrap_err();
    assert!(
        message.contains("backends.green.endpoints: 127.0.0.1:3008 is already used by blue"),
        "{message}"
    );
}

#[test]
fn a_backend_without_an_endpoint_is_a_mistake() {
    let message = read(&SMALLEST.replace("[\"127.0.0.1:3009\"]", "[]")).unwrap_err();
    assert!(message.contains("backends.green.endpoints: empty: list at least one"), "{message}");
}

#[test]
fn a_compose_service_must_contain_the_backend() {
    let compose = |service: &str| {
        let backends = SMALLEST.split("[runtime.process]").next().unwrap();
        read(&format!("{backends}[runtime]\nkind = \"compose\"\n[runtime.compose]\nservice = {service:?}\n"))
    };
    assert!(compose("web-{backend}").is_ok());
    let message = compose("web").unwrap_err();
    assert!(message.contains("runtime.compose.service: \"web\" would be one container for all"), "{message}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics_the_parser(text in "(\\[[a-z.]{0,12}\\]\n|[a-z_]{1,10} = ([0-9\"\\[\\]{}a-z%]{0,9})\n){0,8}") {
        let _ = parse(&text, Path::new("/"));
    }
}
