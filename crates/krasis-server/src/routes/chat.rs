//! `POST /v1/chat/completions`

use super::choices::{self, Form};
use super::unique;
use crate::answer::{Answers, Piece, Reading};
use crate::constraint::{self, Constraint};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::{
    ChatChoice, ChatLogprobs, Delta, Function, FunctionDelta, Message, Thoughts, ToolCall,
    ToolCallDelta,
};
use crate::tools::{Demand, Tools};
use crate::wishes::Wishes;
use crate::{App, Loaded, messages, responses};
use axum::extract::State;
use axum::response::Response;
use krasis_engine::{Grammar, Logprob, Request};
use krasis_text::{Event, Format, Parser, Render, Rules, Start, Tokenizer};
use serde_json::{Map, Value};
use std::sync::Arc;

const TOP_LOGPROBS_MAX: u32 = 20;

pub(super) async fn chat(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    if fields.look("messages").is_none() && fields.look("input").is_some() {
        // Cursor sends a response's request here, and reads a chat's answer.
        responses::into_chat(&mut fields, &[])?;
    }
    let Asked { wishes, logprobs, prompt, requests } =
        Asked::take(&loaded, &mut fields, Room::Demanded).await?;
    app.complete(&fields)?;
    let form = Chat {
        tokenizer: loaded.tokenizer.clone(),
        answers: loaded.answers,
        logprobs: logprobs.is_some(),
        token_ids: wishes.token_ids,
        prompt_ids: wishes.token_ids.then(|| prompt.ids.clone()),
        prompt,
    };
    choices::respond(&app, &loaded, &wishes, requests, form).await
}

/// A chat that is ready to be computed, whichever API asked for it.
pub(super) struct Asked {
    pub wishes: Wishes,
    pub logprobs: Option<u32>,
    pub prompt: Prompt,
    /// One for each answer.
    pub requests: Vec<Request>,
}

/// What the tokens are that a request allows its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There must be room for all of them.
    Demanded,
    /// A bound; where the context ends is another. Agents ask for 32,000 tokens of every model.
    AtMost,
}

impl Asked {
    pub async fn take(
        loaded: &Arc<Loaded>,
        fields: &mut Fields,
        room: Room,
    ) -> Result<Asked, ApiError> {
        let mut wishes = Wishes::take(fields, &loaded.generation)?;
        let tokens_max = fields.within("max_tokens", 1, u32::MAX)?;
        wishes.tokens_max = fields.within("max_completion_tokens", 1, u32::MAX)?.or(tokens_max);
        let logprobs = logprobs(fields)?;
        let mut prompt = Prompt::take(loaded, fields).await?;
        prompt.formed = wishes.constraint.is_some();
        if room == Room::AtMost {
            let context = loaded.handle.facts.context_max;
            let left = context.saturating_sub(prompt.ids.len() as u32);
            wishes.tokens_max =
                wishes.tokens_max.map(|most| most.min(left)).filter(|&most| most > 0);
        }
        // Schemas take their time, as templates do.
        let (texts, constraint) = (loaded.clone(), wishes.constraint.clone());
        let compiled = tokio::task::spawn_blocking(move || -> Result<_, ApiError> {
            let grammar = prompt.grammar(&texts, constraint.as_ref())?;
            Ok((prompt, grammar))
        });
        let (prompt, grammar) = compiled.await??;
        let request = |sample| {
            let mut request = wishes.request(loaded, prompt.ids.clone(), sample)?;
            request.grammar = grammar.clone();
            request.logprobs = logprobs;
            Ok(request)
        };
        let requests = (0..wishes.n).map(request).collect::<Result<_, ApiError>>()?;
        Ok(Asked { wishes, logprobs, prompt, requests })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.within("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    match (wanted, top) {
        (false, Some(1..)) => {
            Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

pub(super) fn render(fields: &mut Fields, tools: &Tools) -> Result<Render, ApiError> {
    if fields.value("chat_template").is_some() {
        let message = "chat_template: templates come with the model, not with requests";
        return Err(ApiError::unsupported("chat_template", message));
    }
    let mut variables: Map<String, Value> =
        fields.take("chat_template_kwargs")?.unwrap_or_default();
    for name in ["documents", "reasoning_effort"] {
        if let Some(value) = fields.value(name) {
            variables.insert(name.into(), value);
        }
    }
    let continue_final = fields.flag("continue_final_message")?;
    let generation_prompt = fields.take("add_generation_prompt")?;
    if continue_final && generation_prompt == Some(true) {
        let message = "add_generation_prompt and continue_final_message exclude each other";
        return Err(ApiError::field("add_generation_prompt", message));
    }
    let generation_prompt = generation_prompt.unwrap_or(!continue_final);
    if tools.demand != Demand::Free {
        if !generation_prompt {
            let message = "a demanded call begins the assistant's turn: leave \
                           continue_final_message and add_generation_prompt away";
            return Err(ApiError::field("tool_choice", message));
        }
        // Thoughts could end in another decision than the one that is demanded.
        for name in ["enable_thinking", "thinking"] {
            variables.entry(name).or_insert(false.into());
        }
    }
    Ok(Render { tools: tools.listed(), generation_prompt, continue_final, variables })
}

/// The text that the model continues.
fn rendered(loaded: &Loaded, messages: &[Value], render: &Render) -> Result<String, ApiError> {
    match &loaded.template {
        Ok(template) if !render.tools.is_empty() && !template.takes_tools() => {
            let message = "tools: this model's chat template knows none";
            Err(ApiError::unsupported("tools", message))
        }
        Ok(template) => Ok(template.render(messages, render)?),
        Err(error) => Err(ApiError::field("messages", error.to_string())),
    }
}

/// What the model reads, and how its answer is to be read.
pub(super) struct Prompt {
    text: String,
    /// The beginning of a call that is demanded. The model reads it behind the prompt; for the
    /// client it is the beginning of the answer.
    opening: String,
    pub ids: Vec<u32>,
    tools: Tools,
    /// Calls of the conversation so far.
    calls: usize,
    /// The message that is continued.
    continued: Option<String>,
    /// Whether the answer's text is held to a form.
    formed: bool,
}

impl Prompt {
    /// The prompt of a chat.
    pub async fn take(loaded: &Arc<Loaded>, fields: &mut Fields) -> Result<Prompt, ApiError> {
        let messages = fields.take("messages")?;
        let messages =
            messages.ok_or_else(|| ApiError::field("messages", "messages is missing"))?;
        let messages = messages::checked(messages)?;
        let tools = Tools::take(fields)?;
        let render = render(fields, &tools)?;
        // Templates and tokenizers take their time with long texts; other requests go on meanwhile.
        let texts = loaded.clone();
        let prompt = move || Prompt::new(&texts, &messages, render, tools);
        tokio::task::spawn_blocking(prompt).await?
    }

    pub fn new(
        loaded: &Loaded,
        messages: &[Value],
        render: Render,
        tools: Tools,
    ) -> Result<Prompt, ApiError> {
        let text = rendered(loaded, messages, &render)?;
        let calls = |message: &Value| message["tool_calls"].as_array().map_or(0, Vec::len);
        let calls = messages.iter().map(calls).sum();
        let opening = match (&tools.demand, loaded.answers.format.tools) {
            (Demand::Free, _) => String::new(),
            (_, None) => {
                let message = "tool_choice: it is not known how this model writes calls, so none \
                               can be demanded; krasis serve --tool-parser names the format";
                return Err(ApiError::unsupported("tool_choice", message));
            }
            (demand, Some(format)) => {
                let function = match demand {
                    Demand::Function(function) => Some(function),
                    _ => None,
                };
                format.opening(&text, function, calls)
            }
        };
        let ids = loaded.tokenizer.encode_rendered(&format!("{text}{opening}"))?;
        let continued = messages.last().filter(|_| render.continue_final);
        let continued = continued.map(|message| match &message["content"] {
            Value::String(text) => text.clone(),
            parts => {
                let last = parts.as_array().and_then(|parts| parts.last());
                last.and_then(|part| part["text"].as_str()).unwrap_or_default().to_owned()
            }
        });
        Ok(Prompt { text, opening, ids, tools, calls, continued, formed: false })
    }

    /// What the answer is held to: its form, a demanded call, calls of strict tools. Takes its time.
    pub fn grammar(
        &self,
        loaded: &Loaded,
        constraint: Option<&Constraint>,
    ) -> Result<Option<Arc<dyn Grammar>>, ApiError> {
        let Tools { offered, demand, calls_max } = &self.tools;
        let named: Vec<Value>;
        let (tools, demand) = match demand {
            Demand::Free => (&offered[..], krasis_text::Demand::Free),
            demand => {
                named = offered.iter().filter(|tool| demand.admits(tool)).cloned().collect();
                let (opening, number) = (&self.opening[..], self.calls);
                (&named[..], krasis_text::Demand::Call { opening, number })
            }
        };
        let format = self.format(loaded.answers.format);
        let (single, prompt) = (*calls_max == 1, &self.text[..]);
        let rules = Rules { form: None, format, tools, demand, single, prompt };
        constraint::compiled(loaded, constraint, rules)
    }

    /// How the answer is read: without tools there is nothing to call, and what looks like a call is
    /// text.
    fn format(&self, known: Format) -> Format {
        Format { tools: known.tools.filter(|_| !self.tools.offered.is_empty()), ..known }
    }

    /// How an answer to it is read.
    pub fn reading(&self, known: Format) -> Reading {
        let (tools, format) = (&self.tools, self.format(known));
        let start = match &self.continued {
            Some(text) => Start::Continued(text),
            None => Start::Prompt(&self.text),
        };
        let parser = Parser::new(format, &tools.offered, start);
        Reading {
            parser: if self.formed && format.tools.is_none() { parser.literal() } else { parser },
            markers: format.markers(),
            opening: self.opening.clone(),
            calls_max: tools.calls_max,
        }
    }
}

/// Choices of a chat.
struct Chat {
    tokenizer: Arc<Tokenizer>,
    answers: Answers,
    logprobs: bool,
    token_ids: bool,
    prompt_ids: Option<Vec<u32>>,
    prompt: Prompt,
}

impl Chat {
    fn choice(&self, index: usize, piece: &Piece) -> ChatChoice {
        let logprobs = self.logprobs && !piece.ids.is_empty();
        ChatChoice {
            index,
            message: None,
            delta: None,
            logprobs: logprobs.then(|| ChatLogprobs::new(&self.tokenizer, &piece.logprobs)),
            finish_reason: piece.finish,
            token_ids: self.token_ids.then(|| piece.ids.clone()),
        }
    }

    /// What an event adds to the message.
    fn delta(&self, event: Event) -> Option<Delta> {
        let call = |index, id, kind, name, arguments| Delta {
            tool_calls: vec![ToolCallDelta {
                index,
                id,
                kind,
                function: FunctionDelta { name, arguments },
            }],
            ..Delta::default()
        };
        Some(match event {
            Event::Text(text) => Delta { content: Some(text), ..Delta::default() },
            Event::Reasoning(text) => Delta {
                reasoning: Thoughts::new(text, self.answers.reasoning_field),
                ..Delta::default()
            },
            Event::Call { index, id, name } => {
                let id = id.unwrap_or_else(call_id);
                call(index, Some(id), Some("function"), Some(name), String::new())
            }
            Event::Arguments { index, json } => call(index, None, None, None, json),
            Event::End { .. } => return None,
        })
    }
}

fn call_id() -> String {
    format!("call_{}", unique())
}

impl Form for Chat {
    type Choice = ChatChoice;
    const ID: &'static str = "chatcmpl";
    const WHOLE: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn open(&mut self, index: usize, prompt: Option<&[Logprob]>) -> Option<ChatChoice> {
        let choice = self.choice(index, &Piece::default());
        let delta =
            Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        prompt.is_none().then_some(ChatChoice { delta: Some(delta), token_ids: None, ..choice })
    }

    fn reading(&self) -> Reading {
        self.prompt.reading(self.answers.format)
    }

    fn chunks(&mut self, index: usize, mut piece: Piece) -> Vec<ChatChoice> {
        let said = std::mem::take(&mut piece.said);
        // Clients read the reason in a chunk that adds no call.
        let open = matches!(said.last(), Some(Event::Text(_)) | None);
        let mut deltas: Vec<Delta> =
            said.into_iter().filter_map(|event| self.delta(event)).collect();
        if deltas.is_empty() || piece.finish.is_some() && !open {
            deltas.push(Delta { content: Some(String::new()), ..Delta::default() });
        }
        let finish = piece.finish.take();
        let mut choices: Vec<ChatChoice> = Vec::with_capacity(deltas.len());
        for delta in deltas {
            // The tokens of the whole piece come with its first chunk.
            let choice = self.choice(index, &std::mem::take(&mut piece));
            choices.push(ChatChoice { delta: Some(delta), ..choice });
        }
        if let Some(last) = choices.last_mut() {
            last.finish_reason = finish;
        }
        choices
    }

    fn whole(&mut self, index: usize, _: Option<&[Logprob]>, piece: Piece) -> ChatChoice {
        let choice = self.choice(index, &piece);
        let (mut content, mut thoughts) = (String::new(), String::new());
        let mut tool_calls: Vec<ToolCall> = Vec::new();
        for event in piece.said {
            match event {
                Event::Text(text) => content += &text,
                Event::Reasoning(text) => thoughts += &text,
                Event::Call { id, name, .. } => tool_calls.push(ToolCall {
                    id: id.unwrap_or_else(call_id),
                    kind: "function",
                    function: Function { name, arguments: String::new() },
                }),
                Event::Arguments { index, json } => {
                    tool_calls[index].function.arguments += &json;
                }
                Event::End { .. } => {}
            }
        }
        let message = Message {
            role: "assistant",
            content: (!content.is_empty() || tool_calls.is_empty()).then_some(content),
            reasoning: match thoughts.is_empty() {
                true => Thoughts::default(),
                false => Thoughts::new(thoughts, self.answers.reasoning_field),
            },
            tool_calls,
            refusal: None,
        };
        ChatChoice { message: Some(message), ..choice }
    }

    fn prompt_ids(&mut self) -> Option<Vec<u32>> {
        self.prompt_ids.take()
    }
}
