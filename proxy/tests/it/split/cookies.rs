//! The cookie by which a browser is recognised: hidden from the app, set where nobody else can get it, and worth nothing
//! if it is forged.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::Ordering;

use super::{get_as, green, is_new, off, pages, split};
use crate::http2::clients::Client;
use crate::wire::Wire;

fn cookie(response: &crate::wire::Response) -> Option<String> {
    let cookies = response.head.lines().filter_map(|line| line.strip_prefix("Set-Cookie: "));
    cookies.filter(|cookie| cookie.starts_with("__uh-")).map(str::to_owned).next()
}

#[tokio::test]
async fn the_app_never_sees_it() {
    let (home, mut proxy, apps) = pages("").await;
    split(&proxy, &green(50.0)).await;
    let mut wire = Wire::connect(proxy.address).await;
    let page = get_as(&mut wire, "192.0.2.1", "/html", "").await;
    let ours = cookie(&page).unwrap();
    let (pair, attributes) = ours.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
    for (sent, seen) in [
        (format!("Cookie: {pair}"), "-"),
        (format!("Cookie: a=1; {pair}; b=2"), "a=1; b=2"),
        (format!("cookie:{pair};a=1"), "a=1"),
        (format!("Cookie: a=1\r\nCookie: {pair}"), "a=1"),
        ("Cookie: __uh-anything=1; a=1".to_owned(), "a=1"),
        ("Cookie: a=1; b=\"2\"".to_owned(), "a=1; b=\"2\""),
    ] {
        let response = get_as(&mut wire, "192.0.2.1", "/", &format!("{sent}\r\n")).await;
        assert_eq!(response.header("x-cookie"), Some(seen), "{sent}");
    }
    // Nor after the split, nor after a restart.
    off(&proxy).await;
    let fields = format!("Cookie: {pair}; a=1\r\n");
    assert_eq!(get_as(&mut wire, "192.0.2.1", "/", &fields).await.header("x-cookie"), Some("a=1"));
    proxy.kill();
    let proxy = home.start().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(get_as(&mut wire, "192.0.2.1", "/", &fields).await.header("x-cookie"), Some("a=1"));
    // Nor over HTTP/2, where a cookie may come in parts.
    assert!(apps.iter().all(|app| !app.saw_ours.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn over_http2_it_is_the_same_cookie() {
    let (_home, proxy, address, apps) = {
        let apps = [super::Pages::start("blue").await, super::Pages::start("green").await];
        let home = crate::harness::Home::new(apps[0].app.address, apps[1].app.address)
            .server("listen_h2c = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.1\"]");
        let proxy = home.start().await;
        proxy.until_healthy().await;
        let address = proxy.status().await.proxy.listen_h2c[0].parse().unwrap();
        (home, proxy, address, apps)
    };
    split(&proxy, &green(50.0)).await;
    let (client, mut wire) = (Client::plain(address).await, Wire::connect(proxy.address).await);
    for n in 0..20 {
        let page = get_as(&mut wire, &format!("10.0.0.{n}"), "/html", "").await;
        let pair = cookie(&page).unwrap().split(';').next().unwrap().to_owned();
        let request = http::Request::get("http://app.test/")
            .header("cookie", "a=1")
            .header("cookie", &pair)
            .header("x-forwarded-for", "192.0.2.1")
            .body(())
            .unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.headers["x-backend"].to_str().ok(), page.header("x-backend"));
        assert_eq!(answer.headers["x-cookie"], "a=1");
    }
    assert!(apps.iter().all(|app| !app.saw_ours.load(Ordering::SeqCst)));
}

#[tokio::test]
async fn it_is_only_set_where_no_cache_can_give_it_to_others() {
    let (_home, proxy, _apps) = pages("").await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(cookie(&get_as(&mut wire, "192.0.2.1", "/html", "").await), None, "there is no split");
    split(&proxy, &green(50.0)).await;
    for (path, is_set) in [
        ("/html", true),
        ("/html?Cache-Control:private,max-age=60", true),
        ("/html?Cache-Control:no-store", true),
        ("/html?Cache-Control:no-cache", true),
        ("/html?Cache-Control:public,max-age=60", false),
        ("/html?Cache-Control:s-maxage=60", false),
        ("/html?Cache-Control:max-age=60", false),
        ("/html?Last-Modified:then", false),
        ("/text", false),
    ] {
        let response = get_as(&mut wire, "192.0.2.1", path, "").await;
        assert_eq!(cookie(&response).is_some(), is_set, "{path}: {}", response.head);
    }
    // Who has one gets no other.
    let page = get_as(&mut wire, "192.0.2.1", "/html", "").await;
    let pair = cookie(&page).unwrap().split(';').next().unwrap().to_owned();
    let again = get_as(&mut wire, "192.0.2.1", "/html", &format!("Cookie: {pair}\r\n")).await;
    assert_eq!(cookie(&again), None);
    // Nor does anything but a GET.
    wire.send("POST /html HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(cookie(&wire.response().await), None);
    // Who came by HTTPS to the proxy before gets one for HTTPS alone.
    let secure = get_as(&mut wire, "192.0.2.1", "/html", "X-Forwarded-Proto: https\r\n").await;
    assert!(cookie(&secure).unwrap().ends_with("; Secure"));
}

#[tokio::test]
async fn a_service_may_do_without_it() {
    let (_home, proxy, _apps) = pages("[services.app.split]\ncookie = false\n").await;
    split(&proxy, &green(50.0)).await;
    let mut wire = Wire::connect(proxy.address).await;
    for n in 0..20 {
        assert_eq!(cookie(&get_as(&mut wire, &format!("10.0.0.{n}"), "/html", "").await), None);
    }
}

#[tokio::test]
async fn a_forged_cookie_is_none() {
    let (home, proxy, _apps) = pages("").await;
    split(&proxy, &green(50.0)).await;
    let mut wire = Wire::connect(proxy.address).await;
    let side = is_new(&mut wire, "192.0.2.1", "").await;
    for n in 0..64u32 {
        let forged = format!("Cookie: __uh-client={:032x}{:016x}\r\n", u128::from(n) << 70, n);
        let page = get_as(&mut wire, "192.0.2.1", "/html", &forged).await;
        assert_eq!(page.header("x-backend") == Some("green"), side, "{forged}");
        assert!(cookie(&page).is_some(), "it was taken for a valid one: {forged}");
    }
    // One that another installation has made isn't valid here. Its own key is its owner's alone.
    let key = format!("{}.cookie-key", home.state_file().display());
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let (_other, second, _others) = pages("").await;
    split(&second, &green(50.0)).await;
    let mut theirs = Wire::connect(second.address).await;
    let page = get_as(&mut theirs, "192.0.2.1", "/html", "").await;
    let foreign = format!("Cookie: {}\r\n", cookie(&page).unwrap().split(';').next().unwrap());
    assert!(cookie(&get_as(&mut wire, "192.0.2.1", "/html", &foreign).await).is_some());
}
