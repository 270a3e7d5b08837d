//! The process runtime's supervisor: it owns all its descendants, records before it acts, and restarts what serves.

use std::fs;
use std::net::{SocketAddr, TcpListener};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Stage, alive, free_port, get, marked, program, until};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// `[runtime.process]` with a shell script as the app.
fn shell(script: &str) -> String {
    format!("[runtime.process]\ncommand = [\"sh\", \"-c\", {script:?}]")
}

/// An app in its own session, with a cleared environment.
fn run_away() -> String {
    let app = program("uh-sample-app");
    let variables = "PORT=$PORT HOSTNAME=$HOSTNAME DEPLOYMENT_ENV=$DEPLOYMENT_ENV APP_VERSION=$APP_VERSION";
    shell(&format!("setsid env -i {variables} {} & wait", app.display()))
}

#[test]
fn after_a_stop_no_process_of_the_instance_is_alive_in_any_session() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", &run_away());
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]).says("was stopped");
    assert_eq!(stage.answers("blue"), None, "its port is free as soon as it is stopped");
    stage.deploy("1.0.2");
    assert_eq!(stage.served(), "blue 1.0.2");
}

#[test]
fn a_shim_whose_app_ignores_sigterm_is_killed_after_a_shorter_stop_timeout() {
    let stage = Stage::new();
    let (shim, app) = (program("app-shim"), program("uh-sample-app"));
    let address = format!("127.0.0.1:{}", free_port());
    // The app is a child of a process that ignores SIGTERM, and in its own session.
    let script = format!("trap '' TERM; setsid {} & while :; do sleep 0.1; done", app.display());
    let command = format!(
        "[runtime.process]\ncommand = [{shim:?}, \"--listen\", \"127.0.0.1:{{port}}\", \"--app\", {address:?}, \
         \"--kill-after\", \"10m\", \"--\", \"sh\", \"-c\", {script:?}]\n[deploy]\nstop_timeout = \"300ms\""
    );
    stage.configure("uh-deploy.toml", &command);
    stage.deploy("1.0.0");
    let (instance, _) = stage.app_pids().remove(0);
    assert!(marked(&instance).len() > 2, "shim, shell and app");
    stage.configure("uh-deploy.toml", "[deploy]\nstop_timeout = \"300ms\"");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]).says("was stopped");
    assert_eq!(marked(&instance), [0; 0]);
    assert!(TcpListener::bind(&address).is_ok(), "the app's port is free");
}

#[test]
fn without_its_supervisor_an_instance_is_still_stopped_as_a_whole() {
    let stage = Stage::new();
    let script = format!("setsid {} & wait", program("uh-sample-app").display());
    stage.configure("uh-deploy.toml", &shell(&script));
    stage.deploy("1.0.0");
    let (instance, saved) = stage.saved("blue");
    kill(alive(&saved["supervisor"]).unwrap().pid);
    kill(alive(&saved["app"]).unwrap().pid);
    assert!(!marked(&instance).is_empty(), "the app that answers has no parent of the instance");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]);
    assert_eq!((marked(&instance), stage.answers("blue")), (vec![], None));
}

#[test]
fn an_app_that_can_not_be_recorded_is_not_started() {
    let stage = Stage::new();
    // A directory in the record's place: the record can't be written.
    let instances = stage.path("deploy-state/instances");
    let script = format!(
        "instance=$(tr -d ' \\n' | sed 's/.*\"instance\":\"\\([^\"]*\\)\".*/\\1/'); \
         mkdir -p {instances:?}/$instance/state.json.new"
    );
    stage.configure("uh-deploy.toml", &format!("[hooks]\npre_deploy = [\"sh\", \"-c\", {script:?}]"));
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.0"]);
    ran.says("its supervisor exited before it started the app: ");
    for entry in fs::read_dir(&instances).unwrap() {
        assert_eq!(marked(&entry.unwrap().file_name().to_string_lossy()), [0; 0]);
    }
    assert_eq!(stage.answers("blue"), None);
    stage.configure("uh-deploy.toml", "");
    stage.deploy("1.0.1");
}

#[test]
fn the_memory_limit_covers_all_processes_of_an_instance() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let hungry = "sleep 0.3; head -c 400m /dev/zero | tail -c 400m | sleep 60";
    // A child, and a detached one.
    for script in [format!("({hungry}) & wait"), format!("(setsid sh -c '{hungry}' &); sleep 60")] {
        stage.configure("uh-deploy.toml", &format!("{}\nmemory_limit = \"100MiB\"", shell(&script)));
        stage.expect(1, &["blue-green", "--version", "1.0.1"]).says("killed for using too much memory");
        assert_eq!(stage.apps(), 1);
    }
}

#[test]
fn an_active_app_that_dies_is_restarted_and_counted() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    for restarts in 1..=2 {
        kill(stage.app_pids().remove(0).1);
        until("it is restarted", || (stage.saved("blue").1["restarts"] == restarts).then_some(()));
        until("it serves", || (stage.answers("blue")? == "blue 1.0.0").then_some(()));
    }
    stage.expect(0, &["logs"]).says("uh-deploy: the app exited (killed by signal 9");
}

#[test]
fn with_restart_no_it_stays_down() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[runtime.process]\nrestart = \"no\"");
    stage.deploy("1.0.0");
    let supervisor = alive(&stage.saved("blue").1["supervisor"]).unwrap();
    kill(stage.app_pids().remove(0).1);
    until("the supervisor has ended", || (!supervisor.is_alive()).then_some(()));
    assert_eq!(stage.apps(), 0);
}

/// A standby that serves until the file `die` exists, and then crashes at every start.
fn crashing_standby() -> Stage {
    let stage = Stage::new();
    let die = stage.path("die");
    let script = format!(
        "[ -e {die:?} ] && exit 9; {} & app=$!; until [ -e {die:?} ]; do sleep 0.02; done; kill -9 $app; exit 9",
        program("uh-sample-app").display()
    );
    stage.configure("uh-deploy.toml", &shell(&script));
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "");
    stage.deploy("1.0.1");
    fs::write(&die, "").unwrap();
    // From now on the restart delay is at least 1.6 s, and a run takes some milliseconds.
    let restarts = || stage.saved("blue").1["restarts"].as_u64();
    until("it crashes again and again", || (restarts()? >= 5).then_some(()));
    stage
}

#[test]
fn retire_stops_a_standby_that_waits_for_a_restart() {
    let stage = crashing_standby();
    let supervisor = alive(&stage.saved("blue").1["supervisor"]).unwrap();
    stage.expect(0, &["retire", "--now"]);
    assert!(!supervisor.is_alive(), "no supervisor is left to restart it");
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_rollback_to_a_target_that_waits_for_a_restart_starts_and_proves_it() {
    let stage = crashing_standby();
    let supervisor = alive(&stage.saved("blue").1["supervisor"]).unwrap();
    stage.expect(1, &["rollback"]).says("exited: exit code 9");
    assert!(!supervisor.is_alive(), "no supervisor is left to restart it");
    assert_eq!((stage.served(), stage.apps()), ("green 1.0.1".to_owned(), 1));
}

#[test]
fn a_missing_release_is_named_before_anything_is_stopped() {
    let stage = Stage::new();
    for version in ["1.0.0", "1.0.1"] {
        fs::create_dir_all(stage.path("releases").join(version)).unwrap();
    }
    let directory =
        format!("[runtime.process]\ndirectory = \"{}/{{version}}\"", stage.path("releases").display());
    stage.configure("uh-deploy.toml", &directory);
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let missing = format!("directory {} doesn't exist", stage.path("releases/9.9.9").display());
    stage.expect(1, &["blue-green", "--version", "9.9.9", "--dry-run"]).says(&missing);
    stage.expect(1, &["blue-green", "--version", "9.9.9"]).says(&missing);
    assert_eq!((stage.apps(), stage.answers("blue")), (2, Some("blue 1.0.0".to_owned())));
    // A removed release can't be started again, and the active one is left alone.
    stage.expect(0, &["retire", "--now"]);
    fs::remove_dir(stage.path("releases/1.0.0")).unwrap();
    let missing = format!("directory {} doesn't exist", stage.path("releases/1.0.0").display());
    stage.expect(1, &["rollback", "--of", "1.0.1"]).says(&missing);
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn the_program_behind_a_shim_is_checked_too() {
    let stage = Stage::new();
    let command = format!("[{:?}, \"--\", \"no-such-app\"]", program("app-shim"));
    stage.configure("uh-deploy.toml", &format!("[runtime.process]\ncommand = {command}"));
    stage.expect(1, &["blue-green", "--version", "1.0.0"]).says("program no-such-app not found in PATH");
}

#[test]
fn a_recovery_by_another_runtime_is_refused() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let fault = stage.path("fault");
    fs::write(&fault, "effect.start.after").unwrap();
    let mut deploy = stage.command(&["blue-green", "--version", "1.0.1"]);
    deploy.env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
    until("the candidate answers", || stage.answers("green"));
    let docker = stage.path("uh-deploy.toml");
    let process = fs::read_to_string(&docker).unwrap();
    let command = format!("[runtime.process]\ncommand = [{:?}]", program("uh-sample-app"));
    assert!(process.contains(&command), "{process}");
    fs::write(
        &docker,
        process.replace(&command, "[runtime]\nkind = \"docker\"\n[runtime.docker]\nimage = \"app\""),
    )
    .unwrap();
    stage.expect(6, &["recover"]).says("was started by the process runtime, but runtime.kind is now docker");
    assert!(stage.answers("green").is_some(), "nothing was changed");
    fs::write(&docker, process).unwrap();
    stage.expect(0, &["recover"]).says("the candidate was removed");
    assert_eq!((stage.answers("green"), stage.apps()), (None, 1));
}

#[test]
fn an_instance_of_an_earlier_version_is_stopped_too() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    // As an earlier version wrote it: without the supervisor and the restart count.
    let (instance, mut saved) = stage.saved("blue");
    let record = saved.as_object_mut().unwrap();
    record.remove("supervisor");
    record.remove("restarts");
    let directory = stage.path("deploy-state/instances").join(&instance);
    fs::write(directory.join("state.json"), saved.to_string()).unwrap();
    stage.expect(0, &["retire", "--now"]).says("was stopped");
    assert_eq!(marked(&instance), [0; 0]);
    // The same for one that an earlier version is just starting, with the subcommand `keep`.
    stage.expect(0, &["keep", directory.to_str().unwrap()]);
    assert_eq!(marked(&instance), [0; 0]);
    let served = get(SocketAddr::from(([127, 0, 0, 1], stage.ports[1])), "/").unwrap();
    assert_eq!(served.trim(), "green 1.0.1");
}
