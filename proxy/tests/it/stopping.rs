//! What happens to requests that are on their way when uh-proxy stops.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Home, SampleApp, pair, soon};
use crate::wire::{Wire, get};

/// The result of a request that was sent around the stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// A complete answer. It announces that it is the last one, unless uh-proxy hadn't received the stop signal yet.
    Answered,
    /// The connection was closed cleanly before a byte of a response: the client may safely retry.
    Dismissed,
    /// A reset, or a partial response.
    Lost,
}

/// Sends a request, and returns when it was sent and its result.
async fn fate(mut stream: TcpStream) -> (Instant, Fate) {
    let sent = stream.write_all(get("/").as_bytes()).await;
    let at = Instant::now();
    (at, if sent.is_ok() { answer(stream).await } else { Fate::Lost })
}

async fn answer(mut stream: TcpStream) -> Fate {
    let mut answer = Vec::new();
    match soon("the end", stream.read_to_end(&mut answer)).await {
        Ok(0) => Fate::Dismissed,
        Ok(_) => {
            let text = String::from_utf8_lossy(&answer);
            if text.starts_with("HTTP/1.1 200") && text.ends_with("blue 1.0.0\n") {
                Fate::Answered
            } else {
                Fate::Lost
            }
        }
        Err(_) => Fate::Lost,
    }
}

async fn idle_connections(proxy: &crate::harness::Proxy, count: usize) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for _ in 0..count {
        let mut wire = Wire::connect(proxy.address).await;
        assert_eq!(wire.get("/").await.status, 200);
        idle.push(wire.stream);
    }
    idle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_crosses_the_end_is_answered_or_cleanly_refused() {
    const CLIENTS: usize = 200;
    const GRACE: Duration = Duration::from_secs(1);
    let (_home, mut proxy, _blue, _green) = pair().await;
    let idle = idle_connections(&proxy, CLIENTS).await;
    let start = Instant::now();
    proxy.signal(Signal::TERM);
    // Over two seconds: half of them within the grace period, the others around its end and after it. The actual send
    // times are measured, since the machine may be busy.
    let ask = |(step, stream): (usize, TcpStream)| {
        let wait = Duration::from_millis(10) * u32::try_from(step).unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            fate(stream).await
        })
    };
    let mut fates = Vec::new();
    for task in idle.into_iter().enumerate().map(ask).collect::<Vec<_>>() {
        fates.push(task.await.unwrap());
    }
    let count = |wanted| fates.iter().filter(|(_, fate)| *fate == wanted).count();
    let (answered, dismissed, lost) = (count(Fate::Answered), count(Fate::Dismissed), count(Fate::Lost));
    println!("answered {answered}, cleanly refused {dismissed}, lost {lost}");
    for (at, fate) in fates {
        let late = at - start;
        assert!(late > GRACE / 2 || fate == Fate::Answered, "{fate:?} after {late:?}");
        // Around the end of the grace period a request may be too late, but must not cause a reset.
        assert!(late > GRACE + GRACE / 2 || fate != Fate::Lost, "{fate:?} after {late:?}");
    }
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn without_a_grace_idle_connections_end_at_once_and_in_order() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address).server("shutdown_idle_grace = \"0s\"");
    let mut proxy = home.start().await;
    proxy.until_healthy().await;
    let mut idle = idle_connections(&proxy, 1).await.remove(0);
    proxy.signal(Signal::TERM);
    assert_eq!(soon("the end", idle.read(&mut [0; 8])).await.unwrap(), 0);
    drop(idle);
    assert_eq!(proxy.ended().await.code(), Some(0));
}

#[tokio::test]
async fn who_is_in_the_queue_at_the_end_is_let_in_and_answered() {
    const CLIENTS: usize = 100;
    let (home, mut proxy, _blue, _green) = pair().await;
    // While it is stopped, the kernel completes connections and queues them; the stop signal comes last.
    proxy.signal(Signal::STOP);
    let mut queued = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(get("/").as_bytes()).await.unwrap();
        queued.push(stream);
    }
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    for (answered, mut stream) in queued.into_iter().enumerate() {
        let mut answer = Vec::new();
        let end = soon("the answer", stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "reset after {answered} were answered");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(proxy.ended().await.code(), Some(0));
    assert!(home.messages().contains("nothing was cut"), "{}", home.messages());
}
