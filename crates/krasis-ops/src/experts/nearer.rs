//! Weights that are brought nearer before anybody multiplies them. Memory is what a decode step waits for,
//! and while a GPU is at work on what comes before, it has nothing to do.

use super::Bank;
use crate::cpu::Cpu;
use krasis_core::Slot;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes that a thread reads before it looks whether it is to go on: less than a microsecond.
const PIECE: usize = 8 << 10;

/// Bytes for each thread: less than most cores have of their own, so that what is read last does not displace
/// what was read first.
const EACH: usize = 512 << 10;

/// Bytes of a line of any cache.
const LINE: usize = 64;

/// Reads weights of some experts, the first ones first, with all threads, until it is `enough`, or all are
/// read, or caches are full.
pub(crate) fn bring_nearer(
    d: &Cpu,
    bank: &Bank,
    experts: &[u32],
    enough: &(dyn Fn() -> bool + Sync),
) {
    let pieces_of = |slot: &Slot<u8>| (slot.len as usize).div_ceil(PIECE);
    let each: usize = bank.slots(0, 1).iter().map(pieces_of).sum();
    let pieces = (experts.len() * each).min(d.team.threads() * EACH / PIECE);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(enough()));
    if pieces == 0 || stop.load(Ordering::Relaxed) {
        return;
    }
    d.team.run(|worker| {
        while !stop.load(Ordering::Relaxed) {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            let mut within = piece % each;
            for slot in bank.slots(experts[piece / each], 1) {
                if within < pieces_of(&slot) {
                    touch(&d.bytes(slot)[within * PIECE..]);
                    break;
                }
                within -= pieces_of(&slot);
            }
            // One of them looks, for others to see.
            if worker == 0 && enough() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}

/// Reads a piece, a byte of each line.
fn touch(bytes: &[u8]) {
    let piece = &bytes[..bytes.len().min(PIECE)];
    black_box(piece.iter().step_by(LINE).fold(0u8, |sum, byte| sum ^ byte));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Case;
    use krasis_core::Format;
    use krasis_core::lines::{Bits, Lines};
    use krasis_cpu::{Arena, Team};

    /// Any experts in any order, any number of looks: it ends, and stays within the bank.
    #[test]
    fn it_ends_when_it_is_enough_and_when_all_is_read() {
        let format = Format::Lines(Lines::new(Bits::Four, 32).unwrap());
        let (experts, inter, hidden) = (5, 72, 96);
        let mut case = Case::new(1);
        let gate_up = case.weight(experts * 2 * Bank::rows_of(format, inter), hidden, format);
        let down = case.weight(experts * Bank::rows_of(format, hidden), inter, format);
        let bank = Bank { gate_up, down, experts, inter };
        let cpu = Cpu::new(Arena::new(&case.layout).unwrap(), Team::new(Some(3)));
        for enough_after in [0, 1, 4, usize::MAX] {
            for of in [&[][..], &[4], &[3, 0, 1, 4, 2]] {
                let looks = AtomicUsize::new(0);
                let enough = || looks.fetch_add(1, Ordering::Relaxed) >= enough_after;
                bring_nearer(&cpu, &bank, of, &enough);
                // The looks at the start, and of the first thread alone.
                let most = 2 + of.len() * 4;
                let looks = looks.into_inner();
                assert!(looks >= 1 && looks <= most.min(enough_after.saturating_add(1)), "{looks}");
            }
        }
    }
}
