//! The configuration of a release: services that are deployed together, each with a configuration file of its own.

use std::path::{Path, PathBuf};

use uh_settings::ConfigError;

/// Services that are deployed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseConfig {
    /// Lock and journal of the release. The members keep their own.
    pub state_dir: PathBuf,
    /// The configuration files of the services; at least two.
    pub members: Vec<PathBuf>,
}

/// Reads and checks a configuration file if it is that of a release, which has a table `[release]`.
///
/// # Errors
/// The file can't be read, isn't TOML, or has mistakes.
pub fn release(path: &Path) -> Result<Option<ReleaseConfig>, ConfigError> {
    let text = uh_settings::read(path)?;
    if !uh_settings::has_table(&text, "release").map_err(|error| error.in_file(path))? {
        return Ok(None);
    }
    let path = std::path::absolute(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    uh_settings::parse(&text, directory, |root| {
        let mut section = root.section("release");
        let members = section.paths("members");
        if members.len() < 2 {
            section.mistake(
                "members",
                "list at least two configuration files, as in [\"web.toml\", \"api.toml\"]",
            );
        }
        ReleaseConfig { state_dir: section.path("state_dir", "/var/lib/uh-deploy/release"), members }
    })
    .map(Some)
    .map_err(|error| error.in_file(&path))
}
