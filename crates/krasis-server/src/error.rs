//! Errors as OpenAI's clients expect them: a status and `{"error": {message, type, param, code}}`.

use crate::json;
use crate::stage::{Over, Progress, Stage};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use krasis_engine::{InvalidRequest, SubmitError};
use krasis_text::TextError;
use serde_json::{Value, json};
use tokio::task::JoinError;

const FAILED: &str = "the engine has failed; the server ends, and its log says why";

/// What a client did wrong, or why the server cannot serve now. What fails the same way every
/// time is never a 5xx: clients would repeat it.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    /// A sentence for the user.
    pub message: String,
    /// The field that it is about.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// What did not fit.
    pub excess: Option<Excess>,
}

/// A prompt, and the context that it goes beyond, alone or with its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Excess {
    pub prompt: usize,
    pub context: u32,
}

impl ApiError {
    pub fn new(status: StatusCode, code: Option<&'static str>, message: String) -> ApiError {
        ApiError { status, message, param: None, code, excess: None }
    }

    /// 400: a field has a value that cannot be.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            param: Some(param.into()),
            code: Some("invalid_value"),
            excess: None,
        }
    }

    /// 400: a field that means something, which this server does not do.
    pub fn unsupported(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::field(param, message) }
    }

    pub fn no_model(name: &str, known: &[String]) -> ApiError {
        let known = known.join("', '");
        let message = format!("the model '{name}' does not exist; this server has '{known}'");
        ApiError {
            param: Some("model".into()),
            ..ApiError::new(StatusCode::NOT_FOUND, Some("model_not_found"), message)
        }
    }

    /// 503: the server is not in the stage in which requests are answered.
    pub fn not_now(stage: &Stage) -> ApiError {
        let (code, message) = match stage {
            Stage::Loading(Progress { phase, percent }) => (
                "model_loading",
                format!("the model is still loading ({phase}, {percent} %): try again in a moment"),
            ),
            Stage::Over(Over::Failed) => ("engine_failed", FAILED.into()),
            _ => ("shutting_down", "the server is shutting down: try again in a moment".into()),
        };
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, Some(code), message)
    }

    /// What an answer in flight is told when it ends before its end.
    pub fn over(why: Over) -> ApiError {
        let (code, message) = match why {
            Over::Failed => ("engine_failed", FAILED),
            Over::Stopped => ("shutting_down", "the server is shutting down and cannot finish"),
        };
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, Some(code), message.into())
    }

    /// What does not fit. Agents look for the maximum context length and for the tokens behind
    /// "resulted in", and shorten the conversation by as many.
    pub fn too_long(prompt: usize, answer: Option<u32>, context: u32) -> ApiError {
        let most = format!("the maximum context length is {context} tokens, but ");
        let message = match answer {
            None => format!(
                "{most}the prompt resulted in {prompt} tokens, and the answer needs room: shorten \
                 the prompt"
            ),
            Some(answer) => format!(
                "{most}prompt and answer resulted in {} tokens, {answer} of them for the answer: \
                 shorten the prompt or lower max_tokens",
                prompt + answer as usize
            ),
        };
        ApiError {
            status: StatusCode::BAD_REQUEST,
            message,
            param: Some(if answer.is_none() { "messages" } else { "max_tokens" }.into()),
            code: Some("context_length_exceeded"),
            excess: Some(Excess { prompt, context }),
        }
    }

    /// A panic in the server. What it says is for the log alone.
    pub fn bug() -> ApiError {
        let message = "a bug in the server ended this request; its log says more";
        ApiError::internal(message.into())
    }

    /// The engine or the server failed.
    pub fn internal(message: String) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, Some("internal_error"), message)
    }

    /// The error's place in a stream that has begun.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": kind(self.status),
            "param": self.param,
            "code": self.code,
        }})
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json::response(self.status, &self.body());
        let mut header = |name: HeaderName, value| {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        };
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => header(header::RETRY_AFTER, "1"),
            StatusCode::SERVICE_UNAVAILABLE => header(header::RETRY_AFTER, "5"),
            StatusCode::UNAUTHORIZED => header(header::WWW_AUTHENTICATE, "Bearer"),
            // The rest of a refused body is not read, so the connection cannot go on.
            StatusCode::PAYLOAD_TOO_LARGE => header(header::CONNECTION, "close"),
            _ => {}
        }
        // For those who say the same in other words.
        response.extensions_mut().insert(self);
        response
    }
}

/// Work that was handed to another thread has panicked, or the server ends.
impl From<JoinError> for ApiError {
    fn from(_: JoinError) -> ApiError {
        ApiError::bug()
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> ApiError {
        let message = error.to_string();
        match error {
            SubmitError::Invalid(InvalidRequest::TooLong { prompt, answer, context }) => {
                ApiError::too_long(prompt as usize, Some(answer), context)
            }
            SubmitError::Invalid(
                InvalidRequest::OutOfRange { field, .. }
                | InvalidRequest::UnknownToken { field, .. },
            ) => ApiError::field(field, message),
            SubmitError::Invalid(InvalidRequest::EmptyPrompt) => ApiError::field("prompt", message),
            SubmitError::Busy { .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, Some("queue_full"), message)
            }
            SubmitError::Stopped => {
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, Some("engine_stopped"), message)
            }
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        let message = error.to_string();
        match error {
            TextError::Message { field, reason } => ApiError::field(field, reason),
            TextError::TooLong { .. } => ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::field("messages", message)
            },
            _ => ApiError::field("messages", message),
        }
    }
}
