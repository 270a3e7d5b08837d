//! Chromium, to load pages in as users do.

use std::fs;
use std::process::{Command, Stdio};

use crate::harness::Home;

/// The installed Chromium's version; without one, says that the test is skipped.
pub(crate) fn version() -> Option<String> {
    let Ok(output) = Command::new("chromium").arg("--version").stderr(Stdio::null()).output() else {
        eprintln!("skipped: chromium isn't installed (apt-get install chromium)");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Chromium on a page of `app.test`, in a profile of its own. It resolves no other name.
pub(crate) fn chromium(home: &Home, url: &str) -> Command {
    let mut command = Command::new("chromium");
    command
        .args([
            "--headless=new",
            "--no-sandbox",
            "--no-first-run",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", home.path("chromium").display()))
        .arg("--host-resolver-rules=MAP app.test 127.0.0.1, MAP * ~NOTFOUND")
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(home.path("chromium.log")).unwrap());
    command
}

/// What it has written, with what pages wrote to its console.
pub(crate) fn said(home: &Home) -> String {
    fs::read_to_string(home.path("chromium.log")).unwrap()
}
