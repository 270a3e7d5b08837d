//! `kill -9` before and after every journal entry and every effect of a release, of its rollback and of a recovery, and
//! between its members; then `recover`. Under load on both services all the time.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::files;
use crate::harness::{Ran, block, get, kill_instances, until};
use crate::releases::{SERVICES, Shop};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Killed {
    Release,
    /// A candidate dies after the switch.
    ReleaseThatDies,
    Rollback,
    /// Its targets were retired, and are started again.
    RollbackToStopped,
}

struct Sweep {
    shop: Shop,
    killed: Killed,
    versions: AtomicUsize,
}

impl Sweep {
    fn new(killed: Killed) -> Self {
        let quick = format!("[deploy]\nsettle = \"20ms\"\n[health]\nsuccesses = 1\n{}", files::FILES);
        let shop = Shop::open(&quick);
        ["0.0.1", "0.0.2"].iter().for_each(|version| write_files(&shop, version));
        shop.deploy_twice();
        if killed == Killed::ReleaseThatDies {
            let dying =
                format!("{}\n[health]\nsuccesses = 1\n{}", shop.dies_after_the_switch(), files::FILES);
            shop.members[1].configure("uh-deploy.toml", &dying).unwrap();
        }
        Self { shop, killed, versions: AtomicUsize::new(0) }
    }

    fn is_release(&self) -> bool {
        matches!(self.killed, Killed::Release | Killed::ReleaseThatDies)
    }

    fn version(&self) -> String {
        let version = format!("1.0.{}", self.versions.fetch_add(1, Ordering::SeqCst));
        write_files(&self.shop, &version);
        version
    }

    /// What the operation needs: a release to undo, with its predecessor running or stopped.
    fn prepare(&self) -> Vec<String> {
        let _ = fs::remove_file(self.shop.path("die"));
        if self.is_release() {
            return ["blue-green", "--version", &self.version()].map(str::to_owned).to_vec();
        }
        self.shop.expect(0, &["blue-green", "--version", &self.version()]);
        if self.killed == Killed::RollbackToStopped {
            self.shop.expect(0, &["retire", "--now"]);
        }
        vec!["rollback".to_owned()]
    }

    fn run(&self, args: &[String], variable: &str, file: &Path) -> std::process::Output {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.shop.command(&args).env(variable, file).output().unwrap()
    }

    /// Every point that the operation passes if it succeeds.
    fn points(&self) -> Vec<String> {
        let (args, trace) = (self.prepare(), self.shop.path("trace"));
        let ran = Ran::of(self.run(&args, "UH_DEPLOY_TRACE_FILE", &trace));
        let expected = if self.killed == Killed::ReleaseThatDies { 3 } else { 0 };
        assert_eq!(ran.code, Some(expected), "{}", ran.text);
        read_points(&trace)
    }

    /// Kills the operation at a point.
    fn kill_at(&self, point: &str) -> [String; 2] {
        let args = self.prepare();
        let before = self.shop.served();
        let fault = self.shop.path("fault");
        fs::write(&fault, point).unwrap();
        let output = self.run(&args, "UH_DEPLOY_FAULT_FILE", &fault);
        let signal = output.status.signal();
        assert_eq!(signal, Some(9), "{:?} wasn't killed at {point}:\n{}", self.killed, Ran::of(output).text);
        before
    }

    fn at(&self, point: &str) {
        let before = self.kill_at(point);
        self.shop.recover();
        self.holds(&format!("{:?} killed at {point}", self.killed), &before);
    }

    /// Kills the recovery too, at each of its points, and recovers again.
    fn recovery_at(&self, point: &str) -> usize {
        let before = self.kill_at(point);
        let trace = self.shop.path("recovery-trace");
        let _ = fs::remove_file(&trace);
        let recover = ["recover".to_owned()];
        let traced = Ran::of(self.run(&recover, "UH_DEPLOY_TRACE_FILE", &trace));
        assert_eq!(traced.code, Some(0), "{}", traced.text);
        self.holds(point, &before);
        let mut killed = 0;
        for second in &read_points(&trace) {
            let before = self.kill_at(point);
            let fault = self.shop.path("fault");
            fs::write(&fault, second).unwrap();
            let output = self.run(&recover, "UH_DEPLOY_FAULT_FILE", &fault);
            // Whether there is something to stop depends on how far the supervisor has got meanwhile.
            let fine = output.status.signal() == Some(9) || output.status.code() == Some(0);
            killed += usize::from(output.status.signal().is_some());
            assert!(fine, "recovery of {point}, {second}: {}", Ran::of(output).text);
            self.shop.recover();
            self.holds(&format!("{point}, and its recovery at {second}"), &before);
        }
        killed
    }

    /// Both services are old, without a candidate, or both are new.
    fn holds(&self, what: &str, before: &[String; 2]) {
        let served = self.shop.served();
        let versions = served.each_ref().map(|text| text.split(' ').next_back().unwrap());
        assert_eq!(versions[0], versions[1], "{what}: a mixture serves: {served:?}");
        for ((service, _), served) in SERVICES.iter().zip(&served) {
            files::belong_to(&self.shop.path(service), served, &format!("{what}: {service}"));
        }
        if served == *before && self.killed != Killed::Rollback {
            let standby = if served[0].starts_with("blue") { ".green." } else { ".blue." };
            let newest = format!("1.0.{}", self.versions.load(Ordering::SeqCst) - 1);
            let left = self.shop.running().into_iter().filter(|name| name.contains(standby)).count();
            // What a deploy replaces may not have been stopped yet.
            let may_run = if self.is_release() { 2 } else { 0 };
            assert!(left <= may_run, "{what}: {left} standbys run");
            let candidates = self.shop.answers().into_iter().filter(|text| text.ends_with(&newest)).count();
            let expected = if self.is_release() { 0 } else { 2 };
            assert_eq!(candidates, expected, "{what}: candidates run: {:?}", self.shop.answers());
        }
        self.shop.expect(0, &["recover"]).says("Nothing to recover");
        for member in &self.shop.members {
            let candidate = member.state_dir().join("records/candidate.record.json");
            assert!(!candidate.exists(), "{what}: the candidate's record is left");
        }
    }
}

/// The static files of a version, of both services.
fn write_files(shop: &Shop, version: &str) {
    SERVICES.iter().for_each(|(service, _)| files::write_release(&shop.path(service), version));
}

fn read_points(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    let mut seen = BTreeSet::new();
    text.lines().filter(|name| seen.insert((*name).to_owned())).map(str::to_owned).collect()
}

impl Shop {
    fn recover(&self) {
        self.expect(0, &["recover"]);
    }

    /// What answers on the backends' own ports.
    fn answers(&self) -> Vec<String> {
        let services = block(self.proxy.client.status()).unwrap().services;
        let backends = services.into_iter().flat_map(|service| service.backends);
        let endpoints = backends.flat_map(|backend| backend.endpoints);
        let addresses = endpoints.filter_map(|endpoint| endpoint.address.parse().ok());
        addresses.filter_map(|address| get(address, "/").ok()).map(|text| text.trim().to_owned()).collect()
    }
}

#[test]
fn after_a_kill_anywhere_all_services_of_a_release_are_old_or_all_are_new() {
    let sweep = |killed| {
        std::thread::spawn(move || {
            let sweep = Sweep::new(killed);
            let load = sweep.shop.load();
            let points = sweep.points();
            points.iter().for_each(|point| sweep.at(point));
            // An app that dies fails requests until traffic is back.
            if killed != Killed::ReleaseThatDies {
                load.must_be_unharmed();
            }
            (killed, points.len())
        })
    };
    let recoveries = std::thread::spawn(|| {
        let sweep = Sweep::new(Killed::Release);
        let load = sweep.shop.load();
        // One for each course of a recovery: some candidates started, all started, traffic moved.
        let points = ["effect.start.member1", "effect.switch.before", "effect.switch.after"];
        let count: usize = points.iter().map(|point| sweep.recovery_at(point)).sum();
        load.must_be_unharmed();
        count
    });
    let kinds = [Killed::Release, Killed::ReleaseThatDies, Killed::Rollback, Killed::RollbackToStopped];
    let (sweeps, recoveries) = (kinds.map(sweep).map(std::thread::JoinHandle::join), recoveries.join());
    for ended in sweeps {
        let (killed, count) = ended.unwrap();
        println!("kill sweep of two services: {count} points of {killed:?}");
        assert!(count > 15, "only {count} points: are they traced?");
    }
    let recoveries = recoveries.unwrap();
    println!("kill sweep of two services: {recoveries} points of recoveries");
    assert!(recoveries > 30, "only {recoveries} recoveries were killed");
}

#[test]
fn while_a_release_is_unfinished_its_members_cannot_be_changed_alone() {
    let shop = Shop::with_two_releases("");
    let fault = shop.path("fault");
    fs::write(&fault, "effect.switch.after").unwrap();
    let mut command = shop.command(&["blue-green", "--version", "1.0.0"]);
    let output = command.env("UH_DEPLOY_FAULT_FILE", &fault).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{}", Ran::of(output).text);
    for args in [&["blue-green", "--version", "2.0.0"][..], &["rollback"], &["retire", "--now"], &["recover"]]
    {
        shop.expect_of("web", 6, args).says("is part of the release").says("release.toml");
    }
    let interrupted = "Warning     this service is part of the release ";
    shop.expect_of("web", 0, &["status"])
        .says(interrupted)
        .says("Run `uh-deploy recover --config ")
        .says("release.toml");
    // After a reboot, what serves is the candidate, which isn't recorded yet.
    shop.members.iter().for_each(|member| kill_instances(&member.state_dir()));
    until("every app is dead", || shop.running().is_empty().then_some(()));
    shop.expect(0, &["start"]);
    assert_eq!(shop.served(), ["blue 1.0.0"; 2]);
    shop.expect(0, &["recover"]).says("Finished: blue (v1.0.0) serves");
    shop.expect_of("web", 0, &["recover"]).says("Nothing to recover");
    let text = shop.expect_of("web", 0, &["status"]).text;
    assert!(!text.contains(interrupted), "{text}");
    assert_eq!(shop.served(), ["blue 1.0.0"; 2]);
}
