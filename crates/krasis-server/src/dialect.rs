//! The APIs whose clients come here, where they differ on every route: in how an error looks.

use crate::error::{ApiError, Excess};
use axum::http::StatusCode;
use serde_json::{Value, json};

/// Whose words an answer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's chats and completions, and everything that is nobody's in particular.
    OpenAi,
    /// OpenAI's responses: the same errors, other streams.
    Responses,
    /// Anthropic's messages.
    Anthropic,
}

impl Dialect {
    /// The dialect of a path, whether there is a route or not.
    pub fn of(path: &str) -> Dialect {
        let under = |route: &str| {
            path.strip_prefix(route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match path {
            _ if under("/v1/messages") => Dialect::Anthropic,
            _ if under("/v1/responses") => Dialect::Responses,
            _ => Dialect::OpenAi,
        }
    }

    /// The body of an answer that is an error.
    pub fn body(self, error: &ApiError) -> Value {
        match self {
            Dialect::OpenAi | Dialect::Responses => error.body(),
            Dialect::Anthropic => json!({
                "type": "error",
                "error": {"type": kind(error.status), "message": message(error)},
            }),
        }
    }

    /// The event that tells a stream's reader that it cannot go on: its name and its data.
    pub fn failure(self, error: &ApiError) -> (Option<&'static str>, Value) {
        let mut body = self.body(error);
        match self {
            Dialect::OpenAi => (None, body),
            Dialect::Anthropic => (Some("error"), body),
            Dialect::Responses => {
                body["type"] = "error".into();
                (Some("error"), body)
            }
        }
    }
}

/// Anthropic's names.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

/// Agents shorten a conversation when they read these words, by what the numbers say; Claude Code
/// expects nothing behind them.
fn message(error: &ApiError) -> String {
    match (error.excess, error.code) {
        (Some(Excess { prompt, context }), _) => {
            // The answer needs one of them.
            let most = context.saturating_sub(1);
            format!("prompt is too long: {prompt} tokens > {most} maximum")
        }
        (None, Some("context_length_exceeded")) => {
            format!("prompt is too long: {}", error.message)
        }
        _ => error.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_a_dialect_without_having_a_route() {
        for (path, dialect) in [
            ("/v1/messages", Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic),
            ("/v1/messages/nowhere", Dialect::Anthropic),
            ("/v1/messagesque", Dialect::OpenAi),
            ("/v1/responses/resp_1", Dialect::Responses),
            ("/v1/chat/completions", Dialect::OpenAi),
            ("/", Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }
}
