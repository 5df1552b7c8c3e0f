//! The engine requests behind one HTTP request: each sample of each prompt is one.

use crate::metrics::{Metrics, Observer};
use krasis_engine::{Event, Handle, Request, SubmitError, Ticket};
use std::collections::VecDeque;
use std::task::{Context, Poll, ready};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Several engine requests whose events come in one stream. Dropping it cancels them all, which
/// is what happens when the client disconnects.
pub(crate) struct Jobs {
    handle: Handle,
    /// Not submitted yet, because the queue was full of our own.
    waiting: VecDeque<(usize, Request, Observer)>,
    tickets: Vec<Option<Ticket>>,
    running: usize,
    /// Kept while requests wait; without it, the channel ends with the engine.
    sender: Option<UnboundedSender<(usize, Event)>>,
    events: UnboundedReceiver<(usize, Event)>,
}

impl Jobs {
    /// Submits as many as the queue takes. A batch may be larger than the queue, so only a queue
    /// that takes none at all is an error.
    pub fn submit(
        handle: &Handle,
        metrics: &Metrics,
        requests: Vec<Request>,
    ) -> Result<Jobs, SubmitError> {
        let (sender, events) = unbounded_channel();
        let observed = |(index, request): (usize, Request)| {
            let observer = metrics.observe(&request);
            (index, request, observer)
        };
        let mut jobs = Jobs {
            handle: handle.clone(),
            tickets: requests.iter().map(|_| None).collect(),
            waiting: requests.into_iter().enumerate().map(observed).collect(),
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
        if matches!(event, Event::Done { .. } | Event::Refused { .. } | Event::Failed { .. }) {
            self.tickets[index] = None;
            self.running -= 1;
            if let Err(error) = self.fill() {
                return Poll::Ready(Some((index, Err(error))));
            }
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
        self.sender = None;
        Ok(())
    }
}
