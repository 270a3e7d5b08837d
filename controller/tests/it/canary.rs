//! Deploys with a trial: steps, verdicts, and what is left of them.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use uh_protocol::status::TrialState;

use crate::failing_apps;
use crate::harness::{REQUEST_TIMEOUT, Ran, Stage, until};
use crate::hooks::Webhook;
use crate::watching::failing;

/// Two quick steps, without a watch.
const QUICK: &str = "[canary]\nwatch = \"off\"\nsteps = [{ weight = \"10%\", at_least = \"200ms\", requests = 5 }, { weight = \"50%\", at_least = \"300ms\", requests = 20 }]\n";

/// Many clients, each of whom is another one for uh-proxy.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    next: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let (stop, failed, next) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let thread = |_| {
            let (stop, failed, next) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&next));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let client = u32::try_from(next.fetch_add(1, Ordering::SeqCst) % 100_000).unwrap();
                    let fine =
                        ask(address, Ipv4Addr::from(0x0a00_0000 + client)).is_ok_and(|status| status == 200);
                    failed.fetch_add(u64::from(!fine), Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        };
        let threads = (0..2).map(thread).collect();
        Self { stop, failed, next, threads }
    }

    /// How many requests they have sent.
    pub(crate) fn asked(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Stops them, and returns how many requests failed.
    pub(crate) fn end(mut self) -> u64 {
        self.halt();
        self.failed.load(Ordering::SeqCst)
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.halt();
    }
}

/// One request of this client: the status.
fn ask(address: SocketAddr, client: Ipv4Addr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_TIMEOUT)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: app\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other("no status"))
}

/// The event of a failed trial, in the history, the hook or the webhook, with the evidence.
#[track_caller]
fn has_its_verdict(entry: &Value) {
    assert_eq!((&entry["outcome"], &entry["version"]), (&"failed".into(), &"1.0.1".into()), "{entry}");
    assert!(entry["reason"].as_str().unwrap().contains("fails more often"), "{entry}");
    let trial = &entry["trial"];
    assert_eq!(trial["verdict"], "fail", "{entry}");
    assert!(trial["excess_points"].as_f64().unwrap() > 50.0, "{entry}");
    assert!(trial["figures"]["failures"]["new_bad"].as_u64().unwrap() >= 3, "{entry}");
    let log = trial["log"].as_array().unwrap();
    assert!(log.len() == 50 && log.contains(&"line 60 of ***".into()), "{entry}");
    assert!(!entry.to_string().contains("tr0ub4dor"), "{entry}");
}

/// Version 1.0.0 serves as blue, and many clients use it.
fn stage() -> (Stage, Clients) {
    let stage = Stage::with("trusted_proxies = [\"127.0.0.1\"]");
    stage.deploy("1.0.0");
    assert_eq!(stage.served(), "blue 1.0.0");
    let clients = Clients::start(stage.address);
    (stage, clients)
}

fn last(stage: &Stage) -> Value {
    stage.history().pop().unwrap()
}

/// Nothing of the candidate is left.
#[track_caller]
fn is_undone(stage: &Stage) {
    assert_eq!(stage.served(), "blue 1.0.0");
    assert_eq!(stage.service().split, None);
    assert_eq!(stage.apps(), 1, "the candidate was removed");
    stage.expect(0, &["recover"]).says("Nothing to recover");
}

#[test]
fn a_good_version_gets_more_clients_step_by_step_and_then_all() {
    let (stage, clients) = stage();
    stage.configure("uh-deploy.toml", QUICK);
    stage
        .deploy("1.0.1")
        .says("Trial, step 1 of 2: 10 % of the clients go to green")
        .says("Trial, step 2 of 2: 50 % of the clients go to green")
        .says("✓ Trial: pass: green isn't worse")
        .says("✅ Deployment complete!");
    assert_eq!(clients.end(), 0, "no request failed");
    assert_eq!((stage.served(), stage.service().split), ("green 1.0.1".to_owned(), None));
    let line = last(&stage);
    assert_eq!((&line["outcome"], &line["trial"]["verdict"]), (&"deployed".into(), &"pass".into()), "{line}");
    assert!(line["trial"]["figures"]["failures"]["new_requests"].as_u64().unwrap() >= 25, "{line}");
}

#[test]
fn a_bad_version_loses_its_clients_and_is_removed() {
    let (stage, clients) = stage();
    let (events, webhook) = (stage.path("hook"), Webhook::start());
    let notice = format!(
        "[hooks]\non_failure = [\"sh\", \"-c\", \"cat > {}\"]\n[notice]\nwebhook = {:?}\n",
        events.display(),
        webhook.url
    );
    std::fs::write(stage.path("app.env"), "API_KEY=tr0ub4dor\n").unwrap();
    let app = crate::harness::program("uh-sample-app");
    let chatty = format!("for i in $(seq 60); do echo line $i of $API_KEY; done; exec {}", app.display());
    let logs = format!("env_file = {:?}\ncommand = [\"sh\", \"-c\", {chatty:?}]\n", stage.path("app.env"));
    stage.configure("uh-deploy.toml", &failing(100, &format!("{logs}{QUICK}{notice}")));
    let ran = stage.expect(3, &["blue-green", "--version", "1.0.1"]);
    ran.says("❌ Trial: fail: green (v1.0.1) fails more often than blue (v1.0.0)")
        .says("routes: / (")
        .says("request ids: ")
        .says("last lines of its log:")
        .says("line 60 of ***")
        .says(
            "❌ Rolled back: the trial found green (v1.0.1) worse, and all clients are back on blue (v1.0.0)",
        );
    assert!(!ran.text.contains("line 10 of"), "{}", ran.text);
    is_undone(&stage);
    let failed = clients.end();
    assert!((3..100).contains(&failed), "{failed} requests failed");
    let line = last(&stage);
    has_its_verdict(&line);
    let told: Value = serde_json::from_slice(&std::fs::read(events).unwrap()).unwrap();
    assert_eq!(told["outcome"], line, "the hook");
    assert_eq!(webhook.event().1["outcome"], line, "the webhook");
    // The same as JSON, for programs.
    stage.configure("uh-deploy.toml", &failing(100, QUICK));
    let clients = Clients::start(stage.address);
    let output = stage.command(&["blue-green", "--version", "1.0.2", "--json"]).output().unwrap();
    drop(clients);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(Ran::of(output).code, Some(3), "{text}");
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let verdict = events.iter().find(|event| event["event"] == "trial_verdict").unwrap();
    assert_eq!(verdict["verdict"], "fail");
    assert_eq!(events.iter().filter(|event| event["event"] == "trial_step").count(), 1, "{text}");
    // The verdict isn't taken for that of the next version, which goes to the same backend.
    let clients = Clients::start(stage.address);
    stage.configure(
        "uh-deploy.toml",
        &format!("[runtime.process]\nenv = {{ FAIL_PERCENT = \"0\" }}\n{QUICK}"),
    );
    stage.deploy("1.0.3").says("✓ Trial: pass");
    assert_eq!(clients.end(), 0, "no request failed");
}

#[test]
fn one_deploy_can_go_without_its_trial() {
    let (stage, _clients) = stage();
    stage.configure("uh-deploy.toml", QUICK);
    let ran = stage.expect(0, &["blue-green", "--version", "1.0.1", "--no-canary"]);
    assert!(!ran.text.contains("Trial"), "{}", ran.text);
    assert_eq!(stage.served(), "green 1.0.1");
}

/// A step that no test waits for.
const LONG: &str =
    "[canary]\nwatch = \"off\"\nsteps = [{ weight = \"40%\", at_least = \"10m\", requests = 1 }]\n";

fn spawn(stage: &Stage, version: &str) -> Child {
    let args = ["blue-green", "--version", version];
    stage.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A deploy that is in the middle of its trial.
fn trying(stage: &Stage) -> Child {
    trying_with(stage, "")
}

/// The same, of another app.
fn trying_with(stage: &Stage, app: &str) -> Child {
    stage.configure("uh-deploy.toml", &format!("{LONG}{app}"));
    let deploy = spawn(stage, "1.0.1");
    until("the trial is under way", || stage.service().split);
    until("it is judged", || stage.service().trial);
    deploy
}

#[track_caller]
pub(crate) fn ended(deploy: Child, code: i32) -> Ran {
    let ran = Ran::of(deploy.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(code), "{}", ran.text);
    ran
}

#[test]
fn a_running_trial_obeys_another_terminal() {
    let (stage, clients) = stage();
    for command in ["promote", "hold", "abort"] {
        stage.expect(1, &[command]).says("no trial is under way; nothing was changed");
    }
    let deploy = trying(&stage);
    stage.expect(0, &["abort"]).says("The running deploy gives everybody the old version again now");
    ended(deploy, 1).says("aborted by ").says("all clients are back on blue (v1.0.0)");
    is_undone(&stage);
    let deploy = trying(&stage);
    stage.expect(0, &["promote"]).says("The running deploy gives everybody the new version now");
    ended(deploy, 0).says("✅ Deployment complete!");
    assert_eq!((stage.served(), stage.service().split), ("green 1.0.1".to_owned(), None));
    assert!(last(&stage)["remarks"][0].as_str().unwrap().starts_with("promoted by "), "{}", last(&stage));
    assert_eq!(clients.end(), 0, "no request failed");
}

/// Without a warm-up, slowness is judged from the first request on, and not only in those after 10 s.
#[test]
fn the_configured_warm_up_is_that_of_the_trial() {
    let (stage, clients) = stage();
    until("the old version has a history", || (clients.asked() > 100).then_some(()));
    let deploy = trying_with(&stage, "warm_up = \"0s\"\n");
    let (all, judged) = until("slowness is judged", || {
        let trial = stage.service().trial?;
        let all = trial.failures.new_requests;
        Some((all, trial.slowness?.new_requests)).filter(|(all, _)| *all >= 20)
    });
    assert!(2 * judged > all, "the time of {judged} of {all} requests counts");
    stage.expect(0, &["abort"]);
    ended(deploy, 1);
    stage.configure("uh-deploy.toml", "[canary]\nwarm_up = \"1h\"\n");
    stage.expect(2, &["validate"]).says("canary.warm_up");
}

#[test]
fn a_held_trial_waits_for_promote_or_abort() {
    for (command, exit) in [("abort", 0), ("promote", 0)] {
        let (stage, clients) = stage();
        let deploy = trying(&stage);
        stage.expect(0, &["hold"]).says("The running deploy holds the trial and ends now");
        ended(deploy, 8)
            .says("⏸ Held: 40 % of the clients stay on green (v1.0.1) until")
            .says("`uh-deploy promote`");
        assert_eq!(
            (&last(&stage)["outcome"], &last(&stage)["trial"]["verdict"]),
            (&"held".into(), &"not_enough_data".into())
        );
        assert!(last(&stage)["reason"].as_str().unwrap().starts_with("held by "), "{}", last(&stage));
        assert!(!stage.service().split.unwrap().leased);
        // Everything else leaves it alone.
        stage
            .expect(0, &["recover"])
            .says("(step 1 of 1: 40 % of the clients)")
            .says("Still held: `uh-deploy promote`");
        for args in [&["blue-green", "--version", "1.0.2"][..], &["retire", "--now"], &["rollback"]] {
            stage.expect(1, args).says("the trial of green (v1.0.1) is held; nothing was changed");
        }
        stage.expect(1, &["hold"]).says("is held");
        let said = stage.expect(exit, &[command]);
        if command == "promote" {
            said.says("✅ Promoted: green (v1.0.1) serves");
            assert_eq!((stage.served(), stage.service().split), ("green 1.0.1".to_owned(), None));
            assert_eq!(last(&stage)["outcome"], "deployed");
        } else {
            said.says("✅ Aborted: green (v1.0.1) was removed; blue (v1.0.0) serves");
            is_undone(&stage);
            assert_eq!(last(&stage)["outcome"], "failed");
        }
        assert_eq!(clients.end(), 0, "no request failed");
    }
}

#[test]
fn a_held_trial_whose_split_has_ended_is_undone_by_recover() {
    let (stage, _clients) = stage();
    let deploy = trying(&stage);
    stage.expect(0, &["hold"]);
    ended(deploy, 8);
    let ran = Ran::of(stage.proxy_cli(&["split", "off"]).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    stage.expect(0, &["recover"]).says("the split of step 1 has ended meanwhile").says("Undone");
    is_undone(&stage);
}

#[test]
fn without_enough_requests_it_does_what_is_configured() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let plan = |on: &str| {
        format!(
            "[canary]\nwatch = \"off\"\nstep_timeout = \"1s\"\n{on}\nsteps = [{{ weight = \"50%\", at_least = \"0ms\", requests = 9 }}]\n"
        )
    };
    stage.configure("uh-deploy.toml", &plan("on_not_enough_data = \"abort\""));
    stage
        .expect(8, &["blue-green", "--version", "1.0.1"])
        .says("⚠ Trial: not enough data: green got 0 requests in 1")
        .says("Not deployed");
    is_undone(&stage);
    stage.configure("uh-deploy.toml", &plan(""));
    stage.expect(8, &["blue-green", "--version", "1.0.2"]).says("⏸ Held: 50 % of the clients");
    assert!(last(&stage)["reason"].as_str().unwrap().starts_with("not enough data: green got 0 requests"));
    stage.expect(0, &["abort"]);
    is_undone(&stage);
    stage.configure("uh-deploy.toml", &plan("on_not_enough_data = \"promote\""));
    stage.expect(0, &["blue-green", "--version", "1.0.3"]).says("promoted, as configured");
    assert_eq!(stage.served(), "green 1.0.3");
}

#[test]
fn an_interrupted_trial_is_undone() {
    let (stage, clients) = stage();
    let deploy = trying(&stage);
    kill_process(Pid::from_child(&deploy), Signal::INT).unwrap();
    ended(deploy, 1).says("SIGINT received").says("Ended the split: 40 % of the clients went to green");
    is_undone(&stage);
    assert_eq!(clients.end(), 0, "no request failed");
}

#[test]
fn a_killed_trial_loses_its_clients_by_itself_and_recover_removes_the_candidate() {
    let (stage, clients) = stage();
    let mut deploy = trying(&stage);
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    let start = Instant::now();
    while stage.service().split.is_some() {
        assert!(start.elapsed() < Duration::from_secs(17), "nobody renews it, and it is still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    stage
        .expect(0, &["recover"])
        .says("interrupted while trying the candidate on some clients (step 1 of 1: 40 % of the clients)")
        .says("Undone: the candidate was removed; blue (v1.0.0) serves");
    is_undone(&stage);
    // And at once, while the split still lasts: promoted by the journal.
    let mut deploy = trying(&stage);
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    stage.expect(0, &["promote"]).says("✅ Promoted: green (v1.0.1) serves");
    assert_eq!(clients.end(), 0, "no request failed");
}

#[test]
fn a_split_that_another_command_ends_ends_the_trial() {
    let (stage, _clients) = stage();
    let deploy = trying(&stage);
    let ran = Ran::of(stage.proxy_cli(&["split", "off"]).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    ended(deploy, 5).says("the split has ended: another command ended it");
    is_undone(&stage);
}

#[test]
fn a_candidate_that_exits_during_its_trial_has_failed_it() {
    let (stage, _clients) = stage();
    let deploy = trying(&stage);
    let (_, pid) = stage.app_pids().into_iter().find(|(name, _)| name.contains(".green.")).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    ended(deploy, 3).says("❌ Trial: fail: ").says("❌ Rolled back");
    is_undone(&stage);
}

#[test]
fn a_held_trial_that_turns_bad_is_ended_by_uh_proxy_and_undone_by_recover() {
    let (stage, clients) = stage();
    let flag = stage.path("bad");
    let script = stage.path("app.py");
    std::fs::write(&script, failing_apps::turns_bad()).unwrap();
    let app = format!("[runtime.process]\ncommand = [\"python3\", {script:?}, {flag:?}]\n");
    let deploy = trying_with(&stage, &app);
    stage.expect(0, &["hold"]);
    ended(deploy, 8);
    std::fs::write(&flag, "").unwrap();
    until("uh-proxy has ended the split", || stage.service().split.is_none().then_some(()));
    assert!(clients.end() >= 3);
    stage
        .expect(1, &["promote"])
        .says("❌ Trial: fail: green (v1.0.1) fails more often")
        .says("uh-proxy has found green (v1.0.1) worse and ended its split; nothing was changed")
        .says("`uh-deploy abort`");
    assert_eq!(stage.served(), "blue 1.0.0");
    stage.expect(0, &["recover"]).says("❌ Trial: fail: green (v1.0.1) fails more often").says("Undone");
    is_undone(&stage);
    assert_eq!(last(&stage)["trial"]["verdict"], "fail");
    assert_eq!(last(&stage)["trial"]["weight"], 40.0);
}

#[test]
fn a_suspicion_in_the_watch_is_settled_by_half_of_the_clients() {
    let (stage, clients) = stage();
    until("the old version has a history", || (clients.asked() > 500).then_some(()));
    let flag = stage.path("bad");
    let script = stage.path("app.py");
    std::fs::write(&script, failing_apps::turns_bad()).unwrap();
    let watch =
        "[canary]\nwatch = \"10m\"\nsteps = [{ weight = \"50%\", at_least = \"0ms\", requests = 5 }]\n";
    let app = format!("[runtime.process]\ncommand = [\"python3\", {script:?}, {flag:?}]\n");
    stage.configure("uh-deploy.toml", &format!("{watch}{app}"));
    let deploy = spawn(&stage, "1.0.1");
    until("the watch has begun", || stage.service().split.filter(|split| split.weight > 94.0));
    std::fs::write(&flag, "").unwrap();
    ended(deploy, 3)
        .says("Trial, step 2 of 2: 95 % of the clients go to green")
        .says("suspicious: 50 % of the clients, until it is certain")
        .says("❌ Trial: fail: green (v1.0.1) fails more often");
    is_undone(&stage);
}

/// A step that is over by its time, and would be promoted, while half of the clients settle a suspicion.
#[test]
fn a_suspicion_is_settled_before_its_step_can_time_out() {
    let (stage, clients) = stage();
    until("the old version has a history", || (clients.asked() > 500).then_some(()));
    let script = stage.path("app.py");
    std::fs::write(&script, failing_apps::wavers()).unwrap();
    let steps = "[canary]\nwatch = \"off\"\nstep_timeout = \"10s\"\non_not_enough_data = \"promote\"\n\
        steps = [{ weight = \"94%\", at_least = \"0ms\", requests = 1000000 }]\n";
    let app = format!("[runtime.process]\ncommand = [\"python3\", {script:?}]\n");
    stage.configure("uh-deploy.toml", &format!("{steps}{app}"));
    let start = Instant::now();
    let deploy = spawn(&stage, "1.0.1");
    until("it is suspicious", || stage.service().trial.filter(|trial| trial.state == TrialState::Suspicious));
    // Without requests, nothing confirms it. Settling it takes 20 s, longer than the step may take.
    clients.end();
    let ran = ended(deploy, 0);
    assert!(start.elapsed() > Duration::from_secs(20), "{:?}\n{}", start.elapsed(), ran.text);
    let at = |text: &str| ran.text.find(text).unwrap_or_else(|| panic!("no {text:?} in:\n{}", ran.text));
    assert!(at("suspicious: 50 % of the clients") < at("not confirmed: 94 % of the clients again"));
    assert!(at("not confirmed: 94 %") < at("⚠ Trial: not enough data"), "{}", ran.text);
    assert_eq!(stage.active(), "green");
}

#[test]
fn a_trial_survives_a_restart_of_uh_proxy() {
    let (mut stage, clients) = stage();
    let deploy = trying(&stage);
    drop(clients);
    stage.kill_front_door();
    stage.start_front_door();
    assert_eq!(stage.service().split.unwrap().weight, 40.0);
    let clients = Clients::start(stage.address);
    until("it is judged again", || stage.service().trial.filter(|trial| trial.failures.new_requests > 20));
    stage.expect(0, &["promote"]);
    ended(deploy, 0).says("✅ Deployment complete!");
    assert_eq!(clients.end(), 0, "no request failed");
}

#[test]
fn a_dry_run_says_what_the_trial_will_take_and_can_find() {
    let (stage, _clients) = stage();
    stage.configure("uh-deploy.toml", "[canary]\n");
    stage
        .expect(0, &["blue-green", "--version", "1.0.1", "--dry-run"])
        .says("Trial on some clients: 4 steps, then everybody")
        .says("95 % for at least 5m 0s and 1 requests: about 5m 0s")
        .says("Together: about ")
        .says("finds a version that fails ")
        .says("Not enough data: the split stays until you decide (exit 8)");
    stage.configure("uh-deploy.toml", "[canary]\nwatch = \"5s\"\nsteps = [{ weight = \"110%\" }]\n");
    stage.expect(2, &["validate"]).says("canary.watch: too short to decide").says("canary.steps[0].weight");
}

#[test]
fn a_release_has_no_trial() {
    let stage = Stage::new();
    let service = |name: &str, extra: &str| {
        format!("[deploy]\nservice = \"{name}\"\nstate_dir = {:?}\n{extra}", stage.path(name))
    };
    stage.configure("web.toml", &service("app", QUICK));
    stage.configure("api.toml", &service("api", ""));
    let release = format!(
        "[release]\nmembers = [\"web.toml\", \"api.toml\"]\nstate_dir = {:?}\n",
        stage.path("release")
    );
    std::fs::write(stage.path("release.toml"), release).unwrap();
    let command = &["blue-green", "--version", "1.0.1"];
    let ran = Ran::of(stage.command_with("release.toml", command).output().unwrap());
    assert_eq!(ran.code, Some(2), "{}", ran.text);
    ran.says("a release can't be tried on some clients yet, and the configuration of app has [canary]");
}

/// `kill -9` around every record and effect of a hold; then `recover`.
#[cfg(feature = "fault-points")]
#[test]
fn a_killed_hold_is_held_or_undone() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[canary]\nwatch = \"off\"\nstep_timeout = \"1s\"\nsteps = [{ weight = \"50%\", at_least = \"0ms\", requests = 9 }]\n");
    let fault = stage.path("fault");
    let mut still_held = 0;
    for point in [
        "journal.held.before",
        "journal.held.written",
        "journal.held.after",
        "effect.hold.before",
        "effect.hold.held",
        "effect.hold.after",
    ] {
        std::fs::write(&fault, point).unwrap();
        let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
        let ran = Ran::of(command.env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap());
        assert_eq!(ran.code, None, "not killed at {point}:\n{}", ran.text);
        let recovered = stage.expect(0, &["recover"]);
        if recovered.text.contains("Still held") {
            assert!(!stage.service().split.unwrap().leased, "{point}");
            stage.expect(0, &["abort"]);
            still_held += 1;
        }
        is_undone(&stage);
    }
    assert!((4..=5).contains(&still_held), "{still_held}");
}

/// Runs a command that is killed at this point.
#[cfg(feature = "fault-points")]
#[track_caller]
pub(crate) fn killed_at(stage: &Stage, point: &str, args: &[&str]) {
    let fault = stage.path("fault");
    std::fs::write(&fault, point).unwrap();
    let ran = Ran::of(stage.command(args).env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap());
    assert_eq!(ran.code, None, "{args:?} was not killed at {point}:\n{}", ran.text);
}

#[cfg(feature = "fault-points")]
#[test]
fn a_killed_promote_or_recover_is_continued_by_recover() {
    let (stage, clients) = stage();
    stage.configure("uh-deploy.toml", LONG);
    let deploy = ["blue-green", "--version", "1.0.1"];
    for point in
        ["effect.undo.before", "effect.undo.split_ended", "effect.undo.withdrawn", "effect.undo.stopped"]
    {
        killed_at(&stage, "effect.try.split", &deploy);
        killed_at(&stage, point, &["recover"]);
        stage.expect(0, &["recover"]).says("Undone");
        is_undone(&stage);
    }
    for (point, promoted) in [
        ("journal.passed.before", false),
        ("journal.passed.after", false),
        ("effect.switch.before", false),
        ("effect.switch.after", true),
    ] {
        killed_at(&stage, "effect.try.split", &deploy);
        killed_at(&stage, point, &["promote"]);
        stage.expect(0, &["recover"]);
        assert_eq!(stage.service().split, None, "{point}");
        if promoted {
            assert_eq!(stage.served(), "green 1.0.1", "{point}");
        } else {
            is_undone(&stage);
        }
    }
    assert_eq!(clients.end(), 0, "no request failed");
}

/// uh-proxy ends the split by itself, whether or not uh-deploy is there; `recover` says why.
#[cfg(feature = "fault-points")]
#[test]
fn a_verdict_that_a_killed_deploy_never_saw_is_said_by_recover() {
    let (stage, clients) = stage();
    let until_bad = || {
        until("uh-proxy has found it worse", || {
            stage.service().trial.filter(|trial| trial.state == TrialState::Bad && trial.ended)
        })
    };
    let deploy = ["blue-green", "--version", "1.0.1"];
    stage.configure("uh-deploy.toml", &failing(100, LONG));
    // Killed before the verdict, and after it.
    for (point, step) in [("effect.try.split", true), ("effect.undo.before", false)] {
        killed_at(&stage, point, &deploy);
        let figures = until_bad();
        if step {
            stage.expect(1, &["promote"]).says("❌ Trial: fail: ").says("nothing was changed");
        }
        let ran = stage.expect(0, &["recover"]);
        assert_eq!(ran.text.contains("(step 1 of 1: 40 % of the clients)"), step, "{}", ran.text);
        ran.says("❌ Trial: fail: green (v1.0.1) fails more often than blue (v1.0.0)")
            .says("routes: / (")
            .says("Undone: the candidate was removed; blue (v1.0.0) serves");
        is_undone(&stage);
        let line = last(&stage);
        assert_eq!(
            (&line["outcome"], &line["trial"]["verdict"]),
            (&"failed".into(), &"fail".into()),
            "{line}"
        );
        assert!(line["reason"].as_str().unwrap().contains("fails more often"), "{line}");
        let counted = &line["trial"]["figures"]["failures"]["new_bad"];
        assert_eq!(counted, figures.failures.new_bad, "{line}");
    }
    // The next version goes to the same backend. That uh-proxy still knows the earlier verdict says nothing of it.
    stage
        .configure("uh-deploy.toml", &format!("[runtime.process]\nenv = {{ FAIL_PERCENT = \"0\" }}\n{LONG}"));
    drop(clients);
    killed_at(&stage, "effect.register.after", &["blue-green", "--version", "1.0.2"]);
    assert!(stage.service().trial.is_some_and(|trial| trial.state == TrialState::Bad));
    let ran = stage.expect(0, &["recover"]);
    ran.says("(step 1 of 1: 40 % of the clients)").says("Undone");
    assert!(!ran.text.contains("Trial: fail"), "{}", ran.text);
    assert_eq!(last(&stage)["trial"], Value::Null);
    is_undone(&stage);
}

/// A deploy that waits at this point until [`go_on`].
#[cfg(feature = "fault-points")]
fn paused_at(stage: &Stage, point: &str) -> Child {
    let hold = stage.path("hold");
    let held = stage.path("hold.held");
    let _ = std::fs::remove_file(&held);
    std::fs::write(&hold, point).unwrap();
    let mut command = stage.command(&["blue-green", "--version", "1.0.1"]);
    command.env("UH_DEPLOY_HOLD_FILE", &hold).stdout(Stdio::piped()).stderr(Stdio::piped());
    let deploy = command.spawn().unwrap();
    until("the deploy waits", || held.exists().then_some(()));
    deploy
}

#[cfg(feature = "fault-points")]
fn go_on(stage: &Stage) {
    std::fs::remove_file(stage.path("hold")).unwrap();
}

/// The trial has passed, but its split ends before everybody gets the new version.
#[cfg(feature = "fault-points")]
#[test]
fn a_split_that_ends_just_before_the_switch_prevents_it() {
    let (stage, _clients) = stage();
    let (flag, script) = (stage.path("bad"), stage.path("app.py"));
    std::fs::write(&script, failing_apps::turns_bad()).unwrap();
    let app = format!("[runtime.process]\ncommand = [\"python3\", {script:?}, {flag:?}]\n");
    stage.configure("uh-deploy.toml", &format!("{QUICK}{app}"));
    for (point, turns_bad) in
        [("journal.passed.after", false), ("journal.passed.after", true), ("effect.switch.before", false)]
    {
        let deploy = paused_at(&stage, point);
        if turns_bad {
            std::fs::write(&flag, "").unwrap();
            until("uh-proxy has ended the split", || stage.service().split.is_none().then_some(()));
            go_on(&stage);
            ended(deploy, 3).says("❌ Trial: fail: green (v1.0.1) fails more often");
            std::fs::remove_file(&flag).unwrap();
        } else {
            let ran = Ran::of(stage.proxy_cli(&["split", "off"]).output().unwrap());
            assert_eq!(ran.code, Some(0), "{}", ran.text);
            go_on(&stage);
            ended(deploy, 5).says("the split has ended: another command ended it");
        }
        is_undone(&stage);
    }
}

/// The deploy has decided already, and doesn't look for orders any more.
#[cfg(feature = "fault-points")]
#[test]
fn an_order_that_comes_too_late_is_not_said_to_be_obeyed() {
    let (stage, _clients) = stage();
    stage.configure("uh-deploy.toml", QUICK);
    let deploy = paused_at(&stage, "journal.passed.before");
    let mut abort = stage.command(&["abort"]);
    let abort = abort.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let order = stage.path("deploy-state/trial-order.json");
    until("the order was given", || order.exists().then_some(()));
    go_on(&stage);
    ended(abort, 1).says("too late: the trial was over").says("it gives everybody the new version");
    ended(deploy, 0).says("✅ Deployment complete!");
    assert!(!order.exists(), "the order was taken back");
}

#[cfg(feature = "fault-points")]
#[test]
fn a_step_waits_for_a_uh_proxy_that_restarts() {
    let (mut stage, clients) = stage();
    stage.configure("uh-deploy.toml", LONG);
    let deploy = paused_at(&stage, "effect.try.before");
    drop(clients);
    stage.kill_front_door();
    go_on(&stage);
    // Long enough for the deploy to ask; it passes if it hasn't, too.
    std::thread::sleep(Duration::from_millis(300));
    stage.start_front_door();
    let clients = Clients::start(stage.address);
    until("the trial is under way", || stage.service().split);
    stage.expect(0, &["promote"]);
    ended(deploy, 0).says("✅ Deployment complete!");
    assert_eq!(clients.end(), 0, "no request failed");
}
