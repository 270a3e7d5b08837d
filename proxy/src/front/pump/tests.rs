//! A pump over real sockets.

use std::time::Duration;

use pingora::protocols::l4::stream::Stream as Socket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use pingora::protocols::Stream;

mod compressed;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn pump_once(pump: &mut Pump, from: &mut Stream, to: &mut Stream) -> Result<(), PumpError> {
    std::future::poll_fn(|cx| pump.poll(cx, from, to)).await
}

/// What makes it safe to send a request of any method again.
#[tokio::test]
async fn a_first_write_that_fails_has_sent_nothing_and_is_repeated_in_full() {
    let (client, _held) = pair().await;
    let (dead, peer) = pair().await;
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    dead.readable().await.unwrap();
    let mut body = Buffer::take();
    body.room()[..4].copy_from_slice(b"body");
    body.grow(4);
    let mut pump =
        Pump::new(b"POST / HTTP/1.1\r\n\r\n".to_vec(), Framing::Length(4), Coding::AsItIs, Some(body));
    let mut from: Stream = Box::new(Socket::from(client));
    let mut to: Stream = Box::new(Socket::from(dead));
    let failed = pump_once(&mut pump, &mut from, &mut to).await;
    assert!(matches!(failed, Err(PumpError::Write)), "{failed:?}");
    assert_eq!((pump.sent(), pump.body_sent()), (0, 0));

    let (alive, mut peer) = pair().await;
    let mut to: Stream = Box::new(Socket::from(alive));
    pump.rewind();
    pump_once(&mut pump, &mut from, &mut to).await.unwrap();
    drop(to);
    let mut all = String::new();
    peer.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "POST / HTTP/1.1\r\n\r\nbody");
}

#[tokio::test]
async fn one_that_has_much_to_move_lets_the_others_have_their_turn() {
    const BYTES: u64 = 4 << 20;
    let ((near, mut source), (sink, mut reader)) = (pair().await, pair().await);
    tokio::spawn(async move { source.write_all(&vec![b'x'; BYTES as usize]).await });
    let read = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await.unwrap() });
    let mut from: Stream = Box::new(Socket::from(near));
    let mut to: Stream = Box::new(Socket::from(sink));
    let mut pump = Pump::new(Vec::new(), Framing::Length(BYTES), Coding::AsItIs, None);
    let mut most = 0;
    std::future::poll_fn(|cx| {
        let before = pump.sent();
        let polled = pump.poll(cx, &mut from, &mut to);
        most = most.max(pump.sent() - before);
        polled
    })
    .await
    .unwrap();
    drop(to);
    assert_eq!(read.await.unwrap() as u64, BYTES);
    let at_once = uh_http1::buffer::BUFFER_BYTES.max(splice::PIPE_BYTES) as u64;
    assert!(most <= TURN_BYTES + at_once, "{most} in one turn");
}

/// Chunks of one byte each, for a client that knows no chunks.
#[tokio::test]
async fn unwrapping_chunks_costs_by_the_byte_and_not_by_the_chunk() {
    const CHUNKS: u64 = 100_000;
    let ((near, mut source), (sink, mut reader)) = (pair().await, pair().await);
    tokio::spawn(async move {
        source.write_all("1\r\nx\r\n".repeat(CHUNKS as usize).as_bytes()).await.unwrap();
        source.write_all(b"0\r\n\r\nHTTP/1.1 next").await.unwrap();
        source
    });
    let read = tokio::spawn(async move {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        all
    });
    let mut from: Stream = Box::new(Socket::from(near));
    let mut to: Stream = Box::new(Socket::from(sink));
    let mut pump = Pump::new(Vec::new(), Framing::None, Coding::AsItIs, None);
    pump.begin_body(Framing::Chunked, Coding::Unchunk, None, None);
    let mut most = 0;
    std::future::poll_fn(|cx| {
        let before = pump.taken;
        let polled = pump.poll(cx, &mut from, &mut to);
        most = most.max(pump.taken - before);
        polled
    })
    .await
    .unwrap();
    drop(to);
    let all = read.await.unwrap();
    assert!(all.len() as u64 == CHUNKS && all.iter().all(|&byte| byte == b'x'));
    // Each byte of content once, and once what followed the body.
    assert!(
        pump.framing_in.shifted <= CHUNKS + 13,
        "{} bytes were moved for {CHUNKS} of content",
        pump.framing_in.shifted
    );
    assert!(most <= TURN_BYTES + uh_http1::buffer::BUFFER_BYTES as u64, "{most} were taken in one turn");
}

/// A thread that always has something to move must still look at its other sockets.
#[tokio::test]
async fn between_two_looks_at_the_sockets_no_more_is_moved_than_a_turn() {
    const BYTES: u64 = 16 << 20;
    let ((near, source), (sink, reader)) = (pair().await, pair().await);
    let (source, reader) = (source.into_std().unwrap(), reader.into_std().unwrap());
    source.set_nonblocking(false).unwrap();
    reader.set_nonblocking(false).unwrap();
    let sender = std::thread::spawn(move || io::Write::write_all(&mut &source, &vec![b'x'; BYTES as usize]));
    let receiver = std::thread::spawn(move || io::copy(&mut &reader, &mut io::sink()));
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = std::sync::Arc::clone(&moved);
    let pumping = tokio::spawn(async move {
        let mut from: Stream = Box::new(Socket::from(near));
        let mut to: Stream = Box::new(Socket::from(sink));
        let mut pump = Pump::new(Vec::new(), Framing::Length(BYTES), Coding::AsItIs, None);
        std::future::poll_fn(|cx| {
            let polled = pump.poll(cx, &mut from, &mut to);
            count.store(pump.sent(), std::sync::atomic::Ordering::SeqCst);
            polled
        })
        .await
    });
    let (mut ping, mut pong) = pair().await;
    let looking = tokio::spawn(async move {
        let moved = || moved.load(std::sync::atomic::Ordering::SeqCst);
        let (mut most, mut looks) = (0, 0);
        while moved() < BYTES {
            let before = moved();
            ping.write_all(b"x").await.unwrap();
            // Its news comes with the next look.
            pong.read_exact(&mut [0]).await.unwrap();
            most = u64::max(most, moved() - before);
            looks += 1;
        }
        println!("{looks} looks, at most {most} bytes between two");
        most
    });
    let most = looking.await.unwrap();
    pumping.await.unwrap().unwrap();
    sender.join().unwrap().unwrap();
    assert_eq!(receiver.join().unwrap().unwrap(), BYTES);
    let turn = TURN_BYTES + uh_http1::buffer::BUFFER_BYTES.max(splice::PIPE_BYTES) as u64;
    assert!(most <= 3 * turn, "{most} bytes between two looks at the sockets");
}

/// Bytes of which each part differs from all others.
fn patterned(length: usize) -> Vec<u8> {
    (0..length / 8).flat_map(|number| (number as u64).to_be_bytes()).collect()
}

/// Polls until the pump goes past our memory; it must not be at its end before.
async fn until_spliced(pump: &mut Pump, from: &mut Stream, to: &mut Stream) {
    std::future::poll_fn(|cx| match pump.poll(cx, from, to) {
        _ if pump.splice.is_some() => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
        Poll::Ready(end) => panic!("ended before it was spliced: {end:?}"),
    })
    .await;
}

#[tokio::test]
async fn a_large_body_goes_past_our_memory_and_comes_whole_and_in_order_also_to_a_slow_reader() {
    let body = patterned(8 << 20);
    let sent = body.clone();
    let ((near, mut source), (sink, mut reader)) = (pair().await, pair().await);
    let (mut from, mut to): (Stream, Stream) = (Box::new(Socket::from(near)), Box::new(Socket::from(sink)));
    let sender = tokio::spawn(async move {
        source.write_all(&sent).await.unwrap();
        source.write_all(b"HTTP/1.1 next").await.unwrap();
        source
    });
    let mut pump = Pump::new(b"head".to_vec(), Framing::Length(body.len() as u64), Coding::AsItIs, None);
    until_spliced(&mut pump, &mut from, &mut to).await;
    let read = tokio::spawn(async move {
        let mut all = Vec::new();
        while all.len() < (8 << 20) + 4 {
            let mut part = vec![0; 50_000];
            let length = reader.read(&mut part).await.unwrap();
            all.extend_from_slice(&part[..length]);
            tokio::task::yield_now().await;
        }
        all
    });
    pump_once(&mut pump, &mut from, &mut to).await.unwrap();
    let all = read.await.unwrap();
    assert!(all[..4] == *b"head" && all[4..] == body);
    assert_eq!((pump.body_sent(), pump.body_complete()), (body.len() as u64, true));
    assert!(pump.splice.is_none(), "its descriptors would keep both connections open");
    let _open = sender.await.unwrap();
    let mut next = None;
    let more = std::future::poll_fn(|cx| from.poll_fill(cx, &mut next)).await.unwrap();
    assert_eq!((more, next.unwrap().filled()), (13, &b"HTTP/1.1 next"[..]), "what follows was not touched");
}

#[tokio::test]
async fn a_large_body_that_breaks_off_is_no_whole_one() {
    let ((near, mut source), (sink, mut reader)) = (pair().await, pair().await);
    let (mut from, mut to): (Stream, Stream) = (Box::new(Socket::from(near)), Box::new(Socket::from(sink)));
    tokio::spawn(async move { source.write_all(&patterned(1 << 20)).await });
    let read = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await.unwrap() });
    let mut pump = Pump::new(Vec::new(), Framing::Length(2 << 20), Coding::AsItIs, None);
    let end = pump_once(&mut pump, &mut from, &mut to).await;
    assert!(matches!(end, Err(PumpError::Truncated)), "{end:?}");
    assert!(!pump.body_complete() && pump.is_flushed());
    drop((pump, to));
    assert_eq!(read.await.unwrap(), 1 << 20, "what came was passed on");
}

/// Or nothing could be sent again.
#[tokio::test]
async fn the_first_bytes_of_a_large_body_are_kept_until_one_is_sent() {
    let body = patterned(1 << 20);
    let sent = body.clone();
    let ((near, mut source), (dead, peer)) = (pair().await, pair().await);
    socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    dead.readable().await.unwrap();
    tokio::spawn(async move { source.write_all(&sent).await });
    near.readable().await.unwrap();
    let (mut from, mut to): (Stream, Stream) = (Box::new(Socket::from(near)), Box::new(Socket::from(dead)));
    let mut pump = Pump::new(Vec::new(), Framing::Length(body.len() as u64), Coding::AsItIs, None);
    let failed = pump_once(&mut pump, &mut from, &mut to).await;
    assert!(matches!(failed, Err(PumpError::Write)), "{failed:?}");
    assert_eq!(pump.body_sent(), 0);

    let (alive, mut peer) = pair().await;
    let mut to: Stream = Box::new(Socket::from(alive));
    pump.rewind();
    let read = tokio::spawn(async move {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).await.unwrap();
        all
    });
    pump_once(&mut pump, &mut from, &mut to).await.unwrap();
    drop((pump, to));
    assert!(read.await.unwrap() == body);
}

#[tokio::test]
async fn what_may_not_come_whole_is_not_spliced() {
    let ((near, mut source), (sink, mut reader)) = (pair().await, pair().await);
    let (mut from, mut to): (Stream, Stream) = (Box::new(Socket::from(near)), Box::new(Socket::from(sink)));
    tokio::spawn(async move { source.write_all(&patterned(2 << 20)).await });
    let read = tokio::spawn(async move { reader.read_to_end(&mut Vec::new()).await.unwrap() });
    let mut pump = Pump::new(Vec::new(), Framing::Length(2 << 20), Coding::AsItIs, None);
    pump.limit_body(Some(1 << 20));
    let end = pump_once(&mut pump, &mut from, &mut to).await;
    assert!(matches!(end, Err(PumpError::TooLarge)), "{end:?}");
    drop((pump, to));
    assert!(read.await.unwrap() <= 1 << 20);
}

#[tokio::test]
async fn only_so_many_bodies_are_spliced_at_a_time() {
    let ((one, _far), (other, _end)) = (pair().await, pair().await);
    let open = || Splice::open((&one).into(), (&other).into());
    let mut all: Vec<_> = (0..splice::MOST).map(|_| open().unwrap()).collect();
    assert!(open().is_none());
    all.pop();
    assert!(open().is_some());
}

#[tokio::test]
async fn only_a_plain_socket_can_be_spliced() {
    let (near, _far) = pair().await;
    let plain: Stream = Box::new(Socket::from(near));
    assert!(PumpSource::plain(&plain).is_some());
    let other: Stream = Box::new(tokio::io::duplex(1).0);
    assert!(PumpSource::plain(&other).is_none());
}

/// A chunk's size isn't written where the head was: the head must still be there for another attempt.
#[tokio::test]
async fn a_request_that_leaves_in_chunks_can_be_sent_again_in_full() {
    let (mut client, near) = pair().await;
    let ((first, mut at_first), (second, mut at_second)) = (pair().await, pair().await);
    let mut from: Stream = Box::new(Socket::from(near));
    let head = b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut pump = Pump::new(head.to_vec(), Framing::UntilClose, Coding::Chunk, None);
    // The head goes out alone.
    let mut to: Stream = Box::new(Socket::from(first));
    std::future::poll_fn(|cx| Poll::Ready(pump.poll(cx, &mut from, &mut to).is_pending())).await;
    at_first.read_exact(&mut vec![0; head.len()]).await.unwrap();
    // A chunk is begun, but nothing of it is taken any more.
    socket2::SockRef::from(&at_first).set_linger(Some(Duration::ZERO)).unwrap();
    drop(at_first);
    client.write_all(b"body").await.unwrap();
    client.shutdown().await.unwrap();
    let failed = pump_once(&mut pump, &mut from, &mut to).await;
    assert!(matches!(failed, Err(PumpError::Write)), "{failed:?}");
    assert_eq!(pump.body_sent(), 0);

    pump.rewind();
    let mut to: Stream = Box::new(Socket::from(second));
    pump_once(&mut pump, &mut from, &mut to).await.unwrap();
    drop(to);
    let mut all = Vec::new();
    at_second.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, [&head[..], b"4\r\nbody\r\n0\r\n\r\n"].concat());
}
