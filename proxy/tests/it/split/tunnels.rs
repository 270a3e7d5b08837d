//! Tunnels: their handshakes decide, they stay where they are, and the end of a split closes them as a drain does.

use tokio::io::AsyncReadExt as _;

use super::{green, off, split};
use crate::exchanges::{WEBSOCKET, echo};
use crate::harness::{Home, SampleApp, soon, until};
use crate::wire::Wire;

/// The server's close frame with 1001, "going away" (RFC 6455 §7.4.1).
const GOING_AWAY: &[u8] = b"\x88\x02\x03\xe9";

async fn tunnel(address: std::net::SocketAddr) -> Wire {
    let mut wire = Wire::connect(address).await;
    wire.send(WEBSOCKET).await;
    assert_eq!(wire.response().await.status, 101);
    wire
}

#[tokio::test]
async fn tunnels_stay_on_their_side_and_those_of_the_new_one_end_with_the_split() {
    let (blue, other) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, other.address).service("tunnels_at_drain = \"close\"");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut old = tunnel(proxy.address).await;
    split(&proxy, &green(100.0)).await;
    let mut new = tunnel(proxy.address).await;
    assert_eq!((proxy.backend("blue").await.tunnels, proxy.backend("green").await.tunnels), (1, 1));
    // A smaller share moves no open tunnel.
    split(&proxy, &green(0.0001)).await;
    echo(&mut old, "old").await;
    echo(&mut new, "new").await;
    let ended = off(&proxy).await;
    assert_eq!(ended.remaining.tunnels, 1);
    let mut rest = Vec::new();
    soon("the end of the tunnel", new.stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, GOING_AWAY);
    echo(&mut old, "still here").await;
    until("it is counted", async || (proxy.backend("green").await.tunnels == 0).then_some(())).await;
    assert_eq!(proxy.backend("blue").await.tunnels, 1);
}
