//! Files: uh-proxy's configuration and state; `uh-deploy`'s configuration, journal, history, records and environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;
use uh_controller::counters::Counters;
use uh_controller::deploy::history::{History, HistoryEntry};
use uh_controller::deploy::records::Records;
use uh_controller::env_file;
use uh_proxy::config::{self, Config};
use uh_proxy::state::file::StateFile;
use uh_testkit::fuzz::words::{
    CONFIG_WORDS, DEPLOY_WORDS, GUIDE_STATE, JSON_WORDS, STATE_WORDS, TOML_WORDS, WHOLE_STATE, with_all_keys,
};

use crate::target::{Target, behind};
use crate::{deploy_properties, proxy_properties};

pub(crate) const CONFIG: Target = Target {
    name: "config",
    check: proxy_properties::of_config,
    seeds: config_seeds,
    words: &[TOML_WORDS, CONFIG_WORDS, KEYS],
};

pub(crate) const STATE: Target =
    Target { name: "state", check: check_state, seeds: state_seeds, words: &[JSON_WORDS, STATE_WORDS] };

pub(crate) const DEPLOY_CONFIG: Target = Target {
    name: "deploy_config",
    check: deploy_properties::of_config,
    seeds: deploy_config_seeds,
    words: &[TOML_WORDS, CONFIG_WORDS, DEPLOY_WORDS],
};

pub(crate) const JOURNAL: Target = Target {
    name: "journal",
    check: |bytes| deploy_properties::of_journal(bytes, directory()),
    seeds: journal_seeds,
    words: &[JSON_WORDS, DEPLOY_WORDS, STATE_WORDS, EVENTS],
};

pub(crate) const DEPLOY_FILES: Target = Target {
    name: "deploy_files",
    check: check_deploy_files,
    seeds: deploy_files_seeds,
    words: &[TOML_WORDS, JSON_WORDS, DEPLOY_WORDS, STATE_WORDS],
};

const KEYS: &[&str] =
    &["bypass_header", "drain_tunnels", "headers = {", "limits", "timeouts", "retries", "resolve"];

const EVENTS: &[&str] = &[
    "\"built\"",
    "\"started\"",
    "\"proven\"",
    "\"switched\"",
    "\"drained\"",
    "\"recorded\"",
    "\"undone\"",
    "\"interrupted\"",
    "{\"failed\":\"unhealthy\"}",
    "{\"begun\":\"rollback\"}",
];

/// Which small file the first byte of a case chooses.
const HISTORY: u8 = 0;
const RECORD: u8 = 1;
const ENVIRONMENT: u8 = 2;
const METRICS: u8 = 3;

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a directory can be made")).path()
}

/// Few keys, so that most changes are to what matters.
const SMALL: &str = "[server]\nlisten = [\"127.0.0.1:0\"]\n[services.app]\nactive = \"blue\"\n\
                     drain_timeout = \"30s\"\ntimeouts = { read = \"60s\" }\nlimits = { body_bytes = \"1GiB\" }\n\
                     [services.app.backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n\
                     [services.app.backends.green]\nendpoints = [\"127.0.0.1:2\"]\n";
const SMALL_DEPLOY: &str = "[deploy]\nsettle = \"2s\"\n[validate]\nmin_disk = \"1GiB\"\n\
                            [backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n\
                            [backends.green]\nendpoints = [\"127.0.0.1:2\"]\n\
                            [runtime.process]\ncommand = [\"node\", \"server.js\"]\n";

pub(crate) fn small_config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| config::parse(SMALL).expect("it is good"))
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    seeds_of(
        include_str!("../../../config/uh-proxy.toml"),
        [
            include_str!("../../../docker/uh-proxy.toml"),
            include_str!("../../../docker/two-apps/uh-proxy.toml"),
            SMALL,
        ],
    )
}

fn check_state(bytes: &[u8]) -> Result<(), String> {
    proxy_properties::of_state(bytes, small_config())
}

pub(crate) fn state_seeds() -> Vec<Vec<u8>> {
    let page = include_str!("../../../docs/state-file.md");
    let example = page.split("## Example\n\n```json\n").nth(1).and_then(|rest| rest.split("```").next());
    let example = example.expect("the page shows a state file").to_owned();
    let sealed =
        StateFile::parse(WHOLE_STATE.as_bytes()).and_then(|state| Ok(state.text()?)).expect("it is good");
    vec![example.into_bytes(), WHOLE_STATE.into(), sealed, GUIDE_STATE.into()]
}

pub(crate) fn deploy_config_seeds() -> Vec<Vec<u8>> {
    seeds_of(
        include_str!("../../../config/uh-deploy.toml"),
        [
            include_str!("../../../docker/uh-deploy.toml"),
            include_str!("../../../docker/two-apps/shop.toml"),
            SMALL_DEPLOY,
        ],
    )
}

/// Shipped configurations, the first one also with all its keys.
fn seeds_of(shipped: &str, others: [&str; 3]) -> Vec<Vec<u8>> {
    let seeds = [shipped.to_owned(), with_all_keys(shipped)];
    seeds.into_iter().chain(others.map(str::to_owned)).map(String::into_bytes).collect()
}

fn entry(operation: &str, event: &str, more: &str) -> String {
    let at = "2026-11-25T10:00:00.000Z";
    format!("{{\"schema\":1,\"at\":\"{at}\",\"operation\":\"{operation}\",\"event\":{event}{more}}}\n")
}

fn journal_seeds() -> Vec<Vec<u8>> {
    let facts = |operation: &str| {
        format!(
            ",\"facts\":{{\"operation\":\"{operation}\",\"service\":\"app\",\"from\":\"blue\",\"from_version\":\"1\",\
             \"to\":\"green\",\"version\":\"2\",\"instance\":\"app-green-{operation}\",\"endpoints\":[\"127.0.0.1:3009\"],\
             \"generation\":7,\"skip_health\":false,\"who\":\"me@here\",\"why\":null,\
             \"began_at\":\"2026-11-25T10:00:00.000Z\"}}"
        )
    };
    let begun = |operation: &str, kind: &str| {
        entry(operation, &format!("{{\"begun\":\"{kind}\"}}"), &facts(operation))
    };
    let tell = |operation: &str, events: &[&str]| -> String {
        events.iter().map(|event| entry(operation, event, ",\"note\":\"x\"")).collect()
    };
    let well = ["\"built\"", "\"started\"", "\"proven\"", "\"switched\"", "\"drained\"", "\"recorded\""];
    let failed = ["\"built\"", "{\"failed\":\"unhealthy\"}", "\"undone\"", "\"recorded\""];
    [
        begun("one", "deploy") + &tell("one", &well),
        begun("one", "deploy") + &tell("one", &well[..3]),
        begun("one", "deploy")
            + &tell("one", &failed)
            + &begun("two", "rollback")
            + &tell("two", &["\"interrupted\""]),
        begun("one", "rollback") + "{\"schema\":1,\"at",
    ]
    .map(String::into_bytes)
    .to_vec()
}

fn check_deploy_files(case: &[u8]) -> Result<(), String> {
    let Some((&first, bytes)) = case.split_first() else { return Ok(()) };
    match first {
        HISTORY => check_history(bytes),
        RECORD => {
            let blue = "blue".parse().map_err(|e| format!("{e}"))?;
            let _ = Records::new(directory()).of(&blue).map(|record| format!("{record:?}"));
            write(&directory().join("records"), "blue.json", bytes);
            match Records::new(directory()).of(&blue) {
                Ok(Some(_)) | Err(_) => Ok(()),
                Ok(None) => Err("a record that is there is not seen".to_owned()),
            }
        }
        ENVIRONMENT => {
            let path = write(directory(), "environment", bytes);
            let Ok(variables) = env_file::read(&path) else { return Ok(()) };
            match variables.iter().find(|(name, value)| name.contains(['=', '\0']) || value.contains('\0')) {
                Some(bad) => Err(format!("accepted: {bad:?}")),
                None => Ok(()),
            }
        }
        METRICS => {
            let text = String::from_utf8_lossy(bytes);
            let (before, after) = text.split_once("\n\n").unwrap_or(("", &text));
            let counted = [before, after].map(|text| Counters::read(text, "app", "blue"));
            let since = counted[1].since(&counted[0]);
            let _ = (since.p95(), counted[1].p95());
            let rate = since.answers().rate();
            if (0.0..=1.0).contains(&rate) { Ok(()) } else { Err(format!("an error rate of {rate}")) }
        }
        _ => Ok(()),
    }
}

/// What can be read stays as it was, and a line that is appended is read.
fn check_history(bytes: &[u8]) -> Result<(), String> {
    let path = write(directory(), "history.jsonl", bytes);
    let history = History::new(directory());
    let before = history.lines().map_err(|e| e.to_string())?;
    let line = HistoryEntry { operation: Some("the newest".to_owned()), ..HistoryEntry::default() };
    history.append(&line).map_err(|e| e.to_string())?;
    let mut after = history.lines().map_err(|e| e.to_string())?;
    let known = before.iter().any(|other| other.operation == line.operation);
    let last = if known { None } else { after.pop() };
    if after != before || (!known && last.as_ref() != Some(&line)) {
        return Err(format!("before: {before:?}\nafter: {after:?} and {last:?}"));
    }
    let now = fs::read(path).map_err(|e| e.to_string())?;
    if now.starts_with(bytes) { Ok(()) } else { Err("an old line has changed".to_owned()) }
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(directory).expect("a directory can be made");
    let path = directory.join(name);
    fs::write(&path, bytes).expect("a file can be written");
    path
}

fn deploy_files_seeds() -> Vec<Vec<u8>> {
    let line = r#"{"at":"2026-11-25T10:00:00.000Z","operation":"one","command":"deploy","who":"me@here","service":"app","from":"blue","from_version":"1","to":"green","version":"2","artifact":"x","outcome":"deployed","reason":"y","remarks":["z"],"timings_ms":{"build":1},"in_flight":1,"finished":1,"cut":0}"#;
    let record = r#"{"instance":"app-green-one","frozen":{"backend":"blue","version":"1","endpoints":["127.0.0.1:1"],"runtime":"process","artifact":"x","spec":{}},"operation":"one"}"#;
    let metrics = |n: u32| {
        format!(
            "# HELP x\nuh_proxy_requests_total{{service=\"app\",backend=\"blue\",code=\"200\"}} {n}\n\
             uh_proxy_requests_total{{service=\"app\",backend=\"blue\",code=\"502\"}} 1\n\
             uh_proxy_request_duration_seconds_bucket{{service=\"app\",backend=\"blue\",le=\"0.1\"}} {n}\n\
             uh_proxy_request_duration_seconds_bucket{{service=\"app\",backend=\"blue\",le=\"+Inf\"}} {}\n",
            2 * n
        )
    };
    [
        behind(&[HISTORY], [format!("{line}\n"), format!("{line}\n{line}\n{{\"at\":\"20"), line.to_owned()]),
        behind(&[RECORD], [record]),
        behind(&[ENVIRONMENT], ["# comment\n\nA=1\nexport B=\"two words\"\nC='x=y'\nD=\n"]),
        behind(&[METRICS], [metrics(100) + "\n" + &metrics(200)]),
    ]
    .concat()
}
