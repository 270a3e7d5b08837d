//! The command line. One file per command; `exit` decides every exit code.

mod args;
mod backend;
mod candidates;
mod certificates;
mod check;
mod drain;
mod exit;
mod import;
mod log;
mod maintenance;
mod preview;
mod release;
mod reload;
mod run;
mod shell;
mod split;
mod status;
mod switch;
mod target;
mod trial;
mod upgrade;

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::FromArgMatches as _;

use args::{Args, BackendCommand, Command, ImportCommand};
use exit::{Exit, Failed};

/// The exit code of a command, or why it failed.
type Done = Result<Exit, Failed>;

/// Parses the command line, runs the command, and reports the result.
pub fn main() -> ExitCode {
    uh_settings::shell::answer_shell(args::ungrouped);
    let args = Args::from_arg_matches(&args::command().get_matches()).unwrap_or_else(|error| error.exit());
    let done = match &args.command {
        Command::Run { config, take_over } => run::run(config, *take_over),
        Command::Check { config } => check::check(config),
        Command::Import(ImportCommand::Nginx { file }) => import::nginx(file),
        Command::Switch(args) => switch::switch(args),
        Command::Split(args) => split::split(args),
        Command::Preview(args) => preview::preview(args),
        Command::Status(args) => status::status(args),
        Command::Certificates(args) => certificates::certificates(args),
        Command::Drain(args) => drain::drain(args),
        Command::Backend(BackendCommand::Set(args)) => backend::set(args),
        Command::Backend(BackendCommand::Unset(args)) => backend::unset(args),
        Command::Backend(BackendCommand::Withdraw(args)) => backend::withdraw(args),
        Command::Maintenance(args) => maintenance::maintenance(args),
        Command::Reload(args) => reload::reload(args),
        Command::Upgrade(args) => upgrade::upgrade(args),
        Command::Completions { shell } => shell::completions(*shell),
        Command::Man { directory } => shell::man(directory),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(failed) => {
            if args.command.wants_json() {
                let _ = say_json(&failed.json());
            }
            complain(failed.message());
            failed.exit().into()
        }
    }
}

/// Prints an error. If standard error is closed, nothing more can be done.
fn complain(message: impl Display) {
    report(format_args!("uh-proxy: {message}"));
}

/// Prints a line to standard error.
fn report(line: impl Display) {
    let _ = writeln!(io::stderr(), "{}", Shown(line));
}

/// Prints a line to standard output.
fn say(line: impl Display) -> Result<(), Failed> {
    print(Shown(line))
}

fn print(line: impl Display) -> Result<(), Failed> {
    match writeln!(io::stdout(), "{line}") {
        // A reader that closes the pipe early isn't a failure.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failed::from(anyhow::Error::from(e))),
        _ => Ok(()),
    }
}

/// Prints a value as JSON.
fn say_json(value: &impl serde::Serialize) -> Result<(), Failed> {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    // JSON leaves some control characters unescaped. They only occur within strings, and a terminal would act on them.
    let escape =
        |c: char| if c.is_control() && c != '\n' { format!("\\u{:04x}", c as u32) } else { c.to_string() };
    print(text.chars().map(escape).collect::<String>())
}

/// Text for a terminal: text from apps or other operators must not move its cursor.
struct Shown<T>(T);

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        self.0.to_string().chars().try_for_each(|c| f.write_char(show(c)))
    }
}
