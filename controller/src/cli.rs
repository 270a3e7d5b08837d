//! The command line. One file for each command; exit codes are decided in `exit`.

mod alive;
mod args;
mod blue_green;
mod exit;
mod health_check;
mod history;
mod interrupts;
mod logs;
mod maintenance;
mod monitor;
mod operation;
mod prune;
mod recover;
mod report;
mod retire;
mod rollback;
mod session;
mod start;
mod validate;
mod wording;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::FromArgMatches as _;

use args::{Args, Command};
use exit::{CliError, Exit};
use interrupts::Handlers;
use report::{Form, Report};
use session::Session;

/// The result of a command.
type Done = Result<Exit, CliError>;

/// Parses the command line, runs the command, and returns its exit code.
pub fn main() -> ExitCode {
    let args = Args::from_arg_matches(&args::command().get_matches()).unwrap_or_else(|error| error.exit());
    let json = args.json;
    match carry_out(args) {
        Ok(exit) => exit.into(),
        Err(failed) => {
            if json {
                let refused = serde_json::json!({"exit": failed.exit().code(), "message": failed.message()});
                Report::new(Form::Json).event("refused", refused);
            }
            report::complain(failed.message());
            failed.exit().into()
        }
    }
}

fn carry_out(args: Args) -> Done {
    if let Command::Supervise { directory } = args.command {
        crate::runtime::process::supervisor::supervise(directory).context("the supervisor failed")?;
        return Ok(Exit::Done);
    }
    let session = Session::open(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("can't start the async runtime")?;
    let done = runtime.block_on(async {
        let mut handlers = Handlers::install().context("can't install signal handlers")?;
        tokio::select! {
            done = command(&session, &args.command) => done,
            interrupt = handlers.not_taken(&session.interrupts) => {
                session.report.end_progress();
                let message = format!("interrupted by {}", interrupt.name);
                Err(CliError::new(Exit::Interrupted(interrupt.exit_code()), message))
            }
        }
    });
    // Background tasks aren't waited for.
    runtime.shutdown_background();
    session.report.finish();
    done
}

async fn command(session: &Session, command: &Command) -> Done {
    match command {
        Command::Validate => validate::validate(session).await,
        Command::BlueGreen(args) => Box::pin(blue_green::blue_green(session, args)).await,
        Command::Monitor(args) => monitor::monitor(session, args).await,
        Command::Rollback(args) => rollback::rollback(session, args).await,
        Command::HealthCheck => health_check::health_check(session).await,
        Command::Logs(args) => logs::logs(session, args).await,
        Command::History(args) => history::history(session, args),
        Command::Recover => recover::recover(session).await,
        Command::Start => start::start(session).await,
        Command::Prune(args) => prune::prune(session, args).await,
        Command::Retire(args) => retire::retire(session, args).await,
        Command::Maintenance(args) => maintenance::maintenance(session, args).await,
        Command::Supervise { .. } => Ok(Exit::Usage),
    }
}
