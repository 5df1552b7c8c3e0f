//! From submitted requests to a response, in one piece or streamed; the same for chats and plain
//! completions but for the form of a choice.

use crate::answer::{Answer, News, Piece, Reading};
use crate::app::unix_now;
use crate::error::ApiError;
use crate::jobs::Jobs;
use crate::openai::{Head, Response as Body, Usage};
use crate::sse::{self, Lines, Source};
use crate::wishes::{StreamUsage, Wishes};
use crate::{App, Loaded, json};
use axum::http::StatusCode;
use axum::response::Response;
use krasis_engine::{Event, Logprob, Request, SubmitError};
use serde::Serialize;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

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

/// Requests in flight and what becomes of them. Dropping it cancels them.
pub(super) struct Run<F> {
    form: F,
    head: Head,
    jobs: Jobs,
    answers: Vec<Answer>,
    prompt_tokens: u32,
    /// Answers per prompt.
    n: usize,
    stream: Option<StreamUsage>,
}

impl<F: Form> Run<F> {
    /// Submits `n` requests for each prompt, in order.
    pub fn start(
        app: &App,
        loaded: &Arc<Loaded>,
        wishes: &Wishes,
        requests: Vec<Request>,
        form: F,
    ) -> Result<Run<F>, ApiError> {
        let n = wishes.n as usize;
        let head = Head {
            id: format!("{}-{}", F::ID, super::unique()),
            object: if wishes.stream.is_some() { F::CHUNK } else { F::WHOLE },
            created: unix_now(),
            model: app.name().to_owned(),
            system_fingerprint: loaded.fingerprint.clone(),
        };
        let answer = |_| Answer::new(&loaded.tokenizer, wishes, form.reading());
        let answers = requests.iter().map(answer).collect();
        let prompts = requests.iter().step_by(n).map(|request| request.prompt.len() as u32);
        Ok(Run {
            form,
            head,
            prompt_tokens: prompts.sum(),
            jobs: Jobs::submit(&loaded.handle, &app.metrics, requests)?,
            answers,
            n,
            stream: wishes.stream,
        })
    }

    /// The response.
    pub async fn respond(self) -> Result<Response, ApiError> {
        match self.stream {
            Some(_) => Ok(self.streamed()),
            None => self.blocking().await,
        }
    }

    async fn blocking(mut self) -> Result<Response, ApiError> {
        let mut prompts: Vec<Option<Vec<Logprob>>> = self.answers.iter().map(|_| None).collect();
        let mut wholes: Vec<Piece> = self.answers.iter().map(|_| Piece::default()).collect();
        while let Some((index, event)) = self.jobs.next().await {
            match self.news(index, event)? {
                News::Prompt(logprobs) => prompts[index] = Some(logprobs),
                News::Piece(piece) | News::Stopped(piece) => wholes[index].append(piece),
                News::Nothing | News::Refused(_) | News::Failed(_) => {}
            }
        }
        let choices = wholes.into_iter().zip(prompts).enumerate();
        let choices = choices
            .map(|(index, (piece, prompt))| self.form.whole(index, prompt.as_deref(), piece))
            .collect();
        let usage = Some(Some(self.usage()));
        let prompt_token_ids = self.form.prompt_ids();
        let body = Body { head: self.head, choices, usage, prompt_token_ids };
        Ok(json::response(StatusCode::OK, &body))
    }

    fn streamed(mut self) -> Response {
        let mut lines = Lines::default();
        for index in 0..self.answers.len() {
            if let Some(choice) = self.form.open(index, None) {
                self.send(choice, &mut lines);
            }
        }
        sse::response(self, lines)
    }

    /// Takes an event. A failure of one answer is a failure of all: the response has one status.
    fn news(&mut self, index: usize, event: Result<Event, SubmitError>) -> Result<News, ApiError> {
        let news = self.answers[index].take(event?);
        match news {
            News::Refused(message) => {
                let status = StatusCode::BAD_REQUEST;
                return Err(ApiError::new(status, Some("grammar_refused"), message));
            }
            News::Failed(message) => return Err(ApiError::internal(message)),
            News::Stopped(_) => self.jobs.cancel(index),
            _ => {}
        }
        Ok(news)
    }

    fn send(&mut self, choice: F::Choice, lines: &mut Lines) {
        let wanted = self.stream.unwrap_or_default();
        let usage = wanted.at_end().then(|| wanted.always().then(|| self.usage()));
        let prompt_token_ids = self.form.prompt_ids();
        let head = self.head.clone();
        lines.push(&Body { head, choices: vec![choice], usage, prompt_token_ids });
    }

    /// Each prompt counts once, however many answers it gets.
    fn usage(&self) -> Usage {
        let completion = self.answers.iter().map(Answer::tokens).sum();
        let cached = self.answers.iter().step_by(self.n).map(Answer::cached_tokens).sum();
        let reasoning = self.answers.iter().map(Answer::reasoning_tokens).sum();
        Usage::new(self.prompt_tokens, completion, cached, reasoning)
    }
}

impl<F: Form> Source for Run<F> {
    fn poll_more(&mut self, context: &mut Context<'_>, lines: &mut Lines) -> Poll<bool> {
        let Some((index, event)) = ready!(self.jobs.poll_next(context)) else {
            if self.stream.is_some_and(StreamUsage::at_end) {
                let (head, usage) = (self.head.clone(), Some(Some(self.usage())));
                let choices: Vec<F::Choice> = Vec::new();
                lines.push(&Body { head, choices, usage, prompt_token_ids: None });
            }
            lines.done();
            return Poll::Ready(false);
        };
        let choices = match self.news(index, event) {
            Ok(News::Prompt(logprobs)) => Vec::from_iter(self.form.open(index, Some(&logprobs))),
            Ok(News::Piece(piece) | News::Stopped(piece)) => self.form.chunks(index, piece),
            Ok(News::Nothing | News::Refused(_) | News::Failed(_)) => Vec::new(),
            Err(error) => {
                lines.fail(&error);
                return Poll::Ready(false);
            }
        };
        for choice in choices {
            self.send(choice, lines);
        }
        Poll::Ready(true)
    }
}
