//! Small copies that kernels make themselves, between the arena and pinned host memory. They wait for no
//! copy engine, and what comes back is there as soon as it is written: who waits looks at the memory.

use crate::machine::{Arg, Kernel, Shape};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes up to which kernels copy to the GPU.
const OUT: usize = 256 << 10;

/// Bytes up to which they copy back: one block has them on its way in microseconds.
const BACK: usize = 64 << 10;

/// Looks at the memory before the driver is asked how things are: some ten microseconds.
const LOOKS: u32 = 1000;

/// Where the GPU writes what comes back, and then that it is there.
pub struct Mail {
    /// [`BACK`] bytes and the sign behind them.
    memory: *mut c_void,
    /// What the sign says when the last copy is there.
    number: u32,
}

/// What is read: a place in the device's memory, and where it goes.
pub type Part<'a> = (u64, &'a mut [u8]);

fn in_words(at: u64, bytes: usize) -> bool {
    at.is_multiple_of(4) && bytes.is_multiple_of(4)
}

/// Blocks and threads that copy so many bytes to device memory at `to`, or nothing if a kernel does not.
pub fn outgoing(to: u64, bytes: usize) -> Option<Shape> {
    let can = (1..=OUT).contains(&bytes) && to.is_multiple_of(16) && in_words(to, bytes);
    let blocks = (bytes as u32).div_ceil(16).div_ceil(256);
    can.then_some(Shape { grid: [blocks, 1, 1], block: 256, shared: 0 })
}

/// The kernel of [`outgoing`].
pub const FROM_HOST: Kernel = Kernel { entry: "from_host", variant: 0 };

/// The kernel that [`Mail::back`] has arguments for.
pub const TO_HOST: Kernel = Kernel { entry: "to_host", variant: 0 };

/// The kernel that takes what was answered.
pub const TAKE_ANSWERS: Kernel = Kernel { entry: "take_answers", variant: 0 };

/// One block, as the kernel says.
pub const TO_HOST_SHAPE: Shape = Shape { grid: [1, 1, 1], block: 1024, shared: 0 };

impl Mail {
    /// Allocates in the current context.
    pub fn new() -> Result<Mail, DriverError> {
        // SAFETY: freed in `free`.
        let memory = unsafe { result::malloc_host(BACK + 64, 0)? };
        let mail = Mail { memory, number: 0 };
        mail.sign().store(0, Ordering::Relaxed);
        Ok(mail)
    }

    fn sign(&self) -> &AtomicU32 {
        // SAFETY: aligned memory behind the bytes, of ours until `free`; the GPU writes it in one piece.
        unsafe { &*self.memory.cast::<u8>().add(BACK).cast::<AtomicU32>() }
    }

    /// Arguments of a kernel that copies both parts, or nothing if they are no mail.
    pub fn back(&mut self, first: &Part, second: &Part) -> Option<[Arg; 7]> {
        let [(a, some), (b, more)] = [first, second].map(|(at, bytes)| (*at, bytes.len()));
        if some + more > BACK || !in_words(a, some) || !in_words(b, more) {
            return None;
        }
        self.number = self.number.wrapping_add(1);
        let words = |bytes: usize| Arg::from((bytes / 4) as u32);
        let (to, sign) = (self.memory as u64, self.memory as u64 + BACK as u64);
        let (from, of) = (Arg::pointer(a), Arg::pointer(b));
        let (to, sign) = (Arg::pointer(to), Arg::pointer(sign));
        Some([from, words(some), of, words(more), to, sign, self.number.into()])
    }

    /// Waits for the kernel that was launched last, on `stream`, and hands out what came.
    ///
    /// # Safety
    /// The stream is alive, and the arguments of that kernel are the last ones from [`Self::back`], of
    /// parts of these lengths.
    pub unsafe fn receive(
        &self,
        first: &mut [u8],
        second: &mut [u8],
        stream: sys::CUstream,
    ) -> Result<(), DriverError> {
        // SAFETY: promised by the caller.
        unsafe { until(|| self.sign().load(Ordering::Acquire) == self.number, stream)? };
        let from = self.memory.cast::<u8>();
        // SAFETY: `back` has seen that both fit; the sign says that the GPU is done with them.
        unsafe {
            std::ptr::copy_nonoverlapping(from, first.as_mut_ptr(), first.len());
            let from = from.add(first.len());
            std::ptr::copy_nonoverlapping(from, second.as_mut_ptr(), second.len());
        }
        Ok(())
    }

    /// Frees the memory.
    ///
    /// # Safety
    /// The context is current, no kernel writes here any more, and this is the last call.
    pub unsafe fn free(&mut self) {
        // SAFETY: allocated in `new`; errors on the way out interest nobody.
        let _ = unsafe { result::free_host(self.memory) };
    }
}

/// Waits until something that runs on `stream` has said that it is `there`.
///
/// # Safety
/// The stream is alive.
pub unsafe fn until(there: impl Fn() -> bool, stream: sys::CUstream) -> Result<(), DriverError> {
    loop {
        for _ in 0..LOOKS {
            if there() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        // SAFETY: promised by the caller.
        match unsafe { sys::cuStreamQuery(stream).result() } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => {}
            Err(fault) => return Err(fault),
            Ok(()) => {
                assert!(there(), "a kernel ended without having said so");
                return Ok(());
            }
        }
    }
}
