//! `Source` to `Weight`: decides each weight's format, plans its place, and has it filled: one matrix
//! at a time from the checkpoint, or at once from the cache of those that were quantised before.

mod checkpoint;
mod encode;
mod kept;
mod peak;
mod shelf;
mod watch;

pub use peak::{Peak, PeakMeter};
pub use shelf::{Built, Shelf, cache_folders, cache_places};
pub use watch::{Phase, Progress, Unwatched, Watch};

use crate::error::StartError;
use crate::experts::Volume;
use crate::options::{DeviceKind, ExpertBits, Options, Quant};
use kept::Part;
use krasis_checkpoint::cache::CacheFile;
use krasis_core::{Bytes, DType, Format, Layout, Slot, Weight};
use krasis_cpu::{Arena, Team};
use krasis_model::{Class, Experts, Ffn, Model, Origin, Source};
use krasis_ops::{Bank, Memory};
use std::convert::Infallible;
use std::sync::Arc;

/// A weight on its way: where it comes from and where it goes.
#[derive(Clone, Debug)]
pub struct Leaf {
    source: Source,
    weight: Weight,
}

/// A model, or consecutive layers of one, whose weights have their places.
pub struct Placed {
    model: Model<Leaf>,
    /// Layers of the whole model before these.
    pub before: usize,
    /// The routed experts of each layer; none for dense layers.
    pub banks: Vec<Option<Bank>>,
    /// Whether banks are left in the cache, in which their places are; else they are loaded.
    pub banks_stay: bool,
    /// Whether a layer's experts are stored in other formats than they will lie in.
    converted: Vec<bool>,
}

/// Where weights come from: a checkpoint, or nowhere ([`crate::dummy`]).
pub trait Stock {
    /// The type in which a weight is stored, before any quantisation.
    fn dtype(&self, source: &Source) -> Result<DType, StartError>;
    /// How a layer's experts are stored, judged by one matrix of the first.
    fn expert(
        &self,
        experts: &Experts,
        proj: &str,
        rows: u32,
        cols: u32,
    ) -> Result<Stored, StartError>;
    /// Fills the place of a weight.
    fn fill<D: Memory>(
        &self,
        device: &mut D,
        source: &Source,
        weight: &Weight,
        team: &Team,
    ) -> Result<(), StartError>;
    /// Fills a layer's routed experts.
    fn fill_bank<D: Memory>(
        &self,
        device: &mut D,
        experts: &Experts,
        bank: &Bank,
        team: &Team,
    ) -> Result<(), StartError>;
    /// Says which weights these are, if others could be taken for them.
    fn fingerprint(&self) -> Result<Option<u64>, StartError> {
        Ok(None)
    }
    /// Bytes a second that the disk gives on which it lies; nothing where that cannot be told.
    fn disk_rate(&self) -> Option<f64> {
        None
    }
    /// Where what is quantised of it may be kept for the next start; nothing if nowhere.
    fn shelf(&self, placed: &Placed, options: &Options) -> Result<Option<Shelf>, StartError> {
        let _ = (placed, options);
        Ok(None)
    }
}

/// How a checkpoint stores its routed experts.
pub enum Stored {
    /// As numbers.
    Float(DType),
    /// Quantised already.
    Packed(Format),
}

impl Stored {
    /// The same as a format of weights.
    fn format(&self) -> Format {
        match *self {
            Stored::Float(dtype) => Format::Float(dtype),
            Stored::Packed(format) => format,
        }
    }
}

impl Leaf {
    /// Whether it is worth keeping: no checkpoint stores these formats.
    fn is_kept(&self) -> bool {
        !matches!(self.weight.format, Format::Float(_))
    }
}

impl Placed {
    /// Decides formats and lays out all weights, routed experts in `host` if there is one.
    pub fn plan(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        layout: &mut Layout,
        host: Option<&mut Layout>,
    ) -> Result<Placed, StartError> {
        // An output matrix that is the embedding is kept once, unless their formats differ.
        let mut embedding: Option<(Origin, Weight)> = None;
        let placed = model.try_map(|source| {
            let format = format_of(source, stock, options)?;
            let weight = match &embedding {
                Some((origin, weight)) if *origin == source.origin && weight.format == format => {
                    *weight
                }
                _ => place(format, source.rows, source.cols, layout),
            };
            if source.class == Class::Embedding {
                embedding = Some((source.origin.clone(), weight));
            }
            Ok::<_, StartError>(Leaf { source: source.clone(), weight })
        })?;
        let (mut banks, mut converted) = (Vec::new(), Vec::new());
        let layout = host.unwrap_or(layout);
        for layer in &model.layers {
            let Ffn::Moe(moe) = &layer.ffn else {
                banks.push(None);
                converted.push(false);
                continue;
            };
            let stored = stored_experts(&moe.experts, model.hidden, stock)?;
            let bank = place_bank(&moe.experts, model.hidden, &stored, options, layout);
            let formats = [bank.gate_up.format, bank.down.format];
            converted.push(stored.map(|stored| stored.format()) != formats);
            banks.push(Some(bank));
        }
        Ok(Placed { model: placed, before: 0, banks, converted, banks_stay: false })
    }

    /// Leaves all routed experts in the cache, those as well that lie there as they are stored.
    pub fn leave_banks(self) -> Placed {
        let converted = vec![true; self.converted.len()];
        Placed { converted, banks_stay: true, ..self }
    }

    /// Where in the cache the experts are that were left there.
    pub fn volume(&self, file: &Arc<CacheFile>) -> Result<Volume, StartError> {
        let sections = kept::banks(self, file)?;
        let bank = self.banks.iter().flatten().next().ok_or(StartError::NoExperts)?;
        Ok(Volume::new(file.clone(), sections, bank))
    }

    /// Fills the device's memory, and `host` with banks that lie there, `team` helping, and hands the
    /// model over: what was kept from `cache` if there is one, everything else from `stock`.
    pub fn fill<D: Memory>(
        &self,
        device: &mut D,
        mut host: Option<&mut Arena>,
        stock: &impl Stock,
        cache: Option<&CacheFile>,
        team: &Team,
        progress: &Progress<'_>,
    ) -> Result<Model<Weight>, StartError> {
        let read = |bytes| progress.more(bytes);
        let model = self.model.try_map(|leaf| {
            // What other parts of the model have is empty here.
            let here = bytes_of(&leaf.weight) > Bytes(0);
            if here && !self.is_shared(leaf) && (cache.is_none() || !leaf.is_kept()) {
                stock.fill(device, &leaf.source, &leaf.weight, team)?;
                read(bytes_of(&leaf.weight).0);
            }
            Ok::<_, StartError>(leaf.weight)
        })?;
        for (layer, converted) in self.experts().zip(&self.converted) {
            if let Some((experts, bank)) = layer
                && !(*converted && cache.is_some())
            {
                assert!(!self.banks_stay, "experts that stay in a cache have none to stay in");
                match &mut host {
                    Some(host) => stock.fill_bank(*host, experts, bank, team)?,
                    None => stock.fill_bank(device, experts, bank, team)?,
                }
                read((bytes_of(&bank.gate_up) + bytes_of(&bank.down)).0);
            }
        }
        if let Some(cache) = cache {
            match host {
                Some(host) => {
                    kept::read(self, cache, device, team, Part::Others, read)?;
                    kept::read(self, cache, host, team, Part::Banks, read)?;
                }
                None if self.banks_stay => {
                    kept::read(self, cache, device, team, Part::Others, read)?;
                }
                None => kept::read(self, cache, device, team, Part::All, read)?,
            }
        }
        Ok(model)
    }

    /// The routed experts of each layer, and where they go.
    fn experts(&self) -> impl Iterator<Item = Option<(&Experts, &Bank)>> {
        self.model.layers.iter().zip(&self.banks).map(|(layer, bank)| match (&layer.ffn, bank) {
            (Ffn::Moe(moe), Some(bank)) => Some((&moe.experts, bank)),
            _ => None,
        })
    }

    /// Whether a weight is the embedding once more.
    fn is_shared(&self, leaf: &Leaf) -> bool {
        leaf.source.class != Class::Embedding && leaf.weight == self.model.embed.weight
    }

    /// Shows every weight but the routed experts, each once.
    pub fn each_weight(&self, mut see: impl FnMut(Class, &Weight)) {
        let Ok(_) = self.model.try_map(|leaf| {
            see(leaf.source.class, &leaf.weight);
            Ok::<_, Infallible>(())
        });
    }

    /// Bytes of all weights that are loaded.
    pub fn bytes(&self) -> Bytes {
        let mut all = Bytes(0);
        let Ok(_) = self.model.try_map(|leaf| {
            if !self.is_shared(leaf) {
                all += bytes_of(&leaf.weight);
            }
            Ok::<_, Infallible>(())
        });
        let banks = self.banks.iter().flatten().filter(|_| !self.banks_stay);
        all + banks.map(|bank| bytes_of(&bank.gate_up) + bytes_of(&bank.down)).sum()
    }

    /// The model as it will run.
    pub fn weights(&self) -> Model<Weight> {
        let Ok(model) = self.model.try_map(|leaf| Ok::<_, Infallible>(leaf.weight));
        model
    }

    /// Bytes of weights that one decoded token reads: all but the embedding, and of each layer's
    /// experts those that it is routed to.
    pub fn decode_bytes(&self) -> Bytes {
        let mut all = Vec::new();
        let Ok(_) = self.model.try_map(|leaf| {
            if leaf.source.class != Class::Embedding {
                all.push(bytes_of(&leaf.weight));
            }
            Ok::<_, Infallible>(())
        });
        let experts = self.model.layers.iter().zip(&self.banks).filter_map(|(layer, bank)| {
            let (Ffn::Moe(moe), Some(bank)) = (&layer.ffn, bank) else { return None };
            let bytes = bytes_of(&bank.gate_up) + bytes_of(&bank.down);
            Some(Bytes(bytes.0 * u64::from(moe.routing.top_k) / u64::from(bank.experts)))
        });
        experts.chain(all.iter().copied()).sum()
    }
}

pub(crate) fn bytes_of(w: &Weight) -> Bytes {
    w.format.bytes(w.rows, w.cols)
}

pub(crate) fn place(format: Format, rows: u32, cols: u32, layout: &mut Layout) -> Weight {
    let stored = u64::from(rows.next_multiple_of(format.rows_together()));
    let scales = stored * u64::from(format.row_scales(cols));
    Weight {
        format,
        rows,
        cols,
        data: layout.slot(stored * format.row_bytes(cols)),
        scales: if scales == 0 { Slot::EMPTY } else { layout.slot(scales) },
    }
}

fn format_of(source: &Source, stock: &impl Stock, options: &Options) -> Result<Format, StartError> {
    let quant = match source.class {
        Class::Vector | Class::VectorPlusOne => return Ok(Format::Float(DType::F32)),
        Class::Embedding | Class::Exact => Quant::AsStored,
        Class::Attention => options.attention,
        Class::Absorbed => absorbed(options),
        Class::DenseMlp => options.dense_mlp,
        Class::SharedExpert => options.shared_expert,
        Class::Head => options.lm_head,
    };
    match quant {
        Quant::Int8 => Ok(Format::Int8 { group: options.group }.in_lines()),
        Quant::Int4 => Ok(Format::Int4 { group: options.group }.in_lines()),
        Quant::AsStored => Ok(Format::Float(stock.dtype(source)?)),
    }
}

/// Absorbed projections of a model whose attention is quantised: INT8 on the CPU, which makes them 5 % of
/// what a token of DeepSeek-V2-Lite reads, so that INT4 would gain little more. On a GPU they stay as they
/// are stored: by its bandwidth they are a hundredth of a token's time even so.
fn absorbed(options: &Options) -> Quant {
    match (options.attention, options.device) {
        (Quant::AsStored, _) | (_, DeviceKind::Cuda(_)) => Quant::AsStored,
        (Quant::Int8 | Quant::Int4, DeviceKind::Cpu | DeviceKind::Reference) => Quant::Int8,
    }
}

/// INT4 and INT8 that were asked for lie in lines, whose kernels round activations to INT8. What a
/// checkpoint has packed itself stays exact until then.
fn expert_format(stored: &Stored, options: &Options) -> Format {
    let group = options.group;
    match (options.expert_bits, stored) {
        (ExpertBits::AsStored, stored) => stored.format(),
        (ExpertBits::Int4, Stored::Packed(format)) => format.in_lines(),
        (ExpertBits::Int4, Stored::Float(_)) => Format::Int4 { group }.in_lines(),
        (ExpertBits::Int8, _) => Format::Int8 { group }.in_lines(),
    }
}

/// How a layer's experts are stored: gate and up, and down.
fn stored_experts(
    experts: &Experts,
    hidden: u32,
    stock: &impl Stock,
) -> Result<[Stored; 2], StartError> {
    Ok([
        stock.expert(experts, "gate_proj", experts.inter, hidden)?,
        stock.expert(experts, "down_proj", hidden, experts.inter)?,
    ])
}

fn place_bank(
    experts: &Experts,
    hidden: u32,
    stored: &[Stored; 2],
    options: &Options,
    layout: &mut Layout,
) -> Bank {
    let [gate_up, down] = stored.each_ref().map(|stored| expert_format(stored, options));
    Bank {
        gate_up: place(
            gate_up,
            experts.count * 2 * Bank::rows_of(gate_up, experts.inter),
            hidden,
            layout,
        ),
        down: place(down, experts.count * Bank::rows_of(down, hidden), experts.inter, layout),
        experts: experts.count,
        inter: experts.inter,
    }
}
