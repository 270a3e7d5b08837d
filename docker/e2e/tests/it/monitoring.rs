//! Rules, alerts and dashboard: checked by promtool, and run by a real Prometheus with a real uh-proxy.

use std::fs;
use std::process::Command;
use std::time::Duration;

use uh_e2e::dashboard::{self, Query};
use uh_e2e::prometheus::{LabelledValue, Prometheus};
use uh_e2e::repository;
use uh_protocol::request::{SplitRequest, SwitchRequest};
use uh_testkit::load::{Group, Load, Plan, Reuse};
use uh_testkit::process::run;
use uh_testkit::sample_app::SampleApp;
use uh_testkit::uh_proxy::{SERVICE, Setup};
use uh_testkit::wait::SOON;

const PROMTOOL_WITHIN: Duration = Duration::from_secs(30);
/// The alert itself waits for half a minute.
const ALERT_WITHIN: Duration = Duration::from_secs(90);

async fn promtool(arguments: &[&str]) {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(repository::root());
    let finished = run(promtool, PROMTOOL_WITHIN).await.unwrap();
    assert!(finished.status.success(), "promtool {arguments:?}: {}", finished.output);
}

#[tokio::test]
async fn promtool_accepts_the_configuration_and_the_rules() {
    promtool(&["check", "config", "config/prometheus.yml"]).await;
}

#[tokio::test]
async fn every_alert_passes_its_unit_tests() {
    let alerts = fs::read_to_string(repository::path("config/prometheus/alerts.yml")).unwrap();
    let tests = fs::read_to_string(repository::path("config/prometheus/alerts_test.yml")).unwrap();
    for name in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} is never expected to fire");
    }
    promtool(&["test", "rules", "config/prometheus/alerts_test.yml"]).await;
}

fn dashboard_queries() -> Vec<Query> {
    let json = fs::read_to_string(repository::path("config/grafana/dashboards/uh-proxy.json")).unwrap();
    dashboard::queries(&json).unwrap()
}

/// The values of one gauge, by backend: blue, then green.
async fn by_backend(prometheus: &Prometheus, metric: &str) -> Vec<f64> {
    let mut samples = prometheus.query(&format!("uh_proxy_backend_{metric}")).await.unwrap();
    samples.sort_by(|a, b| a.label("backend").cmp(b.label("backend")));
    samples.iter().map(|sample| sample.value).collect()
}

async fn show(prometheus: &Prometheus, when: &str) {
    for metric in ["active", "healthy", "requests_in_flight"] {
        println!(
            "{when}: uh_proxy_backend_{metric} (blue, green) {:?}",
            by_backend(prometheus, metric).await
        );
    }
}

fn only(backend: &'static str) -> impl Fn(&[LabelledValue]) -> bool {
    move |samples| samples.len() == 1 && samples[0].label("backend") == backend
}

/// Blue serves, then green takes over while blue still has exchanges in flight. Green fails one request in ten: the
/// gauges follow, and the alert fires only for green.
#[tokio::test]
async fn prometheus_sees_a_switch_and_the_error_rate_alert_fires_for_a_bad_version() {
    let dir = tempfile::tempdir().unwrap();
    let blue = SampleApp::start("blue", "1.0.0", dir.path()).await.unwrap();
    let bad = [("FAIL_PERCENT", "10")];
    let green = SampleApp::start_with(&bad, "green", "1.0.1", dir.path()).await.unwrap();
    // So that they have series.
    let features =
        "rate = { per_second = 10_000, burst = 1_000 }\ncompress = true\nsplit = { rescue = true }";
    let front_door =
        Setup::new(dir.path(), blue.address, green.address).service(features).start().await.unwrap();
    front_door.until_healthy().await.unwrap();
    let prometheus = Prometheus::start(dir.path(), &front_door.metrics.to_string()).await.unwrap();
    let group =
        |path: &str, clients, rate| Group { path: path.into(), clients, rate, reuse: Reuse::KeepAlive };
    let load = Load::start(Plan {
        target: front_door.address,
        // Eight exchanges of two seconds are in flight at any time.
        groups: vec![group("/", 10, 100.0), group("/slow?ms=2000", 8, 4.0)],
        request_timeout: SOON,
    })
    .unwrap();

    let active = "uh_proxy_backend_active == 1";
    let in_flight = |backend: &str| format!("uh_proxy_backend_requests_in_flight{{backend=\"{backend}\"}}");
    prometheus.wait_for(active, SOON, only("blue")).await.unwrap();
    prometheus.wait_for(&in_flight("blue"), SOON, |s| s.iter().any(|s| s.value > 4.0)).await.unwrap();
    show(&prometheus, "before the switch").await;
    assert_eq!(by_backend(&prometheus, "active").await, [1.0, 0.0]);
    assert_eq!(by_backend(&prometheus, "healthy").await, [1.0, 1.0]);

    let service = &SERVICE.parse().unwrap();
    let switch = |to: &str| SwitchRequest::to(to.parse().unwrap());
    front_door.client.switch(service, &switch("green")).await.unwrap();
    // Blue's exchanges take two seconds, so that a scrape sees exchanges in flight on both backends.
    let both = "count(uh_proxy_backend_requests_in_flight > 0)";
    prometheus.wait_for(both, SOON, |s| s.iter().any(|s| s.value > 1.5)).await.unwrap();
    show(&prometheus, "during the drain").await;
    prometheus.wait_for(active, SOON, only("green")).await.unwrap();
    prometheus.wait_for(&in_flight("blue"), SOON, |s| s.iter().all(|s| s.value == 0.0)).await.unwrap();
    show(&prometheus, "after the switch").await;

    // Others may fire too: blue's slow exchanges trigger one.
    let firing = "ALERTS{alertstate=\"firing\", alertname=\"HighErrorRate\"}";
    let fired = prometheus.wait_for(firing, ALERT_WITHIN, |samples| !samples.is_empty()).await.unwrap();
    println!("firing: {fired:?}");
    let high = |sample: &LabelledValue| {
        sample.label("alertname") == "HighErrorRate" && sample.label("backend") == "green"
    };
    assert!(fired.iter().any(high), "{fired:?}");

    // A split is a trial, so that the panels about trials have series.
    let to_blue = SplitRequest { to: Some("blue".parse().unwrap()), weight: 50.0, ..SplitRequest::default() };
    front_door.client.split(service, &to_blue).await.unwrap();
    prometheus.wait_for("uh_proxy_split_weight == 0.5", SOON, only("blue")).await.unwrap();
    for test in ["failures_coin", "failures_history", "slowness_coin", "slowness_windows", "slowness_history"]
    {
        let evidence = format!("uh_proxy_trial_log_evidence{{test=\"{test}\"}}");
        prometheus.wait_for(&evidence, SOON, only("blue")).await.unwrap();
    }

    for Query { title, expression } in dashboard_queries() {
        let samples = prometheus.query(&expression).await.unwrap();
        println!("{title}: {expression}\n    {} series", samples.len());
        // Only what didn't happen here has no series: there were no retries, no drain, no TLS, no HTTP/2 and no ACME.
        let absent = ["Retries", "TLS", "HTTP/2", "ACME"];
        let may_be_empty = title.contains("drains") || absent.iter().any(|start| title.starts_with(start));
        assert!(!samples.is_empty() || may_be_empty, "{title}: {expression}");
    }

    front_door.client.switch(service, &switch("blue")).await.unwrap();
    prometheus.wait_for(active, SOON, only("blue")).await.unwrap();
    show(&prometheus, "after the rollback").await;
    let innocent = prometheus.query("ALERTS{alertname=\"HighErrorRate\", backend=\"blue\"}").await.unwrap();
    assert!(innocent.is_empty(), "{innocent:?}");
    load.stop().await.unwrap();
    front_door.stop(SOON).await.unwrap();
}
