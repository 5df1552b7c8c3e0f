//! Why a GPU cannot be used.

use krasis_core::Bytes;
use std::path::PathBuf;

/// Every message is a sentence that names what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// No libcuda.
    #[error(
        "no NVIDIA driver was found (libcuda.so.1): install it, or run on the CPU (--device cpu)"
    )]
    NoDriver,
    /// The driver is there, but no GPU.
    #[error(
        "the NVIDIA driver shows no GPU: see `nvidia-smi`, and CUDA_VISIBLE_DEVICES if it is set"
    )]
    NoGpu,
    /// A number that no GPU has.
    #[error(
        "there is no GPU {number}: the NVIDIA driver shows {found}, which are numbered from 0 (`krasis doctor` \
         lists them)"
    )]
    NoSuchGpu {
        /// Asked for.
        number: i32,
        /// How many there are.
        found: usize,
    },
    /// A driver of an older generation.
    #[error(
        "the NVIDIA driver supports CUDA {}.{} only, and Krasis needs {}.{}: update the driver",
        found / 1000, found % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    OldDriver {
        /// As the driver says it: 1000 · major + 10 · minor.
        found: i32,
        /// The same.
        needed: i32,
    },
    /// A GPU from before tensor cores for BF16.
    #[error(
        "{name} has compute capability {major}.{minor}, and Krasis needs 8.0 (Ampere) or newer"
    )]
    OldGpu {
        /// Its name.
        name: String,
        /// Of its architecture.
        major: i32,
        /// Of its architecture.
        minor: i32,
    },
    /// No compiler.
    #[error(
        "NVRTC was not found (libnvrtc.so.13), which compiles the GPU's kernels: install the CUDA 13 \
         runtime libraries, for instance `pip install nvidia-cuda-nvrtc`, and put their folder into \
         LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// The compiler is newer than the driver.
    #[error(
        "NVRTC {compiler} compiles for newer drivers than this one (CUDA {driver}): update the driver, \
         or install NVRTC {driver}"
    )]
    NewCompiler {
        /// Major version.
        compiler: i32,
        /// Major version.
        driver: i32,
    },
    /// A kernel that does not compile: ours, or a compiler that is too old for this GPU.
    #[error("NVRTC refused kernel {kernel} for {arch}: {log}")]
    Compile {
        /// Program and variant.
        kernel: String,
        /// Such as sm_90.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// The arena does not fit.
    #[error(
        "{gpu} has {free} free of the {wanted} that the model needs: lower --context-max or quantise more"
    )]
    OutOfMemory {
        /// Its name.
        gpu: String,
        /// What was asked for.
        wanted: Bytes,
        /// What there is.
        free: Bytes,
    },
    /// Anything else that the driver answers.
    #[error("the NVIDIA driver failed to {what}: {answer}")]
    Driver {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        answer: String,
    },
    /// A file of the kernel cache.
    #[error("the kernel cache {} cannot be written: {error}", path.display())]
    Cache {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl CudaError {
    /// The same, naming the GPU where nothing else does.
    pub fn of_gpu(self, number: i32) -> CudaError {
        match self {
            CudaError::Driver { what, answer } => {
                CudaError::Driver { what, answer: format!("{answer} (GPU {number})") }
            }
            other => other,
        }
    }
}

/// What a panic carries when a GPU is lost: nothing here is a fault of ours, so it is told to people as it
/// stands. Another process may do better.
#[derive(Debug, thiserror::Error)]
#[error(
    "{gpu} is lost: the NVIDIA driver answered {answer} to {what}. The system's log (`dmesg`, Xid) says why; \
     the next start may have it back (krasis serve --supervise makes one), if not `nvidia-smi --gpu-reset`"
)]
pub struct Lost {
    /// Its name.
    pub gpu: String,
    /// What it was asked for.
    pub what: String,
    /// The driver's answer.
    pub answer: String,
}

impl Lost {
    /// Ends the thread with it: nothing that it had on the GPU is left.
    pub fn raise(self) -> ! {
        std::panic::panic_any(self)
    }
}
