//! `[files]`: the static files of a version, which uh-proxy serves.

use std::path::{Component, Path, PathBuf};

use uh_protocol::BackendName;
use uh_settings::Section;

/// Which files of a version are copied, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedFiles {
    /// The directory with them: in the image, or on this machine for the process runtime. `{backend}` and `{version}`
    /// are replaced.
    from: String,
    /// Where uh-proxy serves them; `{backend}` is replaced.
    to: String,
}

impl ServedFiles {
    /// The directory of this version.
    #[must_use]
    pub fn from_of(&self, backend: &BackendName, version: &str) -> String {
        self.from.replace(BACKEND, backend.as_str()).replace("{version}", version)
    }

    /// Where the files of this backend are served.
    #[must_use]
    pub fn to_of(&self, backend: &BackendName) -> PathBuf {
        self.to.replace(BACKEND, backend.as_str()).into()
    }
}

const BACKEND: &str = "{backend}";

pub(super) fn files(root: &mut Section) -> Option<ServedFiles> {
    if !root.has("files") {
        return None;
    }
    let mut section = root.section("files");
    let (from, to) = (section.text("from"), section.text("to"));
    for (key, value) in [("from", &from), ("to", &to)] {
        if value.is_none() && !section.has(key) {
            section.mistake(key, "missing: [files] needs from and to");
        }
    }
    let (from, to) = (from?, to?);
    if from.is_empty() || from == "/" {
        section.mistake("from", "not a directory of the app, such as \"/app/public\"");
    }
    let to = section.resolve(&to).display().to_string();
    let last = Path::new(&to).components().next_back();
    if !to.contains(BACKEND) {
        section.mistake("to", "must contain {backend}, or one backend's files would replace the other's");
    } else if !matches!(last, Some(Component::Normal(_))) {
        section.mistake("to", "not a directory, such as \"/srv/app-{backend}/public\"");
    }
    Some(ServedFiles { from, to })
}
