//! Rows of numbers to the bytes of a format, on the team.

use half::{bf16, f16};
use krasis_checkpoint::quantize::quantize_row;
use krasis_core::{DType, Format, Weight};
use krasis_cpu::Team;
use krasis_ops::Memory;
use std::sync::Mutex;

/// A row that cannot be quantised.
pub(super) struct NoNumber;

pub(super) fn encode_row(
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
pub(super) fn encode<D: Memory>(
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
