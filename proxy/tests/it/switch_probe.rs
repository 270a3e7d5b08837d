//! The probe right before a switch: what it refuses, what it leaves to the regular probes, and when it is skipped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use uh_protocol::Code;
use uh_protocol::client::ClientError;
use uh_protocol::request::{SwitchProbeResult, SwitchRequest, WithdrawRequest};

use crate::harness::{Home, Proxy, SampleApp, app, backend, cli, read_head, soon, until};

/// After the first good probe, there are no regular ones for the rest of the test.
const ONCE: &str = "[services.app.health]\ninterval = \"1h\"\ntimeout = \"5s\"\nhealthy_after = 1\n";

/// How an app answers its probes.
const GOOD: u8 = 0;
pub(crate) const BAD: u8 = 1;
pub(crate) const NEVER: u8 = 2;

/// An app with configurable probe responses.
pub(crate) async fn probed() -> (SocketAddr, Arc<AtomicU8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mode = Arc::new(AtomicU8::new(GOOD));
    let told = Arc::clone(&mode);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = Arc::clone(&told);
            tokio::spawn(async move {
                read_head(&mut stream).await;
                let reply: &[u8] = match told.load(Ordering::SeqCst) {
                    GOOD => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                    BAD => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nno db",
                    _ => return std::future::pending().await,
                };
                let _ = stream.write_all(reply).await;
            });
        }
    });
    (address, mode)
}

async fn blue_and(green: impl ToString, health: &str) -> (Home, Proxy, SampleApp) {
    let blue = SampleApp::start("blue", "1").await;
    let home = Home::new(blue.address, green).service(health);
    let proxy = home.start().await;
    (home, proxy, blue)
}

/// Old enough to need another probe.
async fn until_its_probe_is_old(proxy: &Proxy) {
    until("green is healthy", async || (proxy.backend("green").await.healthy == Some(true)).then_some(()))
        .await;
    tokio::time::sleep(Duration::from_millis(150)).await;
}

async fn refused(proxy: &Proxy) -> uh_protocol::Problem {
    match proxy.client.switch(&app(), &SwitchRequest::to(backend("green"))).await.unwrap_err() {
        ClientError::Problem(problem) => problem,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_switch_to_an_app_that_died_since_its_last_probe_is_refused_with_the_reason() {
    let green = SampleApp::start("green", "2").await;
    let address = green.address;
    let (home, proxy, _blue) = blue_and(address, ONCE).await;
    until_its_probe_is_old(&proxy).await;
    drop(green);
    until("green refuses connections", async || tokio::net::TcpStream::connect(address).await.err()).await;
    let problem = refused(&proxy).await;
    assert_eq!((problem.code, problem.status), (Code::BackendUnhealthy, 409));
    for part in [address.to_string().as_str(), "refused", "blue stays active", "force"] {
        assert!(problem.detail.contains(part), "{part:?} is missing in {problem}");
    }
    assert_eq!((proxy.status().await.generation, proxy.backend("green").await.healthy), (0, Some(true)));
    home.until_said("failed a probe right before the switch").await;
    // With force, there is no probe.
    let forced = SwitchRequest { force: true, ..SwitchRequest::to(backend("green")) };
    let switched = proxy.client.switch(&app(), &forced).await.unwrap();
    assert_eq!(switched.probe.unwrap().result, SwitchProbeResult::Skipped);
}

#[tokio::test]
async fn a_bad_answer_refuses_a_switch_and_no_answer_leaves_it_to_the_last_probes() {
    let (address, mode) = probed().await;
    // Time enough for an answer on a busy machine.
    let patient = format!("{ONCE}switch_probe_timeout = \"2s\"\n");
    let (home, proxy, _blue) = blue_and(address, &patient).await;
    until_its_probe_is_old(&proxy).await;
    mode.store(BAD, Ordering::SeqCst);
    let problem = refused(&proxy).await;
    assert!(problem.detail.contains("503") && problem.detail.contains("no db"), "{problem}");
    mode.store(NEVER, Ordering::SeqCst);
    let (exit, stdout, _) = cli(&home.socket(), &["switch", "green"]).await;
    assert_eq!(exit, 0, "{stdout}");
    assert!(stdout.contains("warning: green didn't answer a probe within "), "{stdout}");
    mode.store(GOOD, Ordering::SeqCst);
    proxy.switch("blue").await;
    let switched = proxy.switch("green").await;
    assert_eq!((switched.probe.unwrap().result, switched.warnings.len()), (SwitchProbeResult::Good, 0));
    home.until_said("didn't answer a probe").await;
}

#[tokio::test]
async fn changes_during_the_probe_decide_the_switch_and_no_other_call_waits_for_it() {
    let (address, mode) = probed().await;
    let slow = format!("{ONCE}switch_probe_timeout = \"2s\"\n");
    let (_home, proxy, _blue) = blue_and(address, &slow).await;
    until_its_probe_is_old(&proxy).await;
    mode.store(NEVER, Ordering::SeqCst);
    let switch = |expect_generation| {
        let client = proxy.client.clone();
        let request = SwitchRequest { expect_generation, ..SwitchRequest::to(backend("green")) };
        tokio::spawn(async move { client.switch(&app(), &request).await })
    };
    let (plain, expecting) = (switch(None), switch(Some(0)));
    until("both are waiting for an answer", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Some(())
    })
    .await;
    // Other requests are served immediately.
    let order = WithdrawRequest::default();
    let withdrawn = proxy.client.withdraw(&app(), &backend("green"), &order).await.unwrap();
    assert!(
        withdrawn.changed && !plain.is_finished() && !expecting.is_finished(),
        "it waited for the probes"
    );
    let code = |result: Result<_, ClientError>| match result {
        Err(ClientError::Problem(problem)) => Some(problem.code),
        _ => None,
    };
    assert_eq!(code(soon("its reply", plain).await.unwrap()), Some(Code::BackendWithdrawn));
    assert_eq!(code(soon("its reply", expecting).await.unwrap()), Some(Code::Conflict));
    assert_eq!(proxy.service().await.active, backend("blue"));
}

#[tokio::test]
async fn no_fresh_probe_is_made_where_nothing_is_probed_or_the_last_one_is_fresh() {
    for health in [
        "[services.app.health]\nenabled = false\n",
        "[services.app.health]\ninterval = \"1h\"\nhealthy_after = 1\nswitch_probe_timeout = \"0s\"\n",
    ] {
        let (address, mode) = probed().await;
        let (_home, proxy, _blue) = blue_and(address, health).await;
        if health.contains("1h") {
            until_its_probe_is_old(&proxy).await;
        }
        mode.store(BAD, Ordering::SeqCst);
        let switched = proxy.switch("green").await;
        assert_eq!(switched.probe.unwrap().result, SwitchProbeResult::Skipped, "{health}");
        assert!(proxy.switch("green").await.probe.is_none(), "nothing was switched");
    }
    // The last probe was good a moment ago: only the next regular probe finds out.
    let (address, _mode) = probed().await;
    let (_home, proxy, _blue) =
        blue_and(address, "[services.app.health]\ninterval = \"10ms\"\nhealthy_after = 1\n").await;
    until_its_probe_is_old(&proxy).await;
    until("one is fresh enough", async || {
        proxy.switch("blue").await;
        let switched = proxy.switch("green").await;
        (switched.probe.unwrap().result == SwitchProbeResult::Skipped).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_switch_to_a_partly_healthy_backend_warns() {
    let green = SampleApp::start("green", "2").await;
    let (home, proxy, _blue) = blue_and(
        format!("{}\", \"127.0.0.1:9", green.address),
        "[services.app.health]\ninterval = \"50ms\"\nhealthy_after = 1\n",
    )
    .await;
    until("green is partly healthy", async || {
        let endpoints = proxy.backend("green").await.endpoints;
        (endpoints[0].healthy == Some(true) && endpoints[1].healthy == Some(false)).then_some(())
    })
    .await;
    let switched = proxy.switch("green").await;
    assert_eq!(switched.warnings.len(), 1, "{switched:?}");
    let said = &switched.warnings[0];
    assert!(said.starts_with("only 1 of 2 endpoints of green are healthy: 127.0.0.1:9"), "{said}");
    assert!(proxy.service().await.warnings[0].starts_with("only 1 of 2 endpoints of green"));
    home.until_said("only 1 of 2 endpoints of green").await;
    let (_, stdout, _) = cli(&home.socket(), &["status"]).await;
    assert!(stdout.contains("  warning: only 1 of 2 endpoints of green"), "{stdout}");
    let (exit, stdout, _) = cli(&home.socket(), &["switch", "blue"]).await;
    assert_eq!((exit, stdout.contains("warning")), (0, false), "{stdout}");
}

#[tokio::test]
async fn a_probe_carries_the_headers_of_the_configuration() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let green = listener.local_addr().unwrap();
    let (_home, proxy, _blue) = blue_and(
        green,
        "[services.app.health]\ninterval = \"50ms\"\nhealthy_after = 1\nhost = \"app.test\"\n\
         headers = { \"X-Forwarded-Proto\" = \"https\", \"User-Agent\" = \"mine\" }\n",
    )
    .await;
    // Redirects plain HTTP to https, as many apps do.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = read_head(&mut stream).await.unwrap_or_default().to_lowercase();
            let secure = head.contains("\r\nx-forwarded-proto: https\r\n")
                && head.contains("\r\nuser-agent: mine\r\n")
                && head.matches("user-agent").count() == 1
                && head.contains("\r\nhost: app.test\r\n");
            let reply: &[u8] = if secure {
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            } else {
                b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://app.test/\r\nContent-Length: 0\r\n\r\n"
            };
            let _ = stream.write_all(reply).await;
        }
    });
    until("green is healthy", async || (proxy.backend("green").await.healthy == Some(true)).then_some(()))
        .await;
}
