//! Interference at every step of a deploy: a manual switch, `retire`, a second deploy, a restart of uh-proxy. At the
//! end, what the deploy reports is compared with the backend that answers at uh-proxy.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use crate::final_look::uh_proxy;
use crate::harness::{Ran, Stage, until};

/// What happens while the deploy is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rival {
    SwitchByHand,
    Retire,
    SecondDeploy,
    Restart,
}

const RIVALS: [Rival; 4] = [Rival::SwitchByHand, Rival::Retire, Rival::SecondDeploy, Rival::Restart];

/// With `UH_SWEEP_ALL=1` every point is tested; otherwise one before each effect, and those at which traffic or an
/// instance has just changed.
fn is_taken(point: &str) -> bool {
    let telling = [
        "effect.clear.withdrawn",
        "effect.clear.stopped",
        "process.start.spawned",
        "effect.register.after",
        "effect.switch.after",
        "journal.switched.after",
        "effect.confirm.after",
    ];
    let before = point.starts_with("effect.") && point.ends_with(".before");
    std::env::var_os("UH_SWEEP_ALL").is_some() || before || telling.contains(&point)
}

struct Sweep {
    stage: Stage,
    rival: Rival,
    versions: usize,
}

impl Sweep {
    fn new(rival: Rival) -> Self {
        let stage = Stage::new();
        stage.configure("uh-deploy.toml", "[deploy]\nsettle = \"20ms\"\n[health]\nsuccesses = 1");
        Self { stage, rival, versions: 0 }
    }

    fn next_version(&mut self) -> String {
        self.versions += 1;
        format!("1.0.{}", self.versions)
    }

    fn deploy(&mut self) {
        let version = self.next_version();
        self.stage.deploy(&version);
    }

    fn points(&mut self) -> Vec<String> {
        let trace = self.stage.path("trace");
        let version = self.next_version();
        let mut command = self.stage.command(&["blue-green", "--version", &version]);
        let ran = Ran::of(command.env("UH_DEPLOY_TRACE_FILE", &trace).output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.text);
        let mut seen = BTreeSet::new();
        let text = fs::read_to_string(trace).unwrap();
        let names = text.lines().filter(|name| is_taken(name) && seen.insert((*name).to_owned()));
        names.map(str::to_owned).collect()
    }

    /// One point: pause the deploy there, interfere, let it continue, and compare.
    fn at(&mut self, point: &str) {
        if self.stage.apps() < 2 {
            self.deploy();
        }
        let version = self.next_version();
        let (hold, held) = (self.stage.path("hold"), self.stage.path("hold.held"));
        let _ = fs::remove_file(&held);
        fs::write(&hold, point).unwrap();
        let mut command = self.stage.command(&["blue-green", "--version", &version]);
        command.env("UH_DEPLOY_HOLD_FILE", &hold).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        until(&format!("the deploy has come to {point}"), || held.exists().then_some(()));
        self.act(point);
        fs::remove_file(&hold).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        self.compare(point, &version, &ran);
        let recovered = self.stage.run(&["recover"]);
        assert_eq!(
            recovered.code,
            Some(0),
            "{:?} at {point}: {}\nthen: {}",
            self.rival,
            ran.text,
            recovered.text
        );
        self.compare(point, &version, &Ran { code: None, text: recovered.text });
    }

    fn act(&mut self, point: &str) {
        let what = format!("{:?} at {point}", self.rival);
        match self.rival {
            Rival::SwitchByHand => {
                let to = if self.stage.active() == "blue" { "green" } else { "blue" };
                let ran = uh_proxy(&self.stage, &["switch", to]);
                // Refused: it is withdrawn, or doesn't answer.
                assert!(matches!(ran.code, Some(0 | 3)), "{what}: {}", ran.text);
            }
            Rival::Retire => {
                let ran = self.stage.run(&["retire", "--now"]);
                assert_eq!(ran.code, Some(4), "{what}: {}", ran.text);
            }
            Rival::SecondDeploy => {
                let ran = self.stage.run(&["blue-green", "--version", "9.9.9"]);
                assert_eq!(ran.code, Some(4), "{what}: {}", ran.text);
            }
            Rival::Restart => {
                self.stage.kill_front_door();
                self.stage.start_front_door();
            }
        }
    }

    /// Requires that the exit code and every line about the active backend match the backend that answers.
    fn compare(&self, point: &str, version: &str, ran: &Ran) {
        let what = format!("{:?} at {point}, exit {:?}", self.rival, ran.code);
        let served = self.stage.served();
        let (backend, answers) = served.split_once(' ').unwrap();
        assert_eq!(self.stage.active(), backend, "{what}: {}", ran.text);
        let truth = format!("{backend} (v{answers})");
        for line in ran.text.lines().filter(|line| line.contains(" serves")) {
            assert!(
                line.contains(&format!("{truth} serves")),
                "{what}: {served} answers, but: {line}\n{}",
                ran.text
            );
        }
        // Step 7 is true when it is printed; the last lines must be true at the end.
        let after = ran.text.split("[7/7]").nth(1).filter(|_| ran.code == Some(0)).unwrap_or_default();
        if let Some(active) = after.lines().find_map(|line| line.trim().strip_prefix("Active: ")) {
            assert_eq!(active, backend, "{what}: {}", ran.text);
        }
        match ran.code {
            Some(0) => assert_eq!(answers, version, "{what}: {}", ran.text),
            Some(1) => assert_ne!(answers, version, "{what}: {}", ran.text),
            // Exit 6: traffic was switched to the proven candidate by another command.
            Some(5 | 6) => assert!(ran.text.contains(&format!("{truth} serves")), "{what}: {}", ran.text),
            Some(code) => panic!("{what}: exit {code}: {}", ran.text),
            None => {}
        }
    }
}

#[test]
fn the_last_line_is_true_after_any_interference_at_any_step() {
    let sweep = |rival| {
        std::thread::spawn(move || {
            let mut sweep = Sweep::new(rival);
            sweep.deploy();
            sweep.deploy();
            let points = sweep.points();
            points.iter().for_each(|point| sweep.at(point));
            (rival, points.len())
        })
    };
    let ended = RIVALS.map(sweep).map(std::thread::JoinHandle::join);
    let mut all = 0;
    for ended in ended {
        let (rival, count) = ended.unwrap();
        println!("interference: {count} points of {rival:?}, 0 differences");
        all += count;
    }
    println!("interference: {all} points in all");
    assert!(all > 50, "only {all} points: are they traced?");
}
