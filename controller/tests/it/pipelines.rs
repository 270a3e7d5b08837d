//! CI pipelines step by step: the workflow of an existing nginx-based deployment, and the one in docs/ci-cd.md.

use crate::harness::Stage;
use crate::watching::{Traffic, failing};

/// How often a bad version is deployed.
const TRIES: u32 = 10;

/// One step of a workflow: its condition and command.
struct Step<'a> {
    condition: Option<&'a str>,
    run: &'a str,
}

/// The steps of the first workflow on a page.
fn steps(page: &str) -> Vec<Step<'_>> {
    let workflow =
        page.split("```yaml").nth(1).and_then(|rest| rest.split("```").next()).expect("a workflow");
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut condition = None;
    for line in workflow.lines().map(str::trim) {
        if line.starts_with("- ") {
            condition = None;
        }
        let line = line.trim_start_matches("- ");
        condition = line.strip_prefix("if: ").or(condition);
        if let Some(run) = line.strip_prefix("run: ") {
            steps.push(Step { condition, run });
        }
    }
    steps
}

/// Runs the steps as GitHub Actions would. The smoke test checks whether this version serves.
fn run(stage: &Stage, page: &str, version: &str) {
    let (mut failed, mut smoke_failed) = (false, false);
    for Step { condition, run } in steps(page) {
        let wanted = match condition {
            None => !failed,
            Some(condition) => failed && (smoke_failed || !condition.contains("steps.smoke")),
        };
        if !wanted {
            continue;
        }
        let done = if let Some(words) = run.strip_prefix("uh-deploy ") {
            let words = words.replace("\"${GITHUB_SHA::12}\"", version).replace("5m", "20s");
            stage.run(&words.split(' ').collect::<Vec<_>>()).code == Some(0)
        } else if let Some(script) = run.strip_prefix("npm run deploy:") {
            let mut command = stage.command(&[script]);
            command.env("npm_package_version", version).output().unwrap().status.success()
        } else {
            smoke_failed = !stage.served().ends_with(version);
            !smoke_failed
        };
        failed |= !done;
    }
}

/// The workflow of an existing nginx-based deployment.
const GUIDE: &str = "```yaml
      - name: Validate deployment
        run: npm run deploy:validate
      - name: Deploy blue-green
        run: npm run deploy:blue-green
      - name: Monitor deployment
        run: npm run deploy:monitor
      - name: Rollback on failure
        if: failure()
        run: npm run deploy:rollback
```";

const SMALL: &str = "[monitor]\ninterval = \"100ms\"\n";

fn ours() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ci-cd.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_documented_pipeline_keeps_the_good_version_however_often_a_bad_one_is_deployed() {
    let stage = Stage::new();
    let page = ours();
    assert!(steps(&page).iter().any(|step| step.condition.is_some_and(|when| when.contains("failure()"))));
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 50, "/");
    stage.configure("uh-deploy.toml", &failing(100, SMALL));
    for attempt in 1..=TRIES {
        run(&stage, &page, &format!("2.0.{attempt}"));
        assert_eq!(stage.served(), "blue 1.0.0", "after attempt {attempt}");
    }
    stage.configure("uh-deploy.toml", SMALL);
    run(&stage, &page.replace("5m", "1s"), "1.0.1");
    assert_eq!(stage.served(), "green 1.0.1");
}

/// The rollback step must not restore the bad version after an automatic rollback.
#[test]
fn a_rollback_step_after_an_automatic_rollback_changes_nothing() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 50, "/");
    stage.configure("uh-deploy.toml", &failing(100, SMALL));
    for attempt in 1..=TRIES {
        let version = format!("2.0.{attempt}");
        stage.expect(3, &["blue-green", "--version", &version, "--watch", "20s", "--auto-rollback"]);
        stage.expect(1, &["rollback"]);
        assert_eq!(stage.served(), "blue 1.0.0", "after attempt {attempt}");
    }
}

#[test]
fn an_existing_workflow_rolls_a_bad_version_back_each_time() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 50, "/");
    stage.configure("uh-deploy.toml", &failing(100, &format!("{SMALL}duration = \"20s\"")));
    for attempt in 1..=TRIES {
        run(&stage, GUIDE, &format!("2.0.{attempt}"));
        assert_eq!(stage.served(), "blue 1.0.0", "after attempt {attempt}");
    }
}

/// Five minutes at 0.2/s are 60 requests. Here it is three seconds, with too few requests to judge.
#[test]
fn an_existing_workflow_with_little_traffic_keeps_the_good_version() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let _traffic = Traffic::start(stage.address, 3, "/");
    stage.configure("uh-deploy.toml", &format!("{SMALL}duration = \"3s\""));
    run(&stage, GUIDE, "1.0.1");
    assert_eq!(stage.served(), "green 1.0.1");
}

#[test]
fn a_short_failure_of_both_versions_never_restores_the_one_that_was_rolled_back() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    let traffic = Traffic::start(stage.address, 50, "/");
    stage.configure("uh-deploy.toml", &failing(100, SMALL));
    stage.expect(3, &["blue-green", "--version", "1.0.1", "--watch", "20s", "--auto-rollback"]);
    traffic.ask_for("/status/500");
    let ran = stage.run(&["monitor", "--duration", "20s", "--auto-rollback"]);
    assert_eq!(ran.code, Some(7), "{}", ran.text);
    assert_eq!(stage.served(), "blue 1.0.0");
}
