//! Getting numbers into a device and out of it.

use crate::ABSENT;
use bytemuck::Pod;
use krasis_core::{Act, Mat, Slot, from_a_page};
use krasis_cpu::nodes::Read;
use krasis_cpu::{Arena, Homes, Keep, Lent, Team, Tiles};
use std::io;
use std::ops::DerefMut;
use std::sync::Mutex;

/// Threads that fill memory are at least so many: they mostly wait for a disk, which wants several
/// requests at once, and two threads on a busy machine often leave it without any.
const WAITING: usize = 4;

/// What a device asks of somebody else in the middle of a step.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Which one of the step's.
    pub number: usize,
    /// What it is about.
    pub routes: Slot<u32>,
    /// And with which numbers: whole rows, one behind the other.
    pub x: Mat<Act>,
    /// For each row of `out` that is asked for [`ABSENT`]; the others are the device's own.
    pub places: Slot<u32>,
    /// Where the answer goes.
    pub out: Mat<Act>,
}

/// Somebody who answers.
pub trait Aide {
    /// Where a question's routes and numbers are put.
    fn desk(&mut self) -> (&mut Vec<u32>, &mut Vec<f32>);
    /// Writes the answer to what lies there, and tells for each row [`ABSENT`] if it says nothing: those
    /// are the device's own.
    fn answer(&mut self, number: usize, paper: &Paper) -> &[u32];
}

/// Where an answer is written: rows for a device, which several threads may fill.
pub struct Paper<'a>(&'a (dyn Fn(usize, usize, &[f32]) + Sync));

impl<'a> Paper<'a> {
    /// `put(row, first column, numbers)` may be called from several threads.
    pub fn new(put: &'a (dyn Fn(usize, usize, &[f32]) + Sync)) -> Paper<'a> {
        Paper(put)
    }

    /// Writes some numbers of a row.
    ///
    /// # Safety
    /// Nobody writes the same ones at the same time.
    pub unsafe fn put(&self, row: usize, first: usize, numbers: &[f32]) {
        (self.0)(row, first, numbers);
    }
}

/// Who helps where nobody is asked.
pub struct Nobody;

impl Aide for Nobody {
    fn desk(&mut self) -> (&mut Vec<u32>, &mut Vec<f32>) {
        unreachable!("nobody is asked")
    }
    fn answer(&mut self, _number: usize, _paper: &Paper) -> &[u32] {
        unreachable!("nobody is asked")
    }
}

/// Room for what is read from a disk while a device is at work.
pub enum Room {
    /// Where it will stay.
    There(Lent),
    /// Apart, to be copied there.
    Apart(Vec<u8>),
}

impl Room {
    /// What is to be filled.
    pub fn bytes(&mut self) -> &mut [u8] {
        match self {
            Room::There(lent) => lent.deref_mut(),
            Room::Apart(bytes) => bytes,
        }
    }
}

/// A device's memory, seen from the host.
pub trait Memory {
    /// Bytes of one activation.
    const ACT_BYTES: u32;
    /// Whether anything is remembered by [`Self::repeat`].
    const REMEMBERS: bool = false;
    /// Copies `values` to the start of a slot.
    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]);
    /// Copies a slot to the host, in place of what `to` holds.
    fn download_to<T: Pod>(&mut self, at: Slot<T>, to: &mut Vec<T>);
    /// Copies a slot to the host.
    fn download<T: Pod>(&mut self, at: Slot<T>) -> Vec<T> {
        let mut values = Vec::new();
        self.download_to(at, &mut values);
        values
    }
    /// Copies numbers to activations that are whole rows, which are the first of `to`.
    fn upload_act(&mut self, to: Mat<Act>, values: &[f32]);
    /// Copies pieces of host memory that stay as they are, and where they are as long as `_keep` lives,
    /// each to its slot, in any order. Operations that were called before may still read what the slots
    /// held; those called after [`Self::brought`] find what is new, and those in between must not look.
    /// So copies and operations that have nothing to do with each other may run side by side, where a
    /// device can do that.
    fn bring<'a>(&mut self, pieces: impl Iterator<Item = (Slot<u8>, &'a [u8])>, _keep: &Keep) {
        pieces.for_each(|(to, from)| self.upload(to, from));
    }

    /// Has operations from now on wait for what was brought.
    fn brought(&mut self) {}

    /// Copies a slot to another one of its length, behind the operations that were called before.
    fn copy(&mut self, from: Slot<u8>, to: Slot<u8>) {
        let bytes = self.download(from);
        self.upload(to, &bytes);
    }

    /// Room for what a slot is to hold, which another thread may fill. Until it is back, operations must
    /// not touch the slot.
    fn lend(&mut self, at: Slot<u8>) -> Room {
        Room::Apart(vec![0; at.len as usize])
    }

    /// Takes back the room of a slot: operations from now on find there what it holds.
    fn take_back(&mut self, at: Slot<u8>, room: Room) {
        match room {
            Room::Apart(bytes) => self.upload(at, &bytes),
            Room::There(_) => unreachable!("a device that lends memory takes it back itself"),
        }
    }

    /// Copies slots to another device of this kind, each pair from here to there, behind what both were
    /// asked for before.
    fn hand_over(&mut self, to: &mut Self, pieces: &[(Slot<u8>, Slot<u8>)])
    where
        Self: Sized,
    {
        for &(here, there) in pieces {
            to.upload(there, &self.download(here));
        }
    }

    /// Copies activations to the host as f32, row by row, in place of what `to` holds.
    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>);
    /// Copies activations to the host as f32, row by row.
    fn download_act(&mut self, from: Mat<Act>) -> Vec<f32> {
        let mut values = Vec::new();
        self.download_act_to(from, &mut values);
        values
    }

    /// Copies numbers and activations to the host, as both functions do alone, and waits but once.
    fn download_with_act(
        &mut self,
        at: Slot<u32>,
        to: &mut Vec<u32>,
        from: Mat<Act>,
        numbers: &mut Vec<f32>,
    ) {
        self.download_to(at, to);
        self.download_act_to(from, numbers);
    }

    /// Asks `aide`, who may be at work on the answer until [`Self::answered`], while the device is at
    /// work on what comes in between.
    fn ask<H: Aide>(&mut self, aide: &mut H, question: &Question) {
        let (routes, x) = aide.desk();
        self.download_with_act(question.routes, routes, question.x, x);
    }

    /// From here on the rows of `out` that were asked for are there.
    fn answered<H: Aide>(&mut self, aide: &mut H, question: &Question) {
        answered(self, aide, question);
    }

    /// Runs `body`, which under one `key` asks for the same operations on the same slots, and the same
    /// questions, every time; what differs is what the slots hold. So a device may remember them and leave
    /// `body` uncalled. Nothing else is uploaded or downloaded in between.
    fn repeat<H: Aide>(&mut self, _key: u32, aide: &mut H, body: impl FnOnce(&mut Self, &mut H))
    where
        Self: Sized,
    {
        body(self, aide);
    }

    /// Operations from now on belong to this layer, or to none: for whoever asks where time goes, and for
    /// what is said if one fails.
    fn layer(&mut self, _layer: Option<u32>) {}

    /// On which NUMA nodes its memory lies, if threads care.
    fn homes(&self) -> Option<&Homes> {
        None
    }

    /// Looks on which NUMA nodes the memory lies that has been filled by now: threads take that of their
    /// own first.
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Has pages that hold what is read at the same time change places, a few at most, so that all NUMA
    /// nodes are asked for equally much; tells how many have moved.
    fn level(&mut self, _reads: &[Read], _most: usize) -> io::Result<usize> {
        Ok(0)
    }

    /// Has `write` fill slots that lie one behind the other, `piece` bytes at a time: it is given the
    /// slot's index, the first byte in the slot and the bytes. Here they are uploaded in turn; host
    /// memory is written where it lies, by the whole team and by a few more threads if it is small.
    fn receive(
        &mut self,
        slots: &[Slot<u8>],
        piece: usize,
        _team: &Team,
        write: impl Fn(usize, u64, &mut [u8]) + Sync,
    ) {
        let mut room = Vec::new();
        let bytes = from_a_page(&mut room, piece);
        for (index, slot) in slots.iter().enumerate() {
            for first in (0..slot.len).step_by(piece) {
                let len = (slot.len - first).min(piece as u64);
                let bytes = &mut bytes[..len as usize];
                write(index, first, bytes);
                self.upload(Slot::new(slot.start + first, len), bytes);
            }
        }
    }
}

/// Asks for an answer and uploads it.
pub fn answered<D: Memory + ?Sized, H: Aide>(d: &mut D, aide: &mut H, question: &Question) {
    let out = question.out;
    let mut rows = vec![0.0; out.len()];
    let tiles = Tiles::new(&mut rows, out.cols as usize);
    let put = |row: usize, first: usize, numbers: &[f32]| {
        // SAFETY: who writes promises to be alone; tiles die at once.
        unsafe { tiles.tile(row, first..first + numbers.len()) }.copy_from_slice(numbers);
    };
    let mine = aide.answer(question.number, &Paper::new(&put));
    for (row, (numbers, place)) in (0..).zip(rows.chunks_exact(out.cols as usize).zip(mine)) {
        if *place != ABSENT {
            d.upload_act(out.from_row(row, u64::from(D::ACT_BYTES)).first(1), numbers);
        }
    }
}

/// Host memory without any operations: what is built here is written to a file.
impl Memory for Arena {
    const ACT_BYTES: u32 = 4;

    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]) {
        self.slice_mut(at)[..values.len()].copy_from_slice(values);
    }

    fn download_to<T: Pod>(&mut self, at: Slot<T>, to: &mut Vec<T>) {
        to.clear();
        to.extend_from_slice(self.slice(at));
    }

    fn copy(&mut self, from: Slot<u8>, to: Slot<u8>) {
        let (inputs, to) = self.write(to);
        to.copy_from_slice(inputs.slice(from));
    }

    fn hand_over(&mut self, to: &mut Arena, pieces: &[(Slot<u8>, Slot<u8>)]) {
        for &(here, there) in pieces {
            to.slice_mut(there).copy_from_slice(self.slice(here));
        }
    }

    fn upload_act(&mut self, to: Mat<Act>, values: &[f32]) {
        self.slice_mut(to.whole().floats())[..values.len()].copy_from_slice(values);
    }

    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>) {
        let all = self.slice(from.at.floats());
        to.clear();
        (0..from.rows).for_each(|row| to.extend_from_slice(&all[from.row_range(row)]));
    }

    fn receive(
        &mut self,
        slots: &[Slot<u8>],
        piece: usize,
        team: &Team,
        write: impl Fn(usize, u64, &mut [u8]) + Sync,
    ) {
        let slots = self.slices_mut(slots).into_iter().enumerate();
        let pieces = Mutex::new(slots.flat_map(|(index, bytes)| {
            let firsts = (0u64..).step_by(piece);
            bytes.chunks_mut(piece).zip(firsts).map(move |(bytes, first)| (index, first, bytes))
        }));
        let next = || pieces.lock().expect("taking a piece does not panic").next();
        let work = || {
            while let Some((index, first, bytes)) = next() {
                write(index, first, bytes);
            }
        };
        std::thread::scope(|scope| {
            for _ in team.threads()..WAITING {
                scope.spawn(work);
            }
            team.run(|_| work());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Reference};
    use krasis_core::Layout;

    /// Three slots, the middle one skipped, in pieces that divide none of them.
    fn check<D: Memory>(device: impl Fn(Arena) -> D) {
        let mut layout = Layout::new(4);
        let [a, b, c] = [10, 100, 333].map(|len| layout.slot::<u8>(len));
        let mut device = device(Arena::new(&layout).unwrap());
        device.receive(&[a, c], 7, &Team::new(Some(2)), |slot, first, bytes| {
            let numbers = (first..).map(|at| (100 * (slot as u64 + 1) + at) as u8);
            bytes.iter_mut().zip(numbers).for_each(|(byte, number)| *byte = number);
        });
        let numbers = |from: u64, len: u64| (from..from + len).map(|n| n as u8).collect::<Vec<_>>();
        assert_eq!(device.download(a), numbers(100, 10));
        assert_eq!(device.download(b), [0; 100]);
        assert_eq!(device.download(c), numbers(200, 333));
    }

    /// Two rooms at once, taken back in the other order; between them lies what is at work.
    fn check_rooms<D: Memory>(device: impl Fn(Arena) -> D) {
        let mut layout = Layout::new(4);
        let [a, b, c] = [70, 80, 90].map(|len| layout.slot::<u8>(len));
        let mut device = device(Arena::new(&layout).unwrap());
        let (mut first, mut last) = (device.lend(a), device.lend(c));
        let filler = std::thread::spawn(move || {
            first.bytes().fill(1);
            last.bytes().fill(3);
            [first, last]
        });
        device.upload(b, &[2; 80]);
        let [first, last] = filler.join().unwrap();
        device.take_back(c, last);
        device.take_back(a, first);
        let got = [a, b, c].map(|slot| device.download(slot));
        assert_eq!(got, [vec![1; 70], vec![2; 80], vec![3; 90]]);
    }

    #[test]
    fn rooms_are_filled_beside_the_device() {
        check_rooms(|arena| Cpu::new(arena, Team::new(Some(1))));
        check_rooms(Reference::new);
    }

    fn check_copy<D: Memory>(device: impl Fn(Arena) -> D) {
        let mut layout = Layout::new(4);
        let [a, b, c] = [70, 70, 70].map(|len| layout.slot::<u8>(len));
        let mut device = device(Arena::new(&layout).unwrap());
        let bytes: Vec<u8> = (0..70).collect();
        device.upload(a, &bytes);
        device.upload(b, &[9; 70]);
        let part = |slot: Slot<u8>| Slot::new(slot.start + 3, 61);
        device.copy(part(a), part(c));
        assert_eq!(device.download(part(c)), bytes[3..64]);
        assert_eq!((device.download(a), device.download(b)), (bytes, vec![9; 70]));
        let outside = Slot::<u8>::new(c.start + 64, 6);
        assert_eq!(device.download(outside), [0; 6]);
    }

    #[test]
    fn what_is_copied_is_there_twice_and_nothing_else_changes() {
        check_copy(|arena| arena);
        check_copy(|arena| Cpu::new(arena, Team::new(Some(1))));
        check_copy(Reference::new);
    }

    #[test]
    fn every_byte_is_received_at_its_place() {
        check(|arena| arena);
        check(|arena| Cpu::new(arena, Team::new(Some(1))));
        check(Reference::new);
    }
}
