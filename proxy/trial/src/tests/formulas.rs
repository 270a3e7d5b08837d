//! Formulas against values computed by hand.

use crate::evidence::ln_mean_exp;
use crate::routes::{MAX_ROUTES, OTHER, template};
use crate::*;

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{found}, not {expected}");
}

#[test]
fn many_events_at_once_count_like_one_after_the_other() {
    let (mut each, mut at_once) = (CoinTest::default(), CoinTest::default());
    for (side, times) in [(Side::New, 11), (Side::Old, 3)] {
        (0..times).for_each(|_| each.record(side, Weight::new(0.6)));
        at_once.record_many(side, Weight::new(0.6), times);
        assert_eq!(at_once.clients(side), times);
    }
    let (each, at_once) = (each.ln_evidence(), at_once.ln_evidence());
    assert!((each - at_once).abs() < 1e-9, "{each} {at_once}");
}

/// With w = 10 % and θ = 3: q = 0.3/1.2 = 0.25, so q/w = 2.5 and (1−q)/(1−w) = 0.8333.
/// θ = 10: q = 1/1.9; θ = 30: q = 3/3.9; θ = 100: q = 10/10.9.
#[test]
fn one_failure_on_the_new_side_is_the_mean_of_the_ratios() {
    let mut coin = CoinTest::default();
    near(coin.ln_evidence(), 0.0);
    coin.record(Side::New, Weight::new(0.1));
    let factors: [f64; 4] = [2.5, 10.0 / 1.9, 30.0 / 3.9, 100.0 / 10.9];
    near(coin.ln_evidence(), (factors.iter().sum::<f64>() / 4.0).ln());
}

#[test]
fn one_failure_on_the_old_side_speaks_for_the_new_one() {
    let mut coin = CoinTest::default();
    coin.record(Side::Old, Weight::new(0.1));
    let factors: [f64; 4] = [1.0 / 1.2, 1.0 / 1.9, 1.0 / 3.9, 1.0 / 10.9];
    near(coin.ln_evidence(), (factors.iter().sum::<f64>() / 4.0).ln());
}

/// w = 10 %, two failures on new and one on old, then w = 50 % and one on new (factors 1.5, 1.818, 1.935, 1.980).
#[test]
fn weights_may_change_on_the_way() {
    let mut coin = CoinTest::default();
    for side in [Side::New, Side::New, Side::Old] {
        coin.record(side, Weight::new(0.1));
    }
    coin.record(Side::New, Weight::HALF);
    let product = |theta: f64| {
        let (q, half) = (theta * 0.1 / (theta * 0.1 + 0.9), theta / (theta + 1.0));
        (q / 0.1) * (q / 0.1) * ((1.0 - q) / 0.9) * (half / 0.5)
    };
    near(coin.ln_evidence(), ([3.0, 10.0, 30.0, 100.0].map(product).iter().sum::<f64>() / 4.0).ln());
    // (7.813 + 26.512 + 29.370 + 15.286) / 4.
    assert!((coin.ln_evidence().exp() - 19.745).abs() < 0.01, "{}", coin.ln_evidence().exp());
    assert_eq!((coin.clients(Side::New), coin.clients(Side::Old)), (3, 1));
}

#[test]
fn where_one_side_has_no_clients_the_coin_says_nothing() {
    let mut coin = CoinTest::default();
    for weight in [0.0, 1.0, -3.0, 7.0, f64::NAN, f64::INFINITY] {
        coin.record(Side::New, Weight::new(weight));
    }
    near(coin.ln_evidence(), 0.0);
    assert_eq!(coin.clients(Side::New), 6);
}

/// 9 of 9 at 50 %: with θ = 100 the factor is (200/101)⁹ = 467; the mean over θ is 286.
#[test]
fn a_coin_of_a_half_needs_many_clients() {
    let mut coin = CoinTest::default();
    (0..9).for_each(|_| coin.record(Side::New, Weight::HALF));
    let factors = [1.5_f64, 20.0 / 11.0, 60.0 / 31.0, 200.0 / 101.0].map(|factor| factor.powi(9));
    near(coin.ln_evidence(), (factors.iter().sum::<f64>() / 4.0).ln());
    assert!(coin.ln_evidence() > Rule::FAILURES.seconded.ln());
}

/// 3 of 100 with z = 3: centre (3+4.5)/109 = 0.068807, half 3·√(0.068807·0.931193/109) = 0.072736.
#[test]
fn an_interval_is_that_of_agresti_and_coull() {
    let (low, high) = Share::new(3, 100).interval(3.0);
    near(low, 0.0);
    near(high, 0.141_542_6);
    let (low, high) = Share::new(1800, 60_000).interval(3.0);
    near(low, 0.027_979_0);
    near(high, 0.032_162_0);
    assert_eq!(Share::default().interval(3.0), (0.0, 1.0));
}

/// p₀ = 0.1415426; one bad and one good request.
#[test]
fn the_history_is_the_mean_over_the_excesses() {
    let test = HistoryTest::new(Share::new(3, 100));
    near(test.ln_evidence(Share::default()), 0.0);
    let p0: f64 = 0.141_542_627;
    let product = |excess: f64| {
        let p1 = p0 + excess * (1.0 - p0);
        (p1 / p0) * ((1.0 - p1) / (1.0 - p0))
    };
    let mean = [0.01, 0.02, 0.05, 0.2, 0.7].map(product).iter().sum::<f64>() / 5.0;
    near(test.ln_evidence(Share::new(1, 2)), mean.ln());
    // Without a history, half of the requests may fail.
    near(HistoryTest::new(Share::default()).allowed(), 0.5);
    near(HistoryTest::new(Share::new(10, 10)).allowed(), 0.5);
}

/// 5 of 100 and 0 of 900: 0.05 + hypot(up 0.11743…, down 0).
#[test]
fn what_is_excluded_shrinks_with_the_requests() {
    let of = |bad, all| Share::new(bad, all);
    let up = of(5, 100).interval(3.0).1 - 0.05;
    near(excluded(of(5, 100), of(0, 900)), 0.05 + up);
    near(excluded(Share::default(), of(0, 900)), 1.0);
    near(excluded(of(0, 10), Share::default()), 1.0);
    let few = excluded(of(1, 300), of(3, 300));
    let many = excluded(of(100, 30_000), of(300, 30_000));
    assert!(few < 0.06 && many < few && many < 0.001, "{few} {many}");
}

#[test]
fn slow_is_longer_than_the_first_bound_that_holds_95_percent() {
    let bounds = [100, 250, 500];
    let found = |cumulative: [u64; 4]| slow_bound(&bounds, &cumulative);
    assert_eq!(found([50, 97, 100, 100]), Some(SlowBound { bound: 250, history: Share::new(3, 100) }));
    assert_eq!(found([95, 97, 100, 100]).unwrap().bound, 100);
    assert_eq!(found([0, 0, 94, 100]), None);
    assert_eq!(found([0; 4]), None);
    assert_eq!(slow_bound(&bounds, &[]), None);
}

#[test]
fn overdue_is_longer_than_the_first_bound_that_holds_99_percent() {
    let bounds = [100, 250, 500];
    let found = |cumulative: [u64; 4]| overdue_bound(&bounds, &cumulative);
    assert_eq!(found([95, 98, 99, 100]), Some(SlowBound { bound: 500, history: Share::new(1, 100) }));
    assert_eq!(found([95, 98, 98, 100]), None, "whoever needs so long isn't judged by it");
}

#[test]
fn the_mean_of_logs_neither_overflows_nor_vanishes() {
    near(ln_mean_exp(&[1e6, 1e6]), 1e6);
    near(ln_mean_exp(&[-1e6, -1e6]), -1e6);
    near(ln_mean_exp(&[0.0, -1e9]), -(2.0_f64.ln()));
    assert_eq!(ln_mean_exp(&[]), f64::NEG_INFINITY);
}

#[test]
fn templates_leave_out_values() {
    for (path, expected) in [
        ("/", "/"),
        ("", "/"),
        ("*", "/*"),
        ("/orders/4711?x=1", "/orders/*"),
        ("/api/v2/users/0f8fad5b-d9cb-469f-a165-70867728950e/pay/now", "/api/*/users/*"),
        ("//a//b/", "/a/b"),
        ("/_next/static/app.js", "/_next/static/app.js"),
        ("/caf%C3%A9", "/*"),
        ("/abcdefghijklmnopqrstuvwxyz", "/*"),
    ] {
        assert_eq!(template(path.as_bytes()), expected, "{path}");
    }
    assert_eq!(template(b"/\xff\xfe/x"), "/*/x");
}

#[test]
fn a_table_of_routes_is_bounded() {
    let mut routes = Routes::default();
    for number in 0..1000_u32 {
        let name: String = number.to_string().bytes().map(|digit| char::from(digit + 49)).collect();
        routes.record(format!("/{name}").as_bytes(), Side::New, Weight::HALF);
    }
    routes.record(b"/", Side::Old, Weight::HALF);
    let top = routes.top();
    assert_eq!(top.len(), MAX_ROUTES + 1);
    assert_eq!((top[0].template.as_str(), top[0].coin.clients(Side::New)), (OTHER, 984));
    assert_eq!(top[0].coin.clients(Side::Old), 1);
}

/// 200,000 clients are seen once each, and a few of the next 100,000 are mistaken for them.
#[test]
fn a_client_that_was_seen_is_always_known_and_few_others_are() {
    let seen = Seen::default();
    let all_new = (0..200_000).filter(|client| seen.first(*client)).count();
    assert!(all_new > 199_900, "{all_new}");
    assert!((0..200_000).all(|client| !seen.first(client)));
    let mistaken = (1_000_000..1_010_000).filter(|client| !seen.first(*client)).count();
    assert!(mistaken <= 40, "{mistaken} of 10,000; the mean is {}", 10_000.0 * Seen::error(205_000));
}
