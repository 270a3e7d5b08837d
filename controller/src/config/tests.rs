//! What is taken, what is refused, and that all mistakes come at once.

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
fn all_mistakes_come_at_once_each_with_its_key() {
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
        "nonsense: unknown key",
        "deploy.drain_timeout: ",
        "deploy.colour: unknown key",
        "backends.blue.endpoints[0]: ",
        "backends.Green: ",
        "runtime.kind: \"podman\" is not one of process, docker, compose",
        "runtime.process.command: missing",
        "health.path: ",
        "monitor.max_error_rate: ",
        "notice.webhook: ",
    ] {
        assert!(message.contains(&format!("\n  {key}")), "{key} is not in {message}");
    }
}

#[test]
fn two_backends_can_not_share_an_endpoint() {
    let message = read(&SMALLEST.replace("3009", "3008")).unwrap_err();
    assert!(message.contains("backends.green.endpoints: 127.0.0.1:3008 is blue's already"), "{message}");
}

#[test]
fn a_backend_without_an_endpoint_is_a_mistake() {
    let message = read(&SMALLEST.replace("[\"127.0.0.1:3009\"]", "[]")).unwrap_err();
    assert!(message.contains("backends.green.endpoints: empty: at least one"), "{message}");
}

#[test]
fn a_compose_service_is_one_backends_alone() {
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
