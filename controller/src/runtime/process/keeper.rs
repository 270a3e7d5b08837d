//! The keeper: the parent of one app. It outlives the controller, and decides nothing but what its files say.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::place::{Place, Saved};
use super::proc::{self, Known};
use super::spec::Spec;
use super::{INSTANCE_VARIABLE, log};
use crate::files;
use crate::runtime::Ending;

/// How often log size and memory are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Starts the app of an instance's directory, and stays until it has ended.
///
/// # Errors
/// It can't be started, or its directory is gone.
pub fn keep(directory: PathBuf) -> io::Result<()> {
    // Out of the controller's session: no terminal's end reaches us or the app. It only fails if we lead one already.
    let _ = rustix::process::setsid();
    let place = Place::new(directory);
    let Some(_lock) = place.lock()? else { return Ok(()) };
    if place.is_forbidden() || place.saved()?.is_some() {
        return Ok(());
    }
    let spec: Spec = serde_json::from_slice(&place.read_spec()?)?;
    let log = files::append(&place.log())?;
    let oom_kills = proc::out_of_memory_kills();
    let started_at = crate::time::iso_millis(jiff::Timestamp::now());
    let mut child = match spawn(&place, &spec, log) {
        Ok(child) => child,
        Err(e) => {
            let reason = format!("{}: {e}", spec.program.display());
            return place.save(&Saved { app: None, started_at, failed: Some(reason), ended: None });
        }
    };
    let app = i32::try_from(child.id()).ok().and_then(Known::now);
    let mut saved = Saved { app, started_at, failed: None, ended: None };
    place.save(&saved)?;
    let watch = Watch::start(&place, &spec, saved.app.clone());
    let (code, killed) = wait(&mut child)?;
    let over_limit = watch.stop();
    let by_kernel = killed && oom_kills.zip(proc::out_of_memory_kills()).is_some_and(|(was, is)| is > was);
    saved.ended = Some(Ending { code, out_of_memory: over_limit || by_kernel });
    place.save(&saved)
}

fn spawn(place: &Place, spec: &Spec, log: File) -> io::Result<Child> {
    let mut command = spec.command();
    let instance = place.directory().file_name().unwrap_or_default();
    command.env(INSTANCE_VARIABLE, instance).process_group(0);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()
}

/// Waits for the app's end. What is left of its process group ends with it, while the app's id still is its own.
fn wait(child: &mut Child) -> io::Result<(Option<i32>, bool)> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        })?;
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok((code, status.signal() == Some(Signal::KILL.as_raw())))
}

/// Looks after the log and the memory, on a thread of its own.
struct Watch {
    over_limit: Arc<AtomicBool>,
    stop: mpsc::Sender<()>,
}

impl Watch {
    fn start(place: &Place, spec: &Spec, app: Option<Known>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let over_limit = Arc::new(AtomicBool::new(false));
        let (path, size, kept) = (place.log(), spec.log_size, spec.log_files);
        let limit = spec.memory_limit;
        let flag = Arc::clone(&over_limit);
        let look = move || {
            while stopped.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
                // A log that can't be rotated grows; that is no reason to disturb the app.
                let _ = log::rotate(&path, size, kept);
                let Some(app) = &app else { continue };
                if limit.zip(proc::resident(app.pid)).is_some_and(|(limit, used)| used > limit) {
                    flag.store(true, Ordering::SeqCst);
                    let _ = app.kill_group();
                }
            }
        };
        // Without the thread the app runs on, unwatched.
        let _ = std::thread::Builder::new().name("watch".to_owned()).spawn(look);
        Self { over_limit, stop }
    }

    fn stop(self) -> bool {
        let _ = self.stop.send(());
        self.over_limit.load(Ordering::SeqCst)
    }
}
