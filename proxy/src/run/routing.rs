//! The routing that uh-proxy starts with, from the configuration and the state that an earlier run or another process has
//! left.

use std::sync::Arc;
use std::time::Duration;

use uh_switching::{Earlier, Generations};

use crate::config::{Config, Service};
use crate::front::Board;
use crate::front::fittings::Fittings;
use crate::front::pool::RetiredConnections;
use crate::observe::meters::Meters;
use crate::state::file::StateFile;
use crate::state::store::Loaded;
use crate::state::writer::{StateChange, StateWriter};

/// The routing to start with: as it was left, as far as it is still configured.
pub(super) fn board(
    config: &Config,
    loaded: &Loaded,
    is_new: bool,
    workers: usize,
    meters: &Arc<Meters>,
    retired_connections: &Arc<RetiredConnections>,
) -> Board {
    let state = loaded.state.as_ref();
    let record = |(index, service): (usize, &Service)| {
        Some((service.name.clone(), state?.record(&service.name, index == 0)?.at(jiff::Timestamp::now())))
    };
    let known = config.services.iter().enumerate().filter_map(record).collect();
    // After damage, start at a number that was never used: an old expectation must not match by chance.
    let now = milliseconds_since_1970();
    let fresh = if loaded.warnings.is_empty() { 0 } else { now };
    let generation = state.map_or(fresh, |state| state.generation);
    let fittings =
        Fittings { meters: Arc::clone(meters), retired_connections: Arc::clone(retired_connections) };
    let services: Vec<_> = config.services.iter().cloned().map(Arc::new).collect();
    let generations = Generations::after(earlier(loaded, is_new), now);
    Board::new(fittings, &services, &known, generation, workers).numbered_by(generations)
}

/// How long the start waits for the disk to write the first state. A slower disk delays no request: the first change
/// then skips ahead instead of counting on.
const RESERVE_WITHIN: Duration = Duration::from_secs(1);

/// Makes the state on disk match the routing from the start, and reserves generations with it.
pub(super) fn reserve_generations(writer: &StateWriter, board: &Board) {
    if let Some(state) = StateFile::of(&board.view()) {
        writer.wait_until_tried(writer.submit(state, StateChange::BackendInfo), RESERVE_WITHIN);
    }
}

/// What is known about generations used by earlier runs.
///
/// It is the first run if the state file's lock didn't exist: the lock stays when the state file is moved away. Old
/// scripts wrote a state without generations.
fn earlier(loaded: &Loaded, is_new: bool) -> Earlier {
    let state = loaded.state.as_ref();
    match state {
        None if is_new && loaded.warnings.is_empty() => Earlier::Never,
        Some(state) if is_new && state.schema == 0 => Earlier::Never,
        // A copy may be one change behind, and fields of a newer version may have another meaning.
        Some(StateFile { generation, generation_reserve: Some(reserve), .. })
            if loaded.warnings.is_empty() =>
        {
            Earlier::Reserved(*reserve.max(generation))
        }
        _ => Earlier::Unknown(state.map_or(0, |state| state.generation)),
    }
}

fn milliseconds_since_1970() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// Backends that were active in an earlier run and are no longer configured.
pub(super) fn unknown_actives(config: &Config, state: Option<&StateFile>, board: &Board) -> Vec<String> {
    let snapshot = board.snapshot();
    let warn = |(index, service): (usize, &Service)| {
        let active = state?.record(&service.name, index == 0)?.active;
        let gone = !service.backends.iter().any(|backend| backend.name == active);
        let now = snapshot.service(service.name.as_str())?.active.backend.clone();
        gone.then(|| {
            format!(
                "{active} was active for {}, but is no longer configured; {now} is active instead",
                service.name
            )
        })
    };
    config.services.iter().enumerate().filter_map(warn).collect()
}
