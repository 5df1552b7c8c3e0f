//! What is recorded: a graph, what it asks, and how it is answered.

use crate::desk::Desk;
use crate::machine::{Answering, Kernel};
use crate::timeline::Mark;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of a graph besides what the driver knows.
#[derive(Default)]
pub struct Recorded {
    /// In the order of their launches, with their layers.
    pub kernels: Vec<(Kernel, Option<u32>)>,
    /// When they ran, if that is watched.
    pub marks: Vec<Mark>,
    /// Bytes of each question and of its answer.
    pub asked: Vec<[usize; 2]>,
    /// Where they are asked, if any is.
    pub desk: Option<Arc<Mutex<Desk>>>,
}

/// A graph that is ready to be launched.
pub struct Recording {
    /// Of the driver.
    pub graph: sys::CUgraphExec,
    /// Of ours.
    pub of: Recorded,
}

// SAFETY: as for the GPU itself, which it is used with.
unsafe impl Send for Recording {}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: made by `recorded` and used no more; the driver keeps it while it is running.
        let _ = unsafe { result::graph::exec_destroy(self.graph) };
        // SAFETY: captured in this graph alone.
        self.of.marks.iter().for_each(|mark| unsafe { mark.free() });
    }
}

/// A desk, for as long as the result lives.
pub fn locked(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().expect("nobody panics with a desk")
}

/// The desk of a recording that asks.
pub fn desk_of(recorded: &Recorded) -> MutexGuard<'_, Desk> {
    locked(recorded.desk.as_ref().expect("a recording with questions has a desk"))
}

/// The answers that a graph waits for.
pub struct Answers<'a> {
    desk: MutexGuard<'a, Desk>,
    asked: &'a [[usize; 2]],
    given: usize,
}

impl<'a> Answers<'a> {
    /// Before the graph is launched.
    pub fn new(desk: &'a Mutex<Desk>, asked: &'a [[usize; 2]]) -> Answers<'a> {
        let desk = desk.lock().unwrap_or_else(PoisonError::into_inner);
        desk.clear(asked.len());
        Answers { desk, asked, given: 0 }
    }

    /// Gives all of them, each when it is asked for.
    pub fn give(
        &mut self,
        stream: sys::CUstream,
        answer: &mut Answering,
    ) -> Result<(), DriverError> {
        while self.given < self.asked.len() {
            // SAFETY: the stream of a GPU that is alive.
            unsafe { self.desk.wait(self.given, stream)? };
            let (question, room) = self.desk.parts(self.asked[self.given]);
            answer(self.given, question, room);
            self.desk.answered(self.given);
            self.given += 1;
        }
        Ok(())
    }
}

/// Whoever panics leaves no GPU behind that waits for ever.
impl Drop for Answers<'_> {
    fn drop(&mut self) {
        (self.given..self.asked.len()).for_each(|number| self.desk.answered(number));
    }
}
