//! Hosts that are for previews alone.

use super::{assert_private, assert_usual, by_cookie, by_field, get_of, green, versions};
use crate::wire::Wire;

const HOSTS: &str = "hosts = [\"app.test\"]\nredirect_hosts = [\"www.test\"]\npreview = { hosts = [\"green.preview.test\", \"*.p.test\"] }";

#[tokio::test]
async fn nobody_gets_an_answer_there_without_a_token() {
    let (_home, proxy, apps) = versions("", HOSTS).await;
    let mut wire = Wire::connect(proxy.address).await;
    // Also before the first token.
    for host in ["green.preview.test", "GREEN.preview.test:8080", "green.preview.test.", "x.p.test"] {
        for fields in [String::new(), by_field("x"), by_cookie("app.green.9.0")] {
            let refused = get_of(&mut wire, host, "/", &fields).await;
            assert!(refused.status == 403 && refused.text().contains("preview"), "{host}: {refused:?}");
        }
    }
    let token = green(&proxy).await.token;
    assert_eq!(get_of(&mut wire, "green.preview.test", "/", "").await.status, 403);
    assert_eq!(apps.iter().map(|app| app.app.seen()).sum::<usize>(), 0);
    assert_usual(&get_of(&mut wire, "app.test", "/", "").await, "blue");
    assert_eq!(get_of(&mut wire, "www.test", "/", "").await.header("location"), Some("http://app.test/"));
    let moved = get_of(&mut wire, "green.preview.test", &format!("/a?__uh-preview={token}"), "").await;
    assert_eq!((moved.status, moved.header("location")), (303, Some("/a")));
    for host in ["green.preview.test", "x.p.test", "app.test"] {
        let response = get_of(&mut wire, host, "/", &by_cookie(&token)).await;
        assert_eq!(response.header("x-backend"), Some("green"), "{host}");
        assert_private(&response);
    }
}

/// A request is routed by the address, however it is written.
#[tokio::test]
async fn an_ipv6_address_is_for_previews_in_every_spelling() {
    let hosts = "hosts = [\"app.test\", \"[2001:db8::2]\"]\nredirect_hosts = [\"www.test\"]\npreview = { hosts = [\"[2001:DB8:0::1]\"] }";
    let (_home, proxy, _apps) = versions("", hosts).await;
    let mut wire = Wire::connect(proxy.address).await;
    let token = green(&proxy).await.token;
    for host in [
        "[2001:db8::1]",
        "[2001:DB8::1]:8080",
        "[2001:db8:0::1]",
        "[2001:0db8:0000:0000:0000:0000:0000:0001]:80",
        "[2001:db8::0.0.0.1]",
    ] {
        assert_eq!(get_of(&mut wire, host, "/", "").await.status, 403, "{host}");
        let response = get_of(&mut wire, host, "/", &by_field(&token)).await;
        assert_eq!(response.header("x-backend"), Some("green"), "{host}");
        assert_private(&response);
    }
    // Nor is a host that is served taken for one that redirects.
    for host in ["[2001:db8::2]", "[2001:db8:0:0::2]:8080"] {
        assert_usual(&get_of(&mut wire, host, "/", "").await, "blue");
    }
}

#[tokio::test]
async fn an_active_backend_is_shown_there_to_holders_alone() {
    let (_home, proxy, _apps) = versions("", HOSTS).await;
    let reply = green(&proxy).await;
    let port = proxy.address.port();
    assert_eq!(
        reply.link.unwrap(),
        format!("http://green.preview.test:{port}/?__uh-preview={}", reply.token)
    );
    proxy.switch("green").await;
    let mut wire = Wire::connect(proxy.address).await;
    let response = get_of(&mut wire, "green.preview.test", "/", &by_cookie(&reply.token)).await;
    assert_eq!(response.header("x-backend"), Some("green"));
    assert_private(&response);
    assert_eq!(get_of(&mut wire, "green.preview.test", "/", "").await.status, 403);
    assert_usual(&get_of(&mut wire, "app.test", "/", &by_cookie(&reply.token)).await, "green");
}
