//! Which weights a cache keeps, how they get there, and how they come back.
//!
//! Kept is what no checkpoint stores as it will lie: quantised weights, and banks of experts whose
//! format is not the stored one. A build makes them exactly as a start without a cache does, by the
//! same [`Stock`], only somewhere else and one at a time; so what comes back is the same, bit for bit.

use super::{Leaf, Placed, Stock, place};
use crate::device::allocate;
use crate::error::StartError;
use crate::experts::BankSections;
use krasis_checkpoint::cache::{Builder, CacheError, CacheFile, Contents, Kind, Section, digest};
use krasis_checkpoint::quantize::QUANTISER;
use krasis_core::{Format, Layout, Slot, Weight, quant};
use krasis_cpu::{Arena, Team};
use krasis_model::{Experts, Origin, Source};
use krasis_ops::{Bank, Memory};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Mutex;

/// A weight or a bank that is kept; its sections are neighbours in the file.
pub(super) struct Kept {
    layer: Option<u32>,
    what: What,
}

enum What {
    Leaf(Leaf),
    Bank(Experts, Bank),
}

/// What is kept, in the order of the file: layer by layer.
pub(super) fn of(placed: &Placed) -> Vec<Kept> {
    let mut all = Vec::new();
    let mut see = |layer, leaf: &Leaf| {
        if leaf.is_kept() {
            all.push(Kept { layer, what: What::Leaf(leaf.clone()) });
        }
        Ok::<_, Infallible>(())
    };
    let mut banks = Vec::new();
    for (index, layer) in placed.model.layers.iter().enumerate() {
        let index = Some((placed.before + index) as u32);
        let Ok(_) = layer.try_map(&mut |leaf| see(index, leaf));
    }
    for leaf in [&placed.model.embed, &placed.model.norm, &placed.model.lm_head] {
        let Ok(()) = see(None, leaf);
    }
    for (index, layer) in placed.experts().enumerate() {
        if let Some((experts, bank)) = layer.filter(|_| placed.converted[index]) {
            let what = What::Bank(experts.clone(), *bank);
            banks.push(Kept { layer: Some((placed.before + index) as u32), what });
        }
    }
    all.extend(banks);
    // Sorting keeps the order of equals: a layer's experts come behind its other weights.
    all.sort_by_key(|kept| kept.layer.unwrap_or(u32::MAX));
    all
}

/// What a file of these weights holds.
pub(super) fn contents(kept: &[Kept], fingerprint: u64) -> Contents {
    Contents {
        fingerprint,
        layout: quant::LAYOUT.into(),
        quantiser: QUANTISER.into(),
        sections: kept.iter().flat_map(Kept::sections).collect(),
    }
}

/// What people call these weights: the format that most of them have.
pub(super) fn label(kept: &[Kept]) -> String {
    let weights = kept.iter().flat_map(|kept| kept.what.weights());
    let largest = weights.max_by_key(|(_, weight)| u64::from(weight.rows) * u64::from(weight.cols));
    match largest.map(|(_, weight)| weight.format.row_format()) {
        Some(Format::Int4 { group }) => format!("int4-g{group}"),
        Some(Format::Int8 { group }) => format!("int8-g{group}"),
        _ => "weights".into(),
    }
}

/// Builds what is missing of a file.
pub(super) fn build(
    kept: &[Kept],
    builder: &mut Builder,
    stock: &impl Stock,
    team: &Team,
    progress: impl Fn(&Builder),
) -> Result<(), StartError> {
    let mut first = 0;
    for kept in kept {
        progress(builder);
        let sections = first..first + kept.sections().len();
        first = sections.end;
        if sections.clone().all(|section| builder.has(section)) {
            continue;
        }
        let (arena, slots) = kept.make(stock, team)?;
        let pieces = kept.sections().into_iter().zip(sections.clone()).zip(slots);
        let pieces = pieces.flat_map(|((about, section), slot)| {
            let each = about.stretch() as usize;
            let pieces = arena.slice(slot).chunks(each).zip((0u64..).step_by(each));
            pieces.map(move |(bytes, first)| (section, first, bytes))
        });
        let pieces = Mutex::new(pieces);
        let failed = Failed::default();
        team.run(|_| {
            while let Some((section, first, bytes)) = next(&pieces) {
                failed.note(builder.write(section, first, bytes));
            }
        });
        failed.into_result()?;
        builder.commit(sections)?;
    }
    progress(builder);
    Ok(())
}

/// What of it a memory holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    Banks,
    Others,
}

/// Reads what is kept of a part into its place; `read` hears how many bytes more are there.
pub(super) fn read<D: Memory>(
    placed: &Placed,
    cache: &CacheFile,
    device: &mut D,
    team: &Team,
    part: Part,
    read: impl Fn(u64) + Sync,
) -> Result<(), StartError> {
    let kept = of(placed);
    let sections = cache.find(&contents(&kept, cache.contents().fingerprint))?;
    let slots = kept.iter().flat_map(|kept| {
        let bank = matches!(kept.what, What::Bank(..));
        let counts = part == Part::All || bank == (part == Part::Banks);
        kept.what.slots().into_iter().map(move |slot| (slot, counts))
    });
    // Places in memory with sections and their first bytes.
    let mut places: Vec<(Slot<u8>, usize, u64)> = slots
        .zip(sections)
        .filter(|((_, counts), _)| *counts)
        .flat_map(|((slot, _), section)| {
            let each = cache.contents().sections[section].stretch();
            (0..slot.len).step_by(each as usize).map(move |first| {
                let bytes = each.min(slot.len - first);
                (Slot::new(slot.start + first, bytes), section, first)
            })
        })
        .collect();
    places.sort_by_key(|(slot, ..)| slot.start);
    let slots: Vec<Slot<u8>> = places.iter().map(|(slot, ..)| *slot).collect();
    let longest = slots.iter().map(|slot| slot.len).max().unwrap_or(1);
    let failed = Failed::default();
    device.receive(&slots, longest as usize, team, |index, _, bytes| {
        let (_, section, first) = places[index];
        failed.note(cache.read(section, first, bytes));
        read(bytes.len() as u64);
    });
    Ok(failed.into_result()?)
}

/// The sections of each bank, of all layers that have one.
pub(super) fn banks(placed: &Placed, cache: &CacheFile) -> Result<Vec<BankSections>, StartError> {
    let kept = of(placed);
    let mut sections = cache.find(&contents(&kept, cache.contents().fingerprint))?.into_iter();
    let mut banks = Vec::new();
    for kept in kept {
        let mut next = |slot: Slot<u8>| if slot.is_empty() { None } else { sections.next() };
        match &kept.what {
            What::Bank(_, bank) => banks.push(bank.slots(0, bank.experts).map(next)),
            What::Leaf(leaf) => slots(&leaf.weight).into_iter().for_each(|(_, slot)| {
                next(slot);
            }),
        }
    }
    Ok(banks)
}

/// The first error of several threads.
#[derive(Default)]
struct Failed(Mutex<Option<CacheError>>);

impl Failed {
    fn note(&self, result: Result<(), CacheError>) {
        if let Err(error) = result {
            self.0.lock().expect("nothing panics while it is held").get_or_insert(error);
        }
    }

    fn into_result(self) -> Result<(), CacheError> {
        match self.0.into_inner().expect("nothing panics while it is held") {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn next<T>(pieces: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    pieces.lock().expect("taking a piece does not panic").next()
}

impl Kept {
    fn sections(&self) -> Vec<Section> {
        let recipe = digest(&self.what.recipe());
        let parts = match &self.what {
            What::Leaf(_) => 1,
            What::Bank(_, bank) => bank.experts,
        };
        let of = |(name, weight): (String, Weight)| {
            slots(&weight).into_iter().map(move |(kind, slot)| Section {
                name: name.clone(),
                kind,
                layer: self.layer,
                format: weight.format.to_string(),
                rows: weight.rows,
                cols: weight.cols,
                recipe,
                bytes: slot.len,
                parts,
            })
        };
        self.what.weights().into_iter().flat_map(of).collect()
    }

    /// Makes it in memory of its own.
    fn make(&self, stock: &impl Stock, team: &Team) -> Result<(Arena, Vec<Slot<u8>>), StartError> {
        let mut layout = Layout::new(Arena::ACT_BYTES);
        let mut again = |w: &Weight| place(w.format, w.rows, w.cols, &mut layout);
        let what = match &self.what {
            What::Leaf(leaf) => {
                What::Leaf(Leaf { weight: again(&leaf.weight), source: leaf.source.clone() })
            }
            What::Bank(experts, bank) => {
                let (gate_up, down) = (again(&bank.gate_up), again(&bank.down));
                What::Bank(experts.clone(), Bank { gate_up, down, ..*bank })
            }
        };
        let mut arena = allocate(&layout, Path::new("/"))?;
        match &what {
            What::Leaf(leaf) => stock.fill(&mut arena, &leaf.source, &leaf.weight, team)?,
            What::Bank(experts, bank) => stock.fill_bank(&mut arena, experts, bank, team)?,
        }
        Ok((arena, what.slots()))
    }
}

impl What {
    /// Weights and their names, in the order of their places.
    fn weights(&self) -> Vec<(String, Weight)> {
        match self {
            What::Leaf(leaf) => vec![(name_of(&leaf.source), leaf.weight)],
            What::Bank(experts, bank) => vec![
                (format!("{}.gate_up", experts.prefix), bank.gate_up),
                (format!("{}.down", experts.prefix), bank.down),
            ],
        }
    }

    fn slots(&self) -> Vec<Slot<u8>> {
        let of = |(_, weight): (String, Weight)| slots(&weight).into_iter().map(|(_, slot)| slot);
        self.weights().into_iter().flat_map(of).collect()
    }

    /// How it is made of tensors.
    fn recipe(&self) -> String {
        match self {
            What::Leaf(leaf) => format!("{:?}", leaf.source),
            What::Bank(experts, _) => format!("{experts:?}"),
        }
    }
}

fn slots(weight: &Weight) -> Vec<(Kind, Slot<u8>)> {
    let all = [(Kind::Numbers, weight.data), (Kind::Scales, weight.scales.bytes())];
    all.into_iter().filter(|(_, slot)| !slot.is_empty()).collect()
}

/// A weight is called after the first tensor that it is made of.
fn name_of(source: &Source) -> String {
    match &source.origin {
        Origin::Rows(runs) => runs.first().map(|run| run.tensor.clone()).unwrap_or_default(),
        Origin::HeadsTransposed { tensor, .. } => tensor.clone(),
        Origin::Numbers(_) => "config.json".into(),
    }
}
