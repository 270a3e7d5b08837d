//! `uh-proxy run`

use std::path::Path;

use anyhow::Context as _;

use super::exit::Exit;
use super::{Done, log};
use crate::admin::upgrade::own_path;
use crate::config;
use crate::handover::parent::Parent;
use crate::run::{self, Start, TakeOver};
use crate::systemd::Inherited;

pub(super) fn run(path: &Path, take_over: bool) -> Done {
    let inherited = Inherited::take().context("cannot run")?;
    let mut parent = Parent::take().context("cannot run")?;
    let done = start(path, take_over, inherited, parent.as_mut());
    if let (Err(failed), Some(parent)) = (&done, &parent) {
        parent.report(&failed.message());
    }
    done
}

fn start(path: &Path, take_over: bool, inherited: Inherited, parent: Option<&mut Parent>) -> Done {
    let take_over = if take_over { TakeOver::IfRunning } else { TakeOver::Never };
    let unusable = || format!("cannot use {}", path.display());
    let program = own_path(std::env::args_os().next().as_deref()).context("cannot run")?;
    let text = config::read(path).with_context(unusable)?;
    let config = config::parse(&text).map_err(|e| e.in_file(path)).with_context(unusable)?;
    let _log = log::start(config.server.log);
    let start = Start { path: path.to_owned(), text, config, inherited, take_over, program };
    run::run(start, parent).context("cannot run")?;
    Ok(Exit::Done)
}
