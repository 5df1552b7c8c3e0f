//! The GPUs part of `krasis doctor`: what the driver shows, and what is in the way of using it.

use krasis_cuda::driver::Found;
use krasis_cuda::{CudaError, compile, driver};
use serde_json::{Value, json};

/// The GPUs, their driver and their compiler, as far as there are any.
#[derive(Default)]
pub struct Gpus {
    found: Vec<Found>,
    /// Of the driver, as 1000 · major + 10 · minor.
    driver: Option<i32>,
    compiler: Option<(i32, i32)>,
    /// Why models cannot run there.
    pub error: Option<CudaError>,
}

impl Gpus {
    /// Asks the driver, which may be absent.
    pub fn look() -> Gpus {
        let mut gpus = Gpus::default();
        gpus.error = gpus.fill().err();
        gpus
    }

    fn fill(&mut self) -> Result<(), CudaError> {
        self.driver = Some(driver::open()?);
        self.found = driver::gpus()?;
        driver::first()?;
        self.compiler = Some(compile::version()?);
        Ok(())
    }

    /// A line per GPU, one for the driver and one for the compiler, or for what is missing.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let gpu = |gpu: &Found| {
            let Found { ordinal, name, major, minor, memory, .. } = gpu;
            ("GPU", format!("{ordinal}: {name}, {memory}, compute capability {major}.{minor}"))
        };
        let mut facts: Vec<_> = self.found.iter().map(gpu).collect();
        facts.extend(self.driver().map(|version| ("GPU driver", format!("CUDA {version}"))));
        facts.extend(self.nvrtc().map(|version| ("NVRTC", version)));
        facts.extend(self.error.as_ref().map(|error| ("GPU", error.to_string())));
        facts
    }

    fn driver(&self) -> Option<String> {
        self.driver.map(|driver| format!("{}.{}", driver / 1000, driver % 1000 / 10))
    }

    fn nvrtc(&self) -> Option<String> {
        self.compiler.map(|(major, minor)| format!("{major}.{minor}"))
    }

    /// The same as JSON; `error` is null where models can run.
    pub fn describe(&self) -> Value {
        let gpu = |gpu: &Found| {
            json!({"gpu": gpu.ordinal, "name": gpu.name, "memory": gpu.memory.0,
                   "compute_capability": [gpu.major, gpu.minor]})
        };
        json!({
            "found": self.found.iter().map(gpu).collect::<Vec<_>>(),
            "driver": self.driver(),
            "nvrtc": self.nvrtc(),
            "error": self.error.as_ref().map(ToString::to_string),
        })
    }
}
