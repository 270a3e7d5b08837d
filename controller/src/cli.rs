//! The command line. One file for each command; exit codes are decided in `exit`.

mod alive;
mod args;
mod blue_green;
mod canary;
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
mod release;
mod report;
mod retire;
mod rollback;
mod session;
mod shell;
mod start;
mod status;
mod upgrade_proxy;
mod validate;
mod wording;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::FromArgMatches as _;

use args::{Args, Command};
use exit::{CliError, Exit};
use interrupts::{Handlers, Interrupts};
use release::Release;
use report::{Form, Report};
use session::Session;

use crate::deploy::trial::TrialOrder;

/// The result of a command.
type Done = Result<Exit, CliError>;

/// Parses the command line, runs the command, and returns its exit code.
pub fn main() -> ExitCode {
    uh_settings::shell::answer_shell(args::ungrouped);
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
    match &args.command {
        Command::Completions { shell } => return shell::completions(*shell),
        Command::Man { directory } => return shell::man(directory),
        _ => {}
    }
    if let Command::Supervise { directory } = args.command {
        crate::runtime::process::supervisor::supervise(directory).context("the supervisor failed")?;
        return Ok(Exit::Done);
    }
    let release = crate::config::release(&args.config)
        .with_context(|| format!("can't use {}", args.config.display()))
        .map_err(|e| CliError::usage(format!("{e:#}")))?;
    if let Some(config) = release {
        let release = Release::open(&args, config)?;
        return run(
            async |args| release::command(&release, &args.command).await,
            &args,
            &release.interrupts,
            &release.report,
        );
    }
    let session = Session::open(&args)?;
    run(async |args| command(&session, &args.command).await, &args, &session.interrupts, &session.report)
}

/// Runs a command until it ends, or until a signal does that no operation takes.
fn run(
    command: impl AsyncFnOnce(&Args) -> Done,
    args: &Args,
    interrupts: &Interrupts,
    report: &Report,
) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("can't start the async runtime")?;
    let done = runtime.block_on(async {
        let mut handlers = Handlers::install().context("can't install signal handlers")?;
        tokio::select! {
            done = command(args) => done,
            interrupt = handlers.not_taken(interrupts) => {
                report.end_progress();
                let message = format!("interrupted by {}", interrupt.name);
                Err(CliError::new(Exit::Interrupted(interrupt.exit_code()), message))
            }
        }
    });
    // Background tasks aren't waited for.
    runtime.shutdown_background();
    report.finish();
    done
}

async fn command(session: &Session, command: &Command) -> Done {
    match command {
        Command::Validate => validate::validate(session).await,
        Command::BlueGreen(args) => Box::pin(blue_green::blue_green(session, args)).await,
        Command::Promote => canary::order(session, TrialOrder::Promote).await,
        Command::Hold => canary::order(session, TrialOrder::Hold).await,
        Command::Abort => canary::order(session, TrialOrder::Abort).await,
        Command::Monitor(args) => monitor::monitor(session, args).await,
        Command::Rollback(args) => rollback::rollback(session, args).await,
        Command::HealthCheck => health_check::health_check(session).await,
        Command::Status(args) => Box::pin(status::status(&[session], args)).await,
        Command::Logs(args) => logs::logs(session, args).await,
        Command::History(args) => history::history(session, args),
        Command::Recover => Box::pin(recover::recover(session)).await,
        Command::Start => start::start(session).await,
        Command::Prune(args) => prune::prune(session, args).await,
        Command::Retire(args) => retire::retire(session, args).await,
        Command::Maintenance(args) => maintenance::maintenance(session, args).await,
        Command::UpgradeProxy(args) => Box::pin(upgrade_proxy::upgrade_proxy(session, args)).await,
        Command::Supervise { .. } | Command::Completions { .. } | Command::Man { .. } => Ok(Exit::Usage),
    }
}
