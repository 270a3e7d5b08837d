//! The command line. Every option can also be set with a variable, so that an image needs no arguments.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::FalseyValueParser;

use crate::exit::Exit;
use crate::health_client;
use crate::process;
use crate::run;
use crate::settings::{self, AppAddress, HealthSource, Mode, SettingsError, ShimSettings};
use uh_system::without_numbers;

/// Shown below the options of `--help`.
const AFTER_HELP: &str = "\
Examples:
  app-shim -- node server.js
  app-shim --listen 0.0.0.0:3008 --app 127.0.0.1:3000 --health both -- node server.js
  app-shim --app unix:/run/app.sock -- gunicorn --bind unix:/run/app.sock app
  app-shim --check                           # in a HEALTHCHECK: exits with 0 if the running shim is healthy

SIGTERM or SIGINT starts the drain. A second signal ends the wait for requests, a third the wait for the app.

Exit codes:
  the app's own, or 128+n if signal n ended it
  0    asked to stop, and everything was drained
  2    invalid arguments
  124  requests or tunnels were cut
  125  app-shim failed
  126  the command can't be executed
  127  the command doesn't exist
  137  everything was drained, but the app had to be killed";

/// The headings of the options in `--help`.
const HEALTH: &str = "Health and metrics";
const TIMEOUTS: &str = "Timeouts";

/// Start an app, forward its requests, and let requests in flight finish before the app is stopped
#[derive(Debug, Parser)]
#[command(name = "app-shim", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Where clients connect; with --supervise-only, where health is served [default: 0.0.0.0:3008; with --supervise-only: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "APP_SHIM_LISTEN", value_parser = settings::listen_address)]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Where the app listens: ip:port, localhost:port or unix:/path; sets PORT and HOSTNAME for the app
    #[arg(long, value_name = "ADDRESS", env = "APP_SHIM_APP", default_value = "127.0.0.1:3000")]
    pub(crate) app: AppAddress,
    /// Start even if a process already accepts connections on --app; only for an app that inherits its listening socket
    #[arg(long, env = "APP_SHIM_ALLOW_LISTENING", value_parser = FalseyValueParser::new())]
    pub(crate) allow_listening: bool,
    /// Stay out of the request path; on SIGTERM, wait for the app's established TCP connections to end
    #[arg(long, env = "APP_SHIM_SUPERVISE_ONLY", value_parser = FalseyValueParser::new())]
    pub(crate) supervise_only: bool,
    /// Path of the health check
    #[arg(long, help_heading = HEALTH, value_name = "PATH", env = "APP_SHIM_HEALTH_PATH", default_value = "/api/health", value_parser = settings::path)]
    pub(crate) health_path: String,
    /// Who answers the health check
    #[arg(long, help_heading = HEALTH, value_name = "WHO", env = "APP_SHIM_HEALTH", default_value = "shim")]
    pub(crate) health: HealthSource,
    /// Serve Prometheus metrics at /metrics, and health, until the very end
    #[arg(long, help_heading = HEALTH, value_name = "ADDRESS", env = "APP_SHIM_METRICS", value_parser = settings::listen_address)]
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// Start nothing; ask the shim that listens on --listen whether it is healthy, and exit with 0 if it is
    #[arg(long, help_heading = HEALTH, conflicts_with = "command")]
    pub(crate) check: bool,
    /// How long the app may take to accept connections after its start
    #[arg(long, help_heading = TIMEOUTS, value_name = "DURATION", env = "APP_SHIM_START_TIMEOUT", default_value = "5m", value_parser = settings::duration)]
    pub(crate) start_timeout: Duration,
    /// How long requests in flight may take after SIGTERM
    #[arg(long, help_heading = TIMEOUTS, value_name = "DURATION", env = "APP_SHIM_DRAIN_TIMEOUT", default_value = "30s", value_parser = settings::duration)]
    pub(crate) drain_timeout: Duration,
    /// How long the app may take to exit after the drain before it is killed
    #[arg(long, help_heading = TIMEOUTS, value_name = "DURATION", env = "APP_SHIM_KILL_AFTER", default_value = "5s", value_parser = settings::duration)]
    pub(crate) kill_after: Duration,
    /// The app's command and its arguments
    #[arg(last = true, required_unless_present = "check", value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// The command line as `--help` shows it, with its defaults.
#[must_use]
pub fn command() -> clap::Command {
    <Args as clap::CommandFactory>::command()
}

impl Args {
    /// As validated settings.
    pub(crate) fn into_settings(self) -> Result<ShimSettings, SettingsError> {
        let mode = match (self.supervise_only, self.listen) {
            (false, listen) => Mode::Forward(listen.unwrap_or(settings::DEFAULT_LISTEN)),
            (true, listen) => Mode::SuperviseOnly(listen),
        };
        let settings = ShimSettings {
            mode,
            app: self.app,
            health_path: self.health_path,
            health: self.health,
            drain_timeout: self.drain_timeout,
            kill_after: self.kill_after,
            start_timeout: self.start_timeout,
            metrics: self.metrics,
            allow_listening: self.allow_listening,
            command: self.command,
        };
        settings.validated()
    }
}

/// Parses the command line, runs the app until it exits, and returns the exit code.
pub fn main() -> ExitCode {
    if let Some(exit) = process::become_the_app(std::env::args_os()) {
        return exit.into();
    }
    let args = Args::parse();
    if args.check {
        return match health_client::check(args.listen.unwrap_or(settings::DEFAULT_LISTEN), &args.health_path)
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(reason) => {
                let _ = writeln!(io::stderr(), "app-shim: {}", without_numbers(&reason));
                ExitCode::FAILURE
            }
        };
    }
    let settings = match args.into_settings() {
        Ok(settings) => settings,
        Err(error) => {
            let _ = writeln!(io::stderr(), "app-shim: {error}");
            return ExitCode::from(2);
        }
    };
    match run::run(settings) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "app-shim: {}", without_numbers(&error.to_string()));
            Exit::Failed.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn read(arguments: &[&str]) -> Result<ShimSettings, SettingsError> {
        let typed = ["app-shim"].iter().chain(arguments).chain(&["--", "app"]);
        Args::try_parse_from(typed).unwrap().into_settings()
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let settings = read(&["--health", "shim"]).unwrap();
        assert_eq!(settings.mode, Mode::Forward("0.0.0.0:3008".parse().unwrap()));
        assert_eq!(settings.app.to_string(), "127.0.0.1:3000");
        assert_eq!(settings.health_path, "/api/health");
        assert_eq!(settings.drain_timeout, Duration::from_secs(30));
        assert_eq!(settings.kill_after, Duration::from_secs(5));
        assert_eq!(read(&["--supervise-only"]).unwrap().mode, Mode::SuperviseOnly(None));
    }

    #[test]
    fn contradicting_settings_are_refused_before_anything_starts() {
        let same = read(&["--listen", "0.0.0.0:3000", "--app", "127.0.0.1:3000"]).unwrap_err();
        assert!(same.to_string().contains("needs a port of its own"), "{same}");
        let unix = read(&["--supervise-only", "--app", "unix:/run/app.sock"]).unwrap_err();
        assert_eq!(unix, SettingsError::SuperviseUnix);
    }

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
