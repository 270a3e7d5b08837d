//! Counters read from metrics: differences across restarts, and what counts as an error.

use super::*;

const METRICS: &str = r#"
# TYPE uh_proxy_requests_total counter
uh_proxy_requests_total{backend="green",code="200",method="GET",service="app"} 90
uh_proxy_requests_total{backend="green",code="499",method="GET",service="app"} 5
uh_proxy_requests_total{backend="green",code="502",method="GET",service="app"} 3
uh_proxy_requests_total{backend="green",code="500",method="POST",service="app"} 2
uh_proxy_requests_total{backend="blue",code="500",method="POST",service="app"} 1000
uh_proxy_request_duration_seconds_bucket{backend="green",service="app",le="0.1"} 90
uh_proxy_request_duration_seconds_bucket{backend="green",service="app",le="0.5"} 100
uh_proxy_request_duration_seconds_bucket{backend="green",service="app",le="+Inf"} 100
uh_proxy_request_duration_seconds_sum{backend="green",service="app"} 12
"#;

const NEWER: &str = r#"
uh_proxy_exchanges_broken_total{backend="green",reason="cut_short",service="app"} 30
uh_proxy_exchanges_broken_total{backend="green",reason="closed",service="app"} 3
uh_proxy_exchanges_overdue_total{backend="green",service="app"} 4
"#;

/// `requests` of which `errors` were 500.
pub(crate) fn counters(requests: u64, errors: u64) -> Counters {
    let ended = [("GET 200", requests - errors), ("GET 500", errors)];
    let took = [("0.1", requests), ("+Inf", requests)];
    let own = |pairs: [(&str, u64); 2]| pairs.map(|(key, n)| (key.to_owned(), n)).into();
    Counters { ended: own(ended), took: own(took), overdue: Some(0), ..Counters::default() }
}

fn green(metrics: &str) -> Counters {
    Counters::read(metrics, "app", "green")
}

#[test]
fn every_5xx_is_an_error_and_a_client_that_left_is_neither_error_nor_success() {
    let green = green(METRICS);
    assert_eq!((green.requests(), green.clients_gone()), (100, 5));
    assert_eq!(green.answers(), Answers { good: 90, bad: 5 });
    assert_eq!(green.p95(), Some(Duration::from_millis(300)));
    assert_eq!(green.failures(), [("502".to_owned(), 3), ("500".to_owned(), 2)]);
    assert!(!green.knows_overdue(), "an older uh-proxy doesn't count them");
    assert_eq!(Counters::read(METRICS, "app", "red"), Counters::default());
}

#[test]
fn a_response_that_breaks_off_is_an_error_despite_its_200_and_a_502_counts_once() {
    let green = green(&format!("{METRICS}{NEWER}"));
    assert_eq!(green.answers(), Answers { good: 60, bad: 35 });
    assert_eq!(green.failures()[0], ("broken off (cut_short)".to_owned(), 30));
}

#[test]
fn at_most_all_ended_exchanges_can_fail() {
    let cut_errors = "uh_proxy_requests_total{backend=\"green\",code=\"500\",method=\"GET\",service=\"app\"} 10\n\
        uh_proxy_exchanges_broken_total{backend=\"green\",reason=\"cut_short\",service=\"app\"} 10\n";
    assert_eq!(green(cut_errors).answers(), Answers { good: 0, bad: 10 });
}

#[test]
fn an_overdue_exchange_is_an_error_immediately_and_not_again_when_it_ends() {
    let hang = "uh_proxy_exchanges_overdue_total{backend=\"green\",service=\"app\"} 40\n";
    assert_eq!(green(hang).answers(), Answers { good: 0, bad: 40 });
    let ended = "uh_proxy_requests_total{backend=\"green\",code=\"504\",method=\"GET\",service=\"app\"} 40\n";
    assert_eq!(green(&format!("{hang}{ended}")).answers(), Answers { good: 0, bad: 40 });
}

#[test]
fn counters_saturate_instead_of_overflowing() {
    let line = "uh_proxy_requests_total{service=\"app\",backend=\"green\",code=\"500\"} 9e99\n";
    let green = green(&line.repeat(2));
    assert_eq!((green.requests(), green.answers().bad, green.answers().rate()), (u64::MAX, u64::MAX, 1.0));
}

#[test]
fn a_series_that_is_smaller_than_before_has_started_from_zero() {
    assert_eq!(counters(100, 5).since(&counters(90, 5)), counters(10, 0));
    // 50 good ones and 3 bad ones since a restart: the good series is smaller, and the bad one is, too.
    let now = counters(53, 3).since(&counters(1000, 10));
    assert_eq!(now.answers(), Answers { good: 50, bad: 3 });
    // More errors than ever before, and fewer good answers.
    let now = counters(290, 280).since(&counters(100, 5));
    assert_eq!(now.answers(), Answers { good: 10, bad: 275 });
}

fn process(pid: u32, uptime_s: u64, monotonic_s: u64, boot: &str) -> ProxyProcess {
    let status = ProxyStatus {
        version: String::new(),
        pid,
        host: String::new(),
        uptime_s,
        listen: Vec::new(),
        listen_tls: Vec::new(),
        listen_h2c: Vec::new(),
        certificates: Vec::new(),
        metrics: None,
        stopping: false,
    };
    ProxyProcess::new(&status, Duration::from_secs(monotonic_s), boot)
}

#[test]
fn a_restart_is_detected_by_process_id_by_uptime_and_by_boot() {
    let before = process(1, 100, 1000, "a");
    for (now, same) in [
        (process(1, 110, 1010, "a"), true),
        (process(1, 110, 1011, "a"), true),
        (process(2, 110, 1010, "a"), false),
        // Up for longer than before, and still another process.
        (process(1, 200, 2000, "a"), false),
        (process(1, 110, 1010, "b"), false),
    ] {
        assert_eq!(now.is(&before), same, "{now:?}");
    }
}

#[test]
fn after_a_restart_all_counts_are_new() {
    let reading = |process: &ProxyProcess, counters| Reading { process: process.clone(), counters };
    let (one, two) = (process(1, 100, 1000, "a"), process(2, 5, 1010, "a"));
    // Every series is larger than before: only the process tells.
    let now = reading(&two, counters(290, 280)).since(&reading(&one, counters(100, 5)));
    assert_eq!(now.answers(), Answers { good: 10, bad: 280 });
    let now = reading(&one, counters(290, 280)).since(&reading(&one, counters(100, 5)));
    assert_eq!(now.answers().bad, 275);
}

#[test]
fn saved_counters_are_read_back_unchanged() {
    let counters = green(&format!("{METRICS}{NEWER}"));
    let text = serde_json::to_string(&counters).unwrap();
    assert_eq!(serde_json::from_str::<Counters>(&text).unwrap(), counters);
    assert_eq!(counters.clone().plus(&counters).answers(), Answers { good: 120, bad: 70 });
}

#[test]
fn the_slowest_exchanges_can_be_left_out_of_the_p95() {
    let green = green(METRICS);
    // 90 of 90 took up to 0.1 s.
    assert_eq!(green.p95_without_slowest(10), Some(Duration::from_millis(95)));
    // 90 of 95, and the p95 is a quarter of an exchange above them.
    assert_eq!(green.p95_without_slowest(5), Some(Duration::from_millis(120)));
    for all in [100, 101] {
        assert_eq!(green.p95_without_slowest(all), None);
    }
}
