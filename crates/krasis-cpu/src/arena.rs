//! Host memory of a device: one allocation, addressed by slots.
//!
//! Slots are plain numbers, so the arena checks at run time what lifetimes cannot: that a slot lies
//! inside, is aligned, and that what is read does not overlap what is being written.

use crate::lent::{Lent, Loans};
use crate::nodes::{Homes, Kernel, Read};
use crate::pages::{Pages, Placement};
use bytemuck::Pod;
use krasis_core::{Act, Bytes, Layout, Mat, Slot};
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// The operating system refused the memory.
#[derive(Clone, Copy, Debug)]
pub struct OutOfMemory {
    /// What was asked for.
    pub wanted: Bytes,
}

impl std::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the system refused {} of memory for weights and KV cache", self.wanted)
    }
}
impl std::error::Error for OutOfMemory {}

/// One zeroed allocation. Pages that are never touched cost nothing.
pub struct Arena {
    pages: Arc<Pages>,
    bytes: usize,
    loans: Loans,
    spread: Option<Spread>,
    homes: Homes,
}

/// Nodes that an arena's pages take turns on.
struct Spread {
    nodes: Vec<u32>,
    kernel: Arc<dyn Kernel>,
}

/// Keeps an arena's memory where it is after the arena is gone: for those who read it beside the
/// program, as the copy engines of a GPU do.
#[derive(Clone)]
pub struct Keep {
    pages: Arc<Pages>,
    bytes: usize,
}

impl Keep {
    /// Addresses of the whole arena.
    pub fn addresses(&self) -> Range<usize> {
        let first = self.pages.base().as_ptr() as usize;
        first..first + self.bytes
    }
}

impl Arena {
    /// Allocates what was laid out.
    pub fn new(plan: &Layout) -> Result<Arena, OutOfMemory> {
        let wanted = plan.bytes();
        let refused = OutOfMemory { wanted };
        let bytes = usize::try_from(wanted.0).map_err(|_| refused)?;
        let pages = Pages::new(bytes).ok_or(refused)?;
        let (pages, homes) = (Arc::new(pages), Homes::default());
        Ok(Arena { pages, bytes, loans: Loans::default(), spread: None, homes })
    }

    /// Says on which NUMA nodes pages lie. Pages that have been written stay where they are, so this
    /// comes first; a refusal, as in many containers, leaves everything as it was.
    pub fn place(&mut self, placement: &Placement, kernel: &Arc<dyn Kernel>) -> io::Result<()> {
        if let Placement::Interleave(nodes) = placement {
            kernel.interleave(self.pages.mapped(), nodes)?;
            self.spread = Some(Spread { nodes: nodes.clone(), kernel: kernel.clone() });
        }
        Ok(())
    }

    /// Looks on which nodes the pages lie that have been written by now, for threads that shall take
    /// those of their own first; nothing where pages do not take turns.
    pub fn settle(&mut self) -> io::Result<()> {
        if let Some(Spread { nodes, kernel }) = &self.spread {
            let base = self.pages.base().as_ptr() as usize;
            self.homes = Homes::find(&**kernel, base, self.bytes, nodes)?.unwrap_or_default();
        }
        Ok(())
    }

    /// Where its pages lie, if threads shall care.
    pub fn homes(&self) -> &Homes {
        &self.homes
    }

    /// Has pages that hold what is read at the same time change places, a few at most, so that all nodes
    /// are asked for equally much; tells how many have moved. Nobody reads meanwhile.
    pub fn level(&mut self, reads: &[Read], most: usize) -> io::Result<usize> {
        let Some(Spread { kernel, .. }) = &self.spread else { return Ok(0) };
        let base = self.pages.base().as_ptr() as usize;
        let mut moved = 0;
        for swap in self.homes.swaps(reads, most) {
            moved += 2 * usize::from(self.homes.swap(&**kernel, base, swap)?);
        }
        Ok(moved)
    }

    /// Has the memory outlive the arena.
    pub fn keep(&self) -> Keep {
        Keep { pages: self.pages.clone(), bytes: self.bytes }
    }

    /// Hands a slot to somebody who fills it, on another thread if he likes, while the arena is at work
    /// elsewhere; until it is back, nothing here may touch it.
    pub fn lend(&mut self, at: Slot<u8>) -> Lent {
        let range = self.range(at);
        // SAFETY: inside the allocation, whose memory is initialised, and `&mut self` excludes borrowers;
        // `range` and `Inputs::slice`, through which all of them come, refuse what is lent.
        unsafe { self.loans.lend(&self.pages, range) }
    }

    /// Takes back what was lent.
    pub fn take_back(&mut self, lent: Lent) {
        self.loans.take_back(&self.pages, lent);
    }

    /// The elements of a slot.
    pub fn slice<T: Pod>(&self, at: Slot<T>) -> &[T] {
        let range = self.range(at);
        // SAFETY: `range` is inside the allocation and aligned, memory is initialised, any bytes
        // are a `Pod`, and `&self` excludes writers.
        unsafe { self.raw(range, at.len) }
    }

    /// The elements of a slot, to be written.
    pub fn slice_mut<T: Pod>(&mut self, at: Slot<T>) -> &mut [T] {
        self.write(at).1
    }

    /// The bytes of slots that lie one behind the other, all to be written at once.
    pub fn slices_mut(&mut self, slots: &[Slot<u8>]) -> Vec<&mut [u8]> {
        let mut rest = self.slice_mut(Slot::new(0, self.bytes as u64));
        let mut end = 0;
        let slice = |slot: &Slot<u8>| {
            assert!(slot.start >= end, "slot {slot:?} begins before {end}, where another ends");
            let skipped = rest.split_off_mut(..(slot.start - end) as usize);
            let slice = rest.split_off_mut(..slot.len as usize);
            end = slot.start + slot.len;
            let (Some(_), Some(slice)) = (skipped, slice) else {
                panic!("slot {slot:?} ends behind the arena");
            };
            slice
        };
        slots.iter().map(slice).collect()
    }

    /// A slot to write, and everything else to read meanwhile.
    pub fn write<T: Pod>(&mut self, out: Slot<T>) -> (Inputs<'_>, &mut [T]) {
        let (inputs, out, _) = self.write_two(out, Slot::<u8>::EMPTY);
        (inputs, out)
    }

    /// Two disjoint slots to write, and everything else to read meanwhile.
    pub fn write_two<T: Pod, U: Pod>(
        &mut self,
        a: Slot<T>,
        b: Slot<U>,
    ) -> (Inputs<'_>, &mut [T], &mut [U]) {
        let written = [self.range(a), self.range(b)];
        assert!(!overlap(&written[0], &written[1]), "an operation writes {a:?} and {b:?} at once");
        let first = written.each_ref().map(|range| range.start);
        let base = self.pages.base();
        let (loans, homes, life) = (&self.loans, &self.homes, PhantomData);
        let inputs = Inputs { base, bytes: self.bytes, written, loans, homes, life };
        // SAFETY: both ranges are inside the allocation, aligned and disjoint; `Inputs` refuses to
        // read either; `&mut self` excludes everybody else.
        unsafe {
            let a =
                std::slice::from_raw_parts_mut(base.add(first[0]).as_ptr().cast(), a.len as usize);
            let b =
                std::slice::from_raw_parts_mut(base.add(first[1]).as_ptr().cast(), b.len as usize);
            (inputs, a, b)
        }
    }

    fn range<T>(&self, at: Slot<T>) -> Range<usize> {
        let range = range_in(self.bytes, at);
        assert!(self.loans.spare(&range), "slot {at:?} is lent to somebody");
        range
    }

    /// # Safety
    /// `range` comes from [`Self::range`] for `len` elements of `T`, and nobody writes it.
    unsafe fn raw<T: Pod>(&self, range: Range<usize>, len: u64) -> &[T] {
        // SAFETY: promised by the caller.
        unsafe {
            std::slice::from_raw_parts(
                self.pages.base().add(range.start).as_ptr().cast(),
                len as usize,
            )
        }
    }
}

/// The arena while some of it is being written: reads of those ranges are refused.
#[derive(Clone)]
pub struct Inputs<'a> {
    base: NonNull<u8>,
    bytes: usize,
    written: [Range<usize>; 2],
    loans: &'a Loans,
    homes: &'a Homes,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: only reads memory that nobody writes while `'a` lives.
unsafe impl Sync for Inputs<'_> {}
// SAFETY: as above.
unsafe impl Send for Inputs<'_> {}

impl<'a> Inputs<'a> {
    /// Where the arena's pages lie, if threads shall care.
    pub fn homes(&self) -> &'a Homes {
        self.homes
    }

    /// The elements of a slot that is not being written.
    pub fn slice<T: Pod>(&self, at: Slot<T>) -> &'a [T] {
        let range = range_in(self.bytes, at);
        assert!(
            self.written.iter().all(|written| !overlap(written, &range)),
            "an operation reads {at:?} while it writes there"
        );
        assert!(self.loans.spare(&range), "an operation reads {at:?}, which is lent to somebody");
        // SAFETY: inside the allocation, aligned, initialised, and disjoint from what others write.
        unsafe {
            std::slice::from_raw_parts(self.base.add(range.start).as_ptr().cast(), at.len as usize)
        }
    }

    /// Row `row` of a matrix of activations.
    pub fn row(&self, mat: Mat<Act>, row: u32) -> &'a [f32] {
        let all = self.slice(Slot::<f32>::new(mat.at.start, mat.at.len));
        &all[mat.row_range(row)]
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn range_in<T>(size: usize, at: Slot<T>) -> Range<usize> {
    let bytes = at.len as usize * size_of::<T>();
    let (start, end) = (at.start as usize, at.start as usize + bytes);
    assert!(end <= size, "slot {at:?} ends behind the arena's {size} bytes");
    assert!(start.is_multiple_of(align_of::<T>()), "slot {at:?} is not aligned");
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> (Arena, Slot<f32>, Slot<u32>) {
        let mut layout = Layout::new(4);
        let (a, b) = (layout.slot::<f32>(10), layout.slot::<u32>(3));
        (Arena::new(&layout).unwrap(), a, b)
    }

    #[test]
    fn what_is_written_is_read() {
        let (mut arena, a, b) = arena();
        arena.slice_mut(a).fill(2.0);
        let (inputs, out) = arena.write(b);
        out[1] = inputs.slice(a)[9] as u32;
        assert_eq!(arena.slice(b), [0, 2, 0]);
    }

    #[test]
    #[should_panic(expected = "reads")]
    fn reading_what_is_written_is_refused() {
        let (mut arena, a, _) = arena();
        let (inputs, _) = arena.write(a);
        inputs.slice(Slot::<f32>::new(a.start + 4, 1));
    }

    #[test]
    fn several_slots_are_written_at_once() {
        let (mut arena, a, b) = arena();
        for (i, slice) in arena.slices_mut(&[a.bytes(), b.bytes()]).into_iter().enumerate() {
            slice.fill(i as u8 + 1);
        }
        assert_eq!(arena.slice(a.bytes()), [1; 40]);
        assert_eq!(arena.slice(b.bytes()), [2; 12]);
    }

    #[test]
    #[should_panic(expected = "another ends")]
    fn slots_that_overlap_are_not_written_at_once() {
        let (mut arena, a, _) = arena();
        arena.slices_mut(&[a.bytes(), Slot::new(a.start + 39, 2)]);
    }

    /// A thread fills a slot while its neighbours are read and written.
    #[test]
    fn what_is_lent_comes_back_filled() {
        let mut layout = Layout::new(4);
        let slots: Vec<Slot<u8>> = (0..5).map(|_| layout.slot(1000)).collect();
        let mut arena = Arena::new(&layout).unwrap();
        for round in 1..50u8 {
            let mut lent: Vec<_> = [3, 1].map(|i| arena.lend(slots[i])).into();
            let filler = std::thread::spawn(move || {
                lent.iter_mut().for_each(|room| room.fill(round));
                lent
            });
            let (inputs, out) = arena.write(slots[2]);
            out.fill(inputs.slice(slots[0])[999] + inputs.slice(slots[4])[0]);
            filler.join().unwrap().into_iter().for_each(|room| arena.take_back(room));
            assert_eq!(arena.slice(slots[3]), [round; 1000]);
            assert_eq!(arena.slice(Slot::<u8>::new(slots[1].start + 7, 3)), [round; 3]);
        }
    }

    #[test]
    fn what_is_lent_is_refused_to_others() {
        let refused = |touch: fn(&mut Arena, Slot<f32>, Slot<u32>)| {
            let (mut arena, a, b) = arena();
            let lent = arena.lend(Slot::new(a.start + 4, 4));
            let hook = std::panic::AssertUnwindSafe(|| touch(&mut arena, a, b));
            assert!(std::panic::catch_unwind(hook).is_err());
            arena.take_back(lent);
            touch(&mut arena, a, b);
        };
        refused(|arena, a, _| drop(arena.slice(a).to_vec()));
        refused(|arena, a, _| arena.slice_mut(a).fill(1.0));
        refused(|arena, a, b| drop(arena.write(b).0.slice(a).to_vec()));
        refused(|arena, a, _| {
            let lent = arena.lend(a.bytes());
            arena.take_back(lent);
        });
    }

    #[test]
    #[should_panic(expected = "ends behind")]
    fn a_slot_outside_is_refused() {
        let (arena, _, b) = arena();
        arena.slice(Slot::<u32>::new(b.start, 1000));
    }
}
