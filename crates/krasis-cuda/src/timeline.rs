//! When kernels and copies ran, by the GPU's own clock: an event before each, and one behind it. A graph
//! has them as nodes, which are passed again each time it is launched.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use krasis_ops::{Span, Track};
use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Spans that wait for their events before it is looked whether those have passed.
const WAITING: usize = 4096;

/// From when on the clock is set anew: the driver tells times in milliseconds of 24 bits.
const ANCHORED: Duration = Duration::from_secs(4);

/// What begins or ends on a stream.
#[derive(Clone, Copy, Debug)]
pub struct What {
    /// The kernel's name, or the copy's.
    pub name: &'static str,
    /// Its row of the timeline.
    pub track: Track,
    /// Its layer.
    pub layer: Option<u32>,
    /// Blocks or bytes.
    pub amount: u64,
}

/// A span that has been queued, and the events around it.
#[derive(Clone, Copy)]
pub struct Mark {
    what: What,
    events: [sys::CUevent; 2],
    /// Whether the events are a graph's.
    remains: bool,
}

impl Mark {
    /// Frees the events of a graph that is no more.
    ///
    /// # Safety
    /// It was captured, and this is the last that is done with it.
    pub unsafe fn free(&self) {
        for event in self.events {
            // SAFETY: made by `event`, and a graph's; errors on the way out interest nobody.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

/// Whether a stream is being captured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Captured {
    /// Events become nodes of the graph.
    Yes,
    /// Events are queued.
    No,
}

/// The watch.
pub struct Timeline {
    spans: Sender<Span>,
    /// An event that has passed, and when that was.
    anchor: (sys::CUevent, Instant),
    free: Vec<sys::CUevent>,
    /// In the order of their streams: kernels, and copies beside them.
    waiting: [VecDeque<Mark>; 2],
}

fn event() -> Result<sys::CUevent, DriverError> {
    result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
}

impl Timeline {
    /// In the current context, to which `stream` belongs and on which nothing is queued.
    pub fn new(spans: Sender<Span>, stream: sys::CUstream) -> Result<Timeline, DriverError> {
        let anchor = event()?;
        // SAFETY: both are alive.
        unsafe {
            result::event::record(anchor, stream)?;
            result::event::synchronize(anchor)?;
        }
        let anchor = (anchor, Instant::now());
        Ok(Timeline { spans, anchor, free: Vec::new(), waiting: Default::default() })
    }

    /// Something begins or ends on a stream of the current context: an event is queued there, or captured.
    pub fn event(
        &mut self,
        stream: sys::CUstream,
        captured: Captured,
    ) -> Result<sys::CUevent, DriverError> {
        use sys::CUevent_record_flags::{CU_EVENT_RECORD_DEFAULT, CU_EVENT_RECORD_EXTERNAL};
        let event = match self.free.pop() {
            Some(event) => event,
            None => event()?,
        };
        let flags = match captured {
            Captured::Yes => CU_EVENT_RECORD_EXTERNAL,
            Captured::No => CU_EVENT_RECORD_DEFAULT,
        };
        // SAFETY: both are alive.
        unsafe { sys::cuEventRecordWithFlags(event, stream, flags as u32).result()? };
        Ok(event)
    }

    /// What has begun ends. What is captured is to be told of each time that it is launched.
    pub fn end(
        &mut self,
        begun: sys::CUevent,
        stream: sys::CUstream,
        captured: Captured,
        what: What,
    ) -> Result<Mark, DriverError> {
        let events = [begun, self.event(stream, captured)?];
        let mark = Mark { what, events, remains: captured == Captured::Yes };
        if captured == Captured::No {
            self.launched(mark);
            if self.waiting.iter().any(|waiting| waiting.len() >= WAITING) {
                self.tell_passed()?;
            }
        }
        Ok(mark)
    }

    /// A mark's events have been queued.
    pub fn launched(&mut self, mark: Mark) {
        self.waiting[usize::from(mark.what.track == Track::Copies)].push_back(mark);
    }

    /// The host was busy with something until now.
    pub fn host(&self, name: &'static str, layer: Option<u32>, amount: u64, start: Instant) {
        let time = start.elapsed();
        // Nobody listens any more: then nobody wants to know.
        let _ = self.spans.send(Span { name, track: Track::Host, layer, amount, start, time });
    }

    /// Tells of all whose events have passed.
    pub fn tell_passed(&mut self) -> Result<(), DriverError> {
        for row in 0..self.waiting.len() {
            while let Some(mark) = self.waiting[row].front().copied() {
                // SAFETY: the event is alive.
                match unsafe { result::event::query(mark.events[1]) } {
                    Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => break,
                    answer => answer?,
                }
                self.tell(mark)?;
                self.waiting[row].pop_front();
            }
        }
        Ok(())
    }

    fn tell(&mut self, mark: Mark) -> Result<(), DriverError> {
        let What { name, track, layer, amount } = mark.what;
        let (anchor, when) = self.anchor;
        let passed = |event| {
            // SAFETY: all events are alive and have passed.
            let ms = unsafe { result::event::elapsed(anchor, event)? };
            let apart = Duration::from_secs_f64(f64::from(ms.abs()) / 1e3);
            // Copies may have been queued before the anchor.
            Ok(if ms < 0.0 { when - apart } else { when + apart })
        };
        let [start, end] = [passed(mark.events[0])?, passed(mark.events[1])?];
        let time = end.saturating_duration_since(start);
        let _ = self.spans.send(Span { name, track, layer, amount, start, time });
        if mark.remains {
            return Ok(());
        }
        self.free.push(mark.events[0]);
        if end.saturating_duration_since(when) > ANCHORED && track == Track::Kernels {
            self.free.push(anchor);
            self.anchor = (mark.events[1], end);
        } else {
            self.free.push(mark.events[1]);
        }
        Ok(())
    }

    /// Frees all events but those of graphs.
    ///
    /// # Safety
    /// The context is current, all that was queued has passed, and this is the last call.
    pub unsafe fn free(&mut self) {
        let _ = self.tell_passed();
        let own = self.waiting.iter().flatten().filter(|mark| !mark.remains);
        let waiting = own.flat_map(|mark| mark.events);
        for event in waiting.chain(self.free.iter().copied()).chain([self.anchor.0]) {
            // SAFETY: made by `event`; errors on the way out interest nobody.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}
