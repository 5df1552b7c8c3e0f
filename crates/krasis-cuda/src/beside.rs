//! Copies to the GPU beside its kernels: a queue of their own, from host memory that the GPU reads by
//! itself.

use crate::driver::answer;
use crate::staging::Staging;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use krasis_ops::Keep;

/// Bytes of host memory that are pinned at a time: a driver that cannot pin all may say so early.
const PIECE: usize = 1 << 30;

/// Bytes of a copy that reaches the link's speed by itself: 53 GB/s of 55, where 1 MiB reaches 48 and
/// 64 KiB reach 17.
const LONG: usize = 4 << 20;

/// The queue of copies.
pub struct Beside {
    stream: sys::CUstream,
    /// Recorded behind the kernels that copies wait for.
    kernels: sys::CUevent,
    /// Recorded behind the copies that kernels wait for.
    copies: sys::CUevent,
    /// Copies wait for all kernels that have been queued.
    ordered: bool,
    memory: Vec<Pinned>,
    /// Copies that are sent together.
    pieces: Pieces,
    /// The driver's way to take them together, as long as it does.
    together: Option<Together>,
    /// Through which memory comes that could not be pinned.
    staging: Option<Staging>,
}

/// Copies by their places and lengths, as the driver takes them.
#[derive(Default)]
struct Pieces {
    to: Vec<sys::CUdeviceptr>,
    from: Vec<sys::CUdeviceptr>,
    bytes: Vec<usize>,
}

/// `cuMemcpyBatchAsync` of CUDA 13.
type Together = unsafe extern "C" fn(
    *mut sys::CUdeviceptr,
    *mut sys::CUdeviceptr,
    *mut usize,
    usize,
    *mut sys::CUmemcpyAttributes,
    *mut usize,
    usize,
    sys::CUstream,
) -> sys::CUresult;

/// Looked up by hand, because older drivers lack it.
fn together() -> Option<Together> {
    // SAFETY: the driver is open, and gives its function of this name this type.
    unsafe { sys::culib().get::<Together>(b"cuMemcpyBatchAsync_v2\0") }.ok().map(|symbol| *symbol)
}

/// Host memory, which stays where it is as long as this lives.
struct Pinned {
    keep: Keep,
    /// Pieces that the GPU reads by itself: all of it, or none.
    pieces: usize,
    /// Pinned by another GPU of this process, which then is gone later.
    by_another: bool,
}

impl Beside {
    /// Makes the queue in the current context.
    pub fn new() -> Result<Beside, DriverError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        Ok(Beside {
            stream: result::stream::create(result::stream::StreamKind::NonBlocking)?,
            kernels: result::event::create(flags)?,
            copies: result::event::create(flags)?,
            ordered: false,
            memory: Vec::new(),
            pieces: Pieces::default(),
            together: together(),
            staging: None,
        })
    }

    /// Kernels have been queued that the next copy has to wait for.
    pub fn queued(&mut self) {
        self.ordered = false;
    }

    /// Has copies from now on wait for what has been queued on `kernels`, and says where they are queued.
    ///
    /// # Safety
    /// `kernels` belongs to the current context.
    pub unsafe fn order(&mut self, kernels: sys::CUstream) -> Result<sys::CUstream, DriverError> {
        if !self.ordered {
            // SAFETY: event and streams are alive.
            unsafe {
                result::event::record(self.kernels, kernels)?;
                self.wait(self.stream, self.kernels)?;
            }
            self.ordered = true;
        }
        Ok(self.stream)
    }

    /// Has [`Self::send`] copy `from`, a part of the memory of `keep`, to device memory at `to`.
    ///
    /// # Safety
    /// `to` and as many bytes are device memory of the current context, and nobody changes `from` until
    /// the copy is done.
    pub unsafe fn add(
        &mut self,
        to: sys::CUdeviceptr,
        from: &[u8],
        keep: &Keep,
    ) -> Result<(), DriverError> {
        let base = keep.addresses().start;
        if !self.is_pinned(keep)? {
            if self.staging.is_none() {
                self.staging = Some(Staging::new()?);
            }
            let staging = self.staging.as_mut().expect("made above");
            // SAFETY: the target is the caller's promise.
            return unsafe { staging.copy(to, from, self.stream) };
        }
        // A copy must not cross from one pinned piece to the next.
        let mut done = 0;
        while done < from.len() {
            let at = from.as_ptr() as usize + done;
            let bytes = (from.len() - done).min(PIECE - (at - base) % PIECE);
            self.pieces.to.push(to + done as sys::CUdeviceptr);
            self.pieces.from.push(at as sys::CUdeviceptr);
            self.pieces.bytes.push(bytes);
            done += bytes;
        }
        Ok(())
    }

    /// Queues all copies that were added since the last time, behind what [`Self::order`] was told of.
    ///
    /// # Safety
    /// The context is current.
    pub unsafe fn send(&mut self) -> Result<(), DriverError> {
        let Beside { stream, pieces, together, .. } = self;
        let small = pieces.bytes.iter().sum::<usize>() < LONG * pieces.bytes.len();
        if pieces.bytes.len() > 1
            && small
            && let Some(copy) = together
        {
            // SAFETY: what was added is device memory, and host memory that is kept and unchanged.
            match unsafe { pieces.send_together(*copy, *stream) } {
                Ok(()) => {
                    pieces.clear();
                    return Ok(());
                }
                // Copies that are made twice change nothing.
                Err(error) => {
                    tracing::info!("copies are made one at a time: {}", answer(error));
                    *together = None;
                }
            }
        }
        // SAFETY: as above.
        let sent = unsafe { pieces.send_in_turn(*stream) };
        pieces.clear();
        sent
    }

    /// Has kernels from now on wait for all copies.
    ///
    /// # Safety
    /// `kernels` belongs to the current context.
    pub unsafe fn join(&mut self, kernels: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: event and streams are alive.
        unsafe {
            result::event::record(self.copies, self.stream)?;
            self.wait(kernels, self.copies)
        }
    }

    unsafe fn wait(&self, stream: sys::CUstream, event: sys::CUevent) -> Result<(), DriverError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: promised by the caller.
        unsafe { result::stream::wait_event(stream, event, flags) }
    }

    /// Whether the GPU can read this memory by itself, which is asked for when it is first seen. A
    /// driver may refuse, because of a limit on locked memory, for example.
    fn is_pinned(&mut self, keep: &Keep) -> Result<bool, DriverError> {
        let all = keep.addresses();
        if let Some(known) = self.memory.iter().find(|known| known.keep.addresses() == all) {
            return Ok(known.pieces > 0);
        }
        let mut pinned = Pinned { keep: keep.clone(), pieces: 0, by_another: false };
        for at in all.clone().step_by(PIECE) {
            let bytes = PIECE.min(all.end - at);
            let flags = sys::CU_MEMHOSTREGISTER_PORTABLE;
            // SAFETY: memory of the arena, which `keep` keeps until it is released in `free`.
            let answer = unsafe { sys::cuMemHostRegister_v2(at as *mut _, bytes, flags).result() };
            match answer {
                Ok(()) => pinned.pieces += 1,
                // For all GPUs of the process.
                Err(DriverError(sys::CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED)) => {
                    (pinned.pieces, pinned.by_another) = (pinned.pieces + 1, true);
                }
                Err(DriverError(
                    sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
                    | sys::CUresult::CUDA_ERROR_INVALID_VALUE
                    | sys::CUresult::CUDA_ERROR_NOT_SUPPORTED
                    | sys::CUresult::CUDA_ERROR_NOT_PERMITTED,
                )) => {
                    pinned.release();
                    tracing::warn!(
                        "the driver pins no more than {} GiB of host memory, so experts come to the GPU \
                         more slowly: raise the limit on locked memory (ulimit -l unlimited)",
                        (at - all.start) >> 30
                    );
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let known = pinned.pieces > 0;
        self.memory.push(pinned);
        Ok(known)
    }

    /// Frees everything.
    ///
    /// # Safety
    /// The context is current, and this is the last call.
    pub unsafe fn free(&mut self) {
        // SAFETY: made in `new`, no copy is pending after the wait; errors on the way out interest nobody.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            self.memory.iter_mut().for_each(Pinned::release);
            if let Some(staging) = &mut self.staging {
                staging.free();
            }
            for event in [self.kernels, self.copies] {
                let _ = result::event::destroy(event);
            }
            let _ = result::stream::destroy(self.stream);
        }
    }
}

impl Pieces {
    fn clear(&mut self) {
        self.to.clear();
        self.from.clear();
        self.bytes.clear();
    }

    /// In one call, after which the driver may go from one to the next without waiting.
    ///
    /// # Safety
    /// What was added is alive, and the source is unchanged until the copies are done.
    unsafe fn send_together(
        &mut self,
        copy: Together,
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        // Hints of places are for managed memory, which this is not.
        let nowhere = || sys::CUmemLocation {
            type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_INVALID,
            id: 0,
        };
        let mut how = sys::CUmemcpyAttributes {
            srcAccessOrder: sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM,
            srcLocHint: nowhere(),
            dstLocHint: nowhere(),
            flags: 0,
        };
        let (to, from, bytes) = (&mut self.to, &mut self.from, &mut self.bytes);
        // From which piece on the attributes hold.
        let (count, mut first) = (bytes.len(), 0);
        let [to, from] = [to, from].map(|list| list.as_mut_ptr());
        // SAFETY: three lists of equal length, which outlive the call; the rest is the caller's promise.
        unsafe { copy(to, from, bytes.as_mut_ptr(), count, &mut how, &mut first, 1, stream) }
            .result()
    }

    /// One after the other.
    ///
    /// # Safety
    /// As for [`Self::send_together`].
    unsafe fn send_in_turn(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        let pieces = self.to.iter().zip(&self.from).zip(&self.bytes);
        pieces.into_iter().try_for_each(|((&to, &from), &bytes)| {
            // SAFETY: promised by the caller.
            unsafe {
                let from = std::slice::from_raw_parts(from as *const u8, bytes);
                result::memcpy_htod_async(to, from, stream)
            }
        })
    }
}

impl Pinned {
    /// Nothing is pinned any more.
    fn release(&mut self) {
        if std::mem::take(&mut self.by_another) {
            self.pieces = 0;
        }
        for at in self.keep.addresses().step_by(PIECE).take(self.pieces) {
            // SAFETY: pinned by `is_pinned`, and no copy out of it is pending.
            let _ = unsafe { sys::cuMemHostUnregister(at as *mut _) };
        }
        self.pieces = 0;
    }
}
