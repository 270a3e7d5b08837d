//! The load against servers that are good, and bad in each way.

use super::*;
use crate::judgement::{Switch, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const BLUE: &str = "HTTP/1.1 200 OK\r\nx-backend: blue\r\ncontent-length: 5\r\n\r\nhello";
const GREEN: &str = "HTTP/1.1 200 OK\r\nx-backend: green\r\ncontent-length: 5\r\n\r\nhello";

/// What the server does after its answer.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Keep,
    Close,
}

/// A server that reads a request, sends this, and then keeps or closes the connection.
async fn server(answer: &'static str, delay: Duration, then: Then) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while stream.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {
                    tokio::time::sleep(delay).await;
                    let sent = stream.write_all(answer.as_bytes()).await;
                    if sent.is_err() || then == Then::Close {
                        return;
                    }
                }
            });
        }
    });
    target
}

async fn load(target: SocketAddr, reuse: Reuse) -> Recording {
    load_with_timeout(target, reuse, Duration::from_secs(10)).await
}

async fn load_with_timeout(target: SocketAddr, reuse: Reuse, request_timeout: Duration) -> Recording {
    let groups = vec![Group { path: "/".to_owned(), clients: 2, rate: 100.0, reuse }];
    let plan = Plan { target, groups, request_timeout };
    let load = Load::start(plan).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while load.so_far().0 < 12 {
        assert!(Instant::now() < deadline, "the load makes no requests");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    load.stop().await.unwrap()
}

async fn against(answer: &'static str, then: Then) -> Recording {
    load(server(answer, Duration::ZERO, then).await, Reuse::KeepAlive).await
}

/// Every failure that occurred, once.
fn failures(recording: &Recording) -> Vec<Failure> {
    let mut failures: Vec<_> = recording.samples.iter().filter_map(|s| s.outcome.clone().err()).collect();
    failures.sort_unstable();
    failures.dedup();
    failures
}

#[tokio::test]
async fn a_good_server_is_found_good() {
    for reuse in [Reuse::KeepAlive, Reuse::Never] {
        let recording = load(server(BLUE, Duration::ZERO, Then::Keep).await, reuse).await;
        assert_eq!((failures(&recording), recording.closed_by_server), (vec![], 0), "{reuse:?}");
        assert!(recording.samples.iter().all(|s| s.outcome.as_ref().unwrap().as_str() == "blue"));
        assert!(recording.samples.is_sorted_by_key(|s| s.sent_at));
    }
}

#[tokio::test]
async fn each_kind_of_failure_is_found() {
    for (answer, then, expected) in [
        ("", Then::Close, Failure::ClosedBeforeResponse),
        ("HTTP/1.1 200 OK\r\nx-ba", Then::Close, Failure::ClosedMidHead),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Then::Close, Failure::ClosedMidBody),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello, world", Then::Keep, Failure::ExtraBytes),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Then::Keep, Failure::Unidentified),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", Then::Keep, Failure::BadStatus(502)),
        ("220 mail.test ESMTP\r\n\r\n", Then::Keep, Failure::Malformed),
    ] {
        let recording = against(answer, then).await;
        assert_eq!(failures(&recording), [expected], "{answer:?}");
        assert_eq!(recording.closed_by_server > 0, expected.is_close(), "{answer:?}");
        assert!(!Verdict::of(&recording, &"blue".parse().unwrap(), &[]).faults().is_empty());
    }
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_found() {
    let endless = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel";
    let target = server(endless, Duration::ZERO, Then::Keep).await;
    let recording = load_with_timeout(target, Reuse::KeepAlive, Duration::from_millis(30)).await;
    assert_eq!(failures(&recording), [Failure::TimedOut]);
}

#[tokio::test]
async fn a_refused_connection_is_found() {
    // Bound and not listening: nobody answers there, and nobody else can get the port.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(failures(&load(socket.local_addr().unwrap(), Reuse::Never).await), [Failure::Connect]);
}

#[tokio::test]
async fn a_connection_that_the_server_closes_is_counted_even_if_no_request_fails() {
    let announced = "HTTP/1.1 200 OK\r\nx-backend: blue\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let recording = against(announced, Then::Close).await;
    assert_eq!((failures(&recording), recording.closed_by_server), (vec![], recording.samples.len()));
    assert!(against(BLUE, Then::Close).await.closed_by_server > 0);
}

#[tokio::test]
async fn unrequested_bytes_are_found() {
    let twice: &str = Box::leak(format!("{BLUE}{BLUE}").into_boxed_str());
    assert_eq!(failures(&against(twice, Then::Keep).await), [Failure::ExtraBytes]);
}

#[tokio::test]
async fn the_wrong_backend_is_found() {
    let now = Instant::now();
    let switches = [Switch { to: "green".parse().unwrap(), called_at: now, replied_at: now }];
    for (answer, right) in [(GREEN, true), (BLUE, false)] {
        let recording = against(answer, Then::Keep).await;
        let verdict = Verdict::of(&recording, &"blue".parse().unwrap(), &switches);
        assert_eq!(verdict.old_answers.is_empty(), right, "{answer:?}");
        assert_eq!(verdict.faults().is_empty(), right, "{answer:?}");
    }
}

#[tokio::test]
async fn a_slow_server_can_not_hide_the_wait_it_causes() {
    // Each client is due every 20 ms and answered after 40 ms: the tenth request has waited for the nine before.
    let recording = load(server(BLUE, Duration::from_millis(40), Then::Keep).await, Reuse::KeepAlive).await;
    let longest = recording.samples.iter().map(|s| s.latency).max().unwrap();
    assert_eq!(failures(&recording), []);
    assert!(longest >= Duration::from_millis(100), "{longest:?}");
}

#[tokio::test]
async fn each_request_names_one_of_the_users() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plan = Plan {
        target: listener.local_addr().unwrap(),
        groups: vec![Group { path: "/".to_owned(), clients: 1, rate: 500.0, reuse: Reuse::KeepAlive }],
        request_timeout: Duration::from_secs(10),
    };
    let load = Load::start_for_users(plan, NonZeroU32::new(3).unwrap()).unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut named = Vec::new();
    for _ in 0..60 {
        let mut request = [0; 1024];
        let length = stream.read(&mut request).await.unwrap();
        let request = std::str::from_utf8(&request[..length]).unwrap();
        let user = request.split_once("x-forwarded-for: ").unwrap().1.lines().next().unwrap();
        named.push(user.parse::<Ipv4Addr>().unwrap());
        stream.write_all(BLUE.as_bytes()).await.unwrap();
    }
    drop(stream);
    drop(listener);
    let recording = load.stop().await.unwrap();
    let recorded: Vec<_> = recording.samples.iter().take(60).map(|sample| sample.user.unwrap()).collect();
    assert_eq!(recorded, named);
    named.sort_unstable();
    named.dedup();
    assert_eq!(named, [[10, 0, 0, 0], [10, 0, 0, 1], [10, 0, 0, 2]].map(Ipv4Addr::from));
}

#[test]
fn random_arrivals_have_the_same_mean() {
    let period = Duration::from_millis(10);
    let sum: Duration = (0..10_000).map(|_| Arrivals::Random.gap(period)).sum();
    let mean = sum / 10_000;
    assert!(mean > Duration::from_millis(9) && mean < Duration::from_millis(11), "{mean:?}");
}
