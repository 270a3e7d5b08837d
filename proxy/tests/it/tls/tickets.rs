//! Session tickets over time. The clock of uh-proxy is moved by libfaketime; without it, this says so and is skipped.

use std::fs;
use std::path::{Path, PathBuf};

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};

use super::certificates::{Authority, address, home};
use super::clients::Rustls;
use crate::harness::{SampleApp, cli};

const HOUR_S: u32 = 60 * 60;

fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// Moves the clock to so many seconds ahead. Replaced as a whole: half of the file would be another time.
fn set_clock(file: &Path, ahead_s: u32) {
    let new = file.with_extension("new");
    fs::write(&new, format!("+{ahead_s}")).unwrap();
    fs::rename(&new, file).unwrap();
}

/// The key changes every 6 hours, and the previous one is still accepted: after 12 hours, nothing that was sent with a ticket
/// can be decrypted any more, whether anybody has connected meanwhile or not.
#[tokio::test]
async fn a_ticket_resumes_for_six_hours_and_never_after_twelve() {
    let Some(library) = faketime() else {
        println!("skipped: libfaketime isn't installed (Debian: faketime)");
        return;
    };
    let app = SampleApp::start("blue", "1").await;
    let authority = Authority::new();
    let pair = authority.issue(&["app.test"]);
    let home = home((app.address, app.address), &authority, &[("app", &pair)], "", "");
    let clock = home.path("clock");
    set_clock(&clock, 0);
    let mut command = home.command();
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let proxy = home.start_as(command).await;
    proxy.until_healthy().await;
    let address = address(&proxy).await;
    let reload = async || {
        let (code, out, err) = cli(&home.socket(), &["reload"]).await;
        assert_eq!(code, 0, "{out}{err}");
    };
    let mut begun_s = 0;
    for version in [&TLS12, &TLS13] {
        // Each check has a client of its own: a session that is resumed comes with a new ticket.
        let clients = [(); 3].map(|()| Rustls::with(&authority, &[version], |_| {}));
        let kind = async |client: &Rustls| {
            let mut connection = client.connect(address, "app.test").await.unwrap();
            assert_eq!(connection.get("/").await.status, 200);
            connection.stream.get_ref().1.handshake_kind().unwrap()
        };
        for client in &clients {
            assert_eq!(kind(client).await, HandshakeKind::Full, "{version:?}");
        }
        for (after_s, client) in [(5 * HOUR_S, &clients[0]), (6 * HOUR_S + 60, &clients[1])] {
            set_clock(&clock, begun_s + after_s);
            assert_eq!(kind(client).await, HandshakeKind::Resumed, "{version:?} after {after_s} s");
        }
        set_clock(&clock, begun_s + 12 * HOUR_S + 120);
        assert_eq!(kind(&clients[2]).await, HandshakeKind::Full, "{version:?}");
        // Nobody connects for twelve hours. A reload does what the check of the files does every 30 seconds.
        begun_s += 20 * HOUR_S;
        set_clock(&clock, begun_s);
        reload().await;
        let idle = Rustls::with(&authority, &[version], |_| {});
        assert_eq!(kind(&idle).await, HandshakeKind::Full, "{version:?}");
        for after_s in [6 * HOUR_S + 60, 12 * HOUR_S + 120] {
            set_clock(&clock, begun_s + after_s);
            reload().await;
        }
        assert_eq!(kind(&idle).await, HandshakeKind::Full, "{version:?}, when nobody else has connected");
        begun_s += 20 * HOUR_S;
        set_clock(&clock, begun_s);
    }
}
