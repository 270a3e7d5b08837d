//! Previews while backends become active, are withdrawn, drained and removed.

use tokio::io::AsyncWriteExt as _;
use uh_protocol::request::{BackendRequest, DrainRequest, WithdrawRequest};

use super::{assert_private, assert_usual, by_cookie, by_field, get, green, versions};
use crate::harness::{Home, Scripted, Then, app, backend, soon, until};
use crate::wire::Wire;

#[tokio::test]
async fn a_withdrawn_backend_and_one_that_is_gone_say_so_and_the_active_one_is_not_shown_instead() {
    let (home, proxy, apps) = versions("", "").await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
    let gone = get(&mut wire, "/", &by_cookie(&token)).await;
    assert!(gone.status == 410 && gone.text().contains("withdrawn"), "{gone:?}");
    assert_eq!(gone.header("cache-control"), Some("private, no-store"));
    assert_usual(&get(&mut wire, "/", "").await, "blue");
    let request = BackendRequest {
        endpoints: vec![apps[1].app.address.to_string()],
        version: None,
        expect_generation: None,
        force: false,
    };
    proxy.client.set_backend(&app(), &backend("green"), &request).await.unwrap();
    assert_eq!(get(&mut wire, "/", &by_cookie(&token)).await.header("x-backend"), Some("green"));
    let config = home.config();
    let at = config.find("[services.app.backends.green]").unwrap();
    let end = at + config[at..].find("endpoints").unwrap();
    let end = end + config[end..].find('\n').unwrap() + 1;
    home.write_config(&format!("{}{}", &config[..at], &config[end..]));
    proxy.client.reload().await.unwrap();
    let gone = get(&mut wire, "/", &by_cookie(&token)).await;
    assert!(gone.status == 410 && gone.text().contains("isn't configured"), "{gone:?}");
}

#[tokio::test]
async fn a_standby_that_does_not_answer_is_an_error_and_the_active_one_is_not_asked_instead() {
    let (home, proxy, apps) = versions("", "").await;
    let token = green(&proxy).await.token;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let request = BackendRequest {
        endpoints: vec![free.to_string()],
        version: None,
        expect_generation: None,
        force: false,
    };
    proxy.client.set_backend(&app(), &backend("green"), &request).await.unwrap();
    let mut wire = Wire::connect(proxy.address).await;
    let failed = get(&mut wire, "/", &by_field(&token)).await;
    assert_eq!(failed.status, 502, "{failed:?}");
    assert_eq!(
        (failed.header("cache-control"), failed.header("x-robots-tag")),
        (Some("private, no-store"), Some("noindex"))
    );
    assert_eq!(apps[0].app.seen(), 0);
    drop(home);
}

#[tokio::test]
async fn switches_do_not_disturb_a_preview_and_an_active_backend_answers_as_usual() {
    let (_home, proxy, _apps) = versions("", "").await;
    let token = green(&proxy).await.token;
    let address = proxy.address;
    let looking = tokio::spawn(async move {
        let mut wire = Wire::connect(address).await;
        let (mut previews, mut usual) = (0, 0);
        while previews < 200 || usual < 200 {
            let response = get(&mut wire, "/", &by_field(&token)).await;
            assert_eq!(
                (response.status, response.header("x-backend")),
                (200, Some("green")),
                "{}",
                response.head
            );
            match response.header("cache-control") {
                Some("private, no-store") => previews += 1,
                _ => usual += 1,
            }
        }
    });
    while !looking.is_finished() {
        proxy.switch("green").await;
        proxy.switch("blue").await;
    }
    looking.await.unwrap();
}

#[tokio::test]
async fn a_drain_after_a_withdrawal_waits_for_previews_and_one_without_does_not() {
    let blue = Scripted::start(|_, mut stream| async {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        (stream, Then::KeepAlive)
    })
    .await;
    let (go, going) = tokio::sync::watch::channel(false);
    let other = Scripted::start(move |_, mut stream| {
        let mut going = going.clone();
        async move {
            going.wait_for(|going| *going).await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            (stream, Then::KeepAlive)
        }
    })
    .await;
    let home = Home::new(blue.address, other.address);
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", by_field(&token))).await;
    until("it is in flight", async || (proxy.backend("green").await.requests_in_flight == 1).then_some(()))
        .await;
    let drain = DrainRequest { timeout_ms: Some(50), cut: None };
    assert!(proxy.client.drain(&app(), &backend("green"), &drain).await.unwrap().drained);
    proxy.client.withdraw(&app(), &backend("green"), &WithdrawRequest::default()).await.unwrap();
    let drained = proxy.client.drain(&app(), &backend("green"), &drain).await.unwrap();
    assert!(!drained.drained && drained.remaining.requests == 1, "{drained:?}");
    let client = proxy.client.clone();
    let longer = DrainRequest { timeout_ms: Some(20_000), cut: None };
    let draining =
        tokio::spawn(async move { client.drain(&app(), &backend("green"), &longer).await.unwrap() });
    go.send(true).unwrap();
    let response = wire.response().await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("cache-control"), Some("private, no-store"));
    assert!(soon("the drain", draining).await.unwrap().drained);
}

#[tokio::test]
async fn what_a_standby_answered_is_private_even_if_it_is_active_by_then() {
    let (_home, proxy, _apps) = versions("", "").await;
    let token = green(&proxy).await.token;
    let mut wire = Wire::connect(proxy.address).await;
    assert_private(&get(&mut wire, "/", &by_field(&token)).await);
    proxy.switch("green").await;
    assert_usual(&get(&mut wire, "/", &by_field(&token)).await, "green");
    proxy.switch("blue").await;
    assert_private(&get(&mut wire, "/", &by_field(&token)).await);
}
