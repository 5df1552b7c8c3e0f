//! Connections: accepted up to a bound, dropped when they dawdle, finished on shutdown.

use crate::limits::Limits;
use crate::metrics::FOLD_EVERY;
use crate::paced::{Answering, Mark, Pace, Paced};
use crate::stage::{Over, Stage};
use crate::tls::Tls;
use crate::{App, router};
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::io::{Error, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// When the system is out of sockets, the next attempt waits.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Of a connection, in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// Answers that are told that they end have so long to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is ready or the engine has failed. Then the answers in flight are
/// finished, as far as their time goes, or told why they are not; new requests are refused meanwhile.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    app: Arc<App>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let service = TowerToHyperService::new(router(app.clone()));
    let connections = app.limits.connections.min(Semaphore::MAX_PERMITS as u64);
    let places = Arc::new(Semaphore::new(connections as usize));
    let graceful = GracefulShutdown::new();
    let mut end = std::pin::pin!(end(&app, shutdown));
    let mut fold = tokio::time::interval(FOLD_EVERY);
    loop {
        let place = places.clone().acquire_owned();
        let accepted = async {
            let place = place.await.map_err(Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, Error>((place, stream))
        };
        let (place, stream) = tokio::select! {
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
            _ = fold.tick() => {
                app.metrics.fold();
                continue;
            }
            () = &mut end => break,
        };
        let connection = Connection {
            limits: app.limits.clone(),
            service: service.clone(),
            watcher: graceful.watcher(),
        };
        let tls = tls.clone();
        tokio::spawn(async move {
            // A client that leaves in the middle is no event.
            if let Err(error) = connection.open(stream, tls).await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST_WORDS, graceful.shutdown()).await;
    Ok(())
}

/// Ready once nothing is left to answer.
async fn end(app: &App, shutdown: impl Future<Output = ()>) {
    let mut stage = app.stage.subscribe();
    let mut failed = std::pin::pin!(async move {
        let _ = stage.wait_for(|stage| matches!(stage, Stage::Over(_))).await;
    });
    let mut in_flight = app.in_flight.subscribe();
    let mut idle = async || {
        let _ = in_flight.wait_for(|requests| *requests == 0).await;
    };
    tokio::select! {
        () = shutdown => {
            app.drain();
            let time = Duration::from_secs(app.limits.drain_seconds);
            tokio::select! {
                _ = tokio::time::timeout(time, idle()) => app.over(Over::Stopped),
                () = &mut failed => {}
            }
        }
        () = &mut failed => {}
    }
    let _ = tokio::time::timeout(LAST_WORDS, idle()).await;
}

type Routes = TowerToHyperService<Router>;

/// What a connection needs.
struct Connection {
    limits: Limits,
    service: Routes,
    watcher: Watcher,
}

impl Connection {
    async fn open(self, stream: TcpStream, tls: Option<Tls>) -> Result<()> {
        // Tokens are small and must not wait for each other. If the socket is gone, reading tells.
        let _ = stream.set_nodelay(true);
        match tls {
            None => self.talk(stream).await,
            Some(Tls(acceptor)) => {
                let time = Duration::from_secs(self.limits.header_seconds);
                let stream = tokio::time::timeout(time, acceptor.accept(stream)).await??;
                self.talk(stream).await
            }
        }
    }

    async fn talk(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Result<()> {
        let Limits { header_seconds, idle_seconds, stall_seconds, .. } = self.limits;
        let pace = Pace {
            head: Duration::from_secs(header_seconds),
            stall: Duration::from_secs(stall_seconds),
        };
        let answering = Answering::default();
        let stream = Paced::new(stream, pace, answering.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(idle_seconds + header_seconds))
            .max_headers(self.limits.headers as usize)
            .max_header_size(self.limits.header_bytes as usize)
            // What is kept for a client that does not read; a head must fit as well.
            .max_buf_size(BUFFER_BYTES.max(self.limits.header_bytes as usize))
            .serve_connection(TokioIo::new(stream), Marked { routes: self.service, answering });
        self.watcher.watch(connection).await.map_err(Error::other)
    }
}

/// The routes, with a mark while they answer.
struct Marked {
    routes: Routes,
    answering: Answering,
}

impl Service<Request<Incoming>> for Marked {
    type Response = Response<MarkedBody>;
    type Error = std::convert::Infallible;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        // A proxy that goes by a length beside the chunks, which hyper drops, takes what follows for
        // part of the body: it must not be answered (RFC 9112, 6.1).
        let last = request.headers().contains_key(header::TRANSFER_ENCODING);
        let (mark, answer) = (self.answering.mark(), self.routes.call(request));
        Box::pin(async move {
            let mut answer = answer.await?.map(|body| MarkedBody { body, _mark: mark });
            if last {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok(answer)
        })
    }
}

/// An answer, marked to its last byte.
struct MarkedBody {
    body: Body,
    _mark: Mark,
}

impl HttpBody for MarkedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
