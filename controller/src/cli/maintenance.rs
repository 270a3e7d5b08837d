//! `uh-deploy maintenance`

use uh_protocol::request::MaintenanceRequest;

use super::Done;
use super::args::{MaintenanceArgs, OnOff};
use super::exit::Exit;
use super::session::Session;
use crate::deploy::history::Line;
use crate::front::FrontError;

pub(super) async fn maintenance(session: &Session, args: &MaintenanceArgs) -> Done {
    let front = session.front().await?;
    let on = args.state == OnOff::On;
    let request = MaintenanceRequest { on, message: args.message.clone(), retry_after_s: args.retry_after };
    front.client.maintenance(&front.service, &request).await.map_err(FrontError::from)?;
    let word = if on { "on" } else { "off" };
    session.report.say(&format!("{}: maintenance is {word}", front.service));
    session.remember(Line {
        command: "maintenance".to_owned(),
        service: Some(front.service.clone()),
        outcome: "done".to_owned(),
        remarks: vec![format!("turned {word}")],
        ..Line::default()
    });
    Ok(Exit::Done)
}
