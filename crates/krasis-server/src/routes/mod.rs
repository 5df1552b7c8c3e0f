//! The routes and what surrounds them: request ids, one line of log, errors for wrong paths.

mod chat;
mod choices;
mod completions;
mod docs;
mod messages;
mod models;
mod responses;
mod run;
mod status;
mod tokens;

use crate::App;
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::{flight, guard, json, page};
use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Everybody.
    Open,
    /// Whoever has a key, where keys are wanted.
    Keyed,
}

/// What a route works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it answers at any time.
    Nothing,
    /// A model that answers: before and after, it is 503.
    Model,
}

/// One route.
pub struct Route {
    /// GET, POST or DELETE.
    pub method: &'static str,
    /// As axum writes it.
    pub path: &'static str,
    /// Who may call it.
    pub entry: Entry,
    /// What it works with.
    pub needs: Needs,
    /// What it is for.
    pub about: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
}

/// A route that answers with a key, at any time.
const fn tells(
    path: &'static str,
    about: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
) -> Route {
    Route { method: "GET", path, entry: Entry::Keyed, needs: Needs::Nothing, about, handler }
}

/// A route that answers with a key, once there is a model.
const fn works(
    path: &'static str,
    about: &'static str,
    handler: fn() -> MethodRouter<Arc<App>>,
) -> Route {
    Route { method: "POST", path, entry: Entry::Keyed, needs: Needs::Model, about, handler }
}

/// All of them: what is not here is 404, and what is here is described in `/openapi.json` and tested
/// without a key.
pub const ROUTES: [Route; 23] = [
    works("/v1/chat/completions", "Answer a conversation", || post(chat::chat)),
    works("/v1/completions", "Continue texts", || post(completions::completions)),
    works("/v1/responses", "Answer a conversation, as items", || post(responses::create)),
    tells("/v1/responses/{*id}", "A response that is kept", || get(responses::one)),
    Route {
        method: "DELETE",
        ..tells("/v1/responses/{*id}", "Forget a response", || delete(responses::forget))
    },
    works("/v1/messages", "Answer a conversation, in Anthropic's words", || post(messages::create)),
    works("/v1/messages/count_tokens", "The length of a conversation in tokens", || {
        post(messages::count)
    }),
    tells("/v1/models", "List the names of the model", || get(models::list)),
    tells("/v1/models/{*id}", "Describe one of them", || get(models::one)),
    works("/tokenize", "Token ids of a text or a conversation", || post(tokens::tokenize)),
    works("/detokenize", "The text of token ids", || post(tokens::detokenize)),
    Route {
        method: "GET",
        ..works("/tokenizer_info", "Special tokens and the chat template", || get(tokens::info))
    },
    Route {
        entry: Entry::Open,
        ..tells("/health", "Whether requests will be answered", || get(status::health))
    },
    Route { entry: Entry::Open, ..tells("/readyz", "The same", || get(status::health)) },
    tells("/metrics", "Counts and times, in Prometheus' format", || get(status::metrics)),
    tells("/v1/status", "Model, memory, queue and limits", || get(status::status)),
    tells("/status", "The same", || get(status::status)),
    tells("/v1/status/experts", "How often each expert was asked for", || get(status::experts)),
    tells("/version", "The version of the server", || get(status::version)),
    tells("/openapi.json", "A description of these routes, for programs", || get(docs::json)),
    Route {
        entry: Entry::Open,
        ..tells("/docs", "A description of these routes, for people", || get(docs::page))
    },
    Route { entry: Entry::Open, ..tells("/", "The web page", || get(page::index)) },
    Route { entry: Entry::Open, ..tells("/page/{*id}", "Its files", || get(page::asset)) },
];

impl Route {
    /// The route of a path as axum matched it.
    pub(crate) fn find(path: &str, method: &Method) -> Option<&'static Route> {
        // axum answers HEAD where there is GET.
        let method = if method == Method::HEAD { &Method::GET } else { method };
        ROUTES.iter().find(|route| route.path == path && route.method == method.as_str())
    }
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let routes = ROUTES
        .iter()
        .fold(Router::new(), |router, route| router.route(route.path, (route.handler)()));
    guarded(routes, app)
}

/// Routes and what every request passes on the way to one, in the order from the bottom up.
fn guarded(routes: Router<Arc<App>>, app: Arc<App>) -> Router {
    let pages = app.clone();
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), flight::watch))
        .layer(middleware::from_fn_with_state(app.clone(), guard::key))
        .layer(
            CorsLayer::new()
                .allow_origin(AllowOrigin::predicate(move |page, _| pages.access.admits(page)))
                .allow_methods(AllowMethods::list([Method::GET, Method::POST, Method::DELETE]))
                .allow_headers(AllowHeaders::mirror_request())
                .expose_headers([REQUEST_ID])
                .max_age(Duration::from_secs(600)),
        )
        .layer(middleware::from_fn_with_state(app.clone(), guard::site))
        .layer(CatchPanicLayer::custom(flight::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), accompany))
        .with_state(app)
}

/// Routes of OpenAI's that a model of text does not have.
const UNSUPPORTED: [&str; 5] =
    ["/v1/embeddings", "/v1/audio", "/v1/images", "/v1/moderations", "/v1/files"];

/// Routes that clients ask for without their prefix when the base URL is wrong.
const PREFIXED: [&str; 6] = [
    "/chat/completions",
    "/completions",
    "/models",
    "/responses",
    "/messages",
    "/messages/count_tokens",
];

async fn not_found(uri: Uri) -> ApiError {
    let path = uri.path();
    if UNSUPPORTED.iter().any(|route| path.starts_with(route)) {
        let message = format!("{path} is not supported by this server");
        return ApiError::new(StatusCode::NOT_FOUND, Some("unsupported_endpoint"), message);
    }
    let message = match PREFIXED.iter().find(|route| path.ends_with(**route)) {
        Some(route) => format!(
            "there is no route {path}, but there is /v1{route}: check the client's base URL"
        ),
        None => format!("there is no route {path}"),
    };
    ApiError::new(StatusCode::NOT_FOUND, Some("unknown_route"), message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
}

/// Routes that are asked again and again by whoever watches.
const POLLED: [&str; 6] =
    ["/health", "/readyz", "/metrics", "/v1/status", "/status", "/v1/status/experts"];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives each request an id (its own, if it brings one), the log a line and the metrics a count.
async fn accompany(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    // What a client brings goes into the log, so it must be short and printable.
    let printable = |id: &&HeaderValue| {
        id.len() <= 128 && id.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte))
    };
    let given = request.headers().get(REQUEST_ID).filter(printable);
    let id = given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&format!("req-{}", unique())).expect("hexadecimal digits")
    });
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let start = Instant::now();
    let dialect = Dialect::of(&path);
    let mut response = told(next.run(request).await, dialect);
    let status = response.status().as_u16();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let (name, ms) = (id.to_str().unwrap_or_default(), start.elapsed().as_millis() as u64);
    // What an open tab or a probe asks each second would hide the rest; that it may not is news.
    if POLLED.contains(&route) && matches!(status, 200 | 503) {
        tracing::debug!(id = name, status, ms, "{method} {path}");
    } else {
        tracing::info!(id = name, status, ms, "{method} {path}");
    }
    app.metrics.answered(route, known(&method), status);
    let headers = response.headers_mut();
    if dialect == Dialect::Anthropic {
        // Where Anthropic's clients look for it.
        headers.insert(HeaderName::from_static("request-id"), id.clone());
    }
    headers.insert(REQUEST_ID, id);
    // Nothing here is to be taken for something else than it says.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An error in the words of the API that was called.
fn told(mut response: Response, dialect: Dialect) -> Response {
    let error = response.extensions_mut().remove::<ApiError>();
    if let Some(error) = error.filter(|_| dialect == Dialect::Anthropic) {
        *response.body_mut() = Body::from(json::text(&dialect.body(&error)));
    }
    response
}

/// A method as a label: clients may invent any number of them.
fn known(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::DELETE | Method::HEAD | Method::OPTIONS => {
            method.as_str()
        }
        _ => "other",
    }
}

/// 16 hexadecimal digits that no other call returns, from the keys that `HashMap` draws.
fn unique() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::{self, Lines, Source};
    use axum::body::to_bytes;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use std::task::{Context, Poll};

    /// Says something, then panics.
    struct Panics(bool);

    impl Source for Panics {
        fn poll_more(&mut self, _: &mut Context<'_>, lines: &mut Lines) -> Poll<bool> {
            assert!(!self.0, "a secret");
            self.0 = true;
            lines.push(&"first");
            Poll::Ready(true)
        }
    }

    async fn handler() -> Response {
        panic!("a secret")
    }

    async fn stream() -> Response {
        sse::response(Panics(false), Lines::default(), Dialect::OpenAi)
    }

    #[tokio::test]
    async fn a_panic_stays_in_its_request() {
        let rules = (crate::Access::local(), crate::Limits::default());
        let app = Arc::new(App::new(vec!["tiny".into()], rules.0, rules.1));
        let routes = Router::new()
            .route("/handler", get(handler))
            .route("/stream", get(stream))
            .route("/v1/messages/handler", get(handler))
            .route("/v1/messages/stream", get(stream))
            .route("/version", get(status::version));
        let service = TowerToHyperService::new(guarded(routes, app.clone()));
        for (path, status, begin) in [
            ("/handler", 500, "{\"error\":{\"message\":\"a bug"),
            ("/stream", 200, "data: \"first\"\n\ndata: {\"error\":{\"message\":\"a bug"),
            ("/v1/messages/handler", 500, "{\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
            (
                "/v1/messages/stream",
                200,
                "data: \"first\"\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{",
            ),
            ("/version", 200, "{\"version\""),
        ] {
            let request = Request::builder().uri(path).header("host", "localhost");
            let reply = service.call(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(reply.status(), status, "{path}");
            assert!(reply.headers().contains_key(REQUEST_ID), "{path}");
            let body = to_bytes(reply.into_body(), 10_000).await.unwrap();
            let body = String::from_utf8_lossy(&body).into_owned();
            assert!(body.starts_with(begin) && !body.contains("secret"), "{path}: {body}");
            assert_eq!(*app.in_flight.borrow(), 0, "{path}");
        }
    }
}
