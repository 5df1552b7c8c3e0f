//! The engine requests behind one HTTP request: each sample of each prompt is one.

use crate::metrics::{Metrics, Observer};
use krasis_engine::{Event, Handle, Request, SubmitError, Ticket};
use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Several engine requests whose events come in one stream. Dropping it cancels them all, which
/// is what happens when the client disconnects.
pub(crate) struct Jobs {
    handle: Handle,
    /// Not submitted yet, because the queue was full of our own.
    waiting: VecDeque<Job>,
    /// Other answers to the prompt of a request that has not read it yet: when it has, theirs are
    /// known pages, and the prompt is read once.
    behind: HashMap<usize, Vec<Job>>,
    tickets: Vec<Option<Ticket>>,
    running: usize,
    /// Kept while requests wait; without it, the channel ends with the engine.
    sender: Option<UnboundedSender<(usize, Event)>>,
    events: UnboundedReceiver<(usize, Event)>,
}

/// A request with its place among the others.
type Job = (usize, Request, Observer);

impl Jobs {
    /// Submits requests of which each `samples` have one prompt: as many as the queue takes. A
    /// batch may be larger than the queue, so only a queue that takes none at all is an error.
    pub fn submit(
        handle: &Handle,
        metrics: &Metrics,
        requests: Vec<Request>,
        samples: usize,
    ) -> Result<Jobs, SubmitError> {
        let (sender, events) = unbounded_channel();
        let observed = |(index, request): (usize, Request)| {
            let observer = metrics.observe(&request);
            (index, request, observer)
        };
        let tickets = requests.iter().map(|_| None).collect();
        let (mut waiting, mut behind) = (VecDeque::new(), HashMap::<usize, Vec<Job>>::new());
        for job in requests.into_iter().enumerate().map(observed) {
            match job.0 % samples {
                0 => waiting.push_back(job),
                sample => behind.entry(job.0 - sample).or_default().push(job),
            }
        }
        let mut jobs = Jobs {
            handle: handle.clone(),
            tickets,
            waiting,
            behind,
            running: 0,
            sender: Some(sender),
            events,
        };
        jobs.fill()?;
        Ok(jobs)
    }

    /// The next event and the index of its request; `None` after the last. Bounded only by what
    /// the requests may generate: a slow reader holds at most its own answers in memory.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<(usize, Result<Event, SubmitError>)>> {
        if self.running == 0 {
            return Poll::Ready(None);
        }
        let Some((index, event)) = ready!(self.events.poll_recv(context)) else {
            self.running = 0;
            let last = self.tickets.len() - 1;
            return Poll::Ready(Some((last, Err(SubmitError::Stopped))));
        };
        // Whatever a request says, it has read its prompt.
        let others = self.behind.remove(&index);
        let read = others.is_some();
        others.into_iter().flatten().rev().for_each(|job| self.waiting.push_front(job));
        let over =
            matches!(event, Event::Done { .. } | Event::Refused { .. } | Event::Failed { .. });
        if over {
            self.tickets[index] = None;
            self.running -= 1;
        }
        if let Err(error) = if read || over { self.fill() } else { Ok(()) } {
            return Poll::Ready(Some((index, Err(error))));
        }
        Poll::Ready(Some((index, Ok(event))))
    }

    /// Waits for [`Jobs::poll_next`].
    pub async fn next(&mut self) -> Option<(usize, Result<Event, SubmitError>)> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Ends one request early; its `Done` still comes.
    pub fn cancel(&mut self, index: usize) {
        self.tickets[index] = None;
    }

    fn fill(&mut self) -> Result<(), SubmitError> {
        let Some(sender) = &self.sender else { return Ok(()) };
        while let Some((index, request, observer)) = self.waiting.front() {
            let (index, sender, mut observer) = (*index, sender.clone(), observer.clone());
            // A receiver that is gone is a client that is gone: the ticket has told the engine.
            let sink = Box::new(move |event| {
                observer.hear(&event);
                drop(sender.send((index, event)));
            });
            match self.handle.submit(request.clone(), sink) {
                Ok(ticket) => self.tickets[index] = Some(ticket),
                Err(SubmitError::Busy { .. }) if self.running > 0 => return Ok(()),
                Err(error) => return Err(error),
            }
            self.running += 1;
            self.waiting.pop_front();
        }
        if self.behind.is_empty() {
            self.sender = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use krasis_engine::{Facts, Sampling, Submission, Usage};
    use std::sync::mpsc::Receiver;

    fn request() -> Request {
        Request {
            prompt: vec![1, 2],
            sampling: Sampling::GREEDY,
            tokens_max: 4,
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            priority: 0,
        }
    }

    fn submitted(submissions: &Receiver<Submission>) -> Vec<Submission> {
        submissions.try_iter().collect()
    }

    #[tokio::test]
    async fn the_other_answers_wait_until_the_prompt_is_read() {
        let (handle, submissions) = Handle::new(Facts { vocab: 9, context_max: 9 }, 9);
        let metrics = Metrics::new("tiny");
        let requests = vec![request(); 6];
        let mut jobs = Jobs::submit(&handle, &metrics, requests, 3).unwrap();
        let mut first = submitted(&submissions);
        assert_eq!(first.len(), 2, "one for each prompt");
        (first[1].sink)(Event::Token { id: 1, logprob: None });
        assert_eq!(jobs.next().await.unwrap().0, 3);
        let mut others = submitted(&submissions);
        assert_eq!(others.len(), 2);
        // An answer may be over at once.
        let done = || Event::Done { finish: krasis_engine::Finish::Stop, usage: Usage::default() };
        (first[0].sink)(done());
        assert_eq!(jobs.next().await.unwrap().0, 0);
        others.extend(submitted(&submissions));
        assert_eq!(others.len(), 4);
        (first[1].sink)(done());
        others.iter_mut().for_each(|submission| (submission.sink)(done()));
        let mut ended = Vec::new();
        while let Some((index, event)) = jobs.next().await {
            assert_eq!(event, Ok(done()));
            ended.push(index);
        }
        assert_eq!(ended, [3, 4, 5, 1, 2]);
    }
}
