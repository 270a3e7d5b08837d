//! The way back after an upgrade: the old uh-proxy leads and accepts again if the new one crashes, or by order.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use uh_protocol::request::DrainRequest;

use crate::harness::{Home, Proxy, SampleApp, app, backend, cli, pair, until};
use crate::keeper::{Seen, new_clients};
use crate::systemd::{Manager, activated};
use crate::wire::Wire;

#[cfg(feature = "fault-points")]
use super::with_fault_points;
use super::{Load, Started, back, leader, on_a_port_of_its_own, until_closed, upgrade, with_keeper};

/// Waits until this process leads and takes changes.
async fn until_leads(home: &Home, pid: u32, to: &str) {
    let client = uh_protocol::client::Client::new(home.socket());
    until(&format!("process {pid} leads"), async || {
        let status = client.status().await.ok()?;
        (status.proxy.pid == pid).then_some(())
    })
    .await;
    until("it takes changes", async || (cli(&home.socket(), &["switch", to]).await.0 == 0).then_some(()))
        .await;
}

async fn crashes(home: Home, mut old: Proxy) {
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let load = new_clients(old.address, &stop, &seen);
    for turn in 0..3 {
        let new = upgrade(&home).await;
        let (code, _, message) = cli(&home.socket(), &["switch", "green"]).await;
        assert_eq!(code, 0, "{message}");
        // What it serves is cut.
        new.signal(Signal::KILL);
        until_leads(&home, old.pid(), "blue").await;
        home.until_said("the uh-proxy that led is gone; this one takes the lead back").await;
        let response = Wire::connect(old.address).await.get("/").await;
        assert_eq!((response.status, response.header("x-backend")), (200, Some("blue")));
        assert_eq!(Wire::connect(old.metrics).await.get("/metrics").await.status, 200);
        println!("crash {turn}: {seen:?}");
    }
    // And it can be replaced for good.
    let last = upgrade(&home).await;
    stop.store(true, Ordering::Relaxed);
    for client in load {
        tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
    }
    assert_eq!(seen.refused.load(Ordering::Relaxed), 0);
    // Each client has one request at a time.
    let cut = seen.cut.load(Ordering::Relaxed);
    assert!(cut <= 3 * 8, "{cut} were cut");
    last.signal(Signal::TERM);
    last.ended().await;
    assert_eq!(old.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_one_that_crashes_on_a_plain_host_refuses_nobody_and_the_old_one_leads_again() {
    let (home, old, _blue, _green) = pair().await;
    crashes(home, old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_one_that_crashes_with_a_keeper_refuses_nobody_and_the_old_one_leads_again() {
    let (home, _keeper, old, _apps) = with_keeper().await;
    crashes(home, old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_ways_back_refuse_nobody_and_fail_no_request() {
    let apps = [SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await];
    let home = Home::new(apps[0].address, apps[1].address).server("shutdown_idle_grace = \"20s\"");
    let old = home.start().await;
    old.until_healthy().await;
    let load = Load::start(old.address);
    for turn in 0..3 {
        let new = upgrade(&home).await;
        load.until_more().await;
        let to = if turn % 2 == 0 { "green" } else { "blue" };
        let (code, _, message) = cli(&home.socket(), &["switch", to]).await;
        assert_eq!(code, 0, "{message}");
        back(&home, old.pid()).await;
        assert_eq!(old.service().await.active.as_str(), to);
        load.until_more().await;
        // It has nothing left to do.
        new.ended().await;
    }
    load.end().await;
}

/// As after an upgrade, but with the new one as the one that ends.
#[tokio::test]
async fn what_the_new_one_holds_counts_and_follows_after_the_way_back() {
    let apps = [SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await];
    let home = Home::new(apps[0].address, apps[1].address).server("shutdown_idle_grace = \"30s\"");
    let old = home.start().await;
    old.until_healthy().await;
    let new = upgrade(&home).await;
    let mut upload = Wire::connect(old.address).await;
    upload.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na").await;
    until("it is in flight", async || (old.backend("blue").await.requests_in_flight == 1).then_some(()))
        .await;
    let mut kept = Wire::connect(old.address).await;
    assert_eq!(kept.get("/").await.header("x-backend"), Some("blue"));
    back(&home, old.pid()).await;
    assert_eq!(old.backend("blue").await.requests_in_flight, 1);
    let (code, _, message) = cli(&home.socket(), &["switch", "green"]).await;
    assert_eq!(code, 0, "{message}");
    // On a connection of the new one, sent after the reply.
    assert_eq!(kept.get("/").await.header("x-backend"), Some("green"));
    let drain = |cut| DrainRequest { timeout_ms: Some(100), cut: Some(cut) };
    let reply = old.client.drain(&app(), &backend("blue"), &drain(false)).await.unwrap();
    assert!(!reply.drained && reply.remaining.requests == 1, "{reply:?}");
    let reply = old.client.drain(&app(), &backend("blue"), &drain(true)).await.unwrap();
    assert!(reply.drained && reply.cut == 1, "{reply:?}");
    new.ended().await;
}

#[tokio::test]
async fn there_is_no_way_back_to_a_process_that_is_gone() {
    let (home, mut old, _blue, _green) = pair().await;
    let no_way = async || {
        let (code, said, message) = cli(&home.socket(), &["upgrade", "--back"]).await;
        assert_eq!(code, 3, "{said}{message}");
        assert!(message.contains("the uh-proxy that this one has replaced is gone"), "{message}");
    };
    no_way().await;
    let new = upgrade(&home).await;
    // Whoever stops it means it, although it could still lead again.
    old.signal(Signal::TERM);
    assert_eq!(old.ended().await.code(), Some(0));
    no_way().await;
    assert_eq!(leader(&home).await, new.0);
    assert_eq!(Wire::connect(old.address).await.get("/").await.status, 200);
}

#[tokio::test]
async fn a_stop_of_the_new_one_ends_the_old_one_too() {
    let (home, mut old, _apps) = on_a_port_of_its_own().await;
    let new = upgrade(&home).await;
    new.signal(Signal::TERM);
    new.ended().await;
    assert_eq!(old.ended().await.code(), Some(0));
    assert!(!home.messages().contains("takes the lead back"), "{}", home.messages());
    until_closed(old.address).await;
}

#[tokio::test]
async fn systemd_is_notified_of_the_way_back() {
    let (blue, green) = (SampleApp::start("blue", "1").await, SampleApp::start("green", "2").await);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = [\"{}\"]", listener.local_addr().unwrap());
    let home = Home::new(blue.address, green.address).server(&listen);
    let manager = Manager::new(&home);
    let mut command = activated(&home, &[&listener]);
    command.env("NOTIFY_SOCKET", home.path("notify"));
    let mut old = home.start_as(command).await;
    old.until_healthy().await;
    assert!(manager.next().starts_with("READY=1\n"));
    for is_crash in [false, true] {
        let new = upgrade(&home).await;
        let messages = [manager.next(), manager.next()];
        let wanted = format!("MAINPID={}\n", new.0);
        assert!(messages.iter().any(|message| message.starts_with(&wanted)), "{messages:?}");
        if is_crash {
            new.signal(Signal::KILL);
            until_leads(&home, old.pid(), "blue").await;
        } else {
            back(&home, old.pid()).await;
            new.ended().await;
        }
        // The other one has said nothing of its end, which isn't that of the service.
        let message = manager.next();
        assert!(message.starts_with(&format!("MAINPID={}\nREADY=1\n", old.pid())), "{message}");
    }
    old.signal(Signal::TERM);
    assert!(manager.next().starts_with("STOPPING=1\n"));
    assert_eq!(old.ended().await.code(), Some(0));
}

/// Kills one of the two at each step of the way back.
#[cfg(feature = "fault-points")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_is_killed_on_the_way_back_one_leads_and_nobody_is_refused() {
    for (point, of_old) in [
        ("handover_joined", false),
        ("handover_frozen", false),
        ("handover_released", false),
        ("back_yielded", true),
        ("back_locked", true),
        ("handover_superseded", false),
    ] {
        let (home, mut first, _blue, _green) = pair().await;
        // The same address for those that are started later.
        let home = home.server(&format!("listen = [\"{}\"]", first.address));
        first.kill();
        let (mut old, fault) = with_fault_points(&home).await;
        let new = upgrade(&home).await;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let load = new_clients(old.address, &stop, &seen);
        std::fs::write(&fault, point).unwrap();
        let _ = cli(&home.socket(), &["upgrade", "--back"]).await;
        let left = if of_old {
            until(&format!("{point}: the old one is killed"), async || (!old.is_running()).then_some(()))
                .await;
            new.0
        } else {
            new.ended().await;
            old.pid()
        };
        std::fs::write(&fault, "").unwrap();
        until_leads(&home, left, "green").await;
        let response = Wire::connect(old.address).await.get("/").await;
        assert_eq!((response.status, response.header("x-backend")), (200, Some("green")), "{point}");
        stop.store(true, Ordering::Relaxed);
        for client in load {
            tokio::task::spawn_blocking(|| client.join().unwrap()).await.unwrap();
        }
        println!("{point}: {seen:?}");
        assert_eq!(seen.refused.load(Ordering::Relaxed), 0, "{point}");
        let cut = seen.cut.load(Ordering::Relaxed);
        assert!(cut <= 8, "{point}: {cut} were cut");
        drop(Started(left));
    }
}

/// While it waits for the lock, which the new one has released.
#[cfg(feature = "fault-points")]
#[tokio::test]
async fn a_stop_of_the_old_one_while_it_takes_the_lead_back_is_carried_out() {
    let (home, mut first, _blue, _green) = pair().await;
    first.kill();
    let (mut old, fault) = with_fault_points(&home).await;
    let new = upgrade(&home).await;
    std::fs::write(&fault, "wait back_yielded").unwrap();
    let socket = home.socket();
    let back = tokio::spawn(async move { cli(&socket, &["upgrade", "--back"]).await });
    until("the new one has yielded", async || fault.with_extension("reached").exists().then_some(())).await;
    old.signal(Signal::TERM);
    std::fs::write(&fault, "").unwrap();
    assert_eq!(old.ended().await.code(), Some(0), "{}", home.messages());
    new.ended().await;
    // Answered, or cut off by the end of both.
    let _ = back.await.unwrap();
}
