//! `uh-deploy maintenance`

use uh_protocol::request::MaintenanceRequest;

use super::Done;
use super::args::{MaintenanceArgs, OnOff};
use super::exit::Exit;
use super::session::Session;
use crate::deploy::history::HistoryEntry;
use crate::proxy::ProxyError;

pub(super) async fn maintenance(session: &Session, args: &MaintenanceArgs) -> Done {
    let proxy = session.proxy().await?;
    let on = args.state == OnOff::On;
    let request = MaintenanceRequest { on, message: args.message.clone(), retry_after_s: args.retry_after };
    proxy.client.maintenance(&proxy.service, &request).await.map_err(ProxyError::from)?;
    let word = if on { "on" } else { "off" };
    session.report.say(&format!("{}: maintenance is {word}", proxy.service));
    session.remember(HistoryEntry {
        command: "maintenance".to_owned(),
        service: Some(proxy.service.clone()),
        outcome: "done".to_owned(),
        remarks: vec![format!("turned {word}")],
        ..HistoryEntry::default()
    });
    Ok(Exit::Done)
}
