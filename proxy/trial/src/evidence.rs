//! Evidence in log space: products of likelihood ratios as sums of logarithms, so that no number of events overflows.

/// The natural logarithm of the mean of `exp(log)` over all logs. The mean of several tests is as valid as one of them.
/// Never NaN for finite logs; `-inf` for none.
#[must_use]
pub fn ln_mean_exp(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return largest;
    }
    let sum: f64 = logs.iter().map(|log| (log - largest).exp()).sum();
    largest + (sum / logs.len() as f64).ln()
}
