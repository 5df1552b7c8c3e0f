//! Connections: accepted up to a bound, dropped when they dawdle, finished on shutdown.

use crate::{App, router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// More wait in the system's backlog.
const CONNECTIONS_MAX: usize = 512;

/// From the connection, or the end of the last answer, to the end of the next request's headers.
/// Clients keep idle connections open for about a minute.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(75);

/// When the system is out of sockets, the next attempt waits.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is ready, then finishes the answers in flight.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = TowerToHyperService::new(router(app));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let place = places.clone().acquire_owned();
        let accepted = async {
            let place = place.await.map_err(std::io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            Ok::<_, std::io::Error>((place, stream))
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
            () = &mut shutdown => break,
        };
        let connection = graceful.watch(connection(stream, service.clone()));
        tokio::spawn(async move {
            // A client that leaves in the middle is no event.
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

type Service = TowerToHyperService<axum::Router>;

fn connection(
    stream: TcpStream,
    service: Service,
) -> http1::Connection<TokioIo<TcpStream>, Service> {
    // Tokens are small and must not wait for each other. If the socket is gone, reading will tell.
    let _ = stream.set_nodelay(true);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
}
