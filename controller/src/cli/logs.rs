//! `uh-deploy logs`

use super::Done;
use super::args::LogsArgs;
use super::exit::{Exit, Failed};
use super::session::Session;
use crate::deploy::records::Records;
use crate::report::Form;
use crate::runtime::LogQuery;

pub(super) async fn logs(session: &Session, args: &LogsArgs) -> Done {
    let backend = match &args.backend {
        Some(backend) => backend.clone(),
        None => session.front().await?.view().await?.service.active,
    };
    // The newest one, which may be a candidate that failed; or else the one on record.
    let newest = session.runtime.find(&backend).await?.pop();
    let record = Records::new(&session.config.deploy.state_dir).of(&backend).ok().flatten();
    let instance = newest.or_else(|| record.map(|record| record.instance)).ok_or_else(|| {
        Failed::new(Exit::Failed, format!("nothing that uh-deploy started runs or ran as {backend}"))
    })?;
    let query = LogQuery { tail: args.tail, since: args.since, follow: args.follow };
    let report = &session.report;
    let line = |text: &str| match report.form() {
        Form::Text => report.say(text),
        Form::Json => report.event("log", serde_json::json!({"instance": instance, "text": text})),
    };
    session.runtime.logs(&instance, &query, &line).await?;
    Ok(Exit::Done)
}
