//! The device: slots of an arena on a machine, and a workspace behind them.

use crate::activation::Activation;
use crate::machine::{Arg, Kernel, Machine, Shape, Taken};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use krasis_core::{Act, Bytes, Layout, Mat, Slot, Weight};
use krasis_ops::{Aide, Keep, Memory, Paper, Question, Tiles};

use std::collections::HashMap;
use std::marker::PhantomData;

/// Memory that operations need for themselves, behind the arena: for sorting the pairs of a step
/// by expert, eight bytes a pair and twelve a tile; for the splits of attention, whose blocks are no
/// more than the GPU has multiprocessors, up to 64 KiB a block; for chunks of delta nets, 25 KiB of
/// each chunk and value head, as many at a time as there is room for.
pub const WORKSPACE_BYTES: Bytes = Bytes(16 << 20);

/// The end of the workspace: how many blocks have arrived where the last one goes on alone. Zeros
/// whenever no kernel runs.
const ARRIVALS: u64 = 4096;

/// The rest of it, which is any operation's while it runs.
pub(crate) const WORK_BYTES: u64 = WORKSPACE_BYTES.0 - 4 * ARRIVALS;

/// Activations of type `A`, kernels on machine `M`.
pub struct Cuda<A, M: Machine> {
    /// What is repeated, by its key: nothing yet if it ran but once. Goes before the machine does.
    repeated: HashMap<u32, Option<Repeated<M>>>,
    /// Questions since a recording has begun, while that is so.
    asking: Option<Vec<Question>>,
    /// Bytes of the largest question and of the largest answer so far.
    room: [usize; 2],
    machine: M,
    /// Activations on their way, as the machine has them.
    bytes: Vec<u8>,
    /// Where the workspace begins in the arena.
    workspace: u64,
    activation: PhantomData<fn() -> A>,
}

/// What is replayed, and what it asks.
type Repeated<M> = (<M as Machine>::Recording, Vec<Question>);

/// Threads of blocks whose kernels take any number.
pub(crate) const BLOCK: u32 = 256;

impl<A: Activation, M: Machine> Cuda<A, M> {
    /// Bytes of the arena that a machine needs for this plan.
    pub fn arena_bytes(plan: &Layout) -> Bytes {
        plan.bytes() + WORKSPACE_BYTES
    }

    /// A device over a machine whose arena has [`Self::arena_bytes`] of `plan`.
    pub fn new(plan: &Layout, mut machine: M) -> Cuda<A, M> {
        let workspace = plan.bytes().0;
        machine.write(workspace + WORK_BYTES, &[0; 4 * ARRIVALS as usize]);
        Cuda {
            repeated: HashMap::new(),
            asking: None,
            room: [0; 2],
            machine,
            bytes: Vec::new(),
            workspace,
            activation: PhantomData,
        }
    }

    /// The machine, for another plan.
    pub fn into_machine(self) -> M {
        self.machine
    }

    pub(crate) fn machine(&self) -> &M {
        &self.machine
    }

    pub(crate) fn launch(&mut self, kernel: Kernel, shape: Shape, args: &[Arg]) {
        // An empty grid is an error to the driver, and nothing to do for us.
        if !shape.grid.contains(&0) {
            self.machine.launch(kernel, shape, args);
        }
    }

    /// The first element of a slot.
    pub(crate) fn slot<T>(&self, at: Slot<T>) -> Arg {
        if at.is_empty() { Arg::NULL } else { Arg::pointer(self.machine.base() + at.start) }
    }

    /// The first element of a view's first row.
    pub(crate) fn mat(&self, mat: Mat<Act>) -> Arg {
        Arg::pointer(
            self.machine.base() + mat.at.start + u64::from(mat.first_col) * u64::from(A::BYTES),
        )
    }

    /// The numbers of a vector, which the loader keeps in f32.
    pub(crate) fn vector(&self, w: &Weight) -> Arg {
        use krasis_core::{DType, Format};
        assert_eq!((w.rows, w.format), (1, Format::Float(DType::F32)), "vectors are f32");
        self.slot(w.data)
    }

    /// Part of the workspace.
    pub(crate) fn workspace(&self, offset: u64, bytes: u64) -> Arg {
        assert!(offset + bytes <= WORK_BYTES, "a step needs more than the workspace");
        Arg::pointer(self.machine.base() + self.workspace + offset)
    }

    /// Counters of arriving blocks.
    pub(crate) fn arrivals(&self, count: u32) -> Arg {
        assert!(u64::from(count) <= ARRIVALS, "{count} counters of {ARRIVALS}");
        Arg::pointer(self.machine.base() + self.workspace + WORK_BYTES)
    }

    /// Whether every row of a view starts at a multiple of 16 bytes.
    pub(crate) fn aligned(&self, mat: Mat<Act>) -> bool {
        let each = 16 / A::BYTES;
        mat.stride.is_multiple_of(each) && mat.first_col.is_multiple_of(each)
    }
}

impl<A: Activation, M: Machine> Memory for Cuda<A, M> {
    const ACT_BYTES: u32 = A::BYTES;
    const REMEMBERS: bool = true;

    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]) {
        assert!(values.len() as u64 <= at.len, "{} values for {at:?}", values.len());
        self.machine.write(at.start, cast_slice(values));
    }

    fn download_to<T: Pod>(&mut self, at: Slot<T>, to: &mut Vec<T>) {
        to.clear();
        to.resize(at.len as usize, T::zeroed());
        if !at.is_empty() {
            self.machine.read(at.start, cast_slice_mut(to));
        }
    }

    /// The first time launches are queued one by one, so that every kernel is there; the second time
    /// they are recorded, and from then on replayed.
    fn repeat<H: Aide>(&mut self, key: u32, aide: &mut H, body: impl FnOnce(&mut Self, &mut H)) {
        let Some(known) = self.repeated.remove(&key) else {
            body(self, aide);
            self.repeated.insert(key, None);
            return;
        };
        let repeated = known.unwrap_or_else(|| {
            self.machine.record(self.room);
            self.asking = Some(Vec::new());
            body(self, aide);
            let asked = self.asking.take().expect("nothing is recorded in a recording");
            (self.machine.recorded(), asked)
        });
        self.machine.replay(&repeated.0, &mut |number, question, room| {
            answer::<A, H>(&repeated.1[number], question, aide, room);
        });
        self.repeated.insert(key, Some(repeated));
    }

    fn ask<H: Aide>(&mut self, aide: &mut H, question: &Question) {
        let Question { routes, x, out, .. } = *question;
        let words = |bytes: u64| (bytes / 4) as u32;
        let x_bytes = x.whole().len * u64::from(A::BYTES);
        if let Some(asked) = &mut self.asking {
            asked.push(*question);
            let routes = (routes.start, routes.len as u32);
            return self.machine.ask(routes, (x.at.start, words(x_bytes)));
        }
        let sizes = [4 * routes.len + x_bytes, out.whole().len * u64::from(A::BYTES)];
        self.room = [0, 1].map(|i| self.room[i].max(sizes[i] as usize));
        let (to, numbers) = aide.desk();
        self.download_with_act(routes, to, x, numbers);
    }

    fn answered<H: Aide>(&mut self, aide: &mut H, question: &Question) {
        let Question { places, out, .. } = *question;
        if self.asking.is_none() {
            return krasis_ops::memory::answered(self, aide, question);
        }
        let (to, places) = (out.at.start, places.start);
        self.machine.take(Taken { to, places, rows: out.rows, row: out.cols * A::BYTES });
    }

    fn layer(&mut self, layer: Option<u32>) {
        self.machine.layer(layer);
    }

    fn bring<'a>(&mut self, pieces: impl Iterator<Item = (Slot<u8>, &'a [u8])>, keep: &Keep) {
        let placed = pieces.map(|(to, from): (Slot<u8>, &[u8])| {
            assert!(from.len() as u64 <= to.len, "{} bytes for {to:?}", from.len());
            (to.start, from)
        });
        self.machine.bring(placed, keep);
    }

    fn brought(&mut self) {
        self.machine.brought();
    }

    fn copy(&mut self, from: Slot<u8>, to: Slot<u8>) {
        assert_eq!(from.len, to.len, "a copy of {from:?} to {to:?}");
        self.machine.copy(from.start, to.start, from.len);
    }

    fn hand_over(&mut self, to: &mut Cuda<A, M>, pieces: &[(Slot<u8>, Slot<u8>)]) {
        for &(here, there) in pieces {
            assert_eq!(here.len, there.len, "{here:?} is handed over to {there:?}");
            self.machine.hand_over(&mut to.machine, here.start, there.start, here.len);
        }
    }

    fn upload_act(&mut self, to: Mat<Act>, values: &[f32]) {
        assert!(values.len() as u64 <= to.whole().len, "{} values for {to:?}", values.len());
        self.bytes.resize(values.len() * A::BYTES as usize, 0);
        A::encode(values, &mut self.bytes);
        self.machine.write(to.at.start, &self.bytes);
    }

    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>) {
        self.download_with_act(Slot::new(0, 0), &mut Vec::new(), from, to);
    }

    fn download_with_act(
        &mut self,
        at: Slot<u32>,
        to: &mut Vec<u32>,
        from: Mat<Act>,
        numbers: &mut Vec<f32>,
    ) {
        numbers.clear();
        if from.is_empty() {
            return self.download_to(at, to);
        }
        to.clear();
        to.resize(at.len as usize, 0);
        let (first, end) = (from.row_range(0).start, from.row_range(from.rows - 1).end);
        self.bytes.resize((end - first) * A::BYTES as usize, 0);
        let start = from.at.start + (first * A::BYTES as usize) as u64;
        self.machine.read_both((at.start, cast_slice_mut(to)), (start, &mut self.bytes));
        for row in 0..from.rows {
            let range = from.row_range(row);
            let bytes = [range.start, range.end].map(|at| (at - first) * A::BYTES as usize);
            A::decode(&self.bytes[bytes[0]..bytes[1]], numbers);
        }
    }
}

/// Has `aide` answer what a recording asks, in the machine's activations.
fn answer<A: Activation, H: Aide>(
    asked: &Question,
    question: &[u8],
    aide: &mut H,
    room: &mut [u8],
) {
    let (routes, x) = question.split_at(4 * asked.routes.len as usize);
    let (to, numbers) = aide.desk();
    to.clear();
    to.extend(routes.as_chunks().0.iter().map(|route| u32::from_le_bytes(*route)));
    numbers.clear();
    A::decode(x, numbers);
    let bytes = A::BYTES as usize;
    let tiles = Tiles::new(room, asked.out.cols as usize * bytes);
    let put = |row: usize, first: usize, numbers: &[f32]| {
        let cells = first * bytes..(first + numbers.len()) * bytes;
        // SAFETY: who writes promises to be alone; tiles die at once.
        A::encode(numbers, unsafe { tiles.tile(row, cells) });
    };
    aide.answer(asked.number, &Paper::new(&put));
}
