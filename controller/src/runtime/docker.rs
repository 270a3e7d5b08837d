//! Containers through the Engine API (bollard), without any command-line tool. Not built yet.

use std::time::Duration;

use async_trait::async_trait;
use uh_protocol::BackendName;

use super::{Candidate, Frozen, InstanceId, Lines, LogQuery, Plan, Runtime, RuntimeError, State};
use crate::check::Check;
use crate::config::Config;

/// The `docker` runtime.
#[derive(Debug)]
pub struct Docker;

impl Docker {
    /// For this configuration.
    #[must_use]
    pub fn new(_config: &Config) -> Self {
        Self
    }
}

const NOT_BUILT: RuntimeError = RuntimeError::NotBuilt("docker");

#[async_trait(?Send)]
impl Runtime for Docker {
    fn kind(&self) -> &'static str {
        "docker"
    }

    async fn checks(&self, _candidate: &Candidate) -> Vec<Check> {
        vec![Check::failed("Runtime available", NOT_BUILT.to_string(), "use the process runtime")]
    }

    async fn plan(&self, _candidate: &Candidate) -> Result<Plan, RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn build(&self, _candidate: &Candidate, _progress: Lines<'_>) -> Result<Frozen, RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn start(&self, _instance: &InstanceId, _frozen: &Frozen) -> Result<(), RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn state(&self, _instance: &InstanceId) -> Result<State, RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn find(&self, _backend: &BackendName) -> Result<Vec<InstanceId>, RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn stop(&self, _instance: &InstanceId, _timeout: Duration) -> Result<State, RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn remove(&self, _instance: &InstanceId) -> Result<(), RuntimeError> {
        Err(NOT_BUILT)
    }

    async fn logs(
        &self,
        _instance: &InstanceId,
        _query: &LogQuery,
        _line: Lines<'_>,
    ) -> Result<(), RuntimeError> {
        Err(NOT_BUILT)
    }
}
