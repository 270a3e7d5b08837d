//! `uh-proxy run`

use std::path::Path;

use anyhow::Context as _;

use super::exit::Exit;
use super::{Done, log};
use crate::config;
use crate::run::{self, Start, TakeOver};
use crate::systemd::Inherited;

pub(super) fn run(path: &Path, take_over: bool) -> Done {
    let take_over = if take_over { TakeOver::IfRunning } else { TakeOver::Never };
    let inherited = Inherited::take().context("cannot run")?;
    let unusable = || format!("cannot use {}", path.display());
    let text = config::read(path).with_context(unusable)?;
    let config = config::parse(&text).map_err(|e| e.in_file(path)).with_context(unusable)?;
    let _log = log::start(config.server.log);
    run::run(Start { path: path.to_owned(), text, config, inherited, take_over }).context("cannot run")?;
    Ok(Exit::Done)
}
