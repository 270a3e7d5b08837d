//! Gathers what `h2` writes. It writes and flushes after every DATA frame that isn't tiny, so ten small responses would be
//! ten system calls, and ten TLS records. Here they are one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use uh_http1::buffer::Buffer;

/// The most that is held: what fits one TLS record (RFC 8446 §5.1).
const HOLD_BYTES: usize = 16 << 10;

/// The most parts of one write that are passed on together: `h2` has two, a frame's head and its content.
const PARTS: usize = 3;

/// A stream whose small writes are gathered.
pub(super) struct Gather<S> {
    stream: S,
    /// What is to be written, in a buffer that is borrowed only meanwhile.
    held: Option<Buffer>,
    /// The last write was a DATA frame's: after its flush, `h2` looks for more to send, and flushes again.
    more: bool,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Holds nothing yet.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, held: None, more: false }
    }

    /// Whether anything waits for a flush.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Takes all parts, if they fit.
    fn hold(&mut self, parts: &[IoSlice<'_>]) -> Option<usize> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let mut held = self.held.take().unwrap_or_else(Buffer::take);
        // The room may be smaller where a client that takes little has left a gap at the front.
        let fits = held.filled().len() + bytes <= HOLD_BYTES && held.room().len() >= bytes;
        if fits {
            for part in parts {
                held.room()[..part.len()].copy_from_slice(part);
                held.grow(part.len());
            }
        }
        self.held = Some(held).filter(|held| !held.is_empty());
        fits.then_some(bytes)
    }

    /// Writes what is held, and then these parts. Ready with how much of the parts was written.
    fn poll_write_all(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let parts = &parts[..parts.len().min(PARTS)];
        loop {
            let Some(held) = self.held.as_ref().map(Buffer::filled) else {
                return match parts {
                    [part] => Pin::new(&mut self.stream).poll_write(cx, part),
                    parts => Pin::new(&mut self.stream).poll_write_vectored(cx, parts),
                };
            };
            let of_held = held.len();
            let mut all = [IoSlice::new(&[]); PARTS + 1];
            all[0] = IoSlice::new(held);
            all[1..=parts.len()].copy_from_slice(parts);
            let all = &all[..=parts.len()];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, all))?;
            self.left(written.min(of_held));
            if written > of_held {
                return Poll::Ready(Ok(written - of_held));
            }
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
    }

    /// Writes what is held.
    pub(super) fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(held) = &self.held {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, held.filled()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left(written);
        }
        Poll::Ready(Ok(()))
    }

    /// So much of what is held was written.
    fn left(&mut self, bytes: usize) {
        if let Some(held) = &mut self.held {
            held.consume(bytes);
        }
        if self.held.as_ref().is_some_and(Buffer::is_empty) {
            self.held = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.more = parts.len() > 1;
        if (self.more || self.holds())
            && let Some(held) = self.hold(parts)
        {
            return Poll::Ready(Ok(held));
        }
        self.poll_write_all(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing between two frames, see [`Gather::holds`].
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.more) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use proptest::prelude::*;

    use super::*;

    /// Takes so many bytes of each write, and nothing at a write of 0.
    struct Peer {
        takes: Vec<usize>,
        writes: usize,
        taken: Vec<u8>,
    }

    impl AsyncWrite for Peer {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let most = self.takes.pop().unwrap_or(usize::MAX);
            if most == 0 && !bytes.is_empty() {
                return Poll::Pending;
            }
            self.writes += 1;
            let taken = bytes.len().min(most);
            self.taken.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes = parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<_>>();
            self.poll_write(cx, &bytes)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn over(takes: Vec<usize>) -> Gather<Peer> {
        Gather::new(Peer { takes, writes: 0, taken: Vec::new() })
    }

    /// Writes a frame as `h2` does: all of it, and then a flush.
    fn send(gather: &mut Gather<Peer>, frame: &[u8]) {
        let cx = &mut Context::from_waker(Waker::noop());
        let (head, content) = frame.split_at(9.min(frame.len()));
        let mut sent = 0;
        while sent < frame.len() {
            let parts = [&head[sent.min(9)..], &content[sent.saturating_sub(9)..]];
            let parts = parts.map(IoSlice::new);
            let parts = if content.is_empty() { &parts[..1] } else { &parts };
            if let Poll::Ready(written) = Pin::new(&mut *gather).poll_write_vectored(cx, parts) {
                sent += written.unwrap();
            }
        }
        let _ = Pin::new(gather).poll_flush(cx);
    }

    fn flush(gather: &mut Gather<Peer>) {
        let cx = &mut Context::from_waker(Waker::noop());
        while Pin::new(&mut *gather).poll_flush(cx).is_pending() {}
    }

    #[test]
    fn frames_that_are_flushed_one_by_one_leave_in_one_write() {
        let mut gather = over(Vec::new());
        for _ in 0..10 {
            send(&mut gather, &[1; 1033]);
        }
        assert!(gather.holds());
        assert_eq!(gather.stream.writes, 0);
        flush(&mut gather);
        assert_eq!((gather.stream.writes, gather.stream.taken.len(), gather.holds()), (1, 10_330, false));
        send(&mut gather, &[2; 9]);
        assert_eq!(gather.stream.writes, 2, "a frame without content doesn't wait");
        send(&mut gather, &[3; 20_000]);
        assert_eq!(gather.stream.writes, 3, "nor does a large one");
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order_however_little_is_taken(
            frames in prop::collection::vec(prop_oneof![9..300_usize, 0..40_000_usize], 1..12),
            takes in prop::collection::vec(prop_oneof![0..3_usize, 0..20_000_usize], 0..40),
        ) {
            let mut gather = over(takes);
            let mut all = Vec::new();
            for (index, length) in frames.into_iter().enumerate() {
                let frame = vec![u8::try_from(index).unwrap(); length];
                send(&mut gather, &frame);
                all.extend(frame);
            }
            flush(&mut gather);
            prop_assert!(gather.stream.taken == all && !gather.holds());
        }
    }
}
