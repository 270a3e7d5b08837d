//! Which tokens are valid.

use uh_protocol::request::PreviewRequest;

use super::{assert_usual, by_cookie, by_field, get, green, versions};
use crate::harness::{app, backend, until};
use crate::wire::Wire;

#[tokio::test]
async fn a_forged_foreign_or_expired_token_counts_as_none() {
    let (_home, proxy, _apps) = versions("", "").await;
    let (_other_home, other, _other_apps) = versions("", "").await;
    let mut wire = Wire::connect(proxy.address).await;
    let foreign = green(&other).await.token;
    assert_usual(&get(&mut wire, "/", &by_field(&foreign)).await, "blue");
    let token = green(&proxy).await.token;
    let last = if token.ends_with('0') { '1' } else { '0' };
    let forged = format!("{}{last}", &token[..token.len() - 1]);
    let longer = token.replacen("green.", "green.9", 1);
    let active = token.replacen("green", "blue", 1);
    for bad in [
        &*foreign,
        &forged,
        &longer,
        &active,
        "",
        "x",
        "app.green.99999999999.0000000000000000",
        &"a.".repeat(2000),
    ] {
        for fields in [by_field(bad), by_cookie(bad)] {
            assert_usual(&get(&mut wire, "/", &fields).await, "blue");
        }
        // An app may have such a parameter for itself.
        assert_usual(&get(&mut wire, &format!("/?__uh-preview={bad}"), "").await, "blue");
    }
    // The right one is found among others.
    let fields =
        format!("X-UH-Preview: {forged}\r\nCookie: __uh-preview={foreign}; __uh-preview={token}\r\n");
    assert_eq!(get(&mut wire, "/", &fields).await.header("x-backend"), Some("green"));
    let path = format!("/?__uh-preview={foreign}&a=1&__uh-preview={token}");
    let moved = get(&mut wire, &path, "").await;
    assert_eq!((moved.status, moved.header("location")), (303, Some("/?a=1")));
    let request = PreviewRequest { to: backend("green"), ttl_ms: Some(1000) };
    let short = proxy.client.preview(&app(), &request).await.unwrap().token;
    assert_eq!(get(&mut wire, "/", &by_field(&short)).await.header("x-backend"), Some("green"));
    until("it has expired", async || {
        let response = get(&mut wire, "/", &by_field(&short)).await;
        (response.header("x-backend") == Some("blue")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_token_outlives_a_restart_and_ends_with_its_generation() {
    let (home, mut proxy, _apps) = versions("", "").await;
    let token = green(&proxy).await.token;
    proxy.kill();
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(get(&mut wire, "/", &by_field(&token)).await.header("x-backend"), Some("green"));
    let config =
        home.config().replace("active = \"blue\"", "active = \"blue\"\npreview = { generation = 2 }");
    home.write_config(&config);
    proxy.client.reload().await.unwrap();
    assert_usual(&get(&mut wire, "/", &by_field(&token)).await, "blue");
    let next = green(&proxy).await.token;
    assert_eq!(get(&mut wire, "/", &by_field(&next)).await.header("x-backend"), Some("green"));
}

#[tokio::test]
async fn before_the_first_link_a_parameter_is_the_apps_and_the_field_is_not() {
    let (_home, proxy, apps) = versions("", "").await;
    let mut wire = Wire::connect(proxy.address).await;
    let seen = || apps[0].saw_token.load(std::sync::atomic::Ordering::SeqCst);
    assert_usual(&get(&mut wire, "/", &by_field("app.green.99999999999.0000000000000000")).await, "blue");
    assert!(!seen());
    assert_usual(&get(&mut wire, "/?__uh-preview=x", "").await, "blue");
    assert!(seen());
}
