//! Gigabytes a second from pinned host memory to a GPU, of experts that lie scattered, as they do where the hot
//! ones stay and a layer's others come: piece by piece, an expert at a time, and a layer at once.

mod on_gpu;

use krasis_core::Slot;
use krasis_cpu::Arena;
use krasis_cuda::CudaError;
use krasis_ops::Memory;
use krasis_ops::testing::Case;
use on_gpu::{Device, device_with, timed};

/// Of a layer.
const EXPERTS: u64 = 128;

/// Bytes of an expert of Qwen3-30B-A3B in INT4: numbers and scales of gate and up, and of down.
const PARTS: [u64; 4] = [1_572_864, 49_152, 786_432, 24_576];

/// Runs of which the mean is printed, after one that pins the memory.
const RUNS: u32 = 20;

fn main() -> Result<(), CudaError> {
    let mut case = Case::new(1);
    let areas = PARTS.map(|bytes| case.layout.slot::<u8>(bytes * EXPERTS));
    let mark = case.layout.slot::<u32>(4);
    let host = Arena::new(&case.layout).expect("memory for a layer");
    let keep = host.keep();
    let mut device = device_with(&case)?;
    // Three of eight, as the cold ones come: alone, or two together.
    let cold = |expert: &u64| [1, 4, 5].contains(&(expert % 8));
    let part =
        |expert: u64, i: usize| Slot::<u8>::new(areas[i].start + expert * PARTS[i], PARTS[i]);
    let pieces: Vec<[Slot<u8>; 4]> =
        (0..EXPERTS).filter(cold).map(|expert| [0, 1, 2, 3].map(|i| part(expert, i))).collect();
    let bytes = pieces.iter().flatten().map(|piece| piece.len).sum::<u64>() as f64;
    let from = |piece: &Slot<u8>| (*piece, host.slice(*piece));
    let mut report = |name: &str, run: &mut dyn FnMut(&mut Device)| {
        timed(&mut device, mark, 1, run);
        let seconds = timed(&mut device, mark, RUNS, &mut |device| {
            run(device);
            device.brought();
        });
        println!("{name}: {:.1} GB/s", bytes / seconds / 1e9);
    };
    report("piece by piece", &mut |device| {
        pieces.iter().flatten().for_each(|piece| device.bring([from(piece)].into_iter(), &keep));
    });
    report("an expert at a time", &mut |device| {
        pieces.iter().for_each(|expert| device.bring(expert.iter().map(from), &keep));
    });
    report("a layer at once", &mut |device| {
        device.bring(pieces.iter().flatten().map(from), &keep);
    });
    Ok(())
}
