//! `uh-deploy logs`

use std::time::Duration;

use super::Done;
use super::args::LogsArgs;
use super::exit::{CliError, Exit};
use super::session::Session;
use crate::cli::report::Form;
use crate::deploy::records::Records;
use crate::redact::{self, Foreign};
use crate::runtime::{InstanceId, LogQuery};

/// How often to check whether a followed log is still the right one.
const SUCCESSOR_POLL: Duration = Duration::from_secs(1);

pub(super) async fn logs(session: &Session, args: &LogsArgs) -> Done {
    session.report.wait_for_reader();
    let mut instance = meant(session, args).await?;
    let mut query = LogQuery { tail: args.tail, since: args.since, follow: args.follow };
    loop {
        let next = {
            let line = |text: &Foreign| show(session, &instance, text);
            let log = session.runtime.logs(&instance, &query, &line);
            if !args.follow {
                log.await?;
                return Ok(Exit::Done);
            }
            tokio::select! {
                ended = log => {
                    ended?;
                    // It may have ended because another instance has taken over.
                    meant(session, args).await.ok().filter(|meant| *meant != instance)
                }
                next = successor(session, args, &instance) => Some(next),
            }
        };
        let Some(next) = next else { return Ok(Exit::Done) };
        // It may have been started with secrets that didn't exist when this command began.
        redact::remember(redact::of_config(&session.config));
        follow_on(session, &instance, &next);
        instance = next;
        query = LogQuery { tail: None, since: None, follow: true };
    }
}

/// The instance whose log to show now: of the given backend, or of the active one.
async fn meant(session: &Session, args: &LogsArgs) -> Result<InstanceId, CliError> {
    let backend = match &args.backend {
        Some(backend) => backend.clone(),
        None => session.proxy().await?.view().await?.service.active,
    };
    // The newest instance, which may be a failed candidate, or else the recorded one.
    let newest = session.runtime.find(&backend).await?.pop();
    let record = Records::new(&session.config.deploy.state_dir).of(&backend).ok().flatten();
    newest.or_else(|| record.map(|record| record.instance)).ok_or_else(|| {
        CliError::new(
            Exit::Failed,
            format!("there is no log of {backend}: uh-deploy has started no instance of it"),
        )
    })
}

/// Waits until another instance has taken over. Errors are retried.
async fn successor(session: &Session, args: &LogsArgs, instance: &InstanceId) -> InstanceId {
    loop {
        tokio::time::sleep(SUCCESSOR_POLL).await;
        match meant(session, args).await {
            Ok(meant) if meant != *instance => return meant,
            _ => {}
        }
    }
}

fn show(session: &Session, instance: &InstanceId, text: &Foreign) {
    match session.report.form() {
        Form::Text => session.report.say(&text.to_string()),
        Form::Json => session.report.event("log", serde_json::json!({"instance": instance, "text": text})),
    }
}

fn follow_on(session: &Session, from: &InstanceId, to: &InstanceId) {
    match session.report.form() {
        Form::Text => session.report.say(&format!("==> {to} took over from {from}; its log follows <==")),
        Form::Json => session.report.event("log_follows", serde_json::json!({"from": from, "to": to})),
    }
}
