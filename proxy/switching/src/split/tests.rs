//! What holds for every salt, client and weight.

use proptest::prelude::*;

use super::*;

fn weight(percent: f64) -> Weight {
    Weight::from_percent(percent).unwrap().unwrap()
}

fn key() -> impl Strategy<Value = ClientKey> {
    prop_oneof![
        any::<u32>().prop_map(ClientKey::V4),
        any::<u64>().prop_map(ClientKey::V6),
        any::<u128>().prop_map(ClientKey::Cookie)
    ]
}

#[test]
fn a_weight_is_a_percentage_with_at_most_four_decimals() {
    for (percent, millionths) in
        [(0.0001, 1), (0.1, 1_000), (0.3, 3_000), (10.0, 100_000), (33.3333, 333_333), (100.0, 1_000_000)]
    {
        let weight = weight(percent);
        assert_eq!(weight.millionths(), millionths, "{percent}");
        assert!((weight.percent() - percent).abs() < 1e-9, "{percent}");
    }
    assert_eq!(Weight::from_percent(0.0), Ok(None));
    assert_eq!(Weight::from_percent(-0.0), Ok(None));
    for bad in [101.0, 100.0001, -1.0, -0.0001, f64::NAN, f64::INFINITY, 0.00001, 33.33333] {
        assert!(Weight::from_percent(bad).is_err(), "{bad}");
    }
    assert_eq!(weight(12.5).to_string(), "12.5 %");
}

#[test]
fn the_hash_decides_to_the_last_bit() {
    let half = weight(50.0);
    assert!(half.takes(u64::MAX / 2) && !half.takes(u64::MAX / 2 + 1));
    assert!(weight(100.0).takes(u64::MAX) && weight(0.0001).takes(0));
    assert!(!weight(99.9999).takes(u64::MAX));
}

/// So that proxies of different versions agree, and a restart with another one moves nobody.
#[test]
fn the_hash_is_the_same_in_every_version() {
    let salt: Salt = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
    assert_eq!(salt.to_string(), "000102030405060708090a0b0c0d0e0f");
    let hashes = [ClientKey::V4(0xc000_0201), ClientKey::V6(0x2001_0db8_0000_0001), ClientKey::Cookie(7)]
        .map(|key| format!("{:016x}", salt.hash(key)));
    assert_eq!(hashes, HASHES);
    for bad in ["", "0", "+00102030405060708090a0b0c0d0e0f", "g00102030405060708090a0b0c0d0e0f"] {
        assert!(bad.parse::<Salt>().is_err(), "{bad}");
    }
}

/// By another implementation of SipHash-1-3.
const HASHES: [&str; 3] = ["13b04af59a3f23d4", "628772eb402717ab", "58aa624d98b30627"];

#[test]
fn the_same_bits_of_another_kind_are_another_client() {
    let salt = Salt::new(1);
    assert_ne!(salt.hash(ClientKey::V4(5)), salt.hash(ClientKey::V6(5)));
    assert_ne!(salt.hash(ClientKey::V6(5)), salt.hash(ClientKey::Cookie(5)));
}

/// Clients with 1, 10, 50 and 100 %: the shares are right, nobody moves back, and another salt chooses others.
#[test]
fn shares_are_right_and_another_salt_chooses_others() {
    const CLIENTS: u32 = 100_000;
    let addresses = |n: u32| ClientKey::V4(0x0a00_0000 + n);
    let networks = |n: u32| ClientKey::V6(0x2001_0db8_0000_0000 + u64::from(n));
    let cookies =
        |n: u32| ClientKey::Cookie(u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    for keys in [&addresses as &dyn Fn(u32) -> ClientKey, &networks, &cookies] {
        for salt in [Salt::new(0), Salt::new(1), Salt::new(u128::MAX / 3)] {
            let mut before = vec![false; CLIENTS as usize];
            for percent in [1.0, 10.0, 50.0, 100.0] {
                let by = Assignment { weight: weight(percent), salt };
                let now: Vec<bool> = (0..CLIENTS).map(|n| by.side(keys(n)) == Side::New).collect();
                assert!(before.iter().zip(&now).all(|(before, now)| *now || !before), "one has moved back");
                near(now.iter().filter(|new| **new).count(), CLIENTS, percent / 100.0);
                before = now;
            }
        }
        let tenth = |salt| Assignment { weight: weight(10.0), salt: Salt::new(salt) };
        let in_both = |n: &u32| [tenth(1), tenth(2)].iter().all(|by| by.side(keys(*n)) == Side::New);
        near((0..CLIENTS).filter(in_both).count(), CLIENTS, 0.01);
    }
}

/// Within four standard deviations.
fn near(count: usize, of: u32, share: f64) {
    let (count, of) = (count as f64, f64::from(of));
    let deviation = (of * share * (1.0 - share)).sqrt();
    assert!((count - of * share).abs() <= 4.0 * deviation, "{count} of {of}, expected {share}");
}

proptest! {
    #[test]
    fn more_weight_only_moves_clients_forward(salt in any::<u128>(), key in key(), weights in [1..=WHOLE, 1..=WHOLE]) {
        let side = |weight| Assignment { weight: Weight(weight), salt: Salt::new(salt) }.side(key);
        let (less, more) = (weights[0].min(weights[1]), weights[0].max(weights[1]));
        prop_assert!(side(less) == Side::Old || side(more) == Side::New);
        prop_assert_eq!(side(WHOLE), Side::New);
        prop_assert_eq!(side(less), side(less));
    }

    #[test]
    fn a_weight_survives_being_written_as_a_percentage(millionths in 1..=WHOLE) {
        let weight = Weight(millionths);
        prop_assert_eq!(Weight::from_percent(weight.percent()), Ok(Some(weight)));
        let text = serde_json::to_string(&weight.percent()).unwrap();
        prop_assert_eq!(Weight::from_percent(serde_json::from_str(&text).unwrap()), Ok(Some(weight)));
    }

    #[test]
    fn no_number_panics(bits in any::<u64>()) {
        let _ = Weight::from_percent(f64::from_bits(bits));
    }
}
