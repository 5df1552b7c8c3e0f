//! Weights of a checkpoint: reads the rows that a [`Source`] describes, or packed experts.

use super::encode::{encode, encode_row};
use super::{Placed, Shelf, Stock, Stored};
use crate::error::StartError;
use crate::options::Options;
use krasis_checkpoint::compressed_tensors::{self, Packed};
use krasis_checkpoint::{Checkpoint, Tensor};
use krasis_core::{DType, Weight};
use krasis_cpu::Team;
use krasis_model::{Class, Experts, Origin, Run, Source};
use krasis_ops::{Bank, Memory};

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
        let source = RowSource::open(source, self)?;
        source.fill(device, weight, team)?;
        source.parts.iter().for_each(|(_, tensor)| self.release(tensor.name));
        Ok(())
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

    fn fingerprint(&self) -> Result<Option<u64>, StartError> {
        Ok(Some(Checkpoint::fingerprint(self)?))
    }

    fn disk_rate(&self) -> Option<f64> {
        krasis_checkpoint::cache::rate(self.largest_file()?)
    }

    fn shelf(&self, placed: &Placed, options: &Options) -> Result<Option<Shelf>, StartError> {
        Shelf::of(placed, self, options)
    }
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
                ExpertMatrix::Float(rows) => {
                    rows.fill(device, &weight, team)?;
                    rows.parts.iter().for_each(|(_, tensor)| ck.release(tensor.name));
                }
                ExpertMatrix::Packed(packed) => {
                    fill_packed(device, &packed, &weight, team)?;
                    packed.tensors().into_iter().for_each(|name| ck.release(name));
                }
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
