//! `uh-proxy backend set`

use uh_protocol::request::BackendRequest;

use super::args::BackendSetArgs;
use super::exit::Exit;
use super::{Done, say, say_json, target};

pub(super) fn set(args: &BackendSetArgs) -> Done {
    target::call(async {
        let client = target::client(&args.client);
        let service = target::service(&client, &args.service).await?;
        let request = BackendRequest {
            endpoints: args.endpoints.clone(),
            version: args.version.clone(),
            expect_generation: None,
            force: args.force,
        };
        let backend = client.set_backend(&service, &args.backend, &request).await?;
        let persisted = client.status().await?.persisted;
        if args.client.json {
            say_json(&backend)?;
        } else {
            let endpoints: Vec<&str> =
                backend.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
            let version = backend.version.as_deref().unwrap_or("unknown");
            say(format_args!(
                "{service}: {} is at {}, version {version}",
                backend.name,
                endpoints.join(", ")
            ))?;
        }
        Ok(if persisted { Exit::Done } else { Exit::NotOnDisk })
    })
}
