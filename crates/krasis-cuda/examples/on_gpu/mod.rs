//! A case of random inputs on the first GPU, and how long operations on it take.

use half::bf16;
use krasis_core::Slot;
use krasis_cuda::gpu::Checking;
use krasis_cuda::{Activation, Cuda, CudaError, Gpu, Machine, driver};
use krasis_ops::Memory;
use krasis_ops::testing::Case;
use std::time::Instant;

pub type Device = Cuda<bf16, Gpu>;

/// A device that holds a case.
pub fn device_with(case: &Case) -> Result<Device, CudaError> {
    let cache = std::env::temp_dir().join("krasis-test-kernels");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = driver::first()?;
    let mut gpu = Gpu::open::<bf16>(found, Some(&cache), threads, Checking::Reads)?;
    gpu.allocate(Device::arena_bytes(&case.layout))?;
    for upload in &case.uploads {
        if upload.acts {
            let numbers: &[f32] = bytemuck::cast_slice(&upload.bytes);
            let mut bytes = vec![0; 2 * numbers.len()];
            bf16::encode(numbers, &mut bytes);
            gpu.write(upload.start, &bytes);
        } else {
            gpu.write(upload.start, &upload.bytes);
        }
    }
    Ok(Device::new(&case.layout, gpu))
}

/// Seconds of a run, of so many; `mark` is anything of the device's.
pub fn timed(
    device: &mut Device,
    mark: Slot<u32>,
    runs: u32,
    run: &mut dyn FnMut(&mut Device),
) -> f64 {
    // A download waits for all that was launched.
    device.download(mark);
    let start = Instant::now();
    (0..runs).for_each(|_| run(device));
    device.download(mark);
    start.elapsed().as_secs_f64() / f64::from(runs)
}
