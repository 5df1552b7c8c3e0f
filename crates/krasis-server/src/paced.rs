//! A connection that must go on: heads come in time, answers are read.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Reads and writes that fail when the other side dawdles. hyper's own timer bounds waiting for the
/// next request, which may be long; the time from a head's first byte to its last may not.
pub(crate) struct Paced<T> {
    inner: T,
    answering: Answering,
    pace: Pace,
    head: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
}

/// How long a client may take.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without reading what is written.
    pub stall: Duration,
}

/// Whether a request is being answered: set between a head's last byte and the answer's.
#[derive(Clone, Default)]
pub(crate) struct Answering(Arc<AtomicBool>);

impl Answering {
    /// From now until the mark is dropped.
    pub fn mark(&self) -> Mark {
        self.0.store(true, Ordering::Relaxed);
        Mark(self.0.clone())
    }
}

/// A request that is being answered.
pub(crate) struct Mark(Arc<AtomicBool>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl<T> Paced<T> {
    /// A new connection, whose first head is awaited from now on.
    pub fn new(inner: T, pace: Pace, answering: Answering) -> Paced<T> {
        let head = Some(Box::pin(tokio::time::sleep(pace.head)));
        Paced { inner, answering, pace, head, stall: None }
    }

    /// What came of a write: one that has to wait may do so for a while.
    fn written<R>(
        &mut self,
        written: Poll<Result<R>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<R>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let pace = self.pace.stall;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(pace)));
        late(stall, context, "the answer is not read")
    }
}

/// Pending until it is too late.
fn late<R>(
    sleep: &mut Pin<Box<Sleep>>,
    context: &mut Context<'_>,
    words: &'static str,
) -> Poll<Result<R>> {
    sleep.as_mut().poll(context).map(|()| Err(Error::new(ErrorKind::TimedOut, words)))
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let paced = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut paced.inner).poll_read(context, buffer);
        if paced.answering.0.load(Ordering::Relaxed) {
            paced.head = None;
            return read;
        }
        if buffer.filled().len() > before && paced.head.is_none() {
            paced.head = Some(Box::pin(tokio::time::sleep(paced.pace.head)));
        }
        match &mut paced.head {
            // Asked even if there is data: bytes that trickle in must not put it off.
            Some(head) => match late(head, context, "the head of a request is not complete") {
                Poll::Ready(error) => Poll::Ready(error),
                Poll::Pending => read,
            },
            None => read,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        let paced = self.get_mut();
        let written = Pin::new(&mut paced.inner).poll_write(context, bytes);
        paced.written(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let paced = self.get_mut();
        let written = Pin::new(&mut paced.inner).poll_write_vectored(context, parts);
        paced.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let paced = self.get_mut();
        let flushed = Pin::new(&mut paced.inner).poll_flush(context);
        paced.written(flushed, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let paced = self.get_mut();
        let ended = Pin::new(&mut paced.inner).poll_shutdown(context);
        paced.written(ended, context)
    }
}
