//! Answers in OpenAI's form, with vLLM's additions where clients use them.

use crate::answer::Tally;
use krasis_engine::Logprob;
use krasis_text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What ties the chunks of an answer together.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
}

/// Any answer or chunk of one.
#[derive(Debug, Serialize)]
pub(crate) struct Response<Choice> {
    #[serde(flatten)]
    pub head: Head,
    pub choices: Vec<Choice>,
    /// In a stream: absent unless asked for, null on all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// Chats have one prompt, so their ids stand here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    pub prompt_tokens_details: PromptDetails,
    pub completion_tokens_details: CompletionDetails,
}

/// More about the prompt.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct PromptDetails {
    pub cached_tokens: u32,
}

/// More about the answer.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct CompletionDetails {
    /// Part of the completion's tokens.
    pub reasoning_tokens: u32,
}

impl Usage {
    pub fn new(tally: Tally) -> Usage {
        let Tally { prompt, completion, cached, reasoning } = tally;
        Usage {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptDetails { cached_tokens: cached },
            completion_tokens_details: CompletionDetails { reasoning_tokens: reasoning },
        }
    }
}

/// One of the answers of a chat.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    pub index: usize,
    /// The whole answer; a stream has `delta` instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
pub(crate) struct Message {
    pub role: &'static str,
    /// Null if there is nothing but calls.
    pub content: Option<String>,
    #[serde(flatten)]
    pub reasoning: Thoughts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    pub refusal: Option<String>,
}

/// The next part of the assistant's message. Clients fail on deltas without `content`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    pub content: Option<String>,
    #[serde(flatten)]
    pub reasoning: Thoughts,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// The name of the field for what the model thinks. OpenAI has none; servers differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningField {
    /// `reasoning_content`: DeepSeek, llama.cpp, and most clients.
    #[default]
    ReasoningContent,
    /// `reasoning`: vLLM, OpenRouter.
    Reasoning,
    /// Both at a time.
    Both,
}

/// What the model thinks, under the names that are asked for.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Thoughts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
}

impl Thoughts {
    pub fn new(text: String, field: ReasoningField) -> Thoughts {
        use ReasoningField::{Both, Reasoning, ReasoningContent};
        Thoughts {
            reasoning_content: matches!(field, ReasoningContent | Both).then(|| text.clone()),
            reasoning: matches!(field, Reasoning | Both).then_some(text),
        }
    }
}

/// A call of a function.
#[derive(Debug, Serialize)]
pub(crate) struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub function: Function,
}

/// The function called. Its arguments are JSON in a string.
#[derive(Debug, Serialize)]
pub(crate) struct Function {
    pub name: String,
    pub arguments: String,
}

/// A call's beginning, with id, type and name, or more of its arguments.
#[derive(Debug, Serialize)]
pub(crate) struct ToolCallDelta {
    /// Which call; clients collect by it.
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: FunctionDelta,
}

/// The function's name, once, or more of its arguments.
#[derive(Debug, Serialize)]
pub(crate) struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub arguments: String,
}

/// One of the answers to plain prompts.
#[derive(Debug, Serialize)]
pub(crate) struct TextChoice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<TextLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities in a chat.
#[derive(Debug, Serialize)]
pub(crate) struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
}

/// One token of a chat's answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatLogprob {
    #[serde(flatten)]
    pub token: TokenLogprob,
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token: its bytes tell what its text cannot when it is part of a character.
#[derive(Debug, Serialize)]
pub(crate) struct TokenLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub fn new(tokenizer: &Tokenizer, logprobs: &[Logprob]) -> ChatLogprobs {
        let token = |id, logprob| TokenLogprob {
            token: tokenizer.token_text(id),
            logprob: finite(logprob),
            bytes: tokenizer.token_bytes(id),
        };
        let content = logprobs.iter().map(|entry| ChatLogprob {
            token: token(entry.token, entry.logprob),
            top_logprobs: entry.top.iter().map(|&(id, logprob)| token(id, logprob)).collect(),
        });
        ChatLogprobs { content: content.collect() }
    }
}

/// Log-probabilities of plain completions: parallel lists, the first entry of an echoed prompt
/// null. lm-evaluation-harness slices these by token counts.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TextLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<Option<f64>>,
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    pub text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// A token about which nothing is known, such as the first of a prompt.
    pub fn push_unknown(&mut self, tokenizer: &Tokenizer, id: u32, offset: &mut usize) {
        self.token(tokenizer, id, offset);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Tokens in order. `offset` counts characters, from the start of the text.
    pub fn extend(&mut self, tokenizer: &Tokenizer, logprobs: &[Logprob], offset: &mut usize) {
        for entry in logprobs {
            self.token(tokenizer, entry.token, offset);
            self.token_logprobs.push(Some(finite(entry.logprob).into()));
            let mut top: Map<String, Value> = Map::new();
            // Different tokens may have the same text (parts of characters do): the likeliest
            // stays. The chosen token comes last, so it is listed even if it is not among the top.
            let chosen = (entry.token, entry.logprob);
            for &(id, logprob) in entry.top.iter().chain([&chosen]) {
                let text = tokenizer.token_text(id);
                let known = top.get(&text).and_then(Value::as_f64);
                let logprob = f64::from(finite(logprob));
                if known.is_none_or(|known| known < logprob) {
                    // The same float in both lists, digit for digit: clients compare them.
                    top.insert(text, json!(logprob));
                }
            }
            self.top_logprobs.push(Some(top));
        }
    }

    /// Both, one after the other.
    pub fn followed_by(mut self, next: TextLogprobs) -> TextLogprobs {
        self.tokens.extend(next.tokens);
        self.token_logprobs.extend(next.token_logprobs);
        self.top_logprobs.extend(next.top_logprobs);
        self.text_offset.extend(next.text_offset);
        self
    }

    fn token(&mut self, tokenizer: &Tokenizer, id: u32, offset: &mut usize) {
        let text = tokenizer.token_text(id);
        self.text_offset.push(*offset);
        *offset += text.chars().count();
        self.tokens.push(text);
    }
}

/// JSON has no infinity; vLLM writes this instead.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// An entry of the list of models.
pub(crate) fn model(name: &str, root: &str, created: u64, context_max: Option<u32>) -> Value {
    json!({
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "lifecycle": "active",
        // Anthropic's way of saying that it is not known.
        "created_at": "1970-01-01T00:00:00Z",
        "created": created,
        "owned_by": "krasis",
        "root": root,
        "parent": null,
        "max_model_len": context_max,
    })
}
