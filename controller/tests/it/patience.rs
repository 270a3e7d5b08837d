//! Temporary problems, such as a restart of uh-proxy, a held lock or a slow answer, don't make a command give up.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use crate::final_look::{Held, NO_RESTART, kill};
use crate::harness::{Ran, Stage, program, until};

/// `uh-deploy` in the background, with its output in a file.
struct Spoken<'a> {
    stage: &'a Stage,
    child: Child,
}

impl<'a> Spoken<'a> {
    fn start(stage: &'a Stage, args: &[&str]) -> Self {
        let out = fs::File::create(stage.path("spoken")).unwrap();
        let error = out.try_clone().unwrap();
        let child = stage.command(args).stdout(out).stderr(error).spawn().unwrap();
        Self { stage, child }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.stage.path("spoken")).unwrap()
    }

    fn until_it_says(&self, text: &str) {
        until(text, || self.text().contains(text).then_some(()));
    }

    fn must_end_with(mut self, code: i32) {
        let ended = until("it has ended", || self.child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(code), "{}", self.text());
    }
}

fn app_of(stage: &Stage, backend: &str) -> i32 {
    let part = format!(".{backend}.");
    stage.app_pids().into_iter().find(|(name, _)| name.contains(&part)).unwrap().1
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn an_automatic_rollback_waits_for_a_restarting_uh_proxy() {
    let mut stage = Stage::new();
    stage.configure("uh-deploy.toml", &format!("{NO_RESTART}\n[monitor]\ninterval = \"200ms\""));
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    kill(app_of(&stage, "green"));
    let hold = stage.path("hold");
    fs::write(&hold, "effect.switch.before").unwrap();
    let mut command = stage.command(&["monitor", "--duration", "20s", "--auto-rollback"]);
    command.env("UH_DEPLOY_HOLD_FILE", &hold).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let held = stage.path("hold.held");
    until("it is about to switch", || held.exists().then_some(()));
    stage.kill_front_door();
    fs::remove_file(&hold).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    stage.start_front_door();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn one_slow_answer_does_not_refuse_a_rollback() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[health]\ntimeout = \"500ms\"");
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let blue = app_of(&stage, "blue");
    let held = Held::at(&stage, "effect.check.before", &["rollback"]);
    signal(blue, rustix::process::Signal::STOP);
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(800));
        signal(blue, rustix::process::Signal::CONT);
    });
    let ran = held.end();
    later.join().unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn a_manual_rollback_waits_for_the_holder_of_the_lock() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let retire = Held::at(&stage, "retire.begun", &["retire"]);
    let rollback = Spoken::start(&stage, &["rollback"]);
    rollback.until_it_says("another uh-deploy is running: ");
    rollback.until_it_says(": retire;");
    assert_eq!(retire.end().code, Some(0));
    rollback.must_end_with(0);
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn traffic_moves_back_to_a_standby_that_was_briefly_unhealthy() {
    let stage = Stage::new();
    let front_door = stage.path("uh-proxy.toml");
    let quick = fs::read_to_string(&front_door).unwrap() + "timeout = \"100ms\"\nunhealthy_after = 1\n";
    fs::write(&front_door, quick).unwrap();
    let mut stage = stage;
    stage.kill_front_door();
    stage.start_front_door();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"30s\"\nready_timeout = \"30s\"");
    let deploy = Spoken::start(&stage, &["blue-green", "--version", "1.0.1"]);
    until("traffic has moved", || (stage.active() == "green").then_some(()));
    let blue = app_of(&stage, "blue");
    signal(blue, rustix::process::Signal::STOP);
    until("blue is unhealthy", || {
        let service = stage.service();
        service.backends.iter().any(|b| b.name.as_str() == "blue" && b.healthy == Some(false)).then_some(())
    });
    kill(app_of(&stage, "green"));
    deploy.until_it_says("Moving traffic back to blue");
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(blue, rustix::process::Signal::CONT);
    deploy.must_end_with(3);
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// Its generation is every service's.
#[test]
fn traffic_is_moved_back_although_another_service_changes_meanwhile() {
    let mut stage = Stage::new();
    let shop = "[services.shop]\npath_prefix = \"/shop\"\nactive = \"green\"\n\
                [services.shop.backends.blue]\nendpoints = [\"127.0.0.1:9\"]\n\
                [services.shop.backends.green]\nendpoints = [\"127.0.0.1:9\"]\n";
    let front_door = stage.path("uh-proxy.toml");
    let both = fs::read_to_string(&front_door).unwrap() + shop;
    fs::write(&front_door, both).unwrap();
    stage.kill_front_door();
    stage.start_front_door();
    stage.configure("uh-deploy.toml", "[deploy]\nservice = \"app\"");
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[deploy]\nservice = \"app\"\nsettle = \"30s\"");
    let held = Held::start(&stage, "switch_back.looked", &["blue-green", "--version", "1.0.1"]);
    until("traffic has moved", || (stage.active() == "green").then_some(()));
    kill(app_of(&stage, "green"));
    held.arrived();
    let switched = crate::final_look::uh_proxy(&stage, &["switch", "blue", "--service", "shop", "--force"]);
    assert_eq!(switched.code, Some(0), "{}", switched.text);
    let ran = held.end();
    assert_eq!(ran.code, Some(3), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn a_rollback_that_waited_undoes_nothing_that_was_put_in_place_meanwhile() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let deploy = Held::at(&stage, "effect.build.before", &["blue-green", "--version", "1.0.2"]);
    let rollback = Spoken::start(&stage, &["rollback"]);
    rollback.until_it_says("Waiting up to ");
    assert_eq!(deploy.end().code, Some(0));
    rollback.until_it_says("green (v1.0.1) was active when this rollback was requested");
    rollback.must_end_with(5);
    assert_eq!(stage.served(), "blue 1.0.2");
}

/// It was registered without a version, and its last probe got no answer.
#[test]
fn a_rollback_goes_back_to_what_was_not_deployed_by_us_though_its_last_probe_failed() {
    let mut stage = Stage::new();
    let front_door = stage.path("uh-proxy.toml");
    let quick = fs::read_to_string(&front_door).unwrap() + "timeout = \"100ms\"\n";
    fs::write(&front_door, quick).unwrap();
    stage.kill_front_door();
    stage.start_front_door();
    let mut by_hand = std::process::Command::new(program("uh-sample-app"));
    by_hand.env("PORT", stage.ports[1].to_string()).env("HOSTNAME", "127.0.0.1");
    by_hand.env("DEPLOYMENT_ENV", "green").env("APP_VERSION", "0.9.0");
    let mut by_hand = by_hand.stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(by_hand.id()).unwrap();
    let version = || {
        let service = stage.service();
        let green = service.backends.into_iter().find(|backend| backend.name.as_str() == "green").unwrap();
        green.last_probe.and_then(|probe| probe.version)
    };
    until("its version is known", || version().filter(|version| version == "0.9.0"));
    stage.deploy("1.0.0");
    signal(pid, rustix::process::Signal::STOP);
    until("it isn't known any more", || version().is_none().then_some(()));
    let held = Held::start(&stage, "effect.check.before", &["rollback"]);
    until("it is at its check, or has ended", || {
        let checks = stage.path("hold.held").exists();
        (checks || stage.history().iter().any(|line| line["command"] == "rollback")).then_some(())
    });
    signal(pid, rustix::process::Signal::CONT);
    let ran = held.end();
    by_hand.kill().unwrap();
    by_hand.wait().unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(stage.active(), "green");
}

#[test]
fn a_manual_rollback_waits_for_a_restarting_uh_proxy() {
    let mut stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.kill_front_door();
    let socket = stage.path("run/admin.sock");
    fs::remove_file(&socket).unwrap();
    let breaks_off = UnixListener::bind(&socket).unwrap();
    breaks_off.set_nonblocking(true).unwrap();
    let mut command = stage.command(&["rollback"]);
    let rollback = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it has asked in vain", || breaks_off.accept().ok());
    drop(breaks_off);
    stage.start_front_door();
    let ran = Ran::of(rollback.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.0");
}

/// A Docker Engine that fails every call.
fn fail_all(engine: &TcpListener) {
    for mut stream in engine.incoming().flatten() {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        lines.find(String::is_empty);
        let head =
            "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close";
        let _ = write!(stream, "{head}\r\nContent-Length: 2\r\n\r\n{{}}");
    }
}

#[test]
fn a_wait_for_the_engine_is_reported_apart_from_a_document_and_from_an_apps_log() {
    let stage = Stage::new();
    let config = stage.path("uh-deploy.toml");
    let process = format!("[runtime.process]\ncommand = [{:?}]", program("uh-sample-app"));
    let docker = "[runtime]\nkind = \"docker\"\n[runtime.docker]\nimage = \"app\"";
    fs::write(&config, fs::read_to_string(&config).unwrap().replace(&process, docker)).unwrap();
    // As if it had started a container before.
    fs::create_dir_all(stage.path("deploy-state")).unwrap();
    fs::write(stage.path("deploy-state/id"), "0123456789abcdef\n").unwrap();
    for args in [&["validate", "--json"][..], &["logs", "--backend", "blue"]] {
        let engine = TcpListener::bind("127.0.0.1:0").unwrap();
        let [out, errors] = ["out", "errors"].map(|name| stage.path(name));
        let mut command = stage.command(args);
        command.env("DOCKER_HOST", format!("tcp://{}", engine.local_addr().unwrap()));
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&errors).unwrap());
        let mut child = command.spawn().unwrap();
        let waits = "waiting for the Docker Engine to ";
        until(waits, || [&out, &errors].iter().any(|path| read(path).contains(waits)).then_some(()));
        std::thread::spawn(move || fail_all(&engine));
        let code = until("it has ended", || child.try_wait().unwrap()).code();
        let (out, errors) = (read(&out), read(&errors));
        assert_eq!(code, Some(1), "{out}{errors}");
        assert!(errors.contains(waits), "{args:?}: on standard error:\n{errors}\non standard output:\n{out}");
        match args[0] {
            "validate" => assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}"),
            _ => assert_eq!(out, ""),
        }
    }
}

fn read(path: &std::path::Path) -> String {
    fs::read_to_string(path).unwrap()
}
