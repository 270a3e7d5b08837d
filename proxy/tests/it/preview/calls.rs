//! The call and the command that make links.

use uh_protocol::Code;
use uh_protocol::client::ClientError;
use uh_protocol::request::{PreviewRequest, WithdrawRequest};

use super::{get, versions};
use crate::harness::{app, backend, cli, until};
use crate::wire::Wire;

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason_and_audited() {
    let (home, proxy, _apps) = versions("", "").await;
    let ask = async |service: &str, to: &str, ttl_ms: Option<u64>| {
        let request = PreviewRequest { to: backend(to), ttl_ms };
        match proxy.client.preview(&service.parse().unwrap(), &request).await {
            Err(ClientError::Problem(problem)) => (problem.code, problem.detail),
            other => panic!("{other:?}"),
        }
    };
    for (service, to, ttl_ms, code, says) in [
        ("app", "blue", None, Code::BackendActive, "blue is active"),
        ("app", "red", None, Code::UnknownBackend, "no backend red"),
        ("shop", "green", None, Code::UnknownService, "shop"),
        ("app", "green", Some(999), Code::InvalidRequest, "1000 to 604800000"),
        ("app", "green", Some(604_800_001), Code::InvalidRequest, "a week"),
        ("app", "green", Some(u64::MAX), Code::InvalidRequest, "a week"),
    ] {
        let (found, detail) = ask(service, to, ttl_ms).await;
        assert!(found == code && detail.contains(says), "{service} {to} {ttl_ms:?}: {found:?} {detail}");
    }
    proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
    assert_eq!(ask("app", "green", None).await.0, Code::BackendWithdrawn);
    assert!(!home.path("state/.deployment-state.json.cookie-key").exists(), "a refusal makes no key");
    until("all refusals are logged", async || {
        let log = home.messages();
        let refusals = log.lines().filter(|line| line.contains("preview") && line.contains("refused"));
        (refusals.count() == 7).then_some(())
    })
    .await;
}

/// A link that ends with the next restart isn't what was asked for.
#[tokio::test]
async fn without_a_key_that_can_be_kept_there_is_no_link_and_the_caller_is_told_why() {
    let (home, mut proxy, _apps) = versions("", "").await;
    let in_the_way = home.path("state/.deployment-state.json.cookie-key.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    for _ in 0..2 {
        let (code, said, error) = cli(&home.socket(), &["preview", "green"]).await;
        assert_eq!((code, &*said), (1, ""), "{error}");
        assert!(error.contains("can't keep the key that signs links"), "{error}");
        assert!(error.contains(".deployment-state.json.cookie-key: "), "{error}");
    }
    std::fs::remove_dir(in_the_way).unwrap();
    let token = super::green(&proxy).await.token;
    proxy.kill();
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut wire = Wire::connect(proxy.address).await;
    let response = get(&mut wire, "/", &super::by_field(&token)).await;
    assert_eq!(response.header("x-backend"), Some("green"), "it survives a restart");
}

#[tokio::test]
async fn the_command_prints_a_link_that_works() {
    let (home, proxy, _apps) =
        versions("", "hosts = [\"*.x.test\", \"app.test\"]\npath_prefix = \"/shop\"").await;
    let (code, said, error) = cli(&home.socket(), &["preview", "green", "--for", "2h"]).await;
    assert_eq!((code, &*error), (0, ""), "{said}");
    let lines: Vec<&str> = said.lines().collect();
    let token = lines[0]
        .strip_prefix(&format!("http://app.test:{}/shop?__uh-preview=", proxy.address.port()))
        .unwrap();
    assert!(lines[1].starts_with("app: whoever has this link gets green, until "), "{said}");
    assert_eq!(lines[2], format!("for tests and API clients: X-UH-Preview: {token}"));
    let mut wire = Wire::connect(proxy.address).await;
    let moved = get(&mut wire, &format!("/shop?__uh-preview={token}"), "").await;
    assert_eq!((moved.status, moved.header("location")), (303, Some("/shop")));
    assert!(moved.header("set-cookie").unwrap().contains("; Path=/shop; "), "{}", moved.head);
    home.until_said("preview").await;
    let log = home.messages();
    let line = log
        .lines()
        .find(|line| line.contains("action=\"preview\"") || line.contains("\"action\":\"preview\""))
        .unwrap();
    assert!(line.contains("green") && line.contains("until") && !line.contains(token), "{line}");
    let (code, said, _) =
        cli(&home.socket(), &["preview", "green", "--url", "https://shop.test/a?b=1", "--json"]).await;
    let reply: serde_json::Value = serde_json::from_str(&said).unwrap();
    let link = format!("https://shop.test/a?b=1&__uh-preview={}", reply["token"].as_str().unwrap());
    assert_eq!((code, &reply["link"], &reply["backend"]), (0, &link.into(), &"green".into()));
    for (args, exit) in [
        (&["preview", "blue"][..], 3),
        (&["preview", "green", "--for", "8h8"], 2),
        (&["preview", "green", "--for", "169h"], 2),
        (&["preview", "green", "--url", "shop.test"], 2),
        (&["preview", "green", "--url", "https://shop.test/#a"], 2),
        (&["preview"], 2),
    ] {
        assert_eq!(cli(&home.socket(), args).await.0, exit, "{args:?}");
    }
}
