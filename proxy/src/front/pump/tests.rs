//! A pump over real sockets.

use std::time::Duration;

use pingora::protocols::l4::stream::Stream as Socket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

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
    let mut pump = Pump::new(b"POST / HTTP/1.1\r\n\r\n".to_vec(), Framing::Length(4), Some(body));
    let mut from: Stream = Box::new(Socket::from(client));
    let mut to: Stream = Box::new(Socket::from(dead));
    let failed = pump_once(&mut pump, &mut from, &mut to).await;
    assert!(matches!(failed, Err(PumpError::Write(_))), "{failed:?}");
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
    let mut pump = Pump::new(Vec::new(), Framing::Length(BYTES), None);
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
    assert!(most <= TURN_BYTES + crate::http1::buffer::BUFFER_BYTES as u64, "{most} in one turn");
}
