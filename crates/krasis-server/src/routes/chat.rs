//! `POST /v1/chat/completions`

use super::run::{Form, Run};
use crate::answer::Piece;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::{ChatChoice, ChatLogprobs, Delta, Message};
use crate::wishes::Wishes;
use crate::{App, Loaded, messages};
use axum::extract::State;
use axum::response::Response;
use krasis_engine::Logprob;
use krasis_text::{Render, Tokenizer};
use serde_json::{Map, Value};
use std::sync::Arc;

const TOP_LOGPROBS_MAX: u32 = 20;

pub(super) async fn chat(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    let mut wishes = Wishes::take(&mut fields, &loaded.generation)?;
    let tokens_max = fields.within("max_tokens", 1, u32::MAX)?;
    wishes.tokens_max = fields.within("max_completion_tokens", 1, u32::MAX)?.or(tokens_max);
    let logprobs = logprobs(&mut fields)?;
    let messages = fields.take("messages")?;
    let messages = messages.ok_or_else(|| ApiError::field("messages", "messages is missing"))?;
    let messages = messages::checked(messages)?;
    let render = render(&mut fields)?;

    // Templates and tokenizers take their time with long texts; other requests go on meanwhile.
    let texts = loaded.clone();
    let prompt = tokio::task::spawn_blocking(move || prompt(&texts, &messages, &render));
    let prompt = prompt.await??;

    let request = |sample| {
        let mut request = wishes.request(&loaded, prompt.clone(), sample)?;
        request.logprobs = logprobs;
        Ok(request)
    };
    let requests = (0..wishes.n).map(request).collect::<Result<_, ApiError>>()?;
    let form = Chat {
        tokenizer: loaded.tokenizer.clone(),
        logprobs: logprobs.is_some(),
        token_ids: wishes.token_ids,
        prompt_ids: wishes.token_ids.then_some(prompt),
    };
    Run::start(&app, &loaded, &wishes, requests, form)?.respond().await
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

pub(super) fn render(fields: &mut Fields) -> Result<Render, ApiError> {
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
    let choice = fields.value("tool_choice");
    Ok(Render {
        tools: messages::tools(fields.take("tools")?, choice)?,
        generation_prompt: generation_prompt.unwrap_or(!continue_final),
        continue_final,
        variables,
    })
}

pub(super) fn prompt(
    loaded: &Loaded,
    messages: &[Value],
    render: &Render,
) -> Result<Vec<u32>, ApiError> {
    match &loaded.template {
        Ok(template) => {
            let text = template.render(messages, render)?;
            Ok(loaded.tokenizer.encode_rendered(&text)?)
        }
        Err(error) => Err(ApiError::field("messages", error.to_string())),
    }
}

/// Choices of a chat.
struct Chat {
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    token_ids: bool,
    prompt_ids: Option<Vec<u32>>,
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
}

impl Form for Chat {
    type Choice = ChatChoice;
    const ID: &'static str = "chatcmpl";
    const WHOLE: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn open(&mut self, index: usize, prompt: Option<&[Logprob]>) -> Option<ChatChoice> {
        let choice = self.choice(index, &Piece::default());
        let delta = Delta { role: Some("assistant"), content: String::new() };
        prompt.is_none().then_some(ChatChoice { delta: Some(delta), token_ids: None, ..choice })
    }

    fn chunk(&mut self, index: usize, piece: Piece) -> ChatChoice {
        let choice = self.choice(index, &piece);
        ChatChoice { delta: Some(Delta { role: None, content: piece.text }), ..choice }
    }

    fn whole(&mut self, index: usize, _: Option<&[Logprob]>, piece: Piece) -> ChatChoice {
        let choice = self.choice(index, &piece);
        let message = Message { role: "assistant", content: piece.text, refusal: None };
        ChatChoice { message: Some(message), ..choice }
    }

    fn prompt_ids(&mut self) -> Option<Vec<u32>> {
        self.prompt_ids.take()
    }
}
