//! The successor's side of a [hand-over](crate::handover), up to the moment in which it leads: joins the uh-proxy that
//! leads, waits until its probes know as much, and has it yield. From then on,
//! [`Predecessor`](crate::handover::predecessor::Predecessor) speaks with it.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::iterator::Signals;
use uh_system::plain;

use super::bind::access;
use super::{RunError, TakeOver, signals};
use crate::admin::control::Control;
use crate::admin::socket::{AdminSocket, SocketError, successors_of};
use crate::admin::successor::record;
use crate::config::Server;
use crate::fault;
use crate::handover::leader::{Leader, TakeOverError, Why};
use crate::state::store::StoreError;

/// How long a process that says that it has released its locks may have them.
const RELEASED_WITHIN: Duration = Duration::from_secs(2);

/// How long one that says nothing more may have them: the kernel frees much memory first when a process dies.
const DIES_WITHIN: Duration = Duration::from_secs(10);

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Joins the uh-proxy that leads, if this start is to replace one and there is one.
pub(super) fn join_if(
    wanted: TakeOver,
    server: &Server,
    has_parent: bool,
) -> Result<Option<Leader>, TakeOverError> {
    match wanted {
        TakeOver::Never => Ok(None),
        TakeOver::IfRunning if server.keeper.is_none() && !has_parent => Err(TakeOverError::NoKeeper),
        TakeOver::IfRunning => {
            let leader = Leader::join(&successors_of(&server.admin_socket), Why::New)?;
            fault::point("takeover_joined");
            Ok(leader)
        }
    }
}

/// Takes over: when this returns, this process has the locks and the admin socket, and no change has been lost. Changes
/// are refused until [`lead_after`]. If the other process has died, there is no connection to it.
///
/// Whoever stops this process meanwhile wants the other one to go on, so a stop ends it here.
pub(super) fn take_over(
    mut leader: Leader,
    control: &Control,
    server: &Server,
    signals: &mut Signals,
) -> Result<(AdminSocket, Option<UnixStream>), RunError> {
    let mut may_go_on = || match signals::carry_out_pending(signals, control) {
        Some(signal) => Err(TakeOverError::Stopped { signal }),
        None => Ok(()),
    };
    control.board.freeze();
    let reported = match leader.yields(&control.board, &mut may_go_on) {
        Ok(generation) => Some(generation),
        Err(TakeOverError::Broken(error)) => {
            tracing::warn!(error = %plain(&error), "lost the uh-proxy that leads; leading in its place if it is dead");
            None
        }
        Err(error) => return Err(error.into()),
    };
    fault::point("takeover_yielded");
    let deadline = Instant::now() + if reported.is_some() { RELEASED_WITHIN } else { DIES_WITHIN };
    until_released(deadline, &mut may_go_on, || Ok(control.state_writer.acquire()?))?;
    fault::point("takeover_locked");
    let loaded = control.state_writer.load()?;
    for warning in &loaded.warnings {
        tracing::warn!("state: {warning}");
    }
    let found = loaded.state.as_ref().map_or(0, |state| state.generation);
    if let Some(reported) = reported.filter(|reported| *reported != found) {
        return Err(TakeOverError::OtherGeneration { found, reported }.into());
    }
    if let Some(state) = &loaded.state {
        control.board.follow(&record(state));
        // Its backends may have other endpoints.
        control.news.backends.notify_one();
    }
    let socket = until_released(deadline, &mut may_go_on, || {
        Ok(AdminSocket::take_over(&server.admin_socket, access(server))?)
    })?;
    fault::point("takeover_renamed");
    if reported.is_none() {
        control.board.unfreeze();
        return Ok((socket, None));
    }
    let stream = leader.into_stream().map_err(TakeOverError::Broken)?;
    Ok((socket, Some(stream)))
}

/// Takes a lock. A process that is about to die may have it for another moment; one that is alive keeps it.
fn until_released<T>(
    deadline: Instant,
    mut may_go_on: impl FnMut() -> Result<(), TakeOverError>,
    mut take: impl FnMut() -> Result<T, RunError>,
) -> Result<T, RunError> {
    loop {
        match take() {
            Err(RunError::Store(StoreError::Taken { .. }) | RunError::Socket(SocketError::Taken { .. }))
                if Instant::now() < deadline =>
            {
                may_go_on()?;
                thread::sleep(LOOK_EVERY);
            }
            result => return result,
        }
    }
}

/// Has the predecessor stop accepting and follow, and allows changes once it does. What it holds is known then: a
/// status before that would report backends in use as idle.
pub(super) async fn lead_after(stream: UnixStream, control: &Control) {
    match tokio::net::UnixStream::from_std(stream) {
        Ok(stream) => drop(control.predecessor.attend(stream)),
        Err(error) => tracing::error!(error = %plain(&error), "lost the connection to the uh-proxy that led"),
    }
    control.follow().await;
    fault::point("takeover_followed");
    control.board.unfreeze();
    tracing::info!(generation = control.board.snapshot().generation, "took over; this uh-proxy leads");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> RunError {
        SocketError::Taken { path: "admin.sock".into() }.into()
    }

    #[test]
    fn a_lock_of_a_process_that_dies_is_waited_for_until_the_deadline() {
        let mut results = vec![Ok(1), Err(taken()), Err(StoreError::Taken { path: "state".into() }.into())];
        let deadline = Instant::now() + DIES_WITHIN;
        assert_eq!(until_released(deadline, || Ok(()), || results.pop().unwrap()).unwrap(), 1);
        let late = until_released(Instant::now(), || Ok(()), || Err::<(), _>(taken()));
        assert!(matches!(late, Err(RunError::Socket(SocketError::Taken { .. }))), "{late:?}");
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_lock() {
        let deadline = Instant::now() + DIES_WITHIN;
        let stop = || Err(TakeOverError::Stopped { signal: 2 });
        let stopped = until_released(deadline, stop, || Err::<(), _>(taken()));
        assert!(
            matches!(stopped, Err(RunError::TakeOver(TakeOverError::Stopped { signal: 2 }))),
            "{stopped:?}"
        );
    }
}
