//! Requests from the command line: submitted as the queue takes them, events in one channel.

use crate::exit::Failure;
use krasis_engine::{Event, Handle, Logprob, Request, SubmitError, Ticket, Usage};
use std::sync::mpsc::{Receiver, channel};

/// One request whose events are read one by one. Dropping it cancels the request.
pub struct Stream {
    events: Receiver<Event>,
    _ticket: Ticket,
}

impl Stream {
    /// Submits.
    pub fn start(handle: &Handle, request: Request) -> Result<Stream, Failure> {
        let (sender, events) = channel();
        let sink = Box::new(move |event| drop(sender.send(event)));
        let ticket = handle.submit(request, sink).map_err(anyhow::Error::from)?;
        Ok(Stream { events, _ticket: ticket })
    }

    /// Waits for the next event.
    pub fn next(&self) -> Result<Event, Failure> {
        match self.events.recv() {
            Ok(Event::Refused { message } | Event::Failed { message }) => {
                Err(Failure::say(Failure::FAILED, message))
            }
            Ok(event) => Ok(event),
            Err(_) => Err(anyhow::Error::from(SubmitError::Stopped).into()),
        }
    }
}

/// What became of a request.
#[derive(Default)]
pub struct Answer {
    /// About the prompt's tokens but the first, if asked for.
    pub prompt: Vec<Logprob>,
    /// Generated.
    pub tokens: Vec<u32>,
    /// What it took.
    pub usage: Usage,
}

/// Runs all requests, as many at a time as the engine takes; answers come in order of requests.
pub fn all(
    handle: &Handle,
    requests: Vec<Request>,
    mut finished: impl FnMut(usize),
) -> Result<Vec<Answer>, Failure> {
    let mut answers: Vec<Answer> = requests.iter().map(|_| Answer::default()).collect();
    let mut tickets: Vec<Option<Ticket>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.into_iter().enumerate().peekable();
    let (sender, events) = channel();
    let (mut running, mut done) = (0, 0);
    while done < answers.len() {
        while let Some((index, request)) = waiting.peek() {
            let (index, sender) = (*index, sender.clone());
            let sink = Box::new(move |event| drop(sender.send((index, event))));
            match handle.submit(request.clone(), sink) {
                Ok(ticket) => tickets[index] = Some(ticket),
                Err(SubmitError::Busy { .. }) if running > 0 => break,
                Err(error) => {
                    let error = anyhow::Error::from(error).context(format!("line {}", index + 1));
                    return Err(error.into());
                }
            }
            running += 1;
            waiting.next();
        }
        let (index, event) = events.recv().expect("this function holds a sender");
        match event {
            Event::Prompt { logprobs } => answers[index].prompt = logprobs,
            Event::Token { id, .. } => answers[index].tokens.push(id),
            Event::Refused { message } | Event::Failed { message } => {
                return Err(Failure::say(Failure::FAILED, message));
            }
            Event::Done { usage, .. } => {
                answers[index].usage = usage;
                tickets[index] = None;
                (running, done) = (running - 1, done + 1);
                finished(done);
            }
        }
    }
    Ok(answers)
}
