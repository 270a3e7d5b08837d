//! `uh-deploy health-check`

use serde_json::json;

use super::exit::Exit;
use super::session::Session;
use super::{Done, operation};
use crate::deploy::named;
use crate::report::Form;
use crate::time::span;

pub(super) async fn health_check(session: &Session) -> Done {
    let front = session.front().await?;
    let view = front.view().await?;
    let active = &view.service.active;
    let backend = view.backend(active);
    let healthy = backend.and_then(|backend| backend.healthy);
    let in_flight = backend.map_or(0, |backend| backend.requests_in_flight + backend.tunnels);
    let version = view.version(active);
    let since = view.service.last_switch.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let active_for = since.and_then(|since| jiff::Timestamp::now().duration_since(since).try_into().ok());
    let uptime = std::time::Duration::from_secs(view.status.proxy.uptime_s);
    let unfinished = operation::unfinished(session)?;
    let well = healthy != Some(false) && !view.service.maintenance;
    if session.report.form() == Form::Json {
        session.report.document(&json!({
            "active": active, "version": version, "healthy": healthy, "in_flight": in_flight,
            "active_since": view.service.last_switch, "proxy_uptime_s": view.status.proxy.uptime_s,
            "previous": view.service.previous, "maintenance": view.service.maintenance,
            "generation": view.generation, "persisted": view.status.persisted,
            "interrupted": unfinished.as_ref().map(|story| &story.facts.operation),
        }));
    } else {
        let mark = |good| if good { "✓" } else { "✗" };
        let say = |good: bool, text: String| session.report.say(&format!("{} {text}", mark(good)));
        say(true, format!("Active: {}", named(active, version.as_deref())));
        let error = backend.and_then(|b| b.last_probe.as_ref()).and_then(|probe| probe.error.clone());
        say(
            healthy != Some(false),
            match healthy {
                Some(true) => "Health: OK".to_owned(),
                Some(false) => format!("Health: {}", error.unwrap_or_else(|| "bad".to_owned())),
                None => "Health: not probed".to_owned(),
            },
        );
        say(true, format!("Connections: {in_flight}"));
        let active_for: Option<std::time::Duration> = active_for;
        say(true, format!("Uptime: {}", span(active_for.unwrap_or(uptime))));
        if view.service.maintenance {
            say(false, "Maintenance: the page is on, requests are not served".to_owned());
        }
        if !view.status.persisted {
            say(false, "State: the routing in force is not on disk".to_owned());
        }
        if let Some(story) = &unfinished {
            say(
                false,
                format!("Interrupted: {} is unfinished: run `uh-deploy recover`", story.facts.operation),
            );
        }
    }
    Ok(if well { Exit::Done } else { Exit::Failed })
}
