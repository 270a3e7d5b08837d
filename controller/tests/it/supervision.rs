//! The process runtime's supervisor: it owns everything below it, records before it acts, and restarts what
//! serves.

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

/// An app that is not where its parent is: in a session of its own, with none of the variables that were meant for it.
fn run_away() -> String {
    let app = program("uh-sample-app");
    let variables = "PORT=$PORT HOSTNAME=$HOSTNAME DEPLOYMENT_ENV=$DEPLOYMENT_ENV APP_VERSION=$APP_VERSION";
    shell(&format!("setsid env -i {variables} {} & wait", app.display()))
}

#[test]
fn stopped_means_that_no_process_of_it_lives_wherever_it_has_gone() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", &run_away());
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]).says("is stopped");
    assert_eq!(stage.answers("blue"), None, "its port is free as soon as it is stopped");
    stage.deploy("1.0.2");
    assert_eq!(stage.served(), "blue 1.0.2");
}

#[test]
fn a_shim_whose_app_ignores_sigterm_is_gone_after_a_shorter_stop_timeout() {
    let stage = Stage::new();
    let (shim, app) = (program("app-shim"), program("uh-sample-app"));
    let address = format!("127.0.0.1:{}", free_port());
    // The app that answers is below one that ignores SIGTERM, and in a session of its own.
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
    stage.expect(0, &["retire", "--now"]).says("is stopped");
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
    assert!(!marked(&instance).is_empty(), "the app that answers is nobody's child");
    stage.deploy("1.0.1");
    stage.expect(0, &["retire", "--now"]);
    assert_eq!((marked(&instance), stage.answers("blue")), (vec![], None));
}

#[test]
fn what_cannot_be_recorded_is_not_started() {
    let stage = Stage::new();
    // Where the record is to be written stands something else: the disk takes no record.
    let instances = stage.path("deploy-state/instances");
    let script = format!(
        "instance=$(tr -d ' \\n' | sed 's/.*\"instance\":\"\\([^\"]*\\)\".*/\\1/'); \
         mkdir -p {instances:?}/$instance/state.json.new"
    );
    stage.configure("uh-deploy.toml", &format!("[hooks]\npre_deploy = [\"sh\", \"-c\", {script:?}]"));
    let ran = stage.expect(1, &["blue-green", "--version", "1.0.0"]);
    ran.says("its supervisor ended before the app was started: ");
    for entry in fs::read_dir(&instances).unwrap() {
        assert_eq!(marked(&entry.unwrap().file_name().to_string_lossy()), [0; 0]);
    }
    assert_eq!(stage.answers("blue"), None);
    stage.configure("uh-deploy.toml", "");
    stage.deploy("1.0.1");
}

#[test]
fn the_memory_limit_is_for_all_processes_of_an_instance_together() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let hungry = "sleep 0.3; head -c 400m /dev/zero | tail -c 400m | sleep 60";
    // A child, and one that has left its parent.
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
    stage.expect(0, &["logs"]).says("uh-deploy: the app ended (killed by signal 9");
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

/// An app that serves until there is the file `die`, and then crashes at every start. It is the standby.
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
    // From here on a pause is 1.6 s and more, and a run some milliseconds.
    let restarts = || stage.saved("blue").1["restarts"].as_u64();
    until("it crashes again and again", || (restarts()? >= 5).then_some(()));
    stage
}

#[test]
fn a_standby_between_two_restarts_is_stopped_by_retire() {
    let stage = crashing_standby();
    let supervisor = alive(&stage.saved("blue").1["supervisor"]).unwrap();
    stage.expect(0, &["retire", "--now"]);
    assert!(!supervisor.is_alive(), "nobody is left who would restart it");
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_rollback_to_a_target_between_two_restarts_ends_them_and_proves_it_again() {
    let stage = crashing_standby();
    let supervisor = alive(&stage.saved("blue").1["supervisor"]).unwrap();
    stage.expect(1, &["rollback"]).says("ended: exit code 9");
    assert!(!supervisor.is_alive(), "nobody is left who would restart it");
    assert_eq!((stage.served(), stage.apps()), ("green 1.0.1".to_owned(), 1));
}

#[test]
fn a_release_that_is_missing_is_named_before_anything_is_stopped() {
    let stage = Stage::new();
    for version in ["1.0.0", "1.0.1"] {
        fs::create_dir_all(stage.path("releases").join(version)).unwrap();
    }
    let directory =
        format!("[runtime.process]\ndirectory = \"{}/{{version}}\"", stage.path("releases").display());
    stage.configure("uh-deploy.toml", &directory);
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    let missing = format!("there is no directory {}", stage.path("releases/9.9.9").display());
    stage.expect(1, &["blue-green", "--version", "9.9.9", "--dry-run"]).says(&missing);
    stage.expect(1, &["blue-green", "--version", "9.9.9"]).says(&missing);
    assert_eq!((stage.apps(), stage.answers("blue")), (2, Some("blue 1.0.0".to_owned())));
    // A release that was removed is no target to start again, and the one that serves is left alone.
    stage.expect(0, &["retire", "--now"]);
    fs::remove_dir(stage.path("releases/1.0.0")).unwrap();
    let missing = format!("there is no directory {}", stage.path("releases/1.0.0").display());
    stage.expect(1, &["rollback", "--of", "1.0.1"]).says(&missing);
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_program_that_a_shim_is_to_start_is_looked_for_too() {
    let stage = Stage::new();
    let command = format!("[{:?}, \"--\", \"no-such-app\"]", program("app-shim"));
    stage.configure("uh-deploy.toml", &format!("[runtime.process]\ncommand = {command}"));
    stage.expect(1, &["blue-green", "--version", "1.0.0"]).says("no program no-such-app in PATH");
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
    stage.expect(6, &["recover"]).says("was started by the process runtime, and runtime.kind is docker now");
    assert!(stage.answers("green").is_some(), "nothing was changed");
    fs::write(&docker, process).unwrap();
    stage.expect(0, &["recover"]).says("the candidate is gone");
    assert_eq!((stage.answers("green"), stage.apps()), (None, 1));
}

#[test]
fn an_instance_of_a_former_version_is_stopped_too() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    // As a former version wrote it: without the supervisor and the count.
    let (instance, mut saved) = stage.saved("blue");
    let record = saved.as_object_mut().unwrap();
    record.remove("supervisor");
    record.remove("restarts");
    let directory = stage.path("deploy-state/instances").join(&instance);
    fs::write(directory.join("state.json"), saved.to_string()).unwrap();
    stage.expect(0, &["retire", "--now"]).says("is stopped");
    assert_eq!(marked(&instance), [0; 0]);
    // And so is one that a former version is just about to start: it says `keep`.
    stage.expect(0, &["keep", directory.to_str().unwrap()]);
    assert_eq!(marked(&instance), [0; 0]);
    let served = get(SocketAddr::from(([127, 0, 0, 1], stage.ports[1])), "/").unwrap();
    assert_eq!(served.trim(), "green 1.0.1");
}
