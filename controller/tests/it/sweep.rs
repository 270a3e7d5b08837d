//! `kill -9` before and after every journal entry and every effect of a deploy, a rollback and a recovery; then
//! `recover`. Under load all the time.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::files;
use crate::harness::{Ran, Stage};

/// What is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Killed {
    Deploy,
    /// A deploy with a trial of two steps.
    Trial,
    /// The target is running.
    Rollback,
    /// The target was retired, and is started again.
    RollbackToStopped,
}

/// The load comes from one address, so a step may not get any requests: then it goes on without.
const TRIAL: &str = "[canary]\nwatch = \"off\"\nstep_timeout = \"1s\"\non_not_enough_data = \"promote\"\nsteps = [{ weight = \"50%\", at_least = \"0ms\", requests = 1 }, { weight = \"90%\", at_least = \"0ms\", requests = 1 }]\n";

struct Sweep {
    stage: Stage,
    killed: Killed,
    versions: AtomicUsize,
}

impl Sweep {
    fn new(killed: Killed) -> Self {
        let stage = Stage::new();
        let quick = "[deploy]\nsettle = \"20ms\"\n[health]\nsuccesses = 1";
        let trial = if killed == Killed::Trial { TRIAL } else { "" };
        stage.configure("uh-deploy.toml", &format!("{quick}\n{}\n{trial}", files::FILES));
        let sweep = Self { stage, killed, versions: AtomicUsize::new(0) };
        sweep.deploy();
        sweep.deploy();
        sweep
    }

    fn next_version(&self) -> String {
        let version = format!("1.0.{}", self.versions.fetch_add(1, Ordering::SeqCst));
        files::write_release(&self.stage.path(""), &version);
        version
    }

    fn deploy(&self) {
        self.stage.deploy(&self.next_version());
    }

    fn standby_runs(&self) -> bool {
        self.stage.app_pids().len() == 2
    }

    /// Sets up what the operation needs: a running or a stopped standby.
    fn prepare(&self) {
        if !matches!(self.killed, Killed::Deploy | Killed::Trial) && !self.standby_runs() {
            self.deploy();
        }
        if self.killed == Killed::RollbackToStopped {
            self.stage.expect(0, &["retire", "--now"]);
        }
    }

    fn arguments(&self) -> Vec<String> {
        match self.killed {
            Killed::Deploy | Killed::Trial => {
                ["blue-green", "--version", &self.next_version()].map(str::to_owned).to_vec()
            }
            Killed::Rollback | Killed::RollbackToStopped => {
                let standby = if self.stage.active() == "blue" { "green" } else { "blue" };
                ["rollback", "--to", standby, "--again"].map(str::to_owned).to_vec()
            }
        }
    }

    /// Every point that the operation passes if it succeeds.
    fn points(&self) -> Vec<String> {
        self.prepare();
        let trace = self.stage.path("trace");
        let args = self.arguments();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = Ran::of(self.stage.command(&args).env("UH_DEPLOY_TRACE_FILE", &trace).output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.text);
        read_points(&trace)
    }

    /// Kills the operation at a point.
    fn kill_at(&self, point: &str) {
        let fault = self.stage.path("fault");
        fs::write(&fault, point).unwrap();
        let args = self.arguments();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.stage.command(&args).env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
        let signal = output.status.signal();
        assert_eq!(signal, Some(9), "{:?} was not killed at {point}:\n{}", self.killed, Ran::of(output).text);
    }

    /// One point: kill, recover, check.
    fn at(&self, point: &str) {
        self.prepare();
        let before = self.stage.served();
        self.kill_at(point);
        // Immediately: the lock was released with its holder.
        self.stage.expect(0, &["recover"]);
        self.holds(point, &before);
    }

    /// The new one serves, or the old one serves and the candidate was removed.
    fn holds(&self, point: &str, before: &str) {
        let what = format!("{:?} killed at {point}", self.killed);
        let (active, served) = (self.stage.active(), self.stage.served());
        assert!(
            served.starts_with(&format!("{active} ")),
            "{what}: {active} is active, but {served} answers"
        );
        assert_eq!(self.stage.service().split, None, "{what}");
        files::belong_to(&self.stage.path(""), &served, &what);
        if served == before {
            let standby = if active == "blue" { ".green." } else { ".blue." };
            let running =
                self.stage.app_pids().into_iter().filter(|(name, _)| name.contains(standby)).count();
            // A rollback doesn't stop a target that it found running. What a deploy replaced was stopped before.
            let may_run = match self.killed {
                Killed::Deploy | Killed::Trial => {
                    let cleared = self.stage.answers(standby.trim_matches('.'));
                    let newest = format!("1.0.{}", self.versions.load(Ordering::SeqCst) - 1);
                    assert!(
                        cleared.is_none_or(|served| !served.ends_with(&newest)),
                        "{what}: the candidate runs"
                    );
                    1
                }
                Killed::Rollback => 1,
                Killed::RollbackToStopped => 0,
            };
            assert!(running <= may_run, "{what}: {running} instances run as the standby");
        }
        self.stage.expect(0, &["recover"]).says("Nothing to recover");
        let candidate = self.stage.path("deploy-state/records/candidate.record.json");
        assert!(!candidate.exists(), "{what}: the candidate's record is left");
    }

    /// Kills the recovery too, at each of its points, and recovers again.
    fn recovery_at(&self, point: &str) -> usize {
        self.prepare();
        let before = self.stage.served();
        self.kill_at(point);
        let trace = self.stage.path("recovery-trace");
        let _ = fs::remove_file(&trace);
        let traced = self.stage.command(&["recover"]).env("UH_DEPLOY_TRACE_FILE", &trace).output().unwrap();
        assert_eq!(traced.status.code(), Some(0), "{}", Ran::of(traced).text);
        self.holds(point, &before);
        let mut killed = 0;
        for second in &read_points(&trace) {
            self.prepare();
            let before = self.stage.served();
            self.kill_at(point);
            let fault = self.stage.path("fault");
            fs::write(&fault, second).unwrap();
            let output =
                self.stage.command(&["recover"]).env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
            // Whether there is something to stop depends on how far the supervisor has got meanwhile, so a recovery
            // may not pass this point again.
            let ended = (output.status.signal(), output.status.code());
            let fine = matches!(ended, (Some(9), _) | (_, Some(0)));
            assert!(fine, "recovery of {point}, {second}: {}", Ran::of(output).text);
            killed += usize::from(ended.0.is_some());
            self.stage.expect(0, &["recover"]);
            self.holds(&format!("{point}, and its recovery at {second}"), &before);
        }
        killed
    }
}

fn read_points(trace: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    let mut seen = BTreeSet::new();
    text.lines().filter(|name| seen.insert((*name).to_owned())).map(str::to_owned).collect()
}

#[test]
fn after_a_kill_anywhere_the_new_serves_or_the_old_serves_and_the_candidate_is_gone() {
    let sweep = |killed| {
        std::thread::spawn(move || {
            let sweep = Sweep::new(killed);
            let load = sweep.stage.load();
            let points = sweep.points();
            points.iter().for_each(|point| sweep.at(point));
            load.must_be_unharmed();
            (killed, points.len())
        })
    };
    let recoveries = std::thread::spawn(|| {
        let sweep = Sweep::new(Killed::Deploy);
        let load = sweep.stage.load();
        // One for each course of a recovery: nothing started, something started, traffic moved.
        let points = ["journal.begun.after", "process.start.spawned", "effect.switch.after"];
        let count: usize = points.iter().map(|point| sweep.recovery_at(point)).sum();
        load.must_be_unharmed();
        count
    });
    let kinds = [Killed::Deploy, Killed::Trial, Killed::Rollback, Killed::RollbackToStopped];
    // Wait for all of them first, so that none leaves processes behind if another has failed.
    let (sweeps, recoveries) = (kinds.map(sweep).map(std::thread::JoinHandle::join), recoveries.join());
    for sweep in sweeps {
        let (killed, count) = sweep.unwrap();
        println!("kill sweep: {count} points of {killed:?}");
        assert!(count > 15, "only {count} points: are they traced?");
    }
    let recoveries = recoveries.unwrap();
    println!("kill sweep: {recoveries} points of recoveries");
    assert!(recoveries > 30, "only {recoveries} recoveries were killed");
}
