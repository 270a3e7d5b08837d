//! The command line: every option is also a variable, so that an image can be set up without one.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Parser, ValueEnum};

use crate::ask;
use crate::exit::Exit;
use crate::process;
use crate::run;
use crate::settings::{self, AppAddress, Settings};

/// Exit codes, as shown by `--help`.
const EXIT_CODES: &str = "Exit codes: the app's own, 128+n if signal n ended it · 0 stopped, nothing was cut · 2 usage · 124 exchanges were cut · 125 the shim failed · 126 the command can't be executed · 127 no such command · 137 stopped, but the app had to be killed";

/// Starts an app, sits in the path of its requests, and lets them finish when it is told to stop.
#[derive(Debug, Parser)]
#[command(name = "app-shim", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Where clients connect; with --supervise-only, where only health is served [default: 0.0.0.0:3008; with --supervise-only: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "APP_SHIM_LISTEN", value_parser = settings::listen_address)]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Where the app listens: ip:port, localhost:port or unix:/path; sets PORT and HOSTNAME for it
    #[arg(long, value_name = "ADDRESS", env = "APP_SHIM_APP", default_value = "127.0.0.1:3000")]
    pub(crate) app: AppAddress,
    /// The path of the health check
    #[arg(long, value_name = "PATH", env = "APP_SHIM_HEALTH_PATH", default_value = "/api/health", value_parser = settings::path)]
    pub(crate) health_path: String,
    /// Who answers the health check
    #[arg(long, value_name = "WHO", env = "APP_SHIM_HEALTH", default_value = "shim")]
    pub(crate) health: HealthSource,
    /// How long what is in flight may take after SIGTERM
    #[arg(long, value_name = "DURATION", env = "APP_SHIM_DRAIN_TIMEOUT", default_value = "30s", value_parser = settings::duration)]
    pub(crate) drain_timeout: Duration,
    /// How long the app may take to end, after the drain, before it is killed
    #[arg(long, value_name = "DURATION", env = "APP_SHIM_KILL_AFTER", default_value = "5s", value_parser = settings::duration)]
    pub(crate) kill_after: Duration,
    /// How long the app may take until it accepts connections
    #[arg(long, value_name = "DURATION", env = "APP_SHIM_START_TIMEOUT", default_value = "5m", value_parser = settings::duration)]
    pub(crate) start_timeout: Duration,
    /// Stay out of the path: on SIGTERM, wait for the app's connections to end
    #[arg(long, env = "APP_SHIM_SUPERVISE_ONLY", value_parser = FalseyValueParser::new())]
    pub(crate) supervise_only: bool,
    /// Serve Prometheus metrics and health here, until the very end
    #[arg(long, value_name = "ADDRESS", env = "APP_SHIM_METRICS", value_parser = settings::listen_address)]
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// Start although something already listens on --app: only for an app that inherits its listening socket
    #[arg(long, env = "APP_SHIM_ALLOW_LISTENING", value_parser = FalseyValueParser::new())]
    pub(crate) allow_listening: bool,
    /// Start nothing; ask the shim that listens there whether it is healthy. Exit code 0 if it is: for HEALTHCHECK
    #[arg(long, conflicts_with = "command")]
    pub(crate) check: bool,
    /// The app
    #[arg(last = true, required_unless_present = "check", value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// The command line as `--help` shows it, with its defaults.
#[must_use]
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

/// Who answers a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HealthSource {
    /// The shim: healthy while the app accepts connections
    Shim,
    /// The app, but for the time before it accepts and after SIGTERM
    App,
    /// The shim, which asks the app too: healthy only if both are
    Both,
}

/// Parses the command line, runs the app to its end, and says how it went.
pub fn main() -> ExitCode {
    if let Some(exit) = process::become_the_app(std::env::args_os()) {
        return exit.into();
    }
    let args = Args::parse();
    if args.check {
        return match ask::ask(args.listen.unwrap_or(settings::DEFAULT_LISTEN), &args.health_path) {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                let _ = writeln!(io::stderr(), "app-shim: {reason}");
                ExitCode::FAILURE
            }
        };
    }
    let settings = match Settings::new(args) {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "app-shim: {error}");
            return ExitCode::from(2);
        }
    };
    match run::run(settings) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "app-shim: {error:#}");
            Exit::Failed.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_option_is_also_a_variable() {
        for argument in Args::command().get_arguments().filter(|argument| argument.get_long().is_some()) {
            let Some(variable) = argument.get_env() else {
                assert!(["help", "version", "check"].contains(&argument.get_id().as_str()));
                continue;
            };
            let long = argument.get_long().unwrap().to_uppercase().replace('-', "_");
            assert_eq!(variable.to_str(), Some(format!("APP_SHIM_{long}").as_str()));
        }
    }
}
