//! Checks everything a deploy needs, without changing anything. Every check runs, whatever the result of the others.

mod database;
mod files;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use uh_protocol::Address;

use crate::check::Check;
use crate::config::{Config, RuntimeConfig};
use crate::proxy::{ProxyService, ServiceView};
use crate::runtime::{Candidate, Runtime, ports};
use crate::{chain, command, env_file};

/// How long `uh-proxy check` may take.
const PROXY_CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a database may take to answer.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);

/// A clock that shows an earlier time is wrong: 2026-01-01.
const EARLIEST_SECOND: i64 = 1_767_225_600;

/// How far the clock may be behind the last switch.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Runs all checks.
pub(crate) async fn validate(config: &Config, runtime: &dyn Runtime) -> Vec<Check> {
    let proxy = match ProxyService::find(config).await {
        Ok(proxy) => proxy.view().await.map(|view| (proxy, view)),
        Err(e) => Err(e),
    };
    let mut checks = Vec::new();
    let view = proxy.as_ref().ok().map(|(_, view)| view);
    let candidate = candidate(config, proxy.as_ref().ok());
    checks.extend(runtime.checks(&candidate).await);
    checks.extend(proxy_configuration(config).await);
    checks.push(match &proxy {
        Ok((proxy, view)) => proxy_answers(config, proxy, view),
        Err(e) => Check::failed(
            "uh-proxy answers",
            chain(e),
            "start uh-proxy, or fix deploy.admin_socket and deploy.service",
        ),
    });
    checks.push(environment(config));
    checks.extend(database(config).await);
    checks.push(disk(config));
    checks.extend(files::checks(config, &candidate));
    checks.push(memory(config));
    checks.extend(candidate_ports(config, runtime, &candidate, view).await);
    checks.push(clock(view));
    checks
}

/// The candidate that a deploy would choose now.
fn candidate(config: &Config, proxy: Option<&(ProxyService, ServiceView)>) -> Candidate {
    let inactive = proxy.and_then(|(_, view)| config.backends.iter().find(|b| !view.is_active(&b.name)));
    let backend = inactive.or(config.backends.last());
    let service = proxy.map(|(proxy, _)| proxy.service.clone()).or_else(|| config.deploy.service.clone());
    Candidate {
        service: service.unwrap_or_else(|| unnamed("app")),
        backend: backend.map_or_else(|| unnamed("green"), |backend| backend.name.clone()),
        version: "validate".to_owned(),
        endpoints: backend.map(|backend| backend.endpoints.clone()).unwrap_or_default(),
    }
}

#[expect(clippy::unwrap_used, reason = "the text is ours, and is a name")]
fn unnamed<T: std::str::FromStr<Err = uh_protocol::name::NameError>>(text: &'static str) -> T {
    text.parse().unwrap()
}

async fn proxy_configuration(config: &Config) -> Option<Check> {
    let name = "uh-proxy configuration valid";
    let path = config.deploy.proxy.config.as_ref()?;
    let mut check = Command::new(&config.deploy.proxy.program);
    check.args(["check", "--config"]).arg(path).envs(std::env::vars_os());
    let ran = command::run_lines(&check, PROXY_CHECK_TIMEOUT, &|_| {}, 20).await;
    Some(match ran {
        Ok(()) => Check::passed(name, path.display().to_string()),
        Err(failed) => {
            let found = if failed.log.is_empty() {
                failed.reason
            } else {
                failed.log.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            Check::failed(name, found, format!("fix {}", path.display()))
        }
    })
}

fn proxy_answers(config: &Config, proxy: &ProxyService, view: &ServiceView) -> Check {
    let name = "uh-proxy answers";
    let unknown: Vec<&str> = config
        .backends
        .iter()
        .filter(|backend| view.backend(&backend.name).is_none())
        .map(|backend| backend.name.as_str())
        .collect();
    if !unknown.is_empty() {
        let found = format!("it has no backend {}", unknown.join(", "));
        return Check::failed(name, found, "name the same backends in uh-proxy.toml and uh-deploy.toml");
    }
    if !view.status.persisted {
        let remedy = "free or repair the disk of its state file";
        return Check::failed(name, "its routing isn't on disk", remedy);
    }
    let process = &view.status.proxy;
    Check::passed(
        name,
        format!("uh-proxy {}, {} is active for {}", process.version, view.service.active, proxy.service),
    )
}

/// The value of a variable that the app would get.
fn variable(config: &Config, name: &str) -> Option<String> {
    let (env, file, handed_on) = match &config.runtime {
        RuntimeConfig::Process(process) => {
            (&process.env, &process.env_file, process.env_from.contains(&name.to_owned()))
        }
        RuntimeConfig::Docker(docker) => {
            (&docker.env, &docker.env_file, docker.env_from.contains(&name.to_owned()))
        }
        // The compose tool passes on all of uh-deploy's variables.
        RuntimeConfig::Compose(compose) => (&compose.env, &compose.env_file, true),
    };
    let file = file.as_deref().and_then(|path| env_file::read(path).ok()).unwrap_or_default();
    let set = env.get(name).or_else(|| file.get(name)).cloned();
    set.or_else(|| std::env::var(name).ok().filter(|_| handed_on))
}

fn environment(config: &Config) -> Check {
    let name = "Environment variables set";
    let (kind, file) = match &config.runtime {
        RuntimeConfig::Process(process) => ("process", &process.env_file),
        RuntimeConfig::Docker(docker) => ("docker", &docker.env_file),
        RuntimeConfig::Compose(compose) => ("compose", &compose.env_file),
    };
    if let Some(Err(reason)) = file.as_deref().map(env_file::read) {
        return Check::failed(name, reason, format!("fix the file or runtime.{kind}.env_file"));
    }
    let required = &config.validate.required_env;
    let missing: Vec<&str> = required
        .iter()
        .filter(|name| variable(config, name).is_none_or(|value| value.is_empty()))
        .map(String::as_str)
        .collect();
    if required.is_empty() {
        return Check::passed(name, "none checked: validate.required_env is empty");
    }
    if missing.is_empty() {
        return Check::passed(name, format!("{} required, all set", required.len()));
    }
    let remedy = "set them in the app's environment: env, env_file or env_from";
    Check::failed(name, format!("missing or empty: {}", missing.join(", ")), remedy)
}

async fn database(config: &Config) -> Option<Check> {
    let name = "Database connection OK";
    let variable_name = config.validate.database_url_env.as_ref()?;
    let url = variable(config, variable_name).or_else(|| std::env::var(variable_name).ok());
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        let remedy = format!("set {variable_name}");
        return Some(Check::failed(name, format!("{variable_name} isn't set"), remedy));
    };
    let found = match tokio::time::timeout(DATABASE_TIMEOUT, database::ask(&url)).await {
        Ok(Ok(found)) => return Some(Check::passed(name, found)),
        Ok(Err(reason)) => reason,
        Err(_) => format!("no answer within {} s", DATABASE_TIMEOUT.as_secs()),
    };
    let remedy = format!(
        "make sure that the database runs and accepts connections from here, and that {variable_name} is correct"
    );
    Some(Check::failed(name, found, remedy))
}

fn disk(config: &Config) -> Check {
    let least = config.validate.min_disk;
    let name = format!("Disk space sufficient (>{})", size(least));
    // The state directory may not exist before the first deploy.
    let dir = config.deploy.state_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} free at {}", size(free), dir.display());
            if free >= least {
                Check::passed(name, text)
            } else {
                Check::failed(
                    name,
                    text,
                    "free some space (old images, logs, releases), or lower validate.min_disk",
                )
            }
        }
        Err(e) => Check::failed(name, format!("{}: {}", dir.display(), chain(&e)), "fix deploy.state_dir"),
    }
}

fn memory(config: &Config) -> Check {
    let least = config.validate.min_memory;
    let name = format!("Memory available (>{})", size(least));
    let remedy =
        "both versions run at once during a deploy: free memory, add some, or lower validate.min_memory";
    match available_memory() {
        Some(available) if available >= least => Check::passed(name, size(available)),
        Some(available) => Check::failed(name, size(available), remedy),
        None => Check::failed(name, "/proc/meminfo has no MemAvailable", remedy),
    }
}

fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{}KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{}MiB", bytes >> 20),
        _ => format!("{:.1}GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// The candidate's ports must be free, or used by a standby that the deploy stops.
async fn candidate_ports(
    config: &Config,
    runtime: &dyn Runtime,
    candidate: &Candidate,
    view: Option<&ServiceView>,
) -> Option<Check> {
    let name = format!("Port of {} available", candidate.backend);
    let mut ours = false;
    for instance in runtime.find(&candidate.backend).await.unwrap_or_default() {
        ours |= runtime.state(&instance).await.is_ok_and(|state| state.is_running());
    }
    let active: Vec<String> = view
        .and_then(|view| view.backend(&view.service.active))
        .map(|backend| backend.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect())
        .unwrap_or_default();
    for endpoint in &candidate.endpoints {
        if active.contains(&endpoint.to_string()) {
            let found = format!("{endpoint} belongs to the active backend");
            return Some(Check::failed(name, found, "give each backend endpoints of its own"));
        }
        if let Some(by) = ports::taken_by(endpoint).filter(|_| !ours) {
            let remedy = "stop it, or give the backend another endpoint";
            return Some(Check::failed(name, format!("{endpoint} is in use by {by}"), remedy));
        }
    }
    let endpoints: Vec<String> = candidate.endpoints.iter().map(Address::to_string).collect();
    let found = if ours { "in use by the standby that a deploy stops" } else { "free" };
    let _ = config;
    Some(Check::passed(name, format!("{}: {found}", endpoints.join(", "))))
}

/// A wrong clock breaks warm windows, the history and certificates.
fn clock(view: Option<&ServiceView>) -> Check {
    let name = "Clock plausible";
    let now = jiff::Timestamp::now();
    let remedy = "set the clock (timedatectl set-ntp true)";
    if now.as_second() < EARLIEST_SECOND {
        return Check::failed(name, format!("the clock says {now}"), remedy);
    }
    let last = view.and_then(|view| view.service.last_switch.as_deref()?.parse::<jiff::Timestamp>().ok());
    if last.is_some_and(|last| now.checked_add(CLOCK_SLACK).is_ok_and(|now| last > now)) {
        return Check::failed(name, format!("the clock says {now}, before the last switch"), remedy);
    }
    Check::passed(name, crate::time::iso_millis(now))
}
