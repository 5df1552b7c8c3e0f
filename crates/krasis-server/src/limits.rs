//! What one client may take: every bound in one table, for flags, status and tests alike.

use serde_json::{Map, Value};
use std::time::Duration;

/// Bounds of requests and connections. Whoever sets them may choose any value; the defaults fit
/// agents that send 100,000 tokens and still leave a small machine standing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; more wait in the system's backlog.
    pub connections: u64,
    /// Bytes of a request's head.
    pub header_bytes: u64,
    /// Headers of a request.
    pub headers: u64,
    /// Seconds from the first byte of a request, or from the connection, to the end of its head.
    pub header_seconds: u64,
    /// Seconds that a connection may wait for its next request.
    pub idle_seconds: u64,
    /// Bytes of a body.
    pub body_bytes: u64,
    /// Seconds until a body must have arrived at `body_rate`.
    pub body_grace_seconds: u64,
    /// Bytes per second of a body after the grace.
    pub body_rate: u64,
    /// Seconds that a client may leave an answer unread.
    pub stall_seconds: u64,
    /// Seconds that a request may take.
    pub request_seconds: u64,
    /// Seconds that answers in flight may take after the first signal.
    pub drain_seconds: u64,
    /// Messages of a chat.
    pub messages: u64,
    /// Tools of a chat.
    pub tools: u64,
    /// Bytes of all tools and of the response format, as JSON.
    pub schema_bytes: u64,
    /// Answers per prompt.
    pub samples: u64,
    /// Answers per request: prompts times samples.
    pub answers: u64,
    /// Tokens of `logit_bias`.
    pub logit_biases: u64,
    /// Stop strings.
    pub stops: u64,
    /// Bytes of a stop string.
    pub stop_bytes: u64,
    /// Entries of `stop_token_ids`.
    pub stop_tokens: u64,
    /// How far `priority` may be from 0; with 0, all are equal.
    pub priority: u64,
    /// Responses that may be continued by their id.
    pub stored_responses: u64,
    /// Bytes of these, with the conversations that they end.
    pub stored_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 512,
            header_bytes: 32 << 10,
            headers: 100,
            header_seconds: 15,
            idle_seconds: 75,
            body_bytes: 32 << 20,
            body_grace_seconds: 15,
            body_rate: 64 << 10,
            stall_seconds: 60,
            request_seconds: 3600,
            drain_seconds: 30,
            messages: 10_000,
            tools: 256,
            schema_bytes: 1 << 20,
            samples: 8,
            answers: 1024,
            logit_biases: 1024,
            stops: 16,
            stop_bytes: 256,
            stop_tokens: 256,
            priority: 1000,
            stored_responses: 256,
            stored_bytes: 64 << 20,
        }
    }
}

/// One bound's name, its place, and the smallest value that makes sense.
type Row = (&'static str, fn(&mut Limits) -> &mut u64, u64);

const TABLE: [Row; 23] = [
    ("connections", |limits| &mut limits.connections, 1),
    ("header_bytes", |limits| &mut limits.header_bytes, 1024),
    ("headers", |limits| &mut limits.headers, 8),
    ("header_seconds", |limits| &mut limits.header_seconds, 1),
    ("idle_seconds", |limits| &mut limits.idle_seconds, 1),
    ("body_bytes", |limits| &mut limits.body_bytes, 1),
    ("body_grace_seconds", |limits| &mut limits.body_grace_seconds, 1),
    ("body_rate", |limits| &mut limits.body_rate, 1),
    ("stall_seconds", |limits| &mut limits.stall_seconds, 1),
    ("request_seconds", |limits| &mut limits.request_seconds, 1),
    ("drain_seconds", |limits| &mut limits.drain_seconds, 0),
    ("messages", |limits| &mut limits.messages, 1),
    ("tools", |limits| &mut limits.tools, 0),
    ("schema_bytes", |limits| &mut limits.schema_bytes, 0),
    ("samples", |limits| &mut limits.samples, 1),
    ("answers", |limits| &mut limits.answers, 1),
    ("logit_biases", |limits| &mut limits.logit_biases, 0),
    ("stops", |limits| &mut limits.stops, 0),
    ("stop_bytes", |limits| &mut limits.stop_bytes, 1),
    ("stop_tokens", |limits| &mut limits.stop_tokens, 0),
    ("priority", |limits| &mut limits.priority, 0),
    ("stored_responses", |limits| &mut limits.stored_responses, 0),
    ("stored_bytes", |limits| &mut limits.stored_bytes, 0),
];

/// Why a bound cannot be set.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LimitError {
    /// No such bound.
    #[error("there is no limit '{name}': the limits are {}", known.join(", "))]
    Unknown {
        /// As given.
        name: String,
        /// All names.
        known: Vec<&'static str>,
    },
    /// Not of the form NAME=N, or too small.
    #[error("'{given}' sets no limit: give NAME=N, with N at least {least}")]
    Value {
        /// As given.
        given: String,
        /// Smallest value.
        least: u64,
    },
}

impl Limits {
    /// Sets one bound from `NAME=N`.
    pub fn set(&mut self, given: &str) -> Result<(), LimitError> {
        let (name, value) = given.split_once('=').unwrap_or((given, ""));
        let name = name.trim().replace('-', "_");
        let row = TABLE.iter().find(|row| row.0 == name);
        let Some(&(_, place, least)) = row else {
            let known = TABLE.iter().map(|row| row.0).collect();
            return Err(LimitError::Unknown { name, known });
        };
        match value.trim().parse() {
            // What is added to a time must not overflow it.
            Ok(value) if (least..=1 << 40).contains(&value) => *place(self) = value,
            _ => return Err(LimitError::Value { given: given.to_owned(), least }),
        }
        Ok(())
    }

    /// All bounds by name, for the status.
    pub fn listed(&self) -> Map<String, Value> {
        let mut limits = self.clone();
        TABLE.iter().map(|row| (row.0.to_owned(), (*row.1(&mut limits)).into())).collect()
    }

    /// When a body must have arrived of which so many bytes have.
    pub fn body_time(&self, bytes: usize) -> Duration {
        Duration::from_secs(self.body_grace_seconds)
            + Duration::from_secs_f64(bytes as f64 / self.body_rate as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_in_the_table_once() {
        let listed = Limits::default().listed();
        assert_eq!(listed.len(), TABLE.len());
        let fields = format!("{:?}", Limits::default()).matches(": ").count();
        assert_eq!(fields, TABLE.len());
        for (name, place, _) in TABLE {
            let mut limits = Limits::default();
            *place(&mut limits) = 77_777;
            let field = format!("{name}: 77777");
            assert!(format!("{limits:?}").contains(&field), "{name} is another field");
        }
    }

    #[test]
    fn limits_are_set_by_name() {
        let mut limits = Limits::default();
        limits.set("body-bytes=5").unwrap();
        limits.set("tools = 0").unwrap();
        assert_eq!((limits.body_bytes, limits.tools), (5, 0));
        assert!(limits.set("bodies=5").unwrap_err().to_string().contains("stop_tokens"));
        for wrong in ["connections=0", "connections=-1", "connections", "connections=x", "=", ""] {
            assert!(limits.set(wrong).is_err(), "{wrong}");
        }
        assert!(limits.set(&format!("stall_seconds={}", u64::MAX)).is_err());
    }

    #[test]
    fn bodies_earn_time_with_their_bytes() {
        let limits = Limits::default();
        assert_eq!(limits.body_time(1000).as_secs(), 15);
        assert_eq!(limits.body_time(64 << 20).as_secs(), 15 + 1024);
    }
}
