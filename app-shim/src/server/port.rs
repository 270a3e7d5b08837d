//! Closes a port without losing an established connection.
//!
//! Between the last `accept` and the close, the kernel keeps completing handshakes, and the close resets those
//! connections although clients may have sent requests. So first a socket filter stops new handshakes: their first
//! packet is dropped as if it were lost, and the next one, a second later, is refused. Then the connections the
//! kernel has completed are accepted, and only then is the port closed.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};

/// How long handshakes in progress may take to complete.
const HANDSHAKE_WAIT: Duration = Duration::from_millis(50);

/// Accepts what is in the queue, then closes the port.
pub(super) async fn close(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let Ok(listener) = listener.into_std() else { return Vec::new() };
    take_over(&listener).await
}

/// Stops new handshakes, waits for those in progress, and accepts the resulting connections.
async fn take_over(listener: &std::net::TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut accepted = Vec::new();
    stop_handshakes(listener);
    take_accepted(listener, &mut accepted);
    tokio::time::sleep(HANDSHAKE_WAIT).await;
    take_accepted(listener, &mut accepted);
    accepted
}

/// If filters aren't allowed, a handshake between the last accept and the close is lost.
fn stop_handshakes(listener: &std::net::TcpListener) {
    let _ = SockRef::from(listener).attach_filter(&no_new_handshakes());
}

/// Asks the kernel directly: the async runtime may not have been notified of the last ones yet.
fn take_accepted(listener: &std::net::TcpListener, accepted: &mut Vec<(TcpStream, SocketAddr)>) {
    while let Ok((stream, peer)) = listener.accept() {
        let taken = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        accepted.extend(taken.map(|stream| (stream, peer)));
    }
}

/// Drops segments with `SYN` but not `ACK`, which begin a handshake. The filter starts at the TCP header, whose byte
/// 13 has the flags (Linux, `Documentation/networking/filter.rst`).
fn no_new_handshakes() -> [SockFilter; 5] {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, SYN_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Repeatedly connects, sends a byte and waits for one. Counts established connections that got none.
    fn knock(address: SocketAddr, stop: &AtomicBool, lost: &AtomicUsize) {
        while !stop.load(Ordering::Relaxed) {
            let connected = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5));
            let Ok(mut stream) = connected else { return };
            let mut answer = [0];
            if stream.write_all(b"?").is_err() || stream.read_exact(&mut answer).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_established_connection_is_lost_when_the_port_closes() {
        let answer = |(mut stream, _): (TcpStream, SocketAddr)| async move {
            let mut asked = [0];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(b"!").await.unwrap();
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (stop, lost) = (Arc::clone(&stop), Arc::clone(&lost));
                std::thread::spawn(move || knock(address, &stop, &lost))
            })
            .collect();
        for _ in 0..50 {
            tokio::spawn(answer(listener.accept().await.unwrap()));
        }
        let listener = listener.into_std().unwrap();
        for accepted in take_over(&listener).await {
            tokio::spawn(answer(accepted));
        }
        // Extends the time between the last accept and the close: no handshake may complete in it.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(listener);
        stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(|| clients.into_iter().for_each(|c| c.join().unwrap()));
        joined.await.unwrap();
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    }
}
