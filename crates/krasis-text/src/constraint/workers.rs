//! Threads that find out which tokens may come next, while the engine's thread drives the model.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Two: a sequence's next tokens take microseconds mostly, but milliseconds at worst.
const THREADS: usize = 2;

/// What grammars nest is walked recursively.
const STACK_BYTES: usize = 64 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that wait for jobs, and end when the last of their owners is gone.
pub(super) struct Workers(Mutex<Sender<Job>>);

impl Workers {
    pub fn start() -> Workers {
        let (sender, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for number in 0..THREADS {
            let jobs = jobs.clone();
            let thread = std::thread::Builder::new()
                .name(format!("krasis-grammar-{number}"))
                .stack_size(STACK_BYTES);
            // Without a thread, jobs are done where they are asked for.
            let _ = thread.spawn(move || {
                while let Some(job) = next(&jobs) {
                    job()
                }
            });
        }
        Workers(Mutex::new(sender))
    }

    /// Does a job soon; what it returns comes through the channel, or nothing if it panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (sender, result) = channel();
        let job: Job = Box::new(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _ = result.map(|result| sender.send(result));
        });
        let queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(unsent) = queue.send(job) {
            drop(queue);
            (unsent.0)();
        }
        result
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
