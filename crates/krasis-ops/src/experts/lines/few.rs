//! Both products of few pairs in one job of the team. A decode step waits for each job, and where the
//! last threads are at work on gate and up, those before them can go on with experts that are through.

use super::runs::{Runs, TOKENS_PER_READ};
use super::{Job, Part};
use crate::experts::Bank;
use crate::experts::groups::{Active, Groups};
use crate::linear::LINE_BYTES_WORTH_A_THREAD;
use krasis_core::lines::ROWS;
use krasis_core::{Act, Format, Lines, Mat};
use krasis_cpu::Tiles;
use krasis_cpu::lines::Tokens;
use krasis_cpu::vector::silu;
use std::ops::Range;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Pairs of one expert that one thread rounds for `down` while the others go on.
const PAIRS_MAX: usize = 8;

/// The smallest part that is handed out: threads are awake, so it only has to outweigh being asked for.
const PART_BYTES: usize = 1 << 14;

/// What is between both products; kept because a decode step allocates nothing.
#[derive(Default)]
pub(crate) struct Halves {
    /// Of each expert.
    experts: Vec<Half>,
    /// Rows of `up · x` by pair, where gate and up of the same rows lie on different nodes.
    ups: Vec<f32>,
}

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
    (tokens, halves, runs): (&mut Tokens, &mut Halves, &mut [Runs; 3]),
    inner: &mut [f32],
    put: impl Fn(usize, usize, &[f32]) + Sync,
) {
    let (cols, rows) = (x.cols as usize, x.rows as usize);
    tokens.fill(job.isa, job.team, lines[0], cols, rows, |i| job.inputs.row(x, i as u32));
    let tokens = &*tokens;
    let inter = job.bank.inter as usize;
    // As many as ever for so many pairs, whoever is asked for.
    let most = (inner.len() / inter).min(job.bank.experts as usize);
    // On several nodes gate and up are computed apart, each where it lies.
    let apart = job.inputs.homes().nodes() > 0;
    let [gate, up, down] = runs;
    job.list(lines[0], if apart { Part::Gate } else { Part::GateUp }, most, gate);
    if apart {
        job.list(lines[0], Part::Up, most, up);
    }
    job.list(lines[1], Part::Down, most, down);
    let (gate, up, down) = (&*gate, &*up, &*down);
    let Halves { experts, ups } = halves;
    experts.resize_with(most.max(experts.len()), Half::default);
    ups.resize(if apart { inner.len() } else { 0 }, 0.0);
    let blocks = inter.div_ceil(ROWS) * if apart { 2 } else { 1 };
    for half in &mut experts[..most] {
        (half.left, half.ready) = (blocks.into(), false.into());
        let tokens = half.inner.get_mut().expect("a thread that fails ends the program");
        tokens.reserve(rows.min(PAIRS_MAX), inter);
    }
    let (halves, failed) = (&experts[..], AtomicBool::new(false));
    let (tiles, ups) = (Tiles::new(inner, inter), Tiles::new(ups, inter));
    let through = |index: usize, active: &Active, count: usize| {
        let half = &halves[index];
        // Whoever is last sees what the others have written.
        if half.left.fetch_sub(count, Ordering::AcqRel) == count {
            let mut to = half.inner.write().expect("a thread that fails says so");
            for &pair in active.pairs.iter().filter(|_| apart) {
                // SAFETY: nobody else is at these rows any more.
                let [inner, up] =
                    [&tiles, &ups].map(|of| unsafe { of.tile(pair as usize, 0..inter) });
                inner.iter_mut().zip(up).for_each(|(inner, up)| *inner *= *up);
            }
            // SAFETY: nobody writes these rows any more.
            let row = |i: usize| &*unsafe { tiles.tile(active.pairs[i] as usize, 0..inter) };
            to.fill(job.isa, job.team, lines[1], inter, active.pairs.len(), row);
            drop(to);
            half.ready.store(true, Ordering::Release);
        }
    };
    let gate_of = |index: usize, active: &Active, blocks: Range<usize>| {
        let count = blocks.len();
        match apart {
            true => {
                let gate = job.bank.gate(active.expert);
                job.blocks_of(&gate, (lines[0], tokens), active, blocks, &tiles, silu);
            }
            false => job.gate_up_blocks(lines[0], tokens, active, blocks, &tiles),
        }
        through(index, active, count);
    };
    let up_of = |index: usize, active: &Active, blocks: Range<usize>| {
        let count = blocks.len();
        let up = job.bank.up(active.expert);
        job.blocks_of(&up, (lines[0], tokens), active, blocks, &ups, |sums, out| {
            out.copy_from_slice(&sums[..out.len()]);
        });
        through(index, active, count);
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
    let first = |list: usize, part: Range<usize>| {
        let _alarm = Alarm(&failed);
        gate.part(job.groups, list, part, gate_of);
    };
    let then = |list: usize, part: Range<usize>| {
        let _alarm = Alarm(&failed);
        down.part(job.groups, list, part, rest_of);
    };
    let (sum, least) = (Runs::sum, TOKENS_PER_READ * PART_BYTES);
    let small = 2 * TOKENS_PER_READ * LINE_BYTES_WORTH_A_THREAD;
    if !apart {
        // One list of both, whose parts get shorter but once.
        let (border, all) = (sum(gate), sum(gate) + sum(down));
        let part = |Range { start, end }: Range<usize>| {
            first(0, start.min(border)..end.min(border));
            then(0, start.max(border) - border..end.max(border) - border);
        };
        if all < small {
            return part(0..all);
        }
        let shares = job.team.shares(all, least);
        return job.team.run(|_| {
            while let Some(range) = shares.take() {
                part(range);
            }
        });
    }
    let second = |list: usize, part: Range<usize>| {
        let _alarm = Alarm(&failed);
        up.part(job.groups, list, part, up_of);
    };
    let [gates, ups, downs] =
        [gate, up, down].map(|runs| job.team.shares_by_node(runs.totals(), least));
    let work = |own: usize| {
        // Nobody waits for gate and up of a node before somebody is at work on them.
        while let Some((list, part)) = gates.take(own) {
            first(list, part);
        }
        while let Some((list, part)) = ups.take(own) {
            second(list, part);
        }
        while let Some((list, part)) = downs.take(own) {
            then(list, part);
        }
    };
    match sum(gate) + sum(up) + sum(down) < small {
        true => work(0),
        false => job.team.run(|worker| work(job.team.place_of(worker, job.inputs.homes()))),
    }
}
