//! Resolves the names of endpoints in the background, with one task per name, so that no request ever has to. A failed
//! lookup keeps the last addresses, and only the very first request waits for a lookup.
//!
//! A recreated container has a new address. The first sign of that is a failed connect or probe: then the name is
//! resolved immediately, and more often as long as there are such signs.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use uh_system::plain;

use crate::config::Resolve;
use crate::front::endpoint::Endpoint;

/// How many of a name's addresses are used.
const MAX_ADDRESSES: usize = 16;

/// Time between two lookups of a name that has no address yet.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);

/// The least time between two lookups, however many connects fail: a backend that is down for an hour must not cause
/// more DNS queries than this.
const DOUBTED_INTERVAL: Duration = Duration::from_millis(250);

/// Resolves a name with the system's resolver.
///
/// # Errors
/// Why it can't be resolved.
pub(crate) async fn lookup(host: String, port: u16) -> Result<Box<[SocketAddr]>, String> {
    let found = tokio::net::lookup_host((host.as_str(), port)).await.map_err(|e| plain(&e))?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    // Sorted: a resolver that rotates the addresses would look like a change.
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() {
        Err("the name doesn't resolve to an address".to_owned())
    } else {
        Ok(addresses.into())
    }
}

/// Keeps an endpoint's addresses up to date for as long as `settings` gives any. There is never more than one lookup of
/// it at a time: one that exceeds its timeout counts as a failure, and is then awaited.
pub(crate) async fn keep_resolving<L>(
    endpoint: Arc<Endpoint>,
    look_up: impl Fn() -> L,
    settings: impl Fn() -> Option<Resolve>,
) where
    L: Future<Output = Result<Box<[SocketAddr]>, String>>,
{
    while let Some(resolve) = settings() {
        let lookup = look_up();
        tokio::pin!(lookup);
        let found = match tokio::time::timeout(resolve.timeout, &mut lookup).await {
            Ok(found) => found,
            Err(_) => {
                report(&endpoint, Err(format!("no answer within {} ms", resolve.timeout.as_millis())));
                lookup.await
            }
        };
        report(&endpoint, found);
        let leads_nowhere = endpoint.resolution().is_none_or(|found| found.addresses.is_empty());
        let pause = if leads_nowhere { resolve.interval.min(FIRST_INTERVAL) } else { resolve.interval };
        let doubted = async {
            tokio::time::sleep(pause.min(DOUBTED_INTERVAL)).await;
            endpoint.doubted().await;
        };
        // At the next interval, or at the first sign of a change.
        let _ = tokio::time::timeout(pause, doubted).await;
    }
}

/// For a log line.
fn joined(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// Stores the result; logs it if it changed.
fn report(endpoint: &Endpoint, found: Result<Box<[SocketAddr]>, String>) {
    let before = endpoint.resolution();
    let (had, failing) = match &before {
        Some(before) => (&before.addresses[..], before.error.is_some()),
        None => (&[][..], false),
    };
    let address = &endpoint.address;
    match &found {
        Ok(addresses) if failing || **addresses != *had => {
            tracing::info!(endpoint = %address, addresses = joined(addresses), "name resolved");
        }
        Err(error) if !failing => {
            tracing::warn!(endpoint = %address, error, still = joined(had), "cannot resolve the name; keeping its last addresses");
        }
        _ => {}
    }
    endpoint.looked_up(found);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use uh_switching::Health;

    const RESOLVE: Resolve =
        Resolve { interval: Duration::from_millis(1), timeout: Duration::from_millis(20) };

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::new("blue:80".parse().unwrap(), Health::Unknown))
    }

    fn at(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 80))
    }

    /// Answers with the first of these, then the second …, then always with the last.
    fn answers<T: Clone>(answers: Vec<T>) -> impl Fn() -> T {
        let next = AtomicUsize::new(0);
        move || answers[next.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone()
    }

    async fn until(endpoint: &Endpoint, wanted: impl Fn(&[SocketAddr], bool) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !endpoint.resolution().is_some_and(|found| wanted(&found.addresses, found.error.is_some())) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", endpoint.resolution());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_name_that_moves_is_followed_and_one_that_fails_stays() {
        let endpoint = endpoint();
        let found = answers(vec![
            Err("no such host".to_owned()),
            Ok([at(1)].into()),
            Ok([at(2), at(3)].into()),
            Err("gone".to_owned()),
        ]);
        let running = Arc::clone(&endpoint);
        let task = tokio::spawn(async move {
            keep_resolving(running, || std::future::ready(found()), || Some(RESOLVE)).await;
        });
        until(&endpoint, |addresses, failing| addresses == [at(2), at(3)] && failing).await;
        task.abort();
    }

    #[tokio::test]
    async fn a_lookup_that_hangs_is_reported_and_never_doubled() {
        let endpoint = endpoint();
        endpoint.looked_up(Ok([at(1)].into()));
        let running = Arc::new(AtomicUsize::new(0));
        let (counted, target) = (Arc::clone(&running), Arc::clone(&endpoint));
        let task = tokio::spawn(async move {
            let hang = || {
                assert_eq!(counted.fetch_add(1, Ordering::SeqCst), 0, "two lookups at once");
                std::future::pending()
            };
            keep_resolving(target, hang, || Some(RESOLVE)).await;
        });
        until(&endpoint, |addresses, failing| addresses == [at(1)] && failing).await;
        tokio::time::sleep(3 * RESOLVE.timeout).await;
        assert_eq!(running.load(Ordering::SeqCst), 1);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_in_doubt_is_looked_up_at_once_but_not_without_pause() {
        let endpoint = endpoint();
        let lookups = Arc::new(AtomicUsize::new(0));
        let (counted, target) = (Arc::clone(&lookups), Arc::clone(&endpoint));
        let hour = Resolve { interval: Duration::from_secs(3600), timeout: Duration::from_secs(1) };
        let task = tokio::spawn(async move {
            let found = || {
                counted.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Ok([at(1)].into()))
            };
            keep_resolving(target, found, || Some(hour.clone())).await;
        });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(lookups.load(Ordering::SeqCst), 1);
        endpoint.doubt();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(lookups.load(Ordering::SeqCst), 2, "it waits for its interval");
        for _ in 0..1000 {
            endpoint.doubt();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(lookups.load(Ordering::SeqCst), 6, "a second of doubts is four lookups");
        task.abort();
    }

    #[tokio::test]
    async fn a_container_that_is_made_again_elsewhere_is_found_within_a_second() {
        let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
        let (before, after) = (bind().await.unwrap(), bind().await.unwrap());
        let leads_to = Arc::new(parking_lot::Mutex::new(before.local_addr().unwrap()));
        let endpoint = endpoint();
        let (target, known) = (Arc::clone(&endpoint), Arc::clone(&leads_to));
        let hour = Resolve { interval: Duration::from_secs(3600), timeout: Duration::from_secs(1) };
        let task = tokio::spawn(async move {
            keep_resolving(target, || std::future::ready(Ok([*known.lock()].into())), || Some(hour.clone()))
                .await;
        });
        let connector = crate::front::upstream::Connector::default();
        let meters = crate::observe::meters::Meters::new(1);
        let meters = meters.backend(&"app".parse().unwrap(), &"blue".parse().unwrap());
        let connect = || connector.connect(&endpoint, 0, Duration::from_secs(2), &meters, 0);
        drop(connect().await.unwrap());
        *leads_to.lock() = after.local_addr().unwrap();
        drop(before);
        let moved = tokio::time::Instant::now();
        while connect().await.is_err() {
            assert!(moved.elapsed() < Duration::from_secs(10), "it is never found");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("found after {:?}", moved.elapsed());
        task.abort();
    }

    #[tokio::test]
    async fn the_first_request_waits_for_the_first_lookup() {
        let endpoint = endpoint();
        let waiting = Arc::clone(&endpoint);
        let waiter = tokio::spawn(async move { waiting.first_resolution().await });
        tokio::task::yield_now().await;
        endpoint.looked_up(Ok([at(1)].into()));
        assert_eq!(*waiter.await.unwrap().addresses, [at(1)]);
    }
}
