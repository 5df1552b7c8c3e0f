//! Answers as OpenAI's chats and plain completions have them: a list of choices, or chunks of them.

use super::run::{Api, Run, Whole};
use crate::answer::{Piece, Reading, Tally};
use crate::app::unix_now;
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::openai::{Head, Response as Body, Usage};
use crate::sse::Lines;
use crate::wishes::{StreamUsage, Wishes};
use crate::{App, Loaded, json};
use axum::http::StatusCode;
use axum::response::Response;
use krasis_engine::{Logprob, Request};
use serde::Serialize;
use std::sync::Arc;

/// How one kind of completion writes its choices.
pub(super) trait Form: Send + Unpin + 'static {
    /// One of the answers, or a part of it.
    type Choice: Serialize;
    /// Start of ids.
    const ID: &'static str;
    /// Name of a whole answer.
    const WHOLE: &'static str;
    /// Name of a part.
    const CHUNK: &'static str;

    /// What a stream says before the first token. Called at once without log-probabilities of
    /// the prompt, and again with them when they come.
    fn open(&mut self, index: usize, prompt: Option<&[Logprob]>) -> Option<Self::Choice>;
    /// How an answer is read.
    fn reading(&self) -> Reading;
    /// A part of a streamed answer, in one chunk or several.
    fn chunks(&mut self, index: usize, piece: Piece) -> Vec<Self::Choice>;
    /// A whole answer.
    fn whole(&mut self, index: usize, prompt: Option<&[Logprob]>, piece: Piece) -> Self::Choice;
    /// Ids of the prompt at the top of a response, where the form has them there.
    fn prompt_ids(&mut self) -> Option<Vec<u32>>;
}

/// The response to `n` requests for each prompt.
pub(super) async fn respond<F: Form>(
    app: &App,
    loaded: &Arc<Loaded>,
    wishes: &Wishes,
    requests: Vec<Request>,
    form: F,
) -> Result<Response, ApiError> {
    let head = Head {
        id: format!("{}-{}", F::ID, super::unique()),
        object: if wishes.stream.is_some() { F::CHUNK } else { F::WHOLE },
        created: unix_now(),
        model: app.name().to_owned(),
        system_fingerprint: loaded.fingerprint.clone(),
    };
    let usage = wishes.stream.unwrap_or_default();
    let choices = Choices { form, head, answers: requests.len(), usage };
    Run::start(app, loaded, wishes, requests, choices)?.respond().await
}

/// All choices of a response.
struct Choices<F> {
    form: F,
    head: Head,
    answers: usize,
    /// Which chunks carry the usage.
    usage: StreamUsage,
}

impl<F: Form> Choices<F> {
    fn send(&mut self, choice: F::Choice, tally: Tally, lines: &mut Lines) {
        let always = || self.usage.always().then(|| Usage::new(tally));
        let usage = self.usage.at_end().then(always);
        let prompt_token_ids = self.form.prompt_ids();
        let head = self.head.clone();
        lines.push(&Body { head, choices: vec![choice], usage, prompt_token_ids });
    }
}

impl<F: Form> Api for Choices<F> {
    const DIALECT: Dialect = Dialect::OpenAi;

    fn reading(&self) -> Reading {
        self.form.reading()
    }

    fn open(&mut self, tally: Tally, lines: &mut Lines) {
        for index in 0..self.answers {
            if let Some(choice) = self.form.open(index, None) {
                self.send(choice, tally, lines);
            }
        }
    }

    fn prompt(&mut self, answer: usize, logprobs: &[Logprob], tally: Tally, lines: &mut Lines) {
        if let Some(choice) = self.form.open(answer, Some(logprobs)) {
            self.send(choice, tally, lines);
        }
    }

    fn part(&mut self, answer: usize, piece: Piece, tally: Tally, lines: &mut Lines) {
        for choice in self.form.chunks(answer, piece) {
            self.send(choice, tally, lines);
        }
    }

    fn close(&mut self, tally: Tally, lines: &mut Lines) {
        if self.usage.at_end() {
            let (head, usage) = (self.head.clone(), Some(Some(Usage::new(tally))));
            let choices: Vec<F::Choice> = Vec::new();
            lines.push(&Body { head, choices, usage, prompt_token_ids: None });
        }
        lines.done();
    }

    fn whole(&mut self, answers: Vec<Whole>, tally: Tally) -> Response {
        let mut choices = Vec::with_capacity(answers.len());
        for (index, Whole { prompt, pieces }) in answers.into_iter().enumerate() {
            let mut piece = Piece::default();
            pieces.into_iter().for_each(|next| piece.append(next));
            choices.push(self.form.whole(index, prompt.as_deref(), piece));
        }
        let usage = Some(Some(Usage::new(tally)));
        let prompt_token_ids = self.form.prompt_ids();
        let body = Body { head: self.head.clone(), choices, usage, prompt_token_ids };
        json::response(StatusCode::OK, &body)
    }
}
