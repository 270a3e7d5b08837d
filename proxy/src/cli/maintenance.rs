//! `uh-proxy maintenance`

use uh_protocol::request::MaintenanceRequest;

use super::args::{MaintenanceArgs, OnOff};
use super::exit::Exit;
use super::{Done, say_json, target};

pub(super) fn maintenance(args: &MaintenanceArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = MaintenanceRequest {
            on: args.state == OnOff::On,
            message: args.message.clone(),
            retry_after_s: args.retry_after,
        };
        say_json(&client.maintenance(&service, &request).await?)?;
        Ok(Exit::Done)
    })
}
