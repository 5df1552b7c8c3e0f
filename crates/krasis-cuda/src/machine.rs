//! What runs kernels: a GPU, or in tests the same kernels as C++ on the CPU.

use krasis_ops::Keep;

/// A compiled kernel: an entry of [`crate::programs`], in one of its program's variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Its `extern "C"` name.
    pub entry: &'static str,
    /// Index among the variants of its program.
    pub variant: u8,
}

/// What a kernel's parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An address.
    Pointer,
    /// A number or a flag.
    U32,
    /// A number.
    F32,
}

/// One argument. The driver reads as many of its bytes as the parameter has.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    /// Little endian, so that the low half is where a shorter parameter is read.
    bits: u64,
    /// What it is, compared with the kernel's source when it is launched.
    pub kind: Kind,
}

impl Arg {
    /// No address: what is absent.
    pub const NULL: Arg = Arg { bits: 0, kind: Kind::Pointer };

    /// An address in the machine's memory.
    pub fn pointer(address: u64) -> Arg {
        Arg { bits: address, kind: Kind::Pointer }
    }

    /// Where the driver finds the value.
    pub fn place(&self) -> *mut std::ffi::c_void {
        std::ptr::from_ref(&self.bits).cast_mut().cast()
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Arg {
        Arg { bits: u64::from(value), kind: Kind::U32 }
    }
}

impl From<bool> for Arg {
    fn from(value: bool) -> Arg {
        Arg { bits: u64::from(value), kind: Kind::U32 }
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Arg {
        Arg { bits: u64::from(value.to_bits()), kind: Kind::F32 }
    }
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block: whole warps.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// What launches depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Multiprocessors.
    pub processors: u32,
    /// Bytes of shared memory that a block may have.
    pub shared_max: u32,
}

/// An answer of rows that lie one behind the other in `room`, as they do in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Where they go.
    pub to: u64,
    /// A number for each of them: only those are taken whose number is `ABSENT`.
    pub places: u64,
    /// How many.
    pub rows: u32,
    /// Bytes of one, a multiple of 16.
    pub row: u32,
}

/// Whoever is asked: `answer(number, question, room)`.
pub type Answering<'a> = dyn FnMut(usize, &[u8], &mut [u8]) + 'a;

/// Memory of one arena and a queue of kernels over it. Work is done in order; only
/// [`Machine::read`] waits for it.
///
/// What goes wrong inside is a panic that names the kernel: a fault there is a bug here.
pub trait Machine {
    /// Launches that were recorded, with their arguments.
    type Recording: Send;
    /// Address of the arena's first byte.
    fn base(&self) -> u64;
    /// What launches have to fit.
    fn limits(&self) -> Limits;
    /// What is launched from now on belongs to this layer, or to none.
    fn layer(&mut self, _layer: Option<u32>) {}
    /// Queues a kernel, or records it.
    fn launch(&mut self, kernel: Kernel, shape: Shape, args: &[Arg]);
    /// From here on launches are recorded in place of being queued. Nothing is written or read until
    /// [`Machine::recorded`]. There will be questions and answers of up to `room` bytes.
    fn record(&mut self, room: [usize; 2]);
    /// Records a question: `words` of four bytes each from both places, one behind the other.
    fn ask(&mut self, first: (u64, u32), second: (u64, u32));
    /// Records that the answer to the last question is taken in.
    fn take(&mut self, answer: Taken);
    /// What was launched since [`Machine::record`].
    fn recorded(&mut self) -> Self::Recording;
    /// Queues all launches of a recording, and has its questions answered in turn: `answer(number,
    /// question, room)`.
    fn replay(&mut self, recording: &Self::Recording, answer: &mut Answering);
    /// Queues a copy of `bytes` to `at` of the arena; `bytes` may change at once.
    fn write(&mut self, at: u64, bytes: &[u8]);
    /// Queues copies of bytes, which stay as they are, each to its place in the arena, in any order, behind
    /// the kernels that are queued but beside those that come, until [`Machine::brought`]; `keep` keeps the
    /// bytes where they are.
    fn bring<'a>(&mut self, pieces: impl Iterator<Item = (u64, &'a [u8])>, keep: &Keep);
    /// Has what is queued from now on wait for what was brought.
    fn brought(&mut self);
    /// Queues a copy of so many bytes from one place of the arena to another, which do not overlap.
    fn copy(&mut self, from: u64, to: u64, bytes: u64);
    /// Queues a copy of so many bytes to a place of another machine's arena, behind what is queued on both.
    fn hand_over(&mut self, to: &mut Self, from: u64, at: u64, bytes: u64);
    /// Waits for everything queued, then copies from `at` of the arena.
    fn read(&mut self, at: u64, bytes: &mut [u8]) {
        self.read_both((at, bytes), (0, &mut []));
    }
    /// [`Machine::read`] of two places, waiting once.
    fn read_both(&mut self, first: (u64, &mut [u8]), second: (u64, &mut [u8]));
}
