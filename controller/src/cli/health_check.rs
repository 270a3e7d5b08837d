//! `uh-deploy health-check`

use serde_json::json;

use super::exit::Exit;
use super::session::Session;
use super::{Done, alive, operation};
use crate::cli::report::Form;
use crate::deploy::lock;
use crate::time::span;

pub(super) async fn health_check(session: &Session) -> Done {
    let proxy = session.proxy().await?;
    let serving = proxy.serving().await?;
    let (view, active) = (serving.view(), serving.active());
    let backend = view.backend(active);
    let in_flight = backend.map_or(0, |backend| backend.requests_in_flight + backend.tunnels);
    let since = view.service.last_switch.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let active_for = since.and_then(|since| jiff::Timestamp::now().duration_since(since).try_into().ok());
    let uptime = std::time::Duration::from_secs(view.status.proxy.uptime_s);
    // Our own probe: uh-proxy's last one may be from before the app died.
    let dead = alive::why_dead(session, &serving).await;
    let at_work = lock::at_work(&session.config.deploy.state_dir)
        .map_err(|e| super::exit::CliError::new(Exit::Failed, format!("can't read the lock: {e}")))?;
    // A running operation isn't an interrupted one.
    let unfinished = if at_work.is_some() { None } else { operation::unfinished(session)? };
    let well = dead.is_none() && !view.service.maintenance;
    if session.report.form() == Form::Json {
        session.report.document(&json!({
            "active": active, "version": serving.version(), "healthy": dead.is_none(), "reason": dead,
            "in_flight": in_flight,
            "active_since": view.service.last_switch, "proxy_uptime_s": view.status.proxy.uptime_s,
            "previous": view.service.previous, "maintenance": view.service.maintenance,
            "generation": view.generation, "persisted": view.status.persisted,
            "interrupted": unfinished.as_ref().map(|replayed| &replayed.facts.operation),
            "at_work": at_work.as_ref().map(ToString::to_string),
        }));
    } else {
        let mark = |good| if good { "✓" } else { "✗" };
        let say = |good: bool, text: String| session.report.say(&format!("{} {text}", mark(good)));
        say(true, format!("Active: {}", serving.name()));
        say(dead.is_none(), format!("Health: {}", dead.as_deref().unwrap_or("OK")));
        say(true, format!("Connections: {in_flight}"));
        let active_for: Option<std::time::Duration> = active_for;
        say(true, format!("Uptime: {}", span(active_for.unwrap_or(uptime))));
        if view.service.maintenance {
            say(false, "Maintenance: on, users get the maintenance page".to_owned());
        }
        if !view.status.persisted {
            say(false, "State: the current routing isn't on disk".to_owned());
        }
        if let Some(held) = &at_work {
            say(true, format!("Running: {held}"));
        }
        if let Some(replayed) = &unfinished {
            say(
                false,
                format!("Interrupted: {} is unfinished; run `uh-deploy recover`", replayed.facts.operation),
            );
        }
    }
    Ok(if well { Exit::Done } else { Exit::Failed })
}
