//! From submitted requests to a response, in one piece or streamed; the same for all APIs but for
//! the words in which they tell answers.

use crate::answer::{Answer, News, Piece, Reading, Tally};
use crate::dialect::Dialect;
use crate::error::ApiError;
use crate::jobs::Jobs;
use crate::sse::{self, Lines, Source};
use crate::wishes::Wishes;
use crate::{App, Loaded};
use axum::http::StatusCode;
use axum::response::Response;
use krasis_engine::{Event, Logprob, Request, SubmitError};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// How an API tells answers.
pub(super) trait Api: Send + Unpin + 'static {
    /// Whose words these are.
    const DIALECT: Dialect;

    /// How an answer is read.
    fn reading(&self) -> Reading;
    /// What a stream says before the first token.
    fn open(&mut self, tally: Tally, lines: &mut Lines);
    /// The prompt of an answer has been read.
    fn prompt(&mut self, answer: usize, logprobs: &[Logprob], tally: Tally, lines: &mut Lines);
    /// A part of a streamed answer.
    fn part(&mut self, answer: usize, piece: Piece, tally: Tally, lines: &mut Lines);
    /// All answers of a stream are complete.
    fn close(&mut self, tally: Tally, lines: &mut Lines);
    /// A stream cannot go on.
    fn fail(&mut self, error: &ApiError, lines: &mut Lines) {
        lines.fail(Self::DIALECT, error);
    }
    /// Whole answers.
    fn whole(&mut self, answers: Vec<Whole>, tally: Tally) -> Response;
}

/// A whole answer, and the log-probabilities of its prompt, if they are wanted.
#[derive(Default)]
pub(super) struct Whole {
    pub prompt: Option<Vec<Logprob>>,
    pub pieces: Vec<Piece>,
}

/// Requests in flight and what becomes of them. Dropping it cancels them.
pub(super) struct Run<A> {
    api: A,
    jobs: Jobs,
    answers: Vec<Answer>,
    prompt_tokens: u32,
    /// Answers per prompt.
    n: usize,
    streams: bool,
}

impl<A: Api> Run<A> {
    /// Submits `n` requests for each prompt, in order.
    pub fn start(
        app: &App,
        loaded: &Arc<Loaded>,
        wishes: &Wishes,
        mut requests: Vec<Request>,
        api: A,
    ) -> Result<Run<A>, ApiError> {
        let n = wishes.n as usize;
        let answer = |_| Answer::new(&loaded.tokenizer, wishes, api.reading());
        let answers = requests.iter().map(answer).collect();
        let prompts = requests.iter().step_by(n).map(|request| request.prompt.len() as u32);
        let prompt_tokens = prompts.sum();
        for (index, request) in requests.iter_mut().enumerate() {
            if index % n > 0 {
                // The first one's are those of all, and whoever wants them must read the prompt.
                request.prompt_logprobs = None;
            }
        }
        Ok(Run {
            api,
            prompt_tokens,
            jobs: Jobs::submit(&loaded.handle, &app.metrics, requests, n)?,
            answers,
            n,
            streams: wishes.stream.is_some(),
        })
    }

    /// The response.
    pub async fn respond(self) -> Result<Response, ApiError> {
        match self.streams {
            true => Ok(self.streamed()),
            false => self.blocking().await,
        }
    }

    async fn blocking(mut self) -> Result<Response, ApiError> {
        let mut wholes: Vec<Whole> = self.answers.iter().map(|_| Whole::default()).collect();
        while let Some((index, event)) = self.jobs.next().await {
            match self.news(index, event)? {
                News::Prompt(logprobs) => {
                    for whole in &mut wholes[index..index + self.n] {
                        whole.prompt = Some(logprobs.clone());
                    }
                }
                News::Piece(piece) | News::Stopped(piece) => wholes[index].pieces.push(piece),
                News::Nothing | News::Refused(_) | News::Failed(_) => {}
            }
        }
        let tally = self.tally();
        Ok(self.api.whole(wholes, tally))
    }

    fn streamed(mut self) -> Response {
        let mut lines = Lines::default();
        let tally = self.tally();
        self.api.open(tally, &mut lines);
        sse::response(self, lines, A::DIALECT)
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

    fn tally(&self) -> Tally {
        Tally {
            prompt: self.prompt_tokens,
            completion: self.answers.iter().map(Answer::tokens).sum(),
            cached: self.answers.iter().step_by(self.n).map(Answer::cached_tokens).sum(),
            reasoning: self.answers.iter().map(Answer::reasoning_tokens).sum(),
        }
    }
}

impl<A: Api> Source for Run<A> {
    fn poll_more(&mut self, context: &mut Context<'_>, lines: &mut Lines) -> Poll<bool> {
        let Some((index, event)) = ready!(self.jobs.poll_next(context)) else {
            let tally = self.tally();
            self.api.close(tally, lines);
            return Poll::Ready(false);
        };
        let news = self.news(index, event);
        let tally = self.tally();
        match news {
            Ok(News::Prompt(logprobs)) => {
                for answer in index..index + self.n {
                    self.api.prompt(answer, &logprobs, tally, lines);
                }
            }
            Ok(News::Piece(piece) | News::Stopped(piece)) => {
                self.api.part(index, piece, tally, lines);
            }
            Ok(News::Nothing | News::Refused(_) | News::Failed(_)) => {}
            Err(error) => {
                self.api.fail(&error, lines);
                return Poll::Ready(false);
            }
        }
        Poll::Ready(true)
    }
}
