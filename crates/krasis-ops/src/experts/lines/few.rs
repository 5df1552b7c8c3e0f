//! Both products of few pairs in one job of the team. A decode step waits for each job, and where the
//! last threads are at work on gate and up, those before them can go on with experts that are through.

use super::Job;
use super::runs::{Runs, TOKENS_PER_READ};
use crate::experts::Bank;
use crate::experts::groups::{Active, Groups};
use crate::linear::LINE_BYTES_WORTH_A_THREAD;
use krasis_core::lines::ROWS;
use krasis_core::{Act, Format, Lines, Mat};
use krasis_cpu::Tiles;
use krasis_cpu::lines::Tokens;
use std::ops::Range;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Pairs of one expert that one thread rounds for `down` while the others go on.
const PAIRS_MAX: usize = 8;

/// The smallest part that is handed out: threads are awake, so it only has to outweigh being asked for.
const PART_BYTES: usize = 1 << 14;

/// What is between both products, for each expert; kept because a decode step allocates nothing.
pub(crate) type Halves = Vec<Half>;

/// An expert's pairs between both products.
#[derive(Default)]
pub(crate) struct Half {
    /// Blocks of gate and up that are not done.
    left: AtomicUsize,
    /// Whether `inner` can be multiplied.
    ready: AtomicBool,
    /// The pairs' rows of `inner`, in order.
    inner: RwLock<Tokens>,
}

/// Says so if a thread panics, for whom the others would wait for ever.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The lines of gate and up, and of down, if there are few enough pairs.
pub(in crate::experts) fn few_in_lines(groups: &Groups, bank: &Bank) -> Option<[Lines; 2]> {
    match (bank.gate_up.format, bank.down.format) {
        (Format::Lines(up), Format::Lines(down)) => {
            let few = groups.iter().all(|active| active.pairs.len() <= PAIRS_MAX);
            few.then_some([up, down])
        }
        _ => None,
    }
}

/// Computes all pairs and hands out `put(pair, first output, sums)`, every output once, on any thread;
/// `lines` are those of gate and up, and of down.
pub(in crate::experts) fn few(
    job: &Job,
    lines: [Lines; 2],
    x: Mat<Act>,
    (tokens, halves, runs): (&mut Tokens, &mut Halves, &mut [Runs; 2]),
    inner: &mut [f32],
    put: impl Fn(usize, usize, &[f32]) + Sync,
) {
    let (cols, rows) = (x.cols as usize, x.rows as usize);
    tokens.fill(job.isa, job.team, lines[0], cols, rows, |i| job.inputs.row(x, i as u32));
    let tokens = &*tokens;
    let inter = job.bank.inter as usize;
    // As many as ever for so many pairs, whoever is asked for.
    let most = (inner.len() / inter).min(job.bank.experts as usize);
    let [gate_up, down] = runs;
    job.gate_up_runs(lines[0], most, gate_up);
    job.down_runs(lines[1], most, down);
    let (gate_up, down) = (&*gate_up, &*down);
    halves.resize_with(most.max(halves.len()), Half::default);
    let blocks = inter.div_ceil(ROWS);
    for half in &mut halves[..most] {
        (half.left, half.ready) = (blocks.into(), false.into());
        let tokens = half.inner.get_mut().expect("a thread that fails ends the program");
        tokens.reserve(rows.min(PAIRS_MAX), inter);
    }
    let (halves, tiles, failed) = (&halves[..], Tiles::new(inner, inter), AtomicBool::new(false));
    let half_of = |index: usize, active: &Active, blocks: Range<usize>| {
        let (half, count) = (&halves[index], blocks.len());
        job.gate_up_blocks(lines[0], tokens, active, blocks, &tiles);
        // Whoever is last sees what the others have written.
        if half.left.fetch_sub(count, Ordering::AcqRel) == count {
            let mut to = half.inner.write().expect("a thread that fails says so");
            // SAFETY: nobody writes these rows any more.
            let row = |i: usize| &*unsafe { tiles.tile(active.pairs[i] as usize, 0..inter) };
            to.fill(job.isa, job.team, lines[1], inter, active.pairs.len(), row);
            drop(to);
            half.ready.store(true, Ordering::Release);
        }
    };
    let rest_of = |index: usize, active: &Active, blocks: Range<usize>| {
        let half = &halves[index];
        // Gate and up come first in the list, so whoever has the rest of them is at work on it.
        let ready = || half.ready.load(Ordering::Acquire);
        job.team.wait_until(|| ready() || failed.load(Ordering::Relaxed));
        if ready() {
            let inner = half.inner.read().expect("it is ready");
            job.down_blocks(lines[1], (&inner, inner.all()), active, blocks, &put);
        }
    };
    let [up_totals, down_totals] = [gate_up.totals(), down.totals()];
    let first = |list: usize, part: Range<usize>| {
        let _alarm = Alarm(&failed);
        gate_up.part(job.groups, list, part, half_of);
    };
    let then = |list: usize, part: Range<usize>| {
        let _alarm = Alarm(&failed);
        down.part(job.groups, list, part, rest_of);
    };
    let all: usize = up_totals.iter().chain(down_totals).sum();
    if all < 2 * TOKENS_PER_READ * LINE_BYTES_WORTH_A_THREAD {
        up_totals.iter().enumerate().for_each(|(list, &total)| first(list, 0..total));
        down_totals.iter().enumerate().for_each(|(list, &total)| then(list, 0..total));
        return;
    }
    let least = TOKENS_PER_READ * PART_BYTES;
    if let [border] = *up_totals {
        // One list of both, whose parts get shorter but once.
        let shares = job.team.shares(all, least);
        return job.team.run(|_| {
            while let Some(Range { start, end }) = shares.take() {
                first(0, start.min(border)..end.min(border));
                then(0, start.max(border) - border..end.max(border) - border);
            }
        });
    }
    let [up_shares, down_shares] =
        [up_totals, down_totals].map(|totals| job.team.shares_by_node(totals, least));
    job.team.run(|worker| {
        let own = job.team.place_of(worker, job.inputs.homes());
        // Nobody waits for gate and up of a node before somebody is at work on them.
        while let Some((list, part)) = up_shares.take(own) {
            first(list, part);
        }
        while let Some((list, part)) = down_shares.take(own) {
            then(list, part);
        }
    });
}
