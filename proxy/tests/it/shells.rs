//! Completions, asked for as a shell does, and man pages.

use std::process::Stdio;

use tokio::process::Command;

use uh_testkit::process::program;

use crate::harness::{Home, cli, pair, soon, until};

/// What bash offers for the last of these words.
async fn offered(home: &Home, words: &[&str]) -> Vec<String> {
    let program = program("uh-proxy").unwrap();
    let path =
        format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let script = "set -e; source <(uh-proxy completions bash); COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1))
        COMP_TYPE=9; _clap_complete_uh_proxy uh-proxy \"${COMP_WORDS[COMP_CWORD]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"])
        .args(words)
        .env("PATH", path)
        .env("UH_PROXY_ADMIN_SOCKET", home.socket());
    let output = soon("bash", bash.stdin(Stdio::null()).kill_on_drop(true).output()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A shell waits half a second for names. On a busy machine, uh-proxy may need longer.
async fn until_offered(home: &Home, words: &[&str], expected: &[&str]) {
    until(&format!("{words:?} offers {expected:?}"), async || {
        let offered = offered(home, words).await;
        // After names come the options.
        offered.iter().take(expected.len()).eq(expected.iter().copied()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shell_completes_commands_options_services_and_backends() {
    let (home, proxy, _blue, _green) = pair().await;
    assert_eq!(offered(&home, &["uh-proxy", "swi"]).await, ["switch"]);
    assert_eq!(offered(&home, &["uh-proxy", "switch", "--expect-a"]).await, ["--expect-active"]);
    until_offered(&home, &["uh-proxy", "switch", ""], &["blue", "green"]).await;
    until_offered(&home, &["uh-proxy", "switch", "g"], &["green"]).await;
    until_offered(&home, &["uh-proxy", "split", ""], &["blue", "green", "off"]).await;
    until_offered(&home, &["uh-proxy", "drain", "--service", ""], &["app"]).await;
    until_offered(&home, &["uh-proxy", "switch", "--service", "other,app", "g"], &["green"]).await;
    assert_eq!(offered(&home, &["uh-proxy", "drain", "--service", "other", "g"]).await, [""]);
    drop(proxy);
    // The rest doesn't depend on a running uh-proxy.
    assert_eq!(offered(&home, &["uh-proxy", "switch", "g"]).await, [""]);
    assert_eq!(offered(&home, &["uh-proxy", "swi"]).await, ["switch"]);
}

#[tokio::test]
async fn man_pages_are_of_all_commands() {
    let home = Home::new("127.0.0.1:1", "127.0.0.1:2");
    let directory = tempfile::tempdir().unwrap();
    let (code, out, err) = cli(&home.socket(), &["man", directory.path().to_str().unwrap()]).await;
    assert_eq!(code, 0, "{err}");
    let page = std::fs::read_to_string(directory.path().join("uh-proxy-switch.1")).unwrap();
    assert!(page.contains(".TH uh\\-proxy\\-switch 1") || page.contains("uh-proxy-switch 1"), "{page}");
    assert!(page.contains("expect\\-active"), "{page}");
    let written = std::fs::read_dir(directory.path()).unwrap().count();
    assert!(out.starts_with(&format!("{written} pages")), "{out}");
    let (code, _, err) = cli(&home.socket(), &["man", "/nowhere"]).await;
    assert_eq!(code, 1);
    assert!(err.contains("can't write /nowhere/uh-proxy.1"), "{err}");
}
