//! Measurements as Markdown tables. Pure.

use std::fmt::Write as _;

use super::proxies::Proxy;
use super::rows::{Load, Measurement, Measurements, Memory, ROWS, Row, Setting, USUAL};
use super::secure;
use super::switches::SwitchCost;
use crate::percentiles::{Times, grouped};

/// A proxy that was never busier than this was not what limited the rate.
const SATURATED: f64 = 0.93;

/// The middle one.
#[must_use]
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

/// The median with the lowest and the highest: `18.4 (17.9–19.0)`.
fn with_spread(values: &[f64]) -> String {
    let Some(middle) = median(values.iter().copied()) else { return "-".to_owned() };
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if values.len() == 1 {
        number(middle)
    } else {
        format!("{} ({}–{})", number(middle), number(low), number(high))
    }
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> String {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("**{:.2}**", ours / theirs),
        _ => "-".to_owned(),
    }
}

/// What a cell shows of a row's samples.
struct Column<'a> {
    rows: &'a dyn Fn(&Row) -> bool,
    title: &'a str,
    value: &'a dyn Fn(&Row, &Measurement) -> f64,
    show: &'a dyn Fn(&[f64], &[Measurement]) -> String,
}

fn table(samples: &Measurements, proxies: &[Proxy], column: &Column<'_>) -> String {
    let shown = shown(proxies);
    let mut text = heading(column.title, &shown);
    for (index, row) in ROWS.iter().enumerate().filter(|(_, row)| (column.rows)(row)) {
        let values = |proxy: Proxy| -> Vec<f64> {
            let of = samples.get(&(index, proxy)).map_or(&[][..], Vec::as_slice);
            of.iter().map(|sample| (column.value)(row, sample)).collect()
        };
        if shown.iter().all(|proxy| values(*proxy).is_empty()) {
            continue;
        }
        let _ = write!(text, "| {} |", row.name);
        for &proxy in &shown {
            let of = samples.get(&(index, proxy)).map_or(&[][..], Vec::as_slice);
            let _ = write!(text, " {} |", (column.show)(&values(proxy), of));
        }
        text.push_str(&ratios(|proxy| median(values(proxy).into_iter())));
    }
    text
}

/// The columns of the tables that list all proxies.
fn shown(proxies: &[Proxy]) -> Vec<Proxy> {
    proxies.iter().copied().filter(|proxy| *proxy != Proxy::NginxByLine).collect()
}

fn heading(title: &str, shown: &[Proxy]) -> String {
    let mut text = format!("| {title} |");
    for proxy in shown {
        let _ = write!(text, " {} |", proxy.name());
    }
    text.push_str(" ÷ nginx | ÷ HAProxy |\n|---|");
    text.push_str(&"---|".repeat(shown.len() + 2));
    text.push('\n');
    text
}

/// The end of such a row: our ratios.
fn ratios(middle: impl Fn(Proxy) -> Option<f64>) -> String {
    let ours = middle(Proxy::UhProxy);
    format!(" {} | {} |\n", ratio(ours, middle(Proxy::Nginx)), ratio(ours, middle(Proxy::Haproxy)))
}

/// CPU time for each request.
#[must_use]
pub fn cpu(samples: &Measurements, proxies: &[Proxy]) -> String {
    let mut text = table(
        samples,
        proxies,
        &Column {
            rows: &|row| !is_large(row.body_bytes()),
            title: "CPU µs per request: median (lowest–highest)",
            value: &|_, sample| sample.cpu_us,
            show: &|values, _| with_spread(values),
        },
    );
    let by_line = samples.get(&(0, Proxy::NginxByLine));
    if let Some(cost) = by_line.and_then(|samples| median(samples.iter().map(|sample| sample.cpu_us))) {
        let _ = write!(
            text,
            "\nHere nginx writes its log in batches, as uh-proxy does. With its default of one write per line, it needs {} µs in the first row.\n",
            number(cost)
        );
    }
    text
}

fn is_large(body_bytes: u64) -> bool {
    body_bytes >= 1 << 20
}

/// CPU time for each gigabyte.
#[must_use]
pub fn cpu_of_bytes(samples: &Measurements, proxies: &[Proxy]) -> String {
    table(
        samples,
        proxies,
        &Column {
            rows: &|row| is_large(row.body_bytes()),
            title: "CPU s per GB: median (lowest–highest)",
            value: &|row, sample| sample.cpu_us * 1000.0 / row.body_bytes() as f64,
            show: &|values, _| with_spread(values),
        },
    )
}

/// Where the CPU time was spent.
#[must_use]
pub fn user_and_kernel(samples: &Measurements, proxies: &[Proxy]) -> String {
    table(
        samples,
        proxies,
        &Column {
            rows: &|row| row.name == USUAL || row.setting == Setting::NoLog || row.name.starts_with("a new"),
            title: "user + kernel, µs per request (ratio: user alone)",
            value: &|_, sample| sample.cpu_us * (1.0 - sample.kernel_share),
            show: &|user, all| {
                let total = median(all.iter().map(|sample| sample.cpu_us));
                match (median(user.iter().copied()), total) {
                    (Some(user), Some(total)) => format!("{} + {}", number(user), number(total - user)),
                    _ => "-".to_owned(),
                }
            },
        },
    )
}

/// Requests a second.
#[must_use]
pub fn rate(samples: &Measurements, proxies: &[Proxy]) -> String {
    table(
        samples,
        proxies,
        &Column {
            rows: &|row| matches!(row.load, Load::Closed { .. }),
            title: "requests/s",
            value: &|_, sample| sample.rate,
            show: &|values, all| {
                let Some(rate) = median(values.iter().copied()) else { return "-".to_owned() };
                let busy = median(all.iter().map(|sample| sample.busy)).unwrap_or_default();
                format!("{}{}", if busy < SATURATED { "≥ " } else { "" }, grouped(rate as usize))
            },
        },
    )
}

/// Latency at fixed rates. The ratios are of p99.
#[must_use]
pub fn latency(samples: &Measurements, proxies: &[Proxy]) -> String {
    table(
        samples,
        proxies,
        &Column {
            rows: &|row| matches!(row.load, Load::Open { .. }),
            title: "µs: p50 / p99 / p99.9 (ratio: p99)",
            value: &|_, sample| sample.latency_us[1],
            show: &|_, all| {
                let at = |place: usize| median(all.iter().map(|sample| sample.latency_us[place]));
                match (at(0), at(1), at(2)) {
                    (Some(p50), Some(p99), Some(p999)) => format!("{p50:.0} / {p99:.0} / {p999:.0}"),
                    _ => "-".to_owned(),
                }
            },
        },
    )
}

/// What TLS and HTTP/2 cost: CPU time for each request.
#[must_use]
pub fn secure(samples: &secure::Measurements, proxies: &[Proxy]) -> String {
    secure_table(samples, proxies, "CPU µs per request: median (lowest–highest)", &|row, sample| {
        (!is_large(row.body_bytes())).then_some(sample.cpu_us)
    })
}

/// The same for large bodies: CPU time for each gigabyte.
#[must_use]
pub fn secure_bytes(samples: &secure::Measurements, proxies: &[Proxy]) -> String {
    secure_table(samples, proxies, "CPU s per GB: median (lowest–highest)", &|row, sample| {
        is_large(row.body_bytes()).then_some(sample.cpu_us * 1000.0 / row.body_bytes() as f64)
    })
}

/// A table of the rows that have a value.
fn secure_table(
    samples: &secure::Measurements,
    proxies: &[Proxy],
    title: &str,
    value: &dyn Fn(&secure::Row, &Measurement) -> Option<f64>,
) -> String {
    let shown: Vec<Proxy> = shown(proxies);
    let mut text = heading(title, &shown);
    for (index, row) in secure::ROWS.iter().enumerate() {
        let values = |proxy: Proxy| -> Vec<f64> {
            let of = samples.get(&(index, proxy)).map_or(&[][..], Vec::as_slice);
            of.iter().filter_map(|sample| value(row, sample)).collect()
        };
        if shown.iter().all(|proxy| values(*proxy).is_empty()) {
            continue;
        }
        let _ = write!(text, "| {} |", row.name);
        for &proxy in &shown {
            let values = values(proxy);
            let cell = if values.is_empty() { "-".to_owned() } else { with_spread(&values) };
            let _ = write!(text, " {cell} |");
        }
        text.push_str(&ratios(|proxy| median(values(proxy).into_iter())));
    }
    text
}

/// Memory of an idle TLS connection.
#[must_use]
pub fn secure_memory(all: &[(Proxy, f64)]) -> String {
    let mut text = "| | per idle TLS connection, KiB |\n|---|---|\n".to_owned();
    for (proxy, bytes) in all {
        let _ = writeln!(text, "| {} | {:.1} |", proxy.name(), bytes / 1024.0);
    }
    text
}

/// What two cores bring.
#[must_use]
pub fn scaling(samples: &Measurements, proxies: &[Proxy]) -> String {
    let cost = |row: &dyn Fn(&Row) -> bool, proxy: Proxy| {
        let index = ROWS.iter().position(row)?;
        median(samples.get(&(index, proxy))?.iter().map(|sample| sample.cpu_us))
    };
    let mut text =
        "| | one worker, µs | two workers, µs | two cores answer … times as much |\n|---|---|---|---|\n"
            .to_owned();
    for &proxy in proxies.iter().filter(|proxy| **proxy != Proxy::NginxByLine) {
        let one = cost(&|row| row.name == USUAL, proxy);
        let two = cost(&|row| row.setting == Setting::TwoCores, proxy);
        if let (Some(one), Some(two)) = (one, two) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.2} |",
                proxy.name(),
                number(one),
                number(two),
                2.0 * one / two
            );
        }
    }
    text
}

/// Memory.
#[must_use]
pub fn memory(all: &[(Proxy, Memory)]) -> String {
    let mut text =
        "| | at rest, MB | per idle connection, KiB | per tunnel, KiB |\n|---|---|---|---|\n".to_owned();
    for (proxy, memory) in all {
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.2} | {:.2} |",
            proxy.name(),
            memory.at_rest / 1e6,
            memory.per_connection / 1024.0,
            memory.per_tunnel / 1024.0
        );
    }
    text
}

/// Switches.
#[must_use]
pub fn switches(all: &[(Proxy, [SwitchCost; 2])]) -> String {
    let mut text = "| ms: p50 / p99 | switches | control call, quiet | first new answer, quiet | control call, under load | \
                    first new answer, under load | broken client connections per switch |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    let ms = |times: &Times| {
        let at = |per_mille| times.at(per_mille).unwrap_or_default().as_secs_f64() * 1000.0;
        format!("{:.2} / {:.2}", at(500), at(990))
    };
    for (proxy, [quiet, loaded]) in all {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {:.1} |",
            proxy.name(),
            quiet.call.len(),
            ms(&quiet.call),
            ms(&quiet.first_answer),
            ms(&loaded.call),
            ms(&loaded.first_answer),
            loaded.broken
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn a_row_shows_each_proxy_and_our_ratios() {
        let sample = |cpu_us| Measurement {
            cpu_us,
            kernel_share: 0.8,
            rate: 1e6 / cpu_us,
            busy: 1.0,
            latency_us: [1.0, 2.0, 3.0],
        };
        let samples: Measurements = [
            ((0, Proxy::UhProxy), vec![sample(18.0), sample(20.0), sample(19.0)]),
            ((0, Proxy::Nginx), vec![sample(20.0)]),
        ]
        .into_iter()
        .collect();
        let text = cpu(&samples, &[Proxy::UhProxy, Proxy::Nginx]);
        assert!(text.contains(&format!("| {USUAL} | 19.0 (18.0–20.0) | 20.0 | **0.95** | - |")), "{text}");
    }
}
