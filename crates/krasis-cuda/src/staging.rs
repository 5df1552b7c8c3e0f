//! Pinned host memory through which everything is uploaded, so that no upload waits for the GPU
//! unless it is a whole half behind.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;

/// Bytes of a half: 16 MiB copies reach the link's speed (55 GB/s on PCIe 5).
const HALF: usize = 16 << 20;

/// Two halves; while one is copied, the other is filled.
pub struct Staging {
    memory: *mut c_void,
    /// Recorded behind the last copy out of each half.
    copied: [sys::CUevent; 2],
    half: usize,
    filled: usize,
}

impl Staging {
    /// Allocates in the current context.
    pub fn new() -> Result<Staging, DriverError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let copied = [result::event::create(flags)?, result::event::create(flags)?];
        // SAFETY: freed in `free`.
        let memory = unsafe { result::malloc_host(2 * HALF, 0)? };
        Ok(Staging { memory, copied, half: 0, filled: 0 })
    }

    /// Puts at most `bytes` into a half, at a multiple of 16 bytes: what it takes of them, where it stays
    /// until the GPU has done all that is queued on `stream` before the half's turn comes again. `least`
    /// bytes or more.
    ///
    /// # Safety
    /// The stream is alive, and all that reads what was staged before is queued on it.
    pub unsafe fn stage(
        &mut self,
        bytes: &[u8],
        least: usize,
        stream: sys::CUstream,
    ) -> Result<&'static [u8], DriverError> {
        if HALF - self.filled < least {
            // SAFETY: event and stream are alive.
            unsafe { result::event::record(self.copied[self.half], stream)? };
            (self.half, self.filled) = (1 - self.half, 0);
            // SAFETY: as above. An event that was never recorded counts as passed.
            unsafe { result::event::synchronize(self.copied[self.half])? };
        }
        let piece = &bytes[..bytes.len().min(HALF - self.filled)];
        // SAFETY: inside the half by the line above, and nothing that reads it is pending.
        let staged = unsafe {
            let at = self.memory.cast::<u8>().add(self.half * HALF + self.filled);
            std::ptr::copy_nonoverlapping(piece.as_ptr(), at, piece.len());
            std::slice::from_raw_parts(at, piece.len())
        };
        self.filled = (self.filled + piece.len()).next_multiple_of(16).min(HALF);
        Ok(staged)
    }

    /// Queues a copy of `bytes` to device memory at `to`.
    ///
    /// # Safety
    /// `to` and as many bytes are device memory of the current context, to which `stream` belongs.
    pub unsafe fn copy(
        &mut self,
        to: sys::CUdeviceptr,
        bytes: &[u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        let mut done = 0;
        while done < bytes.len() {
            // SAFETY: the target is the caller's promise; the source stays until the copy is done.
            unsafe {
                let staged = self.stage(&bytes[done..], 1, stream)?;
                result::memcpy_htod_async(to + done as sys::CUdeviceptr, staged, stream)?;
                done += staged.len();
            }
        }
        Ok(())
    }

    /// Copies from device memory at `from`, once everything queued before is done.
    ///
    /// # Safety
    /// `from` and as many bytes are device memory of the current context, to which `stream` belongs.
    pub unsafe fn copy_back(
        &mut self,
        from: sys::CUdeviceptr,
        bytes: &mut [u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        // SAFETY: the source is the caller's promise, and the target is waited for.
        unsafe {
            result::memcpy_dtoh_async(bytes, from, stream)?;
            result::stream::synchronize(stream)
        }
    }

    /// Frees the memory.
    ///
    /// # Safety
    /// The context is current, no copy is pending, and this is the last call.
    pub unsafe fn free(&mut self) {
        // SAFETY: allocated in `new`; errors on the way out interest nobody.
        unsafe {
            let _ = result::free_host(self.memory);
            for event in self.copied {
                let _ = result::event::destroy(event);
            }
        }
    }
}
