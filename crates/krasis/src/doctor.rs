//! `krasis doctor`: what this machine offers, and what is in the way.

use crate::bench::cpu_name;
use crate::exit::Failure;
use clap::Args;
use krasis_cpu::{Isa, affinity, memory};
use krasis_cuda::{CudaError, compile, driver};

/// Arguments of `krasis doctor`.
#[derive(Args)]
pub struct Doctor {
    /// End with exit code 6 if no GPU can be used
    #[arg(long)]
    gpu: bool,
}

impl Doctor {
    /// Looks at everything and says what it sees. A machine without a GPU is healthy.
    pub fn execute(self) -> Result<(), Failure> {
        let sets: Vec<&str> = Isa::all().into_iter().map(Isa::name).collect();
        println!("CPU: {}, {} cores, {}", cpu_name(), affinity::cores().len(), sets.join(", "));
        match memory::available() {
            Some(bytes) => println!("memory: {bytes} available"),
            None => println!("memory: the system does not say how much is available"),
        }
        match gpus() {
            Ok(()) => Ok(()),
            Err(error) if self.gpu => Err(Failure::new(Failure::GPU, error)),
            Err(error) => {
                println!("GPU: {error}");
                Ok(())
            }
        }
    }
}

/// A line per GPU and one for the compiler; an error if models cannot run there.
fn gpus() -> Result<(), CudaError> {
    let driver = driver::open()?;
    for gpu in driver::gpus()? {
        let (name, memory) = (&gpu.name, gpu.memory);
        println!(
            "GPU {}: {name}, {memory}, compute capability {}.{}",
            gpu.ordinal, gpu.major, gpu.minor
        );
    }
    println!("NVIDIA driver: CUDA {}.{}", driver / 1000, driver % 1000 / 10);
    driver::first()?;
    let (major, minor) = compile::version()?;
    println!("NVRTC: {major}.{minor}");
    Ok(())
}
