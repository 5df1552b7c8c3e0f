//! The driver: whether it is there, and which GPUs it shows. Asking never panics.

use crate::compile;
use crate::error::CudaError;
use crate::machine::Limits;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute};
use krasis_core::Bytes;
use std::path::Path;

/// The oldest driver whose GPUs are used: that of CUDA 12.0.
pub const DRIVER_MIN: i32 = 12_000;

/// The oldest generation whose tensor cores multiply BF16: Ampere.
const CAPABILITY_MIN: i32 = 8;

/// A GPU, as people want to read of it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number, after CUDA_VISIBLE_DEVICES.
    pub ordinal: i32,
    /// As the driver calls it.
    pub name: String,
    /// Compute capability.
    pub major: i32,
    /// Of the same.
    pub minor: i32,
    /// All of its memory.
    pub memory: Bytes,
    /// What its kernels may take.
    pub limits: Limits,
    /// Cycles a second of its multiprocessors, where the driver says so.
    pub clock: Option<f64>,
    /// Bytes a second from its memory, likewise.
    pub read: Option<f64>,
    /// Bytes a second over its link to the host, if the system knows.
    pub link: Option<f64>,
}

impl Found {
    /// What kernels are compiled for.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.major, self.minor)
    }
}

/// Turns an answer of the driver into an error.
pub(crate) fn failed(what: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { what, answer: answer(error) }
}

/// An answer of the driver as text: `CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access …`.
pub(crate) fn answer(error: DriverError) -> String {
    let meaning = error.error_string().map(|text| text.to_string_lossy().into_owned());
    format!("{:?}, {}", error.0, meaning.unwrap_or_default())
}

/// Whether the driver says that a GPU is gone, or that its memory cannot be trusted, whatever it was asked for.
pub(crate) fn is_lost(DriverError(answer): DriverError) -> bool {
    use sys::CUresult::*;
    matches!(
        answer,
        CUDA_ERROR_DEVICE_UNAVAILABLE
            | CUDA_ERROR_NO_DEVICE
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_SYSTEM_NOT_READY
            | CUDA_ERROR_EXTERNAL_DEVICE
            // The answer for one that has fallen off the bus.
            | CUDA_ERROR_UNKNOWN
    )
}

/// Opens the driver; its version as 1000 · major + 10 · minor.
pub fn open() -> Result<i32, CudaError> {
    // SAFETY: loads a library and asks for nothing.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(CudaError::NoGpu),
        answer => answer.map_err(failed("start"))?,
    }
    let mut found = 0;
    // SAFETY: the number outlives the call.
    unsafe { sys::cuDriverGetVersion(&mut found) }.result().map_err(failed("tell its version"))?;
    match refusal("", (CAPABILITY_MIN, 0), found) {
        None => Ok(found),
        Some(error) => Err(error),
    }
}

/// Why models cannot run on a GPU of this capability under a driver of this version, if they cannot.
pub fn refusal(name: &str, (major, minor): (i32, i32), driver: i32) -> Option<CudaError> {
    if driver < DRIVER_MIN {
        return Some(CudaError::OldDriver { found: driver, needed: DRIVER_MIN });
    }
    (major < CAPABILITY_MIN).then(|| CudaError::OldGpu { name: name.into(), major, minor })
}

/// All GPUs that the driver shows, old ones too. At least one.
pub fn gpus() -> Result<Vec<Found>, CudaError> {
    open()?;
    let count = result::device::get_count().map_err(failed("count its GPUs"))?;
    let found = (0..count).map(describe).collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(CudaError::NoGpu) } else { Ok(found) }
}

/// The first GPU that is new enough.
pub fn first() -> Result<Found, CudaError> {
    Ok(choose(&[], 1)?.swap_remove(0))
}

/// GPUs to use: those of the given numbers, or the first that are new enough, `count` or as many as there
/// are. At least one.
pub fn choose(numbers: &[i32], count: usize) -> Result<Vec<Found>, CudaError> {
    let all = gpus()?;
    let refusal = |gpu: &Found| refusal(&gpu.name, (gpu.major, gpu.minor), DRIVER_MIN);
    let usable = |gpu: &Found| match refusal(gpu) {
        None => Ok(gpu.clone()),
        Some(error) => Err(error),
    };
    if numbers.is_empty() {
        let chosen: Vec<Found> = all.iter().flat_map(usable).take(count.max(1)).collect();
        return if chosen.is_empty() { Ok(vec![usable(&all[0])?]) } else { Ok(chosen) };
    }
    let named = |&number: &i32| match all.iter().find(|gpu| gpu.ordinal == number) {
        None => Err(CudaError::NoSuchGpu { number, found: all.len() }),
        Some(gpu) => usable(gpu),
    };
    numbers.iter().map(named).collect()
}

/// The same GPUs if models can run on them, each with what other processes leave of its memory. No kernel
/// is compiled or loaded for that.
pub fn usable(numbers: &[i32], count: usize) -> Result<Vec<(Found, Bytes)>, CudaError> {
    let chosen = choose(numbers, count)?;
    compile::suits(open()?)?;
    chosen.into_iter().map(|gpu| free_of(&gpu).map(|free| (gpu, free))).collect()
}

fn free_of(gpu: &Found) -> Result<Bytes, CudaError> {
    let what = failed("tell its free memory");
    let device = result::device::get(gpu.ordinal).map_err(&what)?;
    // SAFETY: the device was handed out by the driver; released below.
    let context = unsafe { result::primary_ctx::retain(device) }.map_err(&what)?;
    // SAFETY: just retained.
    let free = unsafe { result::ctx::set_current(context) }.and_then(|()| result::mem_get_info());
    // SAFETY: retained above, and nothing was made in it.
    unsafe { result::primary_ctx::release(device) }.map_err(&what)?;
    let (free, _) = free.map_err(&what)?;
    Ok(Bytes(free as u64))
}

fn describe(ordinal: i32) -> Result<Found, CudaError> {
    use CUdevice_attribute::*;
    let tell = failed("describe a GPU");
    let device = result::device::get(ordinal).map_err(&tell)?;
    // SAFETY: the device was handed out by the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(&tell);
    // Drivers may cease to tell these, and nothing but forecasts depends on them.
    let told = |which| attribute(which).ok().filter(|&number| number > 0).map(f64::from);
    let width = told(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
    let of_memory = told(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).zip(width);
    let place = [
        attribute(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID),
        attribute(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID),
        attribute(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID),
    ];
    Ok(Found {
        ordinal,
        name: result::device::get_name(device).map_err(&tell)?,
        major: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        // SAFETY: as above.
        memory: Bytes(unsafe { result::device::total_mem(device) }.map_err(&tell)? as u64),
        limits: Limits {
            processors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            shared_max: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32,
        },
        // Clocks are told in kHz, and memory moves bits twice a cycle.
        clock: told(CU_DEVICE_ATTRIBUTE_CLOCK_RATE).map(|khz| khz * 1e3),
        read: of_memory.map(|(khz, bits)| khz * 1e3 * 2.0 * bits / 8.0),
        link: match place {
            [Ok(domain), Ok(bus), Ok(device)] => {
                link(Path::new("/"), &format!("{domain:04x}:{bus:02x}:{device:02x}.0"))
            }
            _ => None,
        },
    })
}

/// Raw bytes a second of a PCI device's link at its best, by the system's files below `root`.
fn link(root: &Path, device: &str) -> Option<f64> {
    let folder = root.join("sys/bus/pci/devices").join(device);
    let first = |file| -> Option<f64> {
        let text = std::fs::read_to_string(folder.join(file)).ok()?;
        text.split_whitespace().next()?.parse().ok().filter(|&number| number > 0.0)
    };
    // Gigatransfers a second of each lane, a bit each; two bits of 130 are the line code's.
    let (speed, lanes) = (first("max_link_speed")?, first("max_link_width")?);
    Some(speed * 1e9 / 8.0 * lanes * 128.0 / 130.0)
}

#[cfg(test)]
mod tests {
    use super::{is_lost, link};
    use cudarc::driver::result::DriverError;
    use cudarc::driver::sys::CUresult::*;

    /// Faults of ours are no excuse.
    #[test]
    fn what_kernels_do_wrong_is_no_lost_gpu() {
        for (answer, lost) in [
            (CUDA_ERROR_DEVICE_UNAVAILABLE, true),
            (CUDA_ERROR_ECC_UNCORRECTABLE, true),
            (CUDA_ERROR_UNKNOWN, true),
            (CUDA_ERROR_ILLEGAL_ADDRESS, false),
            (CUDA_ERROR_LAUNCH_FAILED, false),
            (CUDA_ERROR_OUT_OF_MEMORY, false),
            (CUDA_ERROR_INVALID_VALUE, false),
        ] {
            assert_eq!(is_lost(DriverError(answer)), lost, "{answer:?}");
        }
    }

    #[test]
    fn a_link_is_as_fast_as_its_lanes() {
        let root = std::env::temp_dir().join(format!("krasis-link-{}", std::process::id()));
        let folder = root.join("sys/bus/pci/devices/0000:06:00.0");
        std::fs::create_dir_all(&folder).unwrap();
        let check = |speed: &str, width: &str, expected: Option<f64>| {
            std::fs::write(folder.join("max_link_speed"), speed).unwrap();
            std::fs::write(folder.join("max_link_width"), width).unwrap();
            let found = link(&root, "0000:06:00.0").map(|bytes| (bytes / 1e7).round() / 100.0);
            assert_eq!(found, expected, "{speed} {width}");
        };
        check("32.0 GT/s PCIe\n", "16\n", Some(63.02));
        check("16.0 GT/s PCIe\n", "8\n", Some(15.75));
        check("Unknown\n", "255\n", None);
        check("8.0 GT/s PCIe\n", "0\n", None);
        assert_eq!(link(&root, "0000:07:00.0"), None);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
