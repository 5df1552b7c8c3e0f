//! `Source` to `Weight`: decides each weight's format, plans its place, and fills it from the
//! checkpoint, one matrix at a time.

use crate::error::StartError;
use crate::options::{ExpertBits, Options, Quant};
use half::{bf16, f16};
use krasis_checkpoint::compressed_tensors::{self, Packed};
use krasis_checkpoint::quantize::quantize_row;
use krasis_checkpoint::{Checkpoint, Tensor};
use krasis_core::{Bytes, DType, Format, Layout, Slot, Weight};
use krasis_cpu::Team;
use krasis_model::{Class, Experts, Ffn, Layer, Model, Origin, Run, Source};
use krasis_ops::{Bank, Memory};
use std::sync::Mutex;

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

impl Stock for Checkpoint {
    fn dtype(&self, source: &Source) -> Result<DType, StartError> {
        Ok(RowSource::open(source, self)?.dtype())
    }

    fn expert(
        &self,
        experts: &Experts,
        proj: &str,
        rows: u32,
        cols: u32,
    ) -> Result<Stored, StartError> {
        Ok(match ExpertMatrix::open(experts, 0, proj, rows, cols, self)? {
            ExpertMatrix::Packed(packed) => Stored::Packed(packed.format()),
            ExpertMatrix::Float(rows) => Stored::Float(rows.dtype()),
        })
    }

    fn fill<D: Memory>(
        &self,
        device: &mut D,
        source: &Source,
        weight: &Weight,
        team: &Team,
    ) -> Result<(), StartError> {
        RowSource::open(source, self)?.fill(device, weight, team)
    }

    fn fill_bank<D: Memory>(
        &self,
        device: &mut D,
        experts: &Experts,
        bank: &Bank,
        team: &Team,
    ) -> Result<(), StartError> {
        fill_bank(device, experts, bank, self, team)
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

fn fill_bank<D: Memory>(
    device: &mut D,
    experts: &Experts,
    bank: &Bank,
    ck: &Checkpoint,
    team: &Team,
) -> Result<(), StartError> {
    for expert in 0..bank.experts {
        let parts = [
            ("gate_proj", bank.gate(expert)),
            ("up_proj", bank.up(expert)),
            ("down_proj", bank.down(expert)),
        ];
        for (proj, weight) in parts {
            match ExpertMatrix::open(experts, expert, proj, weight.rows, weight.cols, ck)? {
                ExpertMatrix::Float(rows) => rows.fill(device, &weight, team)?,
                ExpertMatrix::Packed(packed) => fill_packed(device, &packed, &weight, team)?,
            }
        }
    }
    Ok(())
}

/// One matrix of one expert in the checkpoint.
enum ExpertMatrix<'a> {
    Float(RowSource<'a>),
    Packed(Packed<'a>),
}

impl<'a> ExpertMatrix<'a> {
    fn open(
        experts: &Experts,
        expert: u32,
        proj: &str,
        rows: u32,
        cols: u32,
        ck: &'a Checkpoint,
    ) -> Result<ExpertMatrix<'a>, StartError> {
        let base = format!("{}.{expert}.{proj}", experts.prefix);
        if let Some(packed) = compressed_tensors::open(ck, &base)? {
            packed.expect_matrix(rows, cols)?;
            return Ok(ExpertMatrix::Packed(packed));
        }
        let source = Source::matrix(format!("{base}.weight"), rows, cols, Class::Exact);
        RowSource::open(&source, ck).map(ExpertMatrix::Float)
    }
}

fn fill_packed<D: Memory>(
    device: &mut D,
    packed: &Packed,
    weight: &Weight,
    team: &Team,
) -> Result<(), StartError> {
    let format = weight.format.row_format();
    let (cols, kept) = (weight.cols as usize, format == packed.format());
    encode(device, weight, team, |row, data, scales| {
        if kept {
            packed.row_into(row, data, scales);
            return Ok(());
        }
        let mut numbers = vec![0.0; cols];
        packed.dequantize_row(row, &mut numbers);
        encode_row(format, &numbers, data, scales)
    })
    .map_err(|row| StartError::NotFinite { tensor: "of packed experts".into(), row })
}

/// Reads the rows that a [`Source`] describes.
struct RowSource<'a> {
    parts: Vec<(Run, Tensor<'a>)>,
    origin: Origin,
    cols: usize,
    plus_one: bool,
}

impl<'a> RowSource<'a> {
    fn open(source: &Source, ck: &'a Checkpoint) -> Result<RowSource<'a>, StartError> {
        let vector = matches!(source.class, Class::Vector | Class::VectorPlusOne);
        let parts = match &source.origin {
            Origin::Numbers(_) => vec![],
            Origin::Rows(runs) => runs
                .iter()
                .map(|run| {
                    let tensor = ck.tensor(&run.tensor)?;
                    let (of, cols) = (u64::from(run.of), u64::from(source.cols));
                    match tensor.shape.len() {
                        _ if vector => tensor.expect_shape(&[of])?,
                        // Convolutions are stored as [channels, 1, kernel].
                        3 => tensor.expect_shape(&[of, 1, cols])?,
                        _ => tensor.expect_shape(&[of, cols])?,
                    }
                    Ok((run.clone(), tensor))
                })
                .collect::<Result<_, StartError>>()?,
            Origin::HeadsTransposed { tensor, heads, stride, .. } => {
                let tensor = ck.tensor(tensor)?;
                let of = heads * stride;
                tensor.expect_matrix(of, source.rows / heads)?;
                vec![(Run::whole(tensor.name, of), tensor)]
            }
        };
        let plus_one = source.class == Class::VectorPlusOne;
        Ok(RowSource { parts, origin: source.origin.clone(), cols: source.cols as usize, plus_one })
    }

    /// The stored type, or f32 if parts differ.
    fn dtype(&self) -> DType {
        let mut types = self.parts.iter().map(|(_, tensor)| tensor.dtype);
        let first = types.next().unwrap_or(DType::F32);
        if types.all(|dtype| dtype == first) { first } else { DType::F32 }
    }

    fn fill<D: Memory>(
        &self,
        device: &mut D,
        weight: &Weight,
        team: &Team,
    ) -> Result<(), StartError> {
        // Refuses a type that is no float before any row is read.
        for (_, tensor) in &self.parts {
            tensor.read_f32(0, &mut [])?;
        }
        encode(device, weight, team, |row, data, scales| {
            let mut numbers = vec![0.0; self.cols];
            self.read(row, &mut numbers);
            encode_row(weight.format.row_format(), &numbers, data, scales)
        })
        .map_err(|row| StartError::NotFinite { tensor: self.name(), row })
    }

    fn name(&self) -> String {
        self.parts.first().map_or("of the config", |(_, tensor)| tensor.name).to_string()
    }

    fn read(&self, row: u32, out: &mut [f32]) {
        let read = |tensor: &Tensor, first: usize, out: &mut [f32]| {
            tensor.read_f32(first, out).expect("types were checked before");
        };
        match &self.origin {
            Origin::Numbers(numbers) => out.copy_from_slice(numbers),
            Origin::HeadsTransposed { stride, first, .. } => {
                let (_, tensor) = &self.parts[0];
                let width = tensor.shape[1] as usize;
                let (head, col) = (row as usize / width, row as usize % width);
                for (i, out) in out.iter_mut().enumerate() {
                    let at = head * *stride as usize + *first as usize + i;
                    read(tensor, at * width + col, std::slice::from_mut(out));
                }
            }
            Origin::Rows(_) if self.parts[0].1.shape.len() == 1 => {
                // A vector: its runs are single numbers, side by side.
                let mut out = out.iter_mut();
                for (run, tensor) in &self.parts {
                    for (i, out) in (0..run.count).zip(&mut out) {
                        read(
                            tensor,
                            (run.first + i * run.step) as usize,
                            std::slice::from_mut(out),
                        );
                    }
                }
            }
            Origin::Rows(_) => {
                let mut row = row;
                for (run, tensor) in &self.parts {
                    if row < run.count {
                        let at = (run.first + row * run.step) as usize;
                        read(tensor, at * self.cols, out);
                        break;
                    }
                    row -= run.count;
                }
            }
        }
        if self.plus_one {
            out.iter_mut().for_each(|x| *x += 1.0);
        }
    }
}

/// A row that cannot be quantised.
struct NoNumber;

fn encode_row(
    format: Format,
    row: &[f32],
    data: &mut [u8],
    scales: &mut [bf16],
) -> Result<(), NoNumber> {
    match format {
        Format::Float(DType::F32) => copy_as(row, data, |x| x.to_le_bytes()),
        Format::Float(DType::F16) => copy_as(row, data, |x| f16::from_f32(x).to_le_bytes()),
        Format::Float(_) => copy_as(row, data, |x| bf16::from_f32(x).to_le_bytes()),
        Format::Int8 { .. } | Format::Int4 { .. } => {
            return quantize_row(row, format, data, scales).map_err(|_| NoNumber);
        }
        Format::Lines(lines) => unreachable!("rows are quantised before they become {lines}"),
    }
    Ok(())
}

fn copy_as<const N: usize>(row: &[f32], data: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    for (to, &x) in data.as_chunks_mut::<N>().0.iter_mut().zip(row) {
        *to = bytes(x);
    }
}

/// Builds a weight's rows on the team and uploads them; on failure says which row. `row` writes them
/// in [`Format::row_format`].
fn encode<D: Memory>(
    device: &mut D,
    weight: &Weight,
    team: &Team,
    row: impl Fn(u32, &mut [u8], &mut [bf16]) -> Result<(), NoNumber> + Sync,
) -> Result<(), u32> {
    let (format, cols, together) =
        (weight.format, weight.cols, weight.format.rows_together() as usize);
    let blocks = (weight.rows as usize).div_ceil(together);
    let bytes = format.row_bytes(cols) as usize * together;
    let scales = format.row_scales(cols) as usize * together;
    let mut all = vec![0u8; blocks * bytes];
    let mut all_scales = vec![bf16::ZERO; blocks * scales];
    let failed = Mutex::new(None);
    let check = |at: u32, result: Result<(), NoNumber>| {
        if result.is_err() {
            *failed.lock().expect("no row panics") = Some(at);
        }
    };
    team.each_row(&mut all, bytes, &mut all_scales, scales, |block, data, scales| {
        let first = (block * together) as u32;
        match format {
            Format::Lines(lines) => {
                let format = lines.as_rows();
                let mut integers = vec![0; format.row_bytes(cols) as usize];
                let mut groups = vec![bf16::ZERO; format.row_scales(cols) as usize];
                lines.clear_block(data, scales);
                for (line, at) in (first..weight.rows).take(together).enumerate() {
                    check(at, row(at, &mut integers, &mut groups));
                    lines.write_row(cols as usize, line, (&integers, &groups), data, scales);
                }
            }
            _ => check(first, row(first, data, scales)),
        }
    });
    if let Some(row) = failed.into_inner().expect("no row panics") {
        return Err(row);
    }
    device.upload(weight.data, &all);
    if scales > 0 {
        device.upload(weight.scales, &all_scales);
    }
    Ok(())
}
