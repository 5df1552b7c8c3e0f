//! Pinned host memory in which a running graph asks and is answered: neither the host nor the GPU calls
//! the driver for it. The GPU writes a question and its sign, the host the answer and its own.

use crate::mail::until;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

/// Questions of a graph: layers of a model.
const QUESTIONS: usize = 512;

/// Bytes from one sign to the next: both sides write whole lines.
const LINE: usize = 64;

/// Signs of questions, then of answers.
const SIGNS: usize = 2 * QUESTIONS * LINE;

/// Memory for one question and one answer at a time, and signs for all of a graph.
pub struct Desk {
    memory: *mut c_void,
    /// Bytes of the question, and of the answer behind it.
    room: [usize; 2],
}

// SAFETY: memory of the process, which only the thread that runs the graph touches.
unsafe impl Send for Desk {}
// SAFETY: as above; shared by the graphs of one GPU, which run one after the other.
unsafe impl Sync for Desk {}

impl Desk {
    /// Allocates in the current context, for questions and answers of so many bytes.
    pub fn new(room: [usize; 2]) -> Result<Desk, DriverError> {
        let room = room.map(|bytes| bytes.next_multiple_of(LINE));
        // SAFETY: freed in `drop`.
        let memory = unsafe { result::malloc_host(SIGNS + room[0] + room[1], 0)? };
        Ok(Desk { memory, room })
    }

    /// Whether there is room for as much.
    pub fn holds(&self, room: [usize; 2]) -> bool {
        room[0] <= self.room[0] && room[1] <= self.room[1]
    }

    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: callers stay inside the allocation.
        unsafe { self.memory.cast::<u8>().add(offset) }
    }

    /// Where the GPU finds the parts of question `number`: its bytes and sign, the answer's bytes and sign.
    pub fn addresses(&self, number: usize) -> [u64; 4] {
        assert!(number < QUESTIONS, "{number} questions of {QUESTIONS}");
        let answer = SIGNS + self.room[0];
        [SIGNS, number * LINE, answer, (QUESTIONS + number) * LINE].map(|at| self.at(at) as u64)
    }

    fn sign(&self, index: usize) -> &AtomicU32 {
        // SAFETY: inside the signs and aligned; the GPU writes it in one piece.
        unsafe { &*self.at(index * LINE).cast::<AtomicU32>() }
    }

    /// Nothing has been asked and answered yet. The GPU does nothing here at this time.
    pub fn clear(&self, questions: usize) {
        for number in 0..questions {
            self.sign(number).store(0, Ordering::Relaxed);
            self.sign(QUESTIONS + number).store(0, Ordering::Relaxed);
        }
    }

    /// Waits for question `number`, which something that runs on `stream` asks.
    ///
    /// # Safety
    /// The stream is alive.
    pub unsafe fn wait(&self, number: usize, stream: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: promised by the caller.
        unsafe { until(|| self.sign(number).load(Ordering::Acquire) != 0, stream) }
    }

    /// A question that has come and room for its answer, so many bytes each.
    pub fn parts(&mut self, [question, answer]: [usize; 2]) -> (&[u8], &mut [u8]) {
        assert!(self.holds([question, answer]), "a question is larger than the desk");
        let [from, to] = [self.at(SIGNS), self.at(SIGNS + self.room[0])];
        // SAFETY: inside the allocation by the assertion, apart from each other; the GPU has written the
        // one, and reads the other only after the sign.
        unsafe {
            (std::slice::from_raw_parts(from, question), std::slice::from_raw_parts_mut(to, answer))
        }
    }

    /// The answer to question `number` is there.
    pub fn answered(&self, number: usize) {
        self.sign(QUESTIONS + number).store(1, Ordering::Release);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; no graph that knows it is left. Errors on the way out interest
        // nobody.
        let _ = unsafe { result::free_host(self.memory) };
    }
}
