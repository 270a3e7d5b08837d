//! The effect that puts the candidate's files in place, where uh-proxy serves them.

use crate::assets::AssetsDir;
use crate::config::RuntimeConfig;
use crate::deploy::machine::{Event, FailureCause};
use crate::deploy::member::Member;
use crate::deploy::progress::Progress;
use crate::deploy::records::{BackendRecord, RecordedFiles};
use crate::runtime::RuntimeError;

impl Member<'_> {
    /// What is frozen of the files of a version.
    pub(super) fn frozen_files(&self) -> Option<RecordedFiles> {
        let files = self.config.files.as_ref()?;
        let from = files.from_of(&self.facts.to, self.facts.version_or_unknown());
        let from = match &self.config.runtime {
            RuntimeConfig::Process(_) => self.config.directory.join(from).display().to_string(),
            RuntimeConfig::Docker(_) | RuntimeConfig::Compose(_) => from,
        };
        Some(RecordedFiles { from, to: files.to_of(&self.facts.to) })
    }

    /// Copies the files of the candidate, which is out of service and not started yet.
    pub(super) async fn publish(&mut self) -> Option<Event> {
        let record = match self.records.candidate(&self.facts.operation) {
            Ok(Some(record)) => record,
            // Starting it reports that.
            _ => return None,
        };
        let files = record.files.clone()?;
        match self.copy(&record, &files).await {
            Ok(()) => {
                self.tell(Progress::FilesCopied(&files.to));
                None
            }
            Err(error) => {
                // What is left takes space, and a full disk may be the reason.
                let _ = AssetsDir::new(&files.to).clean();
                Some(self.runtime_failed(FailureCause::Start, &error))
            }
        }
    }

    async fn copy(&self, record: &BackendRecord, files: &RecordedFiles) -> Result<(), RuntimeError> {
        let assets = AssetsDir::new(&files.to);
        let failed = |source| RuntimeError::Files { to: files.to.clone(), source };
        let new = assets.prepare().map_err(failed)?;
        let copied = new.join("files");
        self.runtime.copy_files(&record.frozen, &files.from, &copied).await?;
        assets.install(&copied, &record.operation).map_err(failed)
    }

    /// Removes the files of a candidate that doesn't run any more.
    pub(super) async fn unpublish(&mut self) {
        let record = self.records.candidate(&self.facts.operation).ok().flatten();
        let Some(files) = record.and_then(|record| record.files) else { return };
        if let Err(error) = self.runtime.end_copy(&self.facts.to).await {
            self.remark(format!(
                "what the copy of the files has left wasn't removed: {}",
                crate::chain(&error)
            ));
        }
        if let Err(error) = AssetsDir::new(&files.to).remove_of(&self.facts.operation) {
            let to = files.to.display();
            self.remark(format!("the candidate's files, {to}, weren't removed: {}", crate::chain(&error)));
        }
    }
}
