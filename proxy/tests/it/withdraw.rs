//! Withdrawing a backend before it is stopped, and what ends a withdrawal.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use uh_protocol::Code;
use uh_protocol::client::ClientError;
use uh_protocol::request::{BackendRequest, SwitchRequest, UnsetRequest, WithdrawRequest};
use uh_protocol::status::Role;

use crate::harness::{Home, Proxy, SampleApp, Scripted, Then, app, backend, cli, pair, soon, until};
use crate::wire::{Wire, get};

async fn withdraw(proxy: &Proxy, name: &str) -> uh_protocol::request::Withdrawn {
    proxy.client.withdraw(&app(), &backend(name), &WithdrawRequest::default()).await.unwrap()
}

fn code(error: ClientError) -> Code {
    match error {
        ClientError::Problem(problem) => problem.code,
        other => panic!("{other}"),
    }
}

async fn is_refused(proxy: &Proxy, to: &str) -> bool {
    let plain = SwitchRequest::to(backend(to));
    let forced = SwitchRequest { force: true, ..plain.clone() };
    let mut refused = 0;
    for request in [plain, forced] {
        let result = proxy.client.switch(&app(), &request).await;
        refused += usize::from(result.is_err_and(|error| code(error) == Code::BackendWithdrawn));
    }
    refused == 2
}

async fn until_switched(proxy: &Proxy, to: &str) {
    until("it can be switched to again", async || {
        let switched = proxy.client.switch(&app(), &SwitchRequest::to(backend(to))).await;
        switched.ok().map(|switched| assert!(switched.changed))
    })
    .await;
}

#[tokio::test]
async fn a_withdrawn_backend_is_refused_until_it_is_registered_again() {
    let (home, proxy, _blue, green) = pair().await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send(get("/slow?ms=60000")).await;
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    // Not the active backend, and not with an outdated generation.
    let active = proxy.client.withdraw(&app(), &backend("blue"), &WithdrawRequest::default()).await;
    assert_eq!(code(active.unwrap_err()), Code::BackendActive);
    let other = WithdrawRequest { expect_generation: Some(7) };
    let conflict = proxy.client.withdraw(&app(), &backend("green"), &other).await;
    assert_eq!(code(conflict.unwrap_err()), Code::Conflict);
    let unknown = proxy.client.withdraw(&app(), &backend("red"), &WithdrawRequest::default()).await;
    assert_eq!(code(unknown.unwrap_err()), Code::UnknownBackend);
    assert_eq!(proxy.status().await.generation, 0, "a refusal has changed something");
    // Its probes keep passing meanwhile.
    let done = withdraw(&proxy, "green").await;
    assert_eq!((done.changed, done.generation, done.persisted), (true, 1, true));
    let text = fs::read_to_string(home.state_file()).unwrap();
    assert!(text.contains("\"withdrawn\""), "it was not on disk before the reply: {text}");
    let status = proxy.backend("green").await;
    assert_eq!((status.role, status.healthy), (Role::Withdrawn, Some(true)));
    assert!(is_refused(&proxy, "green").await);
    let again = withdraw(&proxy, "green").await;
    assert_eq!((again.changed, again.generation), (false, 1));
    // A registration ends it, even one that changes nothing else; then it must pass its probes again.
    let order = BackendRequest {
        endpoints: vec![green.address.to_string()],
        version: None,
        expect_generation: Some(1),
        force: false,
    };
    let set = proxy.client.set_backend(&app(), &backend("green"), &order).await.unwrap();
    assert_eq!((set.changed, set.generation, set.backend.role), (true, 2, Role::Standby));
    until_switched(&proxy, "green").await;
    // The reply has what is in flight on the other one.
    let done = withdraw(&proxy, "blue").await;
    assert_eq!((done.requests_in_flight, done.tunnels), (1, 0));
    // So does dropping the registration.
    let unset = proxy.client.unset_backend(&app(), &backend("blue"), &UnsetRequest::default()).await.unwrap();
    assert_eq!((unset.changed, unset.backend.role), (true, Role::Standby));
    until_switched(&proxy, "blue").await;
}

#[tokio::test]
async fn a_withdrawal_survives_a_restart_and_a_reload() {
    let (home, mut proxy, _blue, _green) = pair().await;
    withdraw(&proxy, "green").await;
    home.write_config(
        &home.config().replace("active = \"blue\"", "active = \"blue\"\ndrain_timeout = \"7s\""),
    );
    proxy.client.reload().await.unwrap();
    assert!(is_refused(&proxy, "green").await);
    proxy.kill();
    let mut proxy = home.start().await;
    assert!(is_refused(&proxy, "green").await);
    assert_eq!(proxy.backend("green").await.role, Role::Withdrawn);
    proxy.kill();
    // The active backend of a hand-written file is never withdrawn, nor is an unknown one.
    let text = r#"{"active":"blue","previous":null,"lastSwitch":null,"version":null,"healthy":true,"schema":1,
        "generation":9,"services":{"app":{"active":"blue","previous":null,"lastSwitch":null,"withdrawn":["blue","red"]}}}"#;
    fs::write(home.state_file(), text).unwrap();
    let proxy = home.start().await;
    assert_eq!(
        (proxy.backend("blue").await.role, proxy.backend("green").await.role),
        (Role::Active, Role::Standby)
    );
}

#[tokio::test]
async fn dropping_a_registration_brings_back_the_file_s_endpoints() {
    let (_home, proxy, blue, green) = pair().await;
    let order = |force| BackendRequest {
        endpoints: vec![green.address.to_string()],
        version: Some("9".to_owned()),
        expect_generation: None,
        force,
    };
    proxy.client.set_backend(&app(), &backend("blue"), &order(true)).await.unwrap();
    // It is active: its traffic moves only with force.
    let unset = async |force| {
        let request = UnsetRequest { expect_generation: None, force };
        proxy.client.unset_backend(&app(), &backend("blue"), &request).await
    };
    assert_eq!(code(unset(false).await.unwrap_err()), Code::BackendActive);
    let done = unset(true).await.unwrap();
    assert_eq!((done.changed, done.backend.endpoints[0].address.clone()), (true, blue.address.to_string()));
    assert_eq!(Wire::connect(proxy.address).await.get("/").await.header("x-backend"), Some("blue"));
    assert!(!unset(false).await.unwrap().changed, "there was nothing left to drop");
}

#[tokio::test]
async fn the_command_line_withdraws_and_brings_back() {
    let (home, proxy, _blue, _green) = pair().await;
    let socket = home.socket();
    let (exit, stdout, _) = cli(&socket, &["backend", "withdraw", "green", "--expect-generation", "0"]).await;
    assert_eq!(
        (exit, stdout.as_str()),
        (0, "app: green is withdrawn (generation 1); 0 requests and 0 tunnels in flight on it\n")
    );
    let (exit, _, stderr) = cli(&socket, &["switch", "green", "--force"]).await;
    assert_eq!(exit, 3, "{stderr}");
    for part in ["green is withdrawn", "blue stays active", "uh-proxy backend unset green"] {
        assert!(stderr.contains(part), "{part:?} is missing in {stderr:?}");
    }
    let (_, stdout, _) = cli(&socket, &["status"]).await;
    assert!(stdout.lines().any(|line| line.contains("green") && line.contains("withdrawn")), "{stdout}");
    let (exit, _, stderr) = cli(&socket, &["backend", "withdraw", "blue"]).await;
    assert_eq!(exit, 3, "{stderr}");
    let (exit, stdout, _) = cli(&socket, &["backend", "unset", "green", "--json"]).await;
    let unset: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((exit, &unset["role"], &unset["changed"]), (0, &"standby".into(), &true.into()));
    let metrics = proxy.client.metrics().await.unwrap();
    assert!(metrics.contains("uh_proxy_backend_withdrawn{service=\"app\",backend=\"green\"} 0"), "{metrics}");
}

/// Answers `/first` and keeps the connection; closes it at the next request, once notified.
async fn closes_when_notified(told: &Arc<Notify>) -> Scripted {
    let told = Arc::clone(told);
    Scripted::start(move |head, mut stream| {
        let told = Arc::clone(&told);
        async move {
            if head.starts_with("GET /first") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                return (stream, Then::KeepAlive);
            }
            told.notified().await;
            (stream, Then::Close)
        }
    })
    .await
}

#[tokio::test]
async fn a_retry_goes_to_the_active_backend_once_its_own_is_withdrawn() {
    let told = Arc::new(Notify::new());
    let (blue, green) = (closes_when_notified(&told).await, SampleApp::start("green", "2").await);
    let home = Home::new(blue.address, green.address).server("threads = 1");
    let proxy = home.start().await;
    proxy.until_healthy().await;
    let mut wire = Wire::connect(proxy.address).await;
    assert_eq!(wire.get("/first").await.status, 200);
    wire.send(get("/second")).await;
    until("it is in flight", async || (blue.seen() == 2).then_some(())).await;
    proxy.switch("green").await;
    assert_eq!(withdraw(&proxy, "blue").await.requests_in_flight, 1);
    told.notify_one();
    assert_eq!(wire.response().await.header("x-backend"), Some("green"));
    assert_eq!(blue.seen(), 2, "the withdrawn one was tried again");
    proxy.until_idle("blue").await;
}

/// A listening socket whose queue is full: connecting to it times out.
fn never_accepts() -> (socket2::Socket, SocketAddr, Vec<socket2::Socket>) {
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = new();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let fill = |_| {
        let socket = new();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into());
        socket
    };
    let filling = (0..4).map(fill).collect();
    (listener, address, filling)
}

#[tokio::test]
async fn after_a_failed_connect_no_attempt_starts_on_a_withdrawn_backend() {
    let (_listener, hanging, _filling) = never_accepts();
    let blue = Scripted::start(|_, mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nblue").await;
        (stream, Then::KeepAlive)
    })
    .await;
    let green = SampleApp::start("green", "2").await;
    let home = Home::new(format!("{hanging}\", \"{}", blue.address), green.address)
        .server("threads = 1")
        .service("[services.app.timeouts]\nconnect = \"3s\"\n[services.app.health]\nenabled = false");
    let proxy = home.start().await;
    // The endpoints take turns: every second request reaches the one that hangs.
    let mut waiting = Wire::connect(proxy.address).await;
    waiting.send(get("/")).await;
    if tokio::time::timeout(Duration::from_millis(500), waiting.read(false)).await.is_ok() {
        waiting.send(get("/")).await;
    }
    until("it is in flight", async || (proxy.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let served = blue.seen();
    proxy.switch("green").await;
    assert_eq!(withdraw(&proxy, "blue").await.requests_in_flight, 1);
    let answer = soon("an answer", waiting.response()).await;
    assert_eq!(answer.header("x-backend"), Some("green"), "{answer:?}");
    assert_eq!(blue.seen(), served, "an attempt began on the withdrawn one");
}
