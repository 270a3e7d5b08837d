//! A watch on disk, so that it survives its process.

use super::Watcher;
use crate::deploy::watch::{Watch, WatchFile};

/// The saved form of a watch that must survive its process.
pub(super) struct SavedWatch {
    /// `None`: another watch still holds the file.
    pub(super) file: Option<WatchFile>,
    pub(super) watch: Watch,
    /// Whether a failed save was already reported.
    pub(super) complained: bool,
}

impl Watcher<'_> {
    /// Closes the watch, so that it isn't continued.
    pub(in crate::cli) fn finish(&mut self, verdict: &str) {
        self.keep(Some(verdict));
    }

    pub(super) fn save(&mut self) {
        self.keep(None);
    }

    /// `verdict`: it has ended with this one.
    fn keep(&mut self, verdict: Option<&str>) {
        let state_dir = &self.session.config.deploy.state_dir;
        let Some(record) = &mut self.record else { return };
        record.watch.last.clone_from(&self.last);
        record.watch.seen.clone_from(&self.seen);
        record.watch.memory.clone_from(self.judge.memory());
        if let Some(verdict) = verdict {
            record.watch.end(verdict);
        }
        let mut save = || -> std::io::Result<Option<WatchFile>> {
            let file = match record.file.take() {
                Some(file) => Some(file),
                None => WatchFile::claim(state_dir)?,
            };
            if let Some(file) = &file {
                file.save(&record.watch)?;
            }
            Ok(file)
        };
        match save() {
            Ok(file) => record.file = file,
            Err(e) if !record.complained => {
                record.complained = true;
                self.session.report.warn(&format!(
                    "can't save the watch, so it can't be continued if this process is killed: {e}"
                ));
            }
            Err(_) => {}
        }
    }
}
