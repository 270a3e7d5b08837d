//! The beginning of a connection: both sides send a preface (RFC 9113 §3.4). Ours has our limits.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use h2::server::{Builder, Connection};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::wire::{Wire, WireState};
use crate::config::ServerLimits;
use crate::front::broadcast::{StopStage, Subscription};
use crate::front::lazy_timer::LazyTimer;

/// What a stream may have waiting to be sent, in memory of our own: enough for a round of the event loop.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Streams that `h2` resets because their client breaks the protocol, before the connection is ended.
const MOST_BROKEN_STREAMS: usize = 100;

/// Exchanges the prefaces. `None`: the client doesn't speak HTTP/2, or not in time.
pub(super) async fn handshake<S>(
    limits: &ServerLimits,
    wire: Wire<S>,
    wire_state: &WireState,
    mut subscription: Subscription,
    deadline: Instant,
) -> Option<Connection<Wire<S>, Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(limits.h2_stream_window)
        .initial_connection_window_size(limits.h2_connection_window)
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_local_error_reset_streams(Some(MOST_BROKEN_STREAMS))
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let mut timer = LazyTimer::default();
    let mut handshake = pin!(builder.handshake(wire));
    poll_fn(|cx| {
        subscription.poll(cx);
        wire_state.begin_turn();
        if let Poll::Ready(result) = handshake.as_mut().poll(cx) {
            return Poll::Ready(result.ok());
        }
        let over = subscription.stage() == StopStage::Cutting || timer.poll_expired(cx, deadline);
        if over { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}
