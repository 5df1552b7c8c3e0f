//! `Source` to `Weight`: decides each weight's format, plans its place, and has it filled, one
//! matrix at a time.

mod checkpoint;
mod encode;

use crate::error::StartError;
use crate::options::{ExpertBits, Options, Quant};
use krasis_core::{Bytes, DType, Format, Layout, Slot, Weight};
use krasis_cpu::Team;
use krasis_model::{Class, Experts, Ffn, Layer, Model, Origin, Source};
use krasis_ops::{Bank, Memory};

/// A weight on its way: where it comes from and where it goes.
#[derive(Clone, Debug)]
pub struct Leaf {
    source: Source,
    weight: Weight,
}

/// A model whose weights have their places.
pub struct Placed {
    model: Model<Leaf>,
    /// The routed experts of each layer; none for dense layers.
    pub banks: Vec<Option<Bank>>,
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
}

/// How a checkpoint stores its routed experts.
pub enum Stored {
    /// As numbers.
    Float(DType),
    /// Quantised already.
    Packed(Format),
}

impl Placed {
    /// Decides formats and lays out all weights.
    pub fn plan(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        layout: &mut Layout,
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
        let bank = |layer: &Layer<Source>| match &layer.ffn {
            Ffn::Dense(_) => Ok(None),
            Ffn::Moe(moe) => {
                place_bank(&moe.experts, model.hidden, stock, options, layout).map(Some)
            }
        };
        let banks = model.layers.iter().map(bank).collect::<Result<_, _>>()?;
        Ok(Placed { model: placed, banks })
    }

    /// Fills the device's memory, `team` helping, and hands the model over.
    pub fn fill<D: Memory>(
        &self,
        device: &mut D,
        stock: &impl Stock,
        team: &Team,
    ) -> Result<Model<Weight>, StartError> {
        let model = self.model.try_map(|leaf| {
            stock.fill(device, &leaf.source, &leaf.weight, team)?;
            Ok::<_, StartError>(leaf.weight)
        })?;
        for (layer, bank) in model.layers.iter().zip(&self.banks) {
            if let (Ffn::Moe(moe), Some(bank)) = (&layer.ffn, bank) {
                stock.fill_bank(device, &moe.experts, bank, team)?;
            }
        }
        Ok(model)
    }

    /// Bytes of weights that one decoded token reads: all but the embedding, and of each layer's
    /// experts those that it is routed to.
    pub fn decode_bytes(&self) -> Bytes {
        let of = |w: &Weight| w.format.bytes(w.rows, w.cols);
        let mut all = Vec::new();
        let walked = self.model.try_map(|leaf| {
            if leaf.source.class != Class::Embedding {
                all.push(of(&leaf.weight));
            }
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(_) = walked;
        let experts = self.model.layers.iter().zip(&self.banks).filter_map(|(layer, bank)| {
            let (Ffn::Moe(moe), Some(bank)) = (&layer.ffn, bank) else { return None };
            let bytes = of(&bank.gate_up) + of(&bank.down);
            Some(Bytes(bytes.0 * u64::from(moe.routing.top_k) / u64::from(bank.experts)))
        });
        experts.chain(all.iter().copied()).sum()
    }
}

fn place(format: Format, rows: u32, cols: u32, layout: &mut Layout) -> Weight {
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
        Class::DenseMlp => options.dense_mlp,
        Class::SharedExpert => options.shared_expert,
        Class::Head => options.lm_head,
    };
    match quant {
        // Weight-only: attention's activations have outliers that INT8 would not forgive.
        Quant::Int8 => Ok(Format::Int8 { group: options.group }),
        Quant::Int4 => Ok(Format::Int4 { group: options.group }.in_lines()),
        Quant::AsStored => Ok(Format::Float(stock.dtype(source)?)),
    }
}

/// INT4 and INT8 that were asked for lie in lines, whose kernels round activations to INT8. What a
/// checkpoint has packed itself stays exact until then.
fn expert_format(stored: Stored, options: &Options) -> Format {
    let group = options.group;
    match (options.expert_bits, stored) {
        (ExpertBits::AsStored, Stored::Float(dtype)) => Format::Float(dtype),
        (ExpertBits::AsStored, Stored::Packed(format)) => format,
        (ExpertBits::Int4, Stored::Packed(format)) => format.in_lines(),
        (ExpertBits::Int4, Stored::Float(_)) => Format::Int4 { group }.in_lines(),
        (ExpertBits::Int8, _) => Format::Int8 { group }.in_lines(),
    }
}

fn place_bank(
    experts: &Experts,
    hidden: u32,
    stock: &impl Stock,
    options: &Options,
    layout: &mut Layout,
) -> Result<Bank, StartError> {
    let gate_up =
        expert_format(stock.expert(experts, "gate_proj", experts.inter, hidden)?, options);
    let down = expert_format(stock.expert(experts, "down_proj", hidden, experts.inter)?, options);
    Ok(Bank {
        gate_up: place(
            gate_up,
            experts.count * 2 * Bank::rows_of(gate_up, experts.inter),
            hidden,
            layout,
        ),
        down: place(down, experts.count * Bank::rows_of(down, hidden), experts.inter, layout),
        experts: experts.count,
        inter: experts.inter,
    })
}
