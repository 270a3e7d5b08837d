//! Program, arguments, environment and limits of a process. Decided once, from the configuration and the candidate.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::host_and_port;
use crate::config::{ProcessSettings, Restart};
use crate::runtime::Candidate;

/// The variables of uh-deploy's environment that every app gets, because programs need them to run at all.
const INHERITED: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"];

/// A program that starts the app given after `--`.
const SHIM: &str = "app-shim";

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessSpec {
    /// Its full path.
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Its working directory.
    pub(super) directory: PathBuf,
    /// Its whole environment.
    pub(super) env: BTreeMap<String, String>,
    /// Its memory limit, in bytes.
    pub(super) memory_limit: Option<u64>,
    /// Whether it is restarted when it exits, once restarts are enabled. Specs of earlier versions aren't.
    #[serde(default)]
    pub(super) restart: bool,
    /// The size at which its log file is rotated, in bytes.
    pub(super) log_size: u64,
    /// How many rotated files are kept.
    pub(super) log_files: u32,
}

impl ProcessSpec {
    /// The spec of the app.
    pub(super) fn app(settings: &ProcessSettings, candidate: &Candidate) -> Result<Self, String> {
        Self::of(settings, &settings.command, candidate)
    }

    /// The spec of the build command.
    pub(super) fn build(settings: &ProcessSettings, candidate: &Candidate) -> Result<Self, String> {
        Self::of(settings, &settings.build, candidate)
    }

    fn of(settings: &ProcessSettings, command: &[String], candidate: &Candidate) -> Result<Self, String> {
        let (host, port) = host_and_port(candidate.endpoints.first());
        let fill = |text: &str| {
            text.replace("{backend}", candidate.backend.as_str())
                .replace("{version}", &candidate.version)
                .replace("{host}", &host)
                .replace("{port}", &port)
        };
        let directory = PathBuf::from(fill(&settings.directory.display().to_string()));
        demand_directory(&directory)?;
        let (program, arguments) = command.split_first().ok_or("there is no command")?;
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        for name in INHERITED {
            env.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
        }
        env.insert("PORT".to_owned(), port.clone());
        env.insert("HOSTNAME".to_owned(), host.clone());
        env.insert("DEPLOYMENT_ENV".to_owned(), candidate.backend.to_string());
        env.insert("APP_VERSION".to_owned(), candidate.version.clone());
        if let Some(path) = &settings.env_file {
            env.extend(crate::env_file::read(path)?);
        }
        for name in &settings.env_from {
            let value = std::env::var(name).map_err(|_| {
                format!("{name} (runtime.process.env_from) isn't set in uh-deploy's environment")
            })?;
            env.insert(name.clone(), value);
        }
        env.extend(settings.env.iter().map(|(name, value)| (name.clone(), fill(value))));
        let arguments: Vec<String> = arguments.iter().map(|argument| fill(argument)).collect();
        let program = resolve(&fill(program), &directory)?;
        // The app behind a shim must exist too, and only the shim would notice that it doesn't.
        if program.file_name().is_some_and(|name| name == SHIM)
            && let Some(app) = arguments.iter().position(|argument| argument == "--")
            && let Some(app) = arguments.get(app + 1)
        {
            resolve_in(app, &directory, OsStr::new(env.get("PATH").map_or("", String::as_str)))?;
        }
        Ok(Self {
            program,
            arguments,
            directory,
            env,
            restart: settings.restart == Restart::UnlessStopped,
            memory_limit: settings.memory_limit,
            log_size: settings.log_size,
            log_files: settings.log_files,
        })
    }

    /// Why it can't be started any more: its directory or program is missing.
    pub(super) fn fault(&self) -> Option<String> {
        let directory = demand_directory(&self.directory).err();
        directory.or_else(|| resolve(&self.program.display().to_string(), &self.directory).err())
    }

    /// The command, without its standard streams.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.directory).env_clear().envs(&self.env);
        command
    }
}

/// Starting a process in a missing directory fails with "no such file", as if the program were missing.
fn demand_directory(directory: &Path) -> Result<(), String> {
    match directory.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{} isn't a directory (runtime.process.directory)", directory.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(format!("directory {} doesn't exist (runtime.process.directory)", directory.display()))
        }
        Err(e) => Err(format!(
            "can't use {} (runtime.process.directory): {}",
            directory.display(),
            crate::chain(&e)
        )),
    }
}

/// The full path of a program: relative to a directory if it has a slash, otherwise looked up in `PATH`.
pub(super) fn resolve(program: &str, directory: &Path) -> Result<PathBuf, String> {
    resolve_in(program, directory, &std::env::var_os("PATH").unwrap_or_default())
}

fn resolve_in(program: &str, directory: &Path, path: &OsStr) -> Result<PathBuf, String> {
    let runs = |path: &Path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let found = if program.contains('/') {
        Some(directory.join(program)).filter(|path| runs(path))
    } else {
        std::env::split_paths(path).map(|dir| dir.join(program)).find(|path| runs(path))
    };
    found.ok_or_else(|| {
        if !program.contains('/') {
            return format!("program {program} not found in PATH");
        }
        let path = directory.join(program);
        match path.metadata() {
            Ok(found) if found.is_file() => format!("{} isn't executable", path.display()),
            Ok(_) => format!("{} isn't a program", path.display()),
            Err(_) => format!("program {program} not found in {}", directory.display()),
        }
    })
}
