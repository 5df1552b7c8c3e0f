//! What a caller asks of the engine and what it hears back: the seam between text and tensors.

use crate::constraint::Grammar;
use std::sync::Arc;
use std::time::Duration;

/// One completion to compute. Token ids in, token ids out: the engine knows no text.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids of the prompt, taken verbatim. Must not be empty.
    pub prompt: Vec<u32>,
    /// How to choose each next token.
    pub sampling: Sampling,
    /// Tokens to generate at most; 0 evaluates the prompt alone.
    pub tokens_max: u32,
    /// Generation ends after any of these; the token itself is reported. Empty to ignore EOS.
    pub stop_tokens: Vec<u32>,
    /// Report log-probabilities of generated tokens with this many alternatives each.
    pub logprobs: Option<u32>,
    /// Report log-probabilities of prompt tokens (all but the first) with this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// What the answer must keep to.
    pub grammar: Option<Arc<dyn Grammar>>,
    /// Who goes first: lower numbers do, and among equals whoever came first. It orders the queue and the
    /// reading of prompts, and whose memory is taken last; nobody who runs is stopped for it. As long as
    /// requests of lower numbers keep coming, others wait.
    pub priority: i64,
}

/// How the next token is chosen from the logits. Applied in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of all tokens seen so far (Keskar et al.,
    /// CTRL, 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from each generated token's logit (OpenAI); 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from each generated token's logit per occurrence (OpenAI); 0 is off.
    pub frequency_penalty: f32,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 is off.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches `top_p`; 1 is off.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the most likely one; 0 is off.
    pub min_p: f32,
    /// Same seed, same request, same tokens. Without one, drawn from the clock.
    pub seed: Option<u64>,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Sampling = Sampling {
        logit_bias: Vec::new(),
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: None,
    };

    /// Whether logits are not taken as the model gives them.
    pub fn changes_logits(&self) -> bool {
        !self.logit_bias.is_empty()
            || self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Whether a logit may become larger than the model gives it.
    pub fn raises_logits(&self) -> bool {
        self.logit_bias.iter().any(|(_, bias)| *bias > 0.0)
            || self.repetition_penalty < 1.0
            || self.presence_penalty < 0.0
            || self.frequency_penalty < 0.0
    }

    /// Refuses values outside their range, naming the field; `vocab` bounds `logit_bias` ids.
    pub fn check(&self, vocab: u32) -> Result<(), InvalidRequest> {
        let within = |field: &'static str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(InvalidRequest::OutOfRange { field, value, low, high })
            }
        };
        within("temperature", self.temperature, 0.0, 2.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        for &(token, bias) in &self.logit_bias {
            within("logit_bias", bias, -100.0, 100.0)?;
            if token >= vocab {
                return Err(InvalidRequest::UnknownToken { field: "logit_bias", token, vocab });
            }
        }
        Ok(())
    }
}

/// Why a request cannot be run as it stands. The caller's mistake, always the same answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRequest {
    /// A number outside its range (NaN included).
    #[error("{field} is {value}, but must be between {low} and {high}")]
    OutOfRange {
        /// Name in the API.
        field: &'static str,
        /// As given.
        value: f32,
        /// Smallest allowed.
        low: f32,
        /// Largest allowed.
        high: f32,
    },
    /// A token id that the model does not have.
    #[error("{field} holds token {token}, but the vocabulary ends at {}", vocab - 1)]
    UnknownToken {
        /// Name in the API.
        field: &'static str,
        /// As given.
        token: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// Nothing to continue.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// Prompt and answer do not fit.
    #[error(
        "the prompt has {prompt} tokens and the answer may have {answer}, \
         but the context holds {context}: shorten the prompt or lower max_tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// Tokens asked for.
        answer: u32,
        /// Tokens that fit.
        context: u32,
    },
}

/// What the engine tells about one request, in this order: at most one `Prompt`, `Token`s, and
/// exactly one of `Done`, `Refused` and `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt has been read; entry `i` is about prompt token `i + 1`. Only if asked for.
    Prompt {
        /// One entry per prompt token but the first.
        logprobs: Vec<Logprob>,
    },
    /// One more token of the answer.
    Token {
        /// Its id.
        id: u32,
        /// Its log-probability, if asked for.
        logprob: Option<Logprob>,
    },
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish: Finish,
        /// What it took.
        usage: Usage,
    },
    /// The answer cannot keep to its grammar; a sentence for the user, whose grammar it is.
    Refused {
        /// What went wrong.
        message: String,
    },
    /// The engine could not go on; a sentence for the user.
    Failed {
        /// What went wrong.
        message: String,
    },
}

/// Log-probability of a token under the model (before penalties and temperature).
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token given or chosen.
    pub token: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The most likely tokens, best first. The same float as above where they name one token.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// `tokens_max` or the end of the context was reached.
    Length,
    /// The caller lost interest.
    Cancelled,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them whose KV pages were found and not computed again.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// From submission to the first admission: waiting for others.
    pub queued: Duration,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}
