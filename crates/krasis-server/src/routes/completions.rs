//! `POST /v1/completions`

use super::choices::{self, Form};
use crate::answer::{Piece, Reading};
use crate::constraint;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openai::{TextChoice, TextLogprobs};
use crate::wishes::Wishes;
use crate::{App, Loaded};
use axum::extract::State;
use axum::response::Response;
use krasis_engine::Logprob;
use krasis_text::{Rules, Tokenizer};
use serde::Deserialize;
use std::sync::Arc;

const LOGPROBS_MAX: u32 = 20;

pub(super) async fn completions(
    State(app): State<Arc<App>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let loaded = app.model(fields.take::<String>("model")?.as_deref())?;
    let mut wishes = Wishes::take(&mut fields, &loaded.generation)?;
    wishes.tokens_max = fields.take("max_tokens")?;
    let logprobs = fields.within("logprobs", 0, LOGPROBS_MAX)?;
    let echo = fields.flag("echo")?;
    let specials = match fields.take::<bool>("add_special_tokens")?.unwrap_or(true) {
        true => Specials::AsTrained,
        false => Specials::AsWritten,
    };
    refuse(&mut fields, &wishes)?;
    let prompts = prompts(&mut fields)?;
    app.complete(&fields)?;
    let answers = fields.limits.answers;
    if prompts.len() as u64 * u64::from(wishes.n) > answers {
        let message = format!("prompt: at most {answers} answers per request");
        return Err(ApiError::field("prompt", message));
    }

    let texts = loaded.clone();
    let prompts = tokio::task::spawn_blocking(move || -> Result<Vec<_>, ApiError> {
        prompts.into_iter().map(|prompt| read(&texts, prompt, specials)).collect()
    });
    let prompts = prompts.await??;
    let (texts, constraint) = (loaded.clone(), wishes.constraint.clone());
    let grammar = tokio::task::spawn_blocking(move || {
        constraint::compiled(&texts, constraint.as_ref(), Rules::FREE)
    });
    let grammar = grammar.await??;

    let mut requests = Vec::new();
    for prompt in &prompts {
        for sample in 0..wishes.n {
            let mut request = wishes.request(&loaded, prompt.ids.clone(), sample)?;
            request.grammar = grammar.clone();
            request.logprobs = logprobs;
            request.prompt_logprobs = logprobs.filter(|_| echo);
            requests.push(request);
        }
    }
    let answer = |prompt: &Prompt| Opening {
        prompt: prompt.clone(),
        offset: 0,
        ids_wanted: wishes.token_ids,
    };
    let n = wishes.n as usize;
    let form = Completions {
        tokenizer: loaded.tokenizer.clone(),
        openings: prompts
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(prompt, n))
            .map(answer)
            .collect(),
        logprobs: logprobs.is_some(),
        echo,
        token_ids: wishes.token_ids,
    };
    choices::respond(&app, &loaded, &wishes, requests, form).await
}

fn refuse(fields: &mut Fields, wishes: &Wishes) -> Result<(), ApiError> {
    if fields.take::<String>("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported(
            "suffix",
            "suffix is not supported: the model only continues text",
        ));
    }
    match fields.take::<u32>("best_of")? {
        Some(best_of) if best_of < wishes.n => {
            let message = format!("best_of is {best_of}, but n is {}", wishes.n);
            Err(ApiError::field("best_of", message))
        }
        Some(best_of) if best_of > wishes.n => {
            Err(ApiError::unsupported("best_of", "best_of greater than n is not supported"))
        }
        _ => Ok(()),
    }
}

/// A prompt as it came.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Text(String),
    Ids(Vec<u32>),
}

/// One prompt or several. A list of numbers is one prompt.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Given),
    Many(Vec<Given>),
}

fn prompts(fields: &mut Fields) -> Result<Vec<Given>, ApiError> {
    let refused = |message: &str| Err(ApiError::field("prompt", message));
    match fields.value("prompt").map(serde_json::from_value) {
        None => refused("prompt is missing"),
        Some(Ok(OneOrMany::One(Given::Ids(ids)))) if ids.is_empty() => refused("prompt is empty"),
        Some(Ok(OneOrMany::One(prompt))) => Ok(vec![prompt]),
        Some(Ok(OneOrMany::Many(prompts))) => Ok(prompts),
        Some(Err(_)) => refused(
            "prompt must be a string, a list of strings, a list of token ids or a list of such lists",
        ),
    }
}

/// Whether the tokens that the model expects around a text are added to it.
#[derive(Clone, Copy)]
enum Specials {
    AsTrained,
    AsWritten,
}

/// A prompt in both forms.
#[derive(Clone)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
}

fn read(loaded: &Loaded, prompt: Given, specials: Specials) -> Result<Prompt, ApiError> {
    let tokenizer = &loaded.tokenizer;
    match prompt {
        Given::Text(text) => {
            let ids = match specials {
                Specials::AsTrained => tokenizer.encode(&text),
                Specials::AsWritten => tokenizer.encode_rendered(&text),
            };
            let ids = ids.map_err(|error| ApiError {
                param: Some("prompt".into()),
                ..ApiError::from(error)
            })?;
            Ok(Prompt { text, ids })
        }
        // Verbatim: whoever counts tokens gets what was counted.
        Given::Ids(ids) => Ok(Prompt { text: tokenizer.decode_all(&ids), ids }),
    }
}

/// Choices of plain completions.
struct Completions {
    tokenizer: Arc<Tokenizer>,
    /// One per answer.
    openings: Vec<Opening>,
    logprobs: bool,
    echo: bool,
    token_ids: bool,
}

/// What an answer begins with.
struct Opening {
    prompt: Prompt,
    /// Characters of the answer so far, for `text_offset`.
    offset: usize,
    /// The prompt's ids are still to be sent.
    ids_wanted: bool,
}

impl Completions {
    fn choice(&mut self, index: usize, piece: Piece) -> TextChoice {
        let mut logprobs = (self.logprobs && !piece.ids.is_empty()).then(TextLogprobs::default);
        let opening = &mut self.openings[index];
        if let Some(lists) = &mut logprobs {
            lists.extend(&self.tokenizer, &piece.logprobs, &mut opening.offset);
        }
        let ids_wanted = std::mem::take(&mut opening.ids_wanted);
        TextChoice {
            index,
            text: piece.text(),
            logprobs,
            finish_reason: piece.finish,
            token_ids: self.token_ids.then_some(piece.ids),
            prompt_token_ids: ids_wanted.then(|| opening.prompt.ids.clone()),
        }
    }

    /// Lists for the echoed prompt: about its first token, nothing is known.
    fn echoed(&mut self, index: usize, prompt: &[Logprob]) -> TextLogprobs {
        let opening = &mut self.openings[index];
        let mut lists = TextLogprobs::default();
        if let Some(&first) = opening.prompt.ids.first() {
            lists.push_unknown(&self.tokenizer, first, &mut opening.offset);
        }
        lists.extend(&self.tokenizer, prompt, &mut opening.offset);
        lists
    }
}

impl Form for Completions {
    type Choice = TextChoice;
    const ID: &'static str = "cmpl";
    const WHOLE: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";

    fn open(&mut self, index: usize, prompt: Option<&[Logprob]>) -> Option<TextChoice> {
        // With log-probabilities, the echo waits for those of the prompt.
        if !self.echo || prompt.is_some() != self.logprobs {
            return None;
        }
        let logprobs = prompt.map(|prompt| self.echoed(index, prompt));
        let text = self.openings[index].prompt.text.clone();
        let choice = self.choice(index, Piece::default());
        Some(TextChoice { text, logprobs, ..choice })
    }

    fn reading(&self) -> Reading {
        Reading::plain()
    }

    fn chunks(&mut self, index: usize, piece: Piece) -> Vec<TextChoice> {
        vec![self.choice(index, piece)]
    }

    fn whole(&mut self, index: usize, prompt: Option<&[Logprob]>, piece: Piece) -> TextChoice {
        let echoed = prompt.map(|prompt| self.echoed(index, prompt));
        let mut choice = self.choice(index, piece);
        if self.echo {
            choice.text.insert_str(0, &self.openings[index].prompt.text);
        }
        let logprobs = match (echoed, choice.logprobs) {
            (Some(echoed), Some(answer)) => Some(echoed.followed_by(answer)),
            (echoed, answer) => echoed.or(answer),
        };
        TextChoice { logprobs, ..choice }
    }

    fn prompt_ids(&mut self) -> Option<Vec<u32>> {
        None
    }
}
