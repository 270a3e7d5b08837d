//! A disk that becomes full at any byte of uh-deploy's own files.

use std::process::Command;

use crate::harness::{Ran, Stage, alive, marked, program};

/// A file size limit cuts a line like a full disk does, and needs no privileges.
fn with_little_room(stage: &Stage, half_kib: usize, args: &[&str]) -> Ran {
    let whole = stage.command(args);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"", "sh", &half_kib.to_string()]);
    command.arg(whole.get_program()).args(whole.get_args()).env_remove("npm_package_version");
    Ran::of(command.output().unwrap())
}

#[test]
fn a_rollback_on_a_full_disk_is_refused_and_names_the_uh_proxy_command() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.deploy("1.0.1");
    // No room for the lock file, and only for that.
    for half_kib in [0, 1] {
        let ran = with_little_room(&stage, half_kib, &["rollback"]);
        assert_eq!(ran.code, Some(1), "{}", ran.text);
        ran.says("green (v1.0.1) serves").says("uh-proxy switch blue --service app");
    }
    let ran = stage.expect(1, &["rollback", "--to", "journal"]);
    ran.says("uh-proxy has no backend journal");
    assert!(!ran.text.contains("uh-proxy switch"), "the disk isn't the reason: {}", ran.text);
    assert_eq!(stage.proxy_cli(&["switch", "blue", "--service", "app"]).status().unwrap().code(), Some(0));
    assert_eq!(stage.served(), "blue 1.0.0");
}

#[test]
fn a_disk_that_is_full_at_any_line_leaves_a_readable_journal() {
    let stage = Stage::new();
    stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"20ms\"\n[health]\nsuccesses = 1");
    stage.deploy("1.0.0");
    let mut failed = 0;
    for half_kib in 1..=12 {
        let version = format!("1.1.{half_kib}");
        let ran = with_little_room(&stage, half_kib, &["blue-green", "--version", &version]);
        failed += usize::from(ran.code != Some(0));
        if ran.text.contains("stopped here") {
            ran.says(&format!("stopped here: {} (v", stage.active()));
        }
        let recovered = stage.run(&["recover"]);
        assert_eq!(recovered.code, Some(0), "{half_kib}: {}\nthen: {}", ran.text, recovered.text);
    }
    assert!(failed > 2, "hardly any deploy met the limit");
    stage.deploy("1.2.0");
}

/// A deploy with a state directory on its own file system, with this many free pages from the build on. Then space is
/// freed and the deploy is recovered. `None`, with a message, if a file system can't be mounted.
fn deployed_with_pages(stage: &Stage, pages: usize) -> Option<Ran> {
    let state = stage.path("deploy-state");
    std::fs::create_dir_all(&state).unwrap();
    let fill = format!(
        "dd if=/dev/zero of={state:?}/ballast bs=4096 2>/dev/null; truncate -s -$(({pages} * 4096)) {state:?}/ballast"
    );
    // An app that writes nothing: otherwise the full disk would kill it.
    let app = format!("exec {} > /dev/null 2>&1", program("uh-sample-app").display());
    let extra = format!(
        "[hooks]\npre_deploy = [\"sh\", \"-c\", {fill:?}]\n[runtime.process]\ncommand = [\"sh\", \"-c\", {app:?}]"
    );
    stage.configure("uh-deploy.toml", &extra);
    let deploy = stage.command(&["blue-green", "--version", "1.0.0"]);
    let recover = stage.command(&["recover"]);
    let line = |command: &Command| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| format!("{word:?} ")).collect::<String>()
    };
    let script = format!(
        "mount -t tmpfs -o size=2m,mode=700 none {state:?} || exit 99; {}; code=$?; rm -f {state:?}/ballast; \
         [ $code = 0 ] || {} || exit 98; for instance in {state:?}/instances/*; do \
         echo \"instance ${{instance##*/}}\"; echo \"saved $(cat $instance/state.json)\"; done; exit $code",
        line(&deploy),
        line(&recover)
    );
    let ran = Ran::of(Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap());
    if ran.code == Some(99) || ran.text.contains("unshare failed") {
        println!("skipped: a full file system, for none can be mounted here");
        return None;
    }
    Some(ran)
}

#[test]
fn a_disk_that_is_full_at_any_page_leaves_no_unknown_app() {
    let stage = Stage::new();
    for pages in 0..20 {
        let Some(ran) = deployed_with_pages(&stage, pages) else { return };
        let words =
            |prefix: &str| ran.text.lines().filter_map(|line| line.strip_prefix(prefix)).collect::<Vec<_>>();
        let living: Vec<i32> = words("instance ").into_iter().flat_map(marked).collect();
        if ran.code == Some(0) {
            assert!(pages > 1, "hardly any deploy met the limit");
            let saved: serde_json::Value = serde_json::from_str(words("saved ")[0]).unwrap();
            for pid in alive(&saved["supervisor"]).map(|known| known.pid).into_iter().chain(living) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            return;
        }
        assert_ne!(ran.code, Some(98), "{pages} pages, recovery: {}", ran.text);
        assert_eq!((living, stage.answers("blue")), (vec![], None), "{pages} pages: {}", ran.text);
    }
    panic!("no deploy had room enough");
}
