//! From one GPU to another: memory to memory where what arrives is what was sent, and else through the host.
//! There are machines whose drivers allow copies that bring zeros, so nobody is believed.

use crate::driver::answer;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use krasis_core::random::SplitMix64;
use std::ffi::c_void;

/// Bytes that are sent to see whether they arrive.
const PROBE: usize = 4 << 20;

/// Bytes of host memory that are on their way at a time; there are two such halves.
const HALF: usize = 8 << 20;

/// A GPU's part in a hand-over.
#[derive(Clone, Copy)]
pub struct End {
    /// The number of its device, to the driver.
    pub device: sys::CUdevice,
    /// Its context.
    pub context: sys::CUcontext,
    /// Its queue.
    pub stream: sys::CUstream,
}

/// The way from one GPU to another.
pub struct Link {
    from: End,
    to: End,
    /// Recorded behind what the sender has queued.
    sent: sys::CUevent,
    /// Recorded behind what the receiver has queued.
    ready: sys::CUevent,
    /// Where there is no other way.
    host: Option<Bounce>,
}

// SAFETY: the driver's handles may be used from any thread, and the memory is touched by the GPUs alone.
unsafe impl Send for Link {}

/// Pinned host memory that both GPUs reach.
struct Bounce {
    memory: *mut c_void,
    /// Recorded on the receiver behind the last copy out of each half.
    copied: [sys::CUevent; 2],
    half: usize,
}

/// What trying has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What was sent has arrived, both ways.
    Right,
    /// Something else has.
    Wrong,
    /// The driver does not copy.
    Refused(String),
}

/// Which GPU sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The first of two.
    First,
    /// The second.
    Second,
}

/// Sends numbers both ways, twice, so that what arrived before does not pass for what was sent: `copy`
/// brings what has arrived.
fn probe(mut copy: impl FnMut(Sender, &[u8]) -> Result<Vec<u8>, String>) -> Verdict {
    let mut random = SplitMix64(0x9e37);
    for sender in [Sender::First, Sender::Second, Sender::First, Sender::Second] {
        let sent: Vec<u8> = (0..PROBE / 8).flat_map(|_| random.bits().to_le_bytes()).collect();
        match copy(sender, &sent) {
            Ok(arrived) if arrived == sent => {}
            Ok(_) => return Verdict::Wrong,
            Err(error) => return Verdict::Refused(error),
        }
    }
    Verdict::Right
}

impl Link {
    /// Finds the way between two GPUs, by trying, and says which it is; through the host if `direct` ways
    /// are not wanted. The memory of both stays as it is.
    pub fn new(from: End, to: End, direct: Direct) -> Result<(Link, Option<Verdict>), DriverError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        // Whichever GPU goes first, the receiver's context stays until the link is gone.
        // SAFETY: a device that the driver has handed out; released in `free`.
        unsafe { result::primary_ctx::retain(to.device) }?;
        to.enter()?;
        let ready = result::event::create(flags)?;
        from.enter()?;
        let sent = result::event::create(flags)?;
        let mut link = Link { from, to, sent, ready, host: None };
        let verdict = match direct {
            // One GPU is not far from itself.
            Direct::IfRight if from.device == to.device => Some(Verdict::Right),
            Direct::IfRight => Some(try_out(from, to)),
            Direct::Never => None,
        };
        if verdict != Some(Verdict::Right) {
            link.host = Some(Bounce::new(to)?);
        }
        Ok((link, verdict))
    }

    /// Queues a copy of so many bytes behind what both have queued, and what the receiver queues from now
    /// on behind the copy.
    ///
    /// # Safety
    /// Both ranges are device memory of their ends, whose contexts and streams are alive.
    pub unsafe fn copy(
        &mut self,
        from: sys::CUdeviceptr,
        at: sys::CUdeviceptr,
        bytes: usize,
    ) -> Result<(), DriverError> {
        // SAFETY: promised by the caller; events belong to the contexts of the streams.
        unsafe {
            if self.host.is_some() {
                return self.copy_through_host(from, at, bytes);
            }
            self.to.enter()?;
            result::event::record(self.ready, self.to.stream)?;
            self.from.enter()?;
            wait(self.from.stream, self.ready)?;
            let (here, there) = (self.from.context, self.to.context);
            let stream = self.from.stream;
            sys::cuMemcpyPeerAsync(at, there, from, here, bytes, stream).result()?;
            result::event::record(self.sent, self.from.stream)?;
            self.to.enter()?;
            wait(self.to.stream, self.sent)
        }
    }

    /// While the receiver copies one half, the sender fills the other.
    unsafe fn copy_through_host(
        &mut self,
        from: sys::CUdeviceptr,
        at: sys::CUdeviceptr,
        bytes: usize,
    ) -> Result<(), DriverError> {
        let bounce = self.host.as_mut().expect("somebody has looked");
        for first in (0..bytes).step_by(HALF) {
            let len = HALF.min(bytes - first);
            bounce.half = 1 - bounce.half;
            let copied = bounce.copied[bounce.half];
            // SAFETY: inside the allocation. The sender waits until the half is free, the receiver until
            // it is full; both ranges are the caller's promise.
            unsafe {
                let half = bounce.memory.cast::<u8>().add(bounce.half * HALF);
                let half = std::slice::from_raw_parts_mut(half, len);
                self.from.enter()?;
                wait(self.from.stream, copied)?;
                result::memcpy_dtoh_async(half, from + first as u64, self.from.stream)?;
                result::event::record(self.sent, self.from.stream)?;
                self.to.enter()?;
                wait(self.to.stream, self.sent)?;
                result::memcpy_htod_async(at + first as u64, half, self.to.stream)?;
                result::event::record(copied, self.to.stream)?;
            }
        }
        Ok(())
    }

    /// Frees what belongs to it.
    ///
    /// # Safety
    /// The sender has done all that is queued there, and this is the last call.
    pub unsafe fn free(&mut self) {
        // SAFETY: made in `new`, and the receiver is waited for; errors on the way out interest nobody.
        unsafe {
            let _ = self.to.enter().and_then(|()| result::ctx::synchronize());
            let _ = result::event::destroy(self.sent);
            let _ = result::event::destroy(self.ready);
            if let Some(bounce) = &self.host {
                for event in bounce.copied {
                    let _ = result::event::destroy(event);
                }
                let _ = result::free_host(bounce.memory);
            }
            let _ = result::primary_ctx::release(self.to.device);
        }
    }
}

/// Whether GPUs may copy to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// If that works.
    IfRight,
    /// Not even then: to measure what it saves.
    Never,
}

impl End {
    fn enter(self) -> Result<(), DriverError> {
        // SAFETY: a context that is alive as long as its GPU.
        unsafe { result::ctx::set_current(self.context) }
    }
}

impl Bounce {
    /// The events are the receiver's.
    fn new(to: End) -> Result<Bounce, DriverError> {
        to.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let copied = [result::event::create(flags)?, result::event::create(flags)?];
        // SAFETY: freed in `Link::free`.
        let memory = unsafe { result::malloc_host(2 * HALF, sys::CU_MEMHOSTALLOC_PORTABLE)? };
        Ok(Bounce { memory, copied, half: 0 })
    }
}

unsafe fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<(), DriverError> {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: promised by the caller.
    unsafe { result::stream::wait_event(stream, event, flags) }
}

/// Asks the driver for copies between two GPUs, and looks at what they bring.
fn try_out(first: End, second: End) -> Verdict {
    let sees = |from: End, to: End| -> Result<(), String> {
        let mut can = 0;
        // SAFETY: devices that the driver has handed out.
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, from.device, to.device) };
        asked.result().map_err(answer)?;
        if can == 0 {
            return Err("the driver sees no way".into());
        }
        from.enter().map_err(answer)?;
        // SAFETY: both contexts are alive, and the first is the current one.
        match unsafe { sys::cuCtxEnablePeerAccess(to.context, 0) }.result() {
            Ok(()) | Err(DriverError(sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED)) => {
                Ok(())
            }
            Err(error) => Err(answer(error)),
        }
    };
    if let Err(refused) = sees(first, second).and_then(|()| sees(second, first)) {
        return Verdict::Refused(refused);
    }
    probe(|sender, sent| {
        let (from, to) = match sender {
            Sender::First => (first, second),
            Sender::Second => (second, first),
        };
        arrived(from, to, sent).map_err(answer)
    })
}

/// Sends bytes through memory of their own, and brings what has arrived.
fn arrived(from: End, to: End, sent: &[u8]) -> Result<Vec<u8>, DriverError> {
    let mut got = vec![0; sent.len()];
    // SAFETY: memory that is allocated here and freed below, after everything queued is done.
    unsafe {
        to.enter()?;
        let there = result::malloc_sync(sent.len())?;
        from.enter()?;
        let here = match result::malloc_sync(sent.len()) {
            Ok(here) => here,
            Err(error) => {
                let _ = result::free_sync(there);
                return Err(error);
            }
        };
        let mut copied = || -> Result<(), DriverError> {
            result::memcpy_htod_sync(here, sent)?;
            // That returns when the bytes are on their way, and our stream waits for no other.
            result::ctx::synchronize()?;
            let (len, stream) = (sent.len(), from.stream);
            sys::cuMemcpyPeerAsync(there, to.context, here, from.context, len, stream).result()?;
            result::stream::synchronize(stream)?;
            to.enter()?;
            result::memcpy_dtoh_sync(&mut got, there)
        };
        let copied = copied();
        for (end, memory) in [(from, here), (to, there)] {
            let _ = end.enter().and_then(|()| result::free_sync(memory));
        }
        copied?;
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::{Sender, Verdict, probe};

    #[test]
    fn only_what_arrives_both_ways_and_every_time_is_right() {
        let mut before: Vec<u8> = Vec::new();
        let mut stale = |_: Sender, sent: &[u8]| {
            let last = if before.is_empty() { sent.to_vec() } else { before.clone() };
            before = last.clone();
            Ok(last)
        };
        assert_eq!(probe(|_, sent| Ok(sent.to_vec())), Verdict::Right);
        assert_eq!(probe(|_, sent| Ok(vec![0; sent.len()])), Verdict::Wrong);
        assert_eq!(probe(&mut stale), Verdict::Wrong);
        let one_way = |sender, sent: &[u8]| match sender {
            Sender::First => Ok(sent.to_vec()),
            Sender::Second => Ok(vec![0; sent.len()]),
        };
        assert_eq!(probe(one_way), Verdict::Wrong);
        let half = |_, sent: &[u8]| {
            let mut got = sent.to_vec();
            got[sent.len() - 4096..].fill(0);
            Ok(got)
        };
        assert_eq!(probe(half), Verdict::Wrong);
        let refused = |_, _: &[u8]| Err("no".to_string());
        assert_eq!(probe(refused), Verdict::Refused("no".into()));
    }
}
