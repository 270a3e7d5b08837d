//! Where the secrets come from: environment files, variables that are passed on, and the recorded environment of
//! everything that was started. The old values of a changed file stay secret, because running instances may still log
//! them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{Config, RuntimeConfig};
use crate::{env_file, files};

/// Recorded variables that aren't secret, unless an environment file or `env_from` names them: those that uh-deploy
/// sets or passes to every app, and those whose values are common words in logs.
const PLAIN: [&str; 16] = [
    "APP_VERSION",
    "DEPLOYMENT_ENV",
    "HOME",
    "HOST",
    "HOSTNAME",
    "LANG",
    "LOG_LEVEL",
    "NODE_ENV",
    "PATH",
    "PORT",
    "RAILS_ENV",
    "RUST_LOG",
    "TMPDIR",
    "TZ",
    "USER",
    "PYTHONPATH",
];

/// The secret values of a configuration and of the records in its state directory. Unreadable files are skipped: this
/// command can't print their values either.
#[must_use]
pub(crate) fn of_config(config: &Config) -> Vec<String> {
    let nothing = BTreeMap::new();
    let (file, handed_on, set) = match &config.runtime {
        RuntimeConfig::Process(process) => (&process.env_file, process.env_from.as_slice(), &process.env),
        RuntimeConfig::Docker(docker) => (&docker.env_file, docker.env_from.as_slice(), &docker.env),
        RuntimeConfig::Compose(compose) => (&compose.env_file, &[][..], &nothing),
    };
    let plain = |name: &str| config.secrets.plain.iter().any(|plain| plain == name);
    let variable = |name: &String| Some((name.clone(), std::env::var(name).ok()?));
    let mut named: Vec<(String, String)> =
        file.as_deref().and_then(|path| env_file::read(path).ok()).into_iter().flatten().collect();
    named.extend(handed_on.iter().filter_map(variable));
    named.extend(
        [&config.notice.webhook_env, &config.validate.database_url_env]
            .into_iter()
            .flatten()
            .filter_map(variable),
    );
    let known: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
    let harmless = |name: &str| {
        (PLAIN.contains(&name) || set.contains_key(name)) && !known.iter().any(|known| known == name)
    };
    let recorded = recorded(&config.deploy.state_dir).into_iter().filter(|(name, _)| !harmless(name));
    named.into_iter().chain(recorded).filter(|(name, _)| !plain(name)).map(|(_, value)| value).collect()
}

/// The environment of everything on record.
fn recorded(state_dir: &Path) -> Vec<(String, String)> {
    let entries =
        |directory: PathBuf| std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path());
    let records = entries(state_dir.join("records"));
    let specs = entries(state_dir.join("instances")).map(|instance| instance.join("spec.json"));
    let read = |path: PathBuf| serde_json::from_slice::<Value>(&files::read(&path).ok()??).ok();
    records.chain(specs).filter_map(read).flat_map(|value| environment(&value)).collect()
}

/// The environment in a record or a spec, as each runtime writes it: `env` of a process, `Env` of a container,
/// `environment` of a compose service.
fn environment(value: &Value) -> Vec<(String, String)> {
    let spec = value.pointer("/frozen/spec").unwrap_or(value);
    let services = spec.pointer("/document/services").and_then(Value::as_object);
    let of_services =
        services.into_iter().flat_map(|all| all.values()).filter_map(|service| service.get("environment"));
    let found = [spec.get("env"), spec.pointer("/body/Env")].into_iter().flatten().chain(of_services);
    found.flat_map(assignments).collect()
}

fn assignments(environment: &Value) -> Vec<(String, String)> {
    match environment {
        Value::Object(map) => {
            map.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
        }
        Value::Array(list) => list
            .iter()
            .filter_map(|item| item.as_str()?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKENDS: &str =
        "[backends.blue]\nendpoints = [\"127.0.0.1:1\"]\n[backends.green]\nendpoints = [\"127.0.0.1:2\"]\n";

    fn secrets(text: &str, directory: &Path) -> Vec<String> {
        of_config(&crate::config::parse(&format!("{BACKENDS}{text}"), directory).unwrap())
    }

    /// For each runtime: a file with a secret, and a variable that every process has.
    #[test]
    fn the_secrets_of_every_runtime_are_known() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app.env"), "API_KEY=tr0ub4dor\nAPP_KIND=service\n").unwrap();
        let path = std::env::var("PATH").unwrap();
        for (runtime, has_variables) in [
            ("kind = \"process\"\n[runtime.process]\ncommand = [\"app\"]\nenv_from = [\"PATH\"]", true),
            ("kind = \"docker\"\n[runtime.docker]\nimage = \"app:1\"\nenv_from = [\"PATH\"]", true),
            ("kind = \"compose\"\n[runtime.compose]\nfiles = [\"compose.yml\"]", false),
        ] {
            let text =
                format!("[deploy]\nstate_dir = \"state\"\n[runtime]\n{runtime}\nenv_file = \"app.env\"\n");
            let all = secrets(&text, dir.path());
            assert!(
                all.contains(&"tr0ub4dor".to_owned()) && all.contains(&"service".to_owned()),
                "{runtime}"
            );
            assert_eq!(all.contains(&path), has_variables, "{runtime}");
            let all = secrets(&format!("{text}[secrets]\nplain = [\"APP_KIND\"]\n"), dir.path());
            assert!(
                all.contains(&"tr0ub4dor".to_owned()) && !all.contains(&"service".to_owned()),
                "{runtime}"
            );
        }
    }

    #[test]
    fn recorded_values_stay_secret_when_their_file_changes() {
        let spec =
            serde_json::json!({"env": {"API_KEY": "old-value", "PORT": "3000", "NODE_ENV": "production"}});
        let docker = serde_json::json!({"frozen": {"spec": {"body": {"Env": ["TOKEN=of=docker"]}}}});
        let compose = serde_json::json!({"frozen": {"spec": {"document": {"services": {"green": {"environment": {"A": "of-compose"}}}}}}});
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [
            ("instances/app.blue.1/spec.json", spec),
            ("records/blue.json", docker),
            ("records/green.json", compose),
        ] {
            let path = dir.path().join("state").join(name);
            files::make_directory(path.parent().unwrap()).unwrap();
            files::replace(&path, value.to_string().as_bytes()).unwrap();
        }
        let text = "[deploy]\nstate_dir = \"state\"\n[runtime.process]\ncommand = [\"app\"]\n";
        let mut found = secrets(text, dir.path());
        found.sort();
        assert_eq!(found, ["of-compose", "of=docker", "old-value"]);
    }
}
