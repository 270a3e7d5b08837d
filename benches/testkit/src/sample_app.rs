//! A sample app that runs as a backend, on a port of its own choice.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{Process, program};
use crate::wait::SOON;

/// A running sample app; it ends when this is dropped.
#[derive(Debug)]
pub struct SampleApp {
    /// The backend that it is.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// The process that it is.
    pub process: Process,
}

impl SampleApp {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it is not built, or does not get ready.
    pub async fn start(name: &'static str, version: &str, dir: &Path) -> Result<Self> {
        Self::start_with(&[], name, version, dir).await
    }

    /// The same, with more variables: see the app's settings.
    ///
    /// # Errors
    /// When it is not built, or does not get ready.
    pub async fn start_with(
        variables: &[(&str, &str)],
        name: &'static str,
        version: &str,
        dir: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(program("uh-sample-app")?);
        command
            .env("PORT", "0")
            .env("HOST", "127.0.0.1")
            .env("DEPLOYMENT_ENV", name)
            .env("APP_VERSION", version)
            .envs(variables.iter().copied());
        let mut process = Process::spawn(name, &mut command, dir)?;
        let address = process.line_after("listening on ", SOON).await?;
        let address =
            address.parse().with_context(|| format!("{name} reports the listen address {address:?}"))?;
        Ok(Self { name, address, process })
    }
}

/// Blue 1.0.0 and green 1.0.1.
///
/// # Errors
/// When they don't get ready.
pub async fn pair(dir: &Path) -> Result<(SampleApp, SampleApp)> {
    Ok((SampleApp::start("blue", "1.0.0", dir).await?, SampleApp::start("green", "1.0.1", dir).await?))
}
