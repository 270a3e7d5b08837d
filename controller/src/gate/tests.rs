//! The gate with an engine that doesn't answer.

use async_trait::async_trait;

use super::*;
use crate::check::Check;
use crate::lines::Lines;
use crate::runtime::{self, DryRunPlan, Frozen};

/// An engine that never answers.
struct BlackHole;

#[async_trait(?Send)]
impl Runtime for BlackHole {
    fn kind(&self) -> &'static str {
        "docker"
    }

    async fn checks(&self, _: &runtime::Candidate) -> Vec<Check> {
        Vec::new()
    }

    async fn plan(&self, _: &runtime::Candidate) -> Result<DryRunPlan, RuntimeError> {
        std::future::pending().await
    }

    async fn build(&self, _: &runtime::Candidate, _: Lines<'_>) -> Result<Frozen, RuntimeError> {
        std::future::pending().await
    }

    async fn copy_files(&self, _: &Frozen, _: &str, _: &std::path::Path) -> Result<(), RuntimeError> {
        std::future::pending().await
    }

    async fn start(&self, _: &InstanceId, _: &Frozen) -> Result<(), RuntimeError> {
        std::future::pending().await
    }

    async fn state(&self, _: &InstanceId) -> Result<State, RuntimeError> {
        std::future::pending().await
    }

    async fn find(&self, _: &uh_protocol::BackendName) -> Result<Vec<InstanceId>, RuntimeError> {
        std::future::pending().await
    }

    async fn stop(&self, _: &InstanceId, _: Duration) -> Result<State, RuntimeError> {
        std::future::pending().await
    }

    async fn remove(&self, _: &InstanceId) -> Result<(), RuntimeError> {
        std::future::pending().await
    }

    async fn logs(&self, _: &InstanceId, _: &LogQuery, _: Lines<'_>) -> Result<(), RuntimeError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn the_gate_ends_at_its_deadline_even_if_the_engine_never_answers() {
    let gate = GateSettings {
        path: "/".to_owned(),
        host: None,
        headers: Vec::new(),
        interval: Duration::from_millis(10),
        timeout: Duration::from_millis(100),
        within: Duration::from_millis(100),
        successes: 1000,
        identity: crate::config::IdentityCheck::Ignored,
    };
    let (service, backend) = ("app".parse().unwrap(), "green".parse().unwrap());
    let instance = InstanceId::new(&service, &backend, "20261125t000001-aaaa");
    // Nothing listens on port 1 of the loopback address, or it does no harm.
    let endpoints = ["127.0.0.1:1".parse().unwrap()];
    let expected = Expected { backend: &backend, version: None };
    let candidate = HealthGate { runtime: &BlackHole, instance: &instance, endpoints: &endpoints, expected };
    let proven = candidate.prove(&gate, &|_| {});
    let refused =
        tokio::time::timeout(Duration::from_secs(60), proven).await.expect("a deadline").unwrap_err();
    assert!(refused.headline.contains("didn't become healthy"), "{}", refused.headline);
}
