//! Secrets in foreign text are redacted; uh-deploy's own words, versions and JSON aren't touched.

use std::fs;

use serde_json::Value;

use crate::harness::{Stage, until};

/// A stage with an environment file, whose app logs a text at its start.
fn stage(env: &str, script: &str, extra: &str) -> Stage {
    let stage = Stage::new();
    fs::write(stage.path(".env"), env).unwrap();
    let app = crate::harness::program("uh-sample-app");
    let command = format!("{script}; exec {}", app.display());
    let text = format!(
        "[runtime.process]\nenv_file = {:?}\ncommand = [\"sh\", \"-c\", {command:?}]\n{extra}",
        stage.path(".env")
    );
    stage.configure("uh-deploy.toml", &text);
    stage
}

#[test]
fn a_secret_that_is_one_of_our_own_words_does_not_mask_them() {
    let env =
        "APP_KIND=deployed\nA=outcome\nB=Deployment\nRELEASE=1.0.0-beta\nDB_HOST=127.0.0.1\nC=version\n";
    let stage = stage(env, "echo this is deployed", "");
    let ran = stage.expect(0, &["--json", "blue-green", "--version", "1.0.0-beta"]);
    let events: Vec<Value> = ran.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcome = events.iter().find(|event| event["event"] == "outcome").expect("an outcome");
    assert_eq!((&outcome["outcome"], &outcome["version"]), (&"deployed".into(), &"1.0.0-beta".into()));
    let text = stage.expect(0, &["blue-green", "--version", "1.0.1"]);
    text.says("✅ Deployment complete!");
    assert!(!text.text.contains("***"), "{}", text.text);
    stage.expect(0, &["health-check"]).says("Active: green (v1.0.1)");
    let history: Value = serde_json::from_str(&stage.expect(0, &["--json", "history"]).text).unwrap();
    assert_eq!(history[0]["outcome"], "deployed");
    // In the app's output, the word may be the secret.
    stage.expect(0, &["logs"]).says("this is ***");
}

#[test]
fn a_variable_declared_plain_is_not_redacted() {
    let stage = stage(
        "APP_KIND=service\nAPI_KEY=tr0ub4dor\n",
        "echo a $APP_KIND with $API_KEY",
        "[secrets]\nplain = [\"APP_KIND\"]",
    );
    stage.deploy("1.0.0");
    stage.expect(0, &["logs"]).says("a service with ***");
}

#[test]
fn an_old_value_of_a_changed_file_is_still_redacted() {
    let stage = stage("API_KEY=the-old-one\n", "echo key $API_KEY", "");
    stage.deploy("1.0.0");
    fs::write(stage.path(".env"), "API_KEY=the-new-one\n").unwrap();
    stage.expect(0, &["logs"]).says("key ***");
    stage.deploy("1.0.1");
    fs::remove_file(stage.path(".env")).unwrap();
    for backend in ["blue", "green"] {
        stage.expect(0, &["logs", "--backend", backend]).says("key ***");
    }
}

/// A `pre_deploy` hook that fetches secrets writes values that didn't exist when the command started.
#[test]
fn a_value_fetched_by_pre_deploy_is_redacted_in_the_candidate_s_last_log_lines() {
    let script = "echo API_KEY=brand-new-$((40+2)) > .env";
    let hook = |stage: &Stage| {
        let directory = stage.path(".env").parent().unwrap().display().to_string();
        format!("[hooks]\npre_deploy = [\"sh\", \"-c\", \"cd {directory} && {script}\"]")
    };
    let stage = stage("API_KEY=the-old-one\n", "echo key $API_KEY; exit 1", "");
    let text = fs::read_to_string(stage.path("uh-deploy.toml")).unwrap();
    fs::write(stage.path("uh-deploy.toml"), format!("{text}\n{}\n", hook(&stage))).unwrap();
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.0"]);
    ran.says("key ***");
    assert!(!ran.text.contains("brand-new-42"), "{}", ran.text);
}

#[test]
fn a_log_followed_to_a_successor_redacts_the_successor_s_new_values_too() {
    let stage = stage("API_KEY=the-old-one\n", "echo key $API_KEY", "");
    stage.deploy("1.0.0");
    let file = fs::File::create(stage.path("followed")).unwrap();
    let mut command = stage.command(&["logs", "--follow"]);
    let mut follower = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    let followed = || fs::read_to_string(stage.path("followed")).unwrap();
    until("it shows the first log", || followed().contains("key ***").then_some(()));
    fs::write(stage.path(".env"), "API_KEY=the-new-one\n").unwrap();
    stage.deploy("1.0.1");
    until("it shows the next log", || {
        let (_, next) = followed().split_once("took over").map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        next.contains("\nkey ").then_some(())
    });
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(!followed().contains("the-new-one"), "{}", followed());
}

#[test]
fn app_logs_are_escaped_for_terminals_and_unchanged_in_json() {
    let stage = stage("", r"printf 'a\033[2Jb\000c\n'", "");
    stage.deploy("1.0.0");
    stage.expect(0, &["logs", "--tail", "100"]).says(r"a\x1b[2Jb\x00c");
    let json = stage.expect(0, &["--json", "logs"]);
    let first: Value = serde_json::from_str(json.text.lines().next().unwrap()).unwrap();
    assert_eq!(first["text"], "a\u{1b}[2Jb\0c");
}

/// The files that may turn foreign bytes into text: `redact`, and others for a stated reason.
#[test]
fn foreign_bytes_become_text_only_where_they_are_redacted() {
    const OTHERS: [(&str, &str); 5] = [
        ("evidence.rs", "uh-proxy's access log: the ids that are shown of it are cleaned"),
        ("command.rs", "the output of a tool that is parsed, not shown"),
        ("runtime/engine/owner.rs", "a file of our own"),
        ("runtime/process/tree.rs", "compared, not shown"),
        ("validate/database.rs", "a path in our own configuration"),
    ];
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read_to_string(&path).unwrap().contains("from_utf8_lossy") {
                found.push(path.strip_prefix(&source).unwrap().display().to_string());
            }
        }
    }
    let allowed = |name: &str| name == "redact.rs" || OTHERS.iter().any(|(other, _)| *other == name);
    // The process runtime's log reader passes its text to `redact` one call further up.
    found.retain(|name| !allowed(name) && name != "runtime/process/log.rs" && name != "cli/report/output.rs");
    assert!(found.is_empty(), "make a redact::Foreign of it: {found:?}");
}
