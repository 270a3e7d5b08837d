//! The examples for newcomers run unchanged, on free ports. The metrics of uh-proxy after that are those in
//! docs/metrics.md.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use uh_testkit::process;
use uh_testkit::uh_deploy::end_instances;

use super::{chapter, rows, text};

/// Generous: the machine may be busy.
const WITHIN: Duration = Duration::from_secs(120);

/// The programs that the examples call.
const PROGRAMS: [&str; 3] = ["uh-proxy", "uh-deploy", "uh-sample-app"];

/// The `sh` blocks of a text, without what builds the programs and chooses a directory.
fn script(text: &str) -> String {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let lines = blocks.flat_map(str::lines);
    let ours = ["make build", "export PATH=", "cd \"$(mktemp -d)\""];
    let kept = lines.filter(|line| !ours.iter().any(|start| line.starts_with(start)));
    kept.map(|line| format!("{line}\n")).collect()
}

/// Runs a script in a directory, and ends whatever it leaves running.
fn run(script: &str, dir: &Path) -> String {
    // All at once: one that is given up is soon given to the next who asks.
    let ports = ["3008", "3009", "8080"].map(|port| (port, TcpListener::bind("127.0.0.1:0").unwrap()));
    // By way of what no port has in it: a free port may be 38080.
    let named =
        ports.iter().fold(script.to_owned(), |text, (port, _)| text.replace(port, &format!("<{port}>")));
    let script = ports.iter().fold(named, |text, (port, free)| {
        text.replace(&format!("<{port}>"), &free.local_addr().unwrap().port().to_string())
    });
    drop(ports);
    let programs = PROGRAMS.map(|program| process::program(program).unwrap().parent().unwrap().to_owned());
    let path = std::env::join_paths(
        programs.into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let log = fs::File::create(dir.join("output")).unwrap();
    let mut shell = Command::new("bash")
        .args(["-c", &format!("set -e\n{script}")])
        .current_dir(dir)
        .env("PATH", path.unwrap())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Pid::from_child(&shell);
    let deadline = Instant::now() + WITHIN;
    let status = loop {
        match shell.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            None => thread::sleep(Duration::from_millis(50)),
        }
    };
    // It is empty, if all went well.
    let _ = kill_process_group(group, Signal::KILL);
    let _ = shell.wait();
    end_instances(&dir.join("deploys"));
    let output = fs::read_to_string(dir.join("output")).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{script}\n{output}");
    output
}

#[test]
fn the_start_in_the_readme_works_as_written() {
    let readme = text("README.md");
    let dir = tempfile::tempdir().unwrap();
    let output = run(&script(chapter(&readme, "## Two-minute start")), dir.path());
    let said = ["blue 1.0.0", "app: blue → green (generation 1)", "green 1.0.1", "blue: drained in"];
    for said in said {
        assert!(output.contains(said), "no {said:?} in\n{output}");
    }
}

#[test]
fn the_quick_start_works_as_written_and_its_metrics_are_documented() {
    let page = text("docs/quickstart.md");
    let (rest, stop) = page.split_at(page.find("## 9. Stop").unwrap());
    let scrape = "curl --silent --unix-socket \"$UH_PROXY_ADMIN_SOCKET\" http://uh/metrics > metrics\n";
    let script = [&script(rest), scrape, &script(stop)].concat();
    // The refused switch, whose exit code is shown.
    let script = script.replace("uh-proxy switch green; echo", "uh-proxy switch green || echo");
    let dir = tempfile::tempdir().unwrap();
    let output = run(&script, dir.path());
    let said =
        ["blue 1.0.0", "green 1.0.1", "blue: drained in", "exit code 3", "green 1.0.2", "Rollback complete"];
    for said in said {
        assert!(output.contains(said), "no {said:?} in\n{output}");
    }
    demand_documented(&fs::read_to_string(dir.path().join("metrics")).unwrap());
}

fn demand_documented(metrics: &str) {
    let page = text("docs/metrics.md");
    let documented: Vec<Vec<&str>> =
        rows(chapter(&page, "## uh-proxy")).filter(|row| row.len() == 4 && row[0].starts_with('`')).collect();
    let find = |name: &str| documented.iter().find(|row| row[0] == format!("`{name}`"));
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE uh_proxy_"));
    let mut seen = 0;
    for (name, kind) in types.filter_map(|line| line.split_once(' ')) {
        seen += 1;
        let row = find(name).unwrap_or_else(|| panic!("uh_proxy_{name} is not in docs/metrics.md"));
        assert_eq!(row[1], kind, "{name} in docs/metrics.md");
        let listed: Vec<&str> = row[2].split(',').map(str::trim).collect();
        let samples = metrics.lines().filter_map(|line| line.strip_prefix("uh_proxy_")?.strip_prefix(name));
        let labels = samples
            .filter_map(|rest| rest.strip_prefix('{')?.split_once('}'))
            .flat_map(|(l, _)| l.split("\","));
        for label in labels.filter_map(|label| label.split_once('=')).map(|(label, _)| label) {
            assert!(listed.contains(&label), "the label {label} of {name} is not in docs/metrics.md");
        }
    }
    assert!(seen > 20, "{metrics}");
    let code = ["proxy/src/observe/metrics.rs", "proxy/src/observe/meters.rs"].map(text).concat();
    for row in documented {
        let name = row[0].trim_matches('`');
        let there = [format!("\"{name}\""), format!("\"uh_proxy_{name}\"")]
            .iter()
            .any(|literal| code.contains(literal));
        assert!(there, "docs/metrics.md has {name}, and the code has not");
    }
}
