//! `uh-deploy logs`

use std::time::Duration;

use super::Done;
use super::args::LogsArgs;
use super::exit::{Exit, Failed};
use super::session::Session;
use crate::deploy::records::Records;
use crate::redact::{self, Foreign};
use crate::report::Form;
use crate::runtime::{InstanceId, LogQuery};

/// How often a log that is followed is asked whether it is still the one that is meant.
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
                    // It may have ended because something else has taken its place.
                    meant(session, args).await.ok().filter(|meant| *meant != instance)
                }
                next = successor(session, args, &instance) => Some(next),
            }
        };
        let Some(next) = next else { return Ok(Exit::Done) };
        // It was started with values that did not exist when this command began.
        redact::remember(redact::of_config(&session.config));
        follow_on(session, &instance, &next);
        instance = next;
        query = LogQuery { tail: None, since: None, follow: true };
    }
}

/// The instance whose log is meant now: of the backend that is named, or else of the active one.
async fn meant(session: &Session, args: &LogsArgs) -> Result<InstanceId, Failed> {
    let backend = match &args.backend {
        Some(backend) => backend.clone(),
        None => session.front().await?.view().await?.service.active,
    };
    // The newest one, which may be a candidate that failed; or else the one on record.
    let newest = session.runtime.find(&backend).await?.pop();
    let record = Records::new(&session.config.deploy.state_dir).of(&backend).ok().flatten();
    newest.or_else(|| record.map(|record| record.instance)).ok_or_else(|| {
        Failed::new(Exit::Failed, format!("uh-deploy has started nothing as {backend}: there is no log"))
    })
}

/// Waits until another instance is meant. Who can't be asked now is asked again.
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
