//! `uh-proxy run`

use std::path::Path;

use anyhow::Context as _;

use super::exit::Exit;
use super::{Done, log};
use crate::{config, run};

pub(super) fn run(path: &Path) -> Done {
    let config = config::load(path).with_context(|| format!("{} can't be used", path.display()))?;
    let _log = log::start(config.server.log);
    run::run(&config).context("uh-proxy can't run")?;
    Ok(Exit::Done)
}
