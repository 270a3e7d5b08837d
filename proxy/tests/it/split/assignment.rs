//! Who is on which side: the share is right, everybody stays there, and is back when the split ends.

use std::fs;

use super::{get_as, green, is_new, off, pages, split};
use crate::harness::Home;
use crate::wire::Wire;

/// As many clients as a test that is run often can afford. More with `UH_SPLIT_CLIENTS`.
fn clients() -> usize {
    std::env::var("UH_SPLIT_CLIENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000)
}

/// Half of them have IPv4 addresses, half of them IPv6 networks.
fn addresses() -> Vec<String> {
    let address = |n: usize| match n % 2 {
        0 => format!("10.{}.{}.{}", n >> 16 & 255, n >> 8 & 255, n & 255),
        _ => format!("2001:db8:{:x}:{:x}::{:x}", n >> 16, n & 0xffff, n % 7 + 1),
    };
    (0..clients()).map(address).collect()
}

async fn sides(wire: &mut Wire, addresses: &[String], fields: &[String]) -> Vec<bool> {
    let mut sides = Vec::new();
    for (n, address) in addresses.iter().enumerate() {
        sides.push(is_new(wire, address, fields.get(n).map_or("", String::as_str)).await);
    }
    sides
}

/// Within four standard deviations.
fn assert_share(sides: &[bool], share: f64) {
    let (count, of) = (sides.iter().filter(|new| **new).count() as f64, sides.len() as f64);
    let deviation = (of * share * (1.0 - share)).sqrt();
    assert!((count - of * share).abs() <= 4.0 * deviation, "{count} of {of}, expected {share}");
}

#[tokio::test]
async fn more_weight_only_moves_clients_forward_and_the_end_of_a_split_brings_all_back() {
    let (_home, proxy, _apps) = pages("").await;
    let (addresses, mut wire) = (addresses(), Wire::connect(proxy.address).await);
    let mut before = vec![false; addresses.len()];
    for weight in [1.0, 10.0, 50.0, 100.0] {
        assert!(split(&proxy, &green(weight)).await.changed);
        let now = sides(&mut wire, &addresses, &[]).await;
        assert_share(&now, weight / 100.0);
        assert!(before.iter().zip(&now).all(|(before, now)| *now || !before), "a client has moved back");
        before = now;
    }
    // Fewer again: those who stay are the same.
    split(&proxy, &green(10.0)).await;
    let tenth = sides(&mut wire, &addresses, &[]).await;
    assert_share(&tenth, 0.1);
    off(&proxy).await;
    assert!(!sides(&mut wire, &addresses, &[]).await.contains(&true), "a client isn't back");
    // Another split has another salt.
    split(&proxy, &green(10.0)).await;
    let other = sides(&mut wire, &addresses, &[]).await;
    assert_share(&other, 0.1);
    let both: Vec<bool> = tenth.iter().zip(&other).map(|(a, b)| *a && *b).collect();
    assert_share(&both, 0.01);
}

#[tokio::test]
async fn a_network_of_ipv6_is_one_client() {
    let (_home, proxy, _apps) = pages("").await;
    split(&proxy, &green(50.0)).await;
    let mut wire = Wire::connect(proxy.address).await;
    for network in 0..40 {
        let side = is_new(&mut wire, &format!("2001:db8:0:{network:x}::1"), "").await;
        for host in [":2", "ffff:ffff:ffff:ffff"] {
            let address = format!("2001:db8:0:{network:x}:{host}");
            assert_eq!(is_new(&mut wire, &address, "").await, side, "{address}");
        }
        // An IPv4 address in the form of IPv6 is that address.
        let address = format!("192.0.2.{network}");
        assert_eq!(
            is_new(&mut wire, &format!("::ffff:{address}"), "").await,
            is_new(&mut wire, &address, "").await
        );
    }
}

#[tokio::test]
async fn with_its_cookie_a_client_is_on_the_same_side_at_every_address_and_never_moves_back() {
    let (_home, proxy, _apps) = pages("").await;
    let (addresses, mut wire) = (addresses(), Wire::connect(proxy.address).await);
    split(&proxy, &green(20.0)).await;
    // The first cookie is drawn for the side that the address had.
    let (mut cookies, mut first) = (Vec::new(), Vec::new());
    for address in &addresses {
        let page = get_as(&mut wire, address, "/html", "").await;
        let cookie = page.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
        first.push(page.header("x-backend") == Some("green"));
        cookies.push(format!("Cookie: {cookie}\r\n"));
    }
    assert_share(&first, 0.2);
    let elsewhere: Vec<String> = addresses.iter().rev().cloned().collect();
    assert_eq!(sides(&mut wire, &elsewhere, &cookies).await, first, "an address has overruled a cookie");
    let mut before = first;
    for weight in [50.0, 100.0] {
        split(&proxy, &green(weight)).await;
        let now = sides(&mut wire, &elsewhere, &cookies).await;
        assert_share(&now, weight / 100.0);
        assert!(before.iter().zip(&now).all(|(before, now)| *now || !before), "a client has moved back");
        before = now;
    }
    off(&proxy).await;
    assert!(!sides(&mut wire, &elsewhere, &cookies).await.contains(&true));
}

#[tokio::test]
async fn two_proxies_with_the_same_state_and_key_agree() {
    let (home, mut proxy, apps) = pages("").await;
    split(&proxy, &green(50.0)).await;
    let mut wire = Wire::connect(proxy.address).await;
    let page = get_as(&mut wire, "192.0.2.1", "/html", "").await;
    let cookie = page.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let other =
        Home::new(apps[0].app.address, apps[1].app.address).server("trusted_proxies = [\"127.0.0.1\"]");
    fs::create_dir(other.state_file().parent().unwrap()).unwrap();
    for suffix in ["", ".cookie-key"] {
        let of = |home: &Home| format!("{}{suffix}", home.state_file().display());
        fs::copy(of(&home), of(&other)).unwrap();
    }
    let second = other.start().await;
    let (mut one, mut two) = (wire, Wire::connect(second.address).await);
    let mut new = 0;
    for n in 0..200 {
        let (address, fields) = (format!("10.0.0.{n}"), format!("Cookie: {cookie}\r\n"));
        let side = is_new(&mut one, &address, "").await;
        assert_eq!(side, is_new(&mut two, &address, "").await, "{address}");
        assert_eq!(is_new(&mut one, &address, &fields).await, is_new(&mut two, &address, &fields).await);
        new += usize::from(side);
    }
    assert!((50..150).contains(&new), "{new}");
    proxy.kill();
}
