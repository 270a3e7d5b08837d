//! `uh-proxy reload`

use super::args::ReloadArgs;
use super::exit::Exit;
use super::{Done, say, say_json, target};

pub(super) fn reload(args: &ReloadArgs) -> Done {
    target::call(async {
        let reloaded = target::client(&args.client).reload().await?;
        if args.client.json {
            say_json(&reloaded)?;
        } else if reloaded.changed.is_empty() {
            say(format_args!("nothing is different (generation {})", reloaded.generation))?;
        } else {
            say(format_args!(
                "changed: {} (generation {})",
                reloaded.changed.join(", "),
                reloaded.generation
            ))?;
        }
        Ok(Exit::Done)
    })
}
