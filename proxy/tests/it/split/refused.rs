//! What is no split is refused, clearly, and changes nothing.

use std::fs;

use serde_json::json;
use uh_protocol::Code;
use uh_protocol::request::{BackendRequest, DrainRequest, SplitRequest, WithdrawRequest};

use super::{code, green, off, split};
use crate::harness::{Home, SampleApp, app, backend, cli, pair};
use crate::wire::Wire;

/// Calls the admin API with a body that a client in Rust couldn't write.
async fn raw(home: &Home, body: &str) -> (u16, String) {
    let stream = tokio::net::UnixStream::connect(home.socket()).await.unwrap();
    let mut wire = Wire::over(stream);
    wire.send(format!(
        "POST /v1/services/app/split HTTP/1.1\r\nHost: uh\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let response = wire.response().await;
    (response.status, response.text())
}

#[tokio::test]
async fn bad_weights_and_backends_are_refused_and_change_nothing() {
    let (home, proxy, _blue, _green) = pair().await;
    for (body, status, words) in [
        (r#"{"to":"green","weight":101}"#, 422, "from 0 to 100"),
        (r#"{"to":"green","weight":-1}"#, 422, "from 0 to 100"),
        (r#"{"to":"green","weight":1e308}"#, 422, "from 0 to 100"),
        (r#"{"to":"green","weight":0.00001}"#, 422, "four decimals"),
        (r#"{"to":"green","weight":NaN}"#, 400, "isn't valid JSON"),
        (r#"{"to":"green","weight":"10%"}"#, 422, "doesn't match"),
        (r#"{"to":"green"}"#, 422, "weight"),
        (r#"{"weight":10}"#, 422, "to: missing"),
        (r#"{"to":"green","weight":10,"ttl_ms":1}"#, 422, "ttl_ms is 1: use 100 to 3600000"),
        (r#"{"to":"green","weight":10,"ttl_ms":3600001}"#, 422, "split.hold_timeout"),
        (r#"{"to":"green","weight":0,"ttl_ms":1000}"#, 422, "only valid with a weight above 0"),
        (r#"{"to":"green","weight":10,"salt":"x"}"#, 422, "unknown field"),
        (r#"{"to":"red","weight":10}"#, 404, "no backend red"),
        (r#"{"to":"No Name","weight":10}"#, 422, "doesn't match"),
        (r#"{"to":"blue","weight":10}"#, 409, "blue is active"),
        (r#"{"to":"green","weight":10,"expect_generation":7}"#, 409, "generation 7"),
        (r#"{"to":"red","weight":0}"#, 404, "no backend red"),
    ] {
        let (got, text) = raw(&home, body).await;
        assert!(got == status && text.contains(words), "{body}: {got} {text}");
    }
    assert_eq!(proxy.status().await.generation, 0);
    assert_eq!(proxy.service().await.split, None);
    assert!(!fs::read_to_string(home.state_file()).unwrap().contains("split"));
    proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
    let refused = proxy.client.split(&app(), &green(10.0)).await;
    assert_eq!(code(refused.unwrap_err()), Code::BackendWithdrawn);
}

#[tokio::test]
async fn the_command_line_says_what_it_did_and_what_is_wrong() {
    let (home, _proxy, _blue, _green) = pair().await;
    let run = async |args: &[&str]| cli(&home.socket(), args).await;
    for (args, exit, words) in [
        (vec!["split", "green"], 2, "uh-proxy split green 10%"),
        (vec!["split", "green", "101%"], 2, "a percentage from 0% to 100%"),
        (vec!["split", "green", "0.1"], 2, "such as 10%"),
        (vec!["split", "green", "-1%"], 2, ""),
        (vec!["split", "green", "NaN%"], 2, "such as 10%"),
        (vec!["split", "off", "10%"], 2, "off takes no share"),
        (vec!["split", "blue", "10%"], 3, "blue is active"),
        (vec!["split", "green", "10%", "--expect-generation", "9"], 3, "generation 9"),
    ] {
        let (code, _, said) = run(&args).await;
        assert!(code == exit && said.contains(words), "{args:?}: {code} {said}");
    }
    let (code, said, _) = run(&["split", "green", "12.5%"]).await;
    assert!(code == 0 && said.starts_with("app: 12.5% to green, 87.5% to blue, until "), "{said}");
    let (_, said, _) = run(&["status"]).await;
    assert!(said.contains("split since ") && said.contains("12.5% to green"), "{said}");
    let (code, said, _) = run(&["split", "green", "20%", "--ttl", "10m", "--service", "app", "--json"]).await;
    let reply: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &reply["split"]["weight"], &reply["split"]["leased"]), (0, &json!(20.0), &json!(true)));
    let (code, said, _) = run(&["switch", "blue"]).await;
    assert!(code == 0 && said.contains("a split still sends 20 % to green"), "{said}");
    let (code, said, _) = run(&["split", "off"]).await;
    assert!(
        code == 0 && said.starts_with("app: all clients go to blue (generation 3), 0 in flight on green"),
        "{said}"
    );
    let (code, said, _) = run(&["split", "green", "0%"]).await;
    assert!(code == 0 && said.contains("no split"), "{said}");
}

#[tokio::test]
async fn the_backend_of_a_split_can_not_be_taken_away() {
    let (home, proxy, _blue, other) = pair().await;
    let first = split(&proxy, &green(10.0)).await;
    let withdrawn = proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await;
    assert_eq!(code(withdrawn.unwrap_err()), Code::BackendActive);
    let drained =
        proxy.client.drain(&app(), &backend("green"), &DrainRequest { timeout_ms: None, cut: None }).await;
    assert_eq!(code(drained.unwrap_err()), Code::BackendActive);
    let moved = SampleApp::start("green", "2").await;
    let order = BackendRequest {
        endpoints: vec![moved.address.to_string()],
        version: None,
        expect_generation: None,
        force: false,
    };
    let set = proxy.client.set_backend(&app(), &backend("green"), &order).await;
    assert_eq!(code(set.unwrap_err()), Code::BackendActive);
    let (exit, _, said) = cli(&home.socket(), &["backend", "withdraw", "green"]).await;
    assert!(exit == 3 && said.contains("uh-proxy split off"), "{said}");
    let config = home.config();
    home.write_config(
        &config.replace(&format!("[services.app.backends.green]\nendpoints = [\"{}\"]\n", other.address), ""),
    );
    assert_eq!(code(proxy.client.reload().await.unwrap_err()), Code::BackendActive);
    assert_eq!(proxy.status().await.generation, first.generation);
    off(&proxy).await;
    proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_split_to_a_sick_backend_is_refused_by_its_last_probe() {
    let blue = SampleApp::start("blue", "1").await;
    let gone = {
        let app = SampleApp::start("green", "1").await;
        app.address
    };
    let home = Home::new(blue.address, gone).service("[services.app.health]\ninterval = \"50ms\"\n");
    let proxy = home.start().await;
    let refused = proxy.client.split(&app(), &green(10.0)).await;
    assert_eq!(code(refused.unwrap_err()), Code::BackendUnhealthy);
    let end = SplitRequest { to: Some(backend("green")), ..green(0.0) };
    assert!(!split(&proxy, &end).await.changed);
}
