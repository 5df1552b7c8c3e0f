//! Which device a model runs on where none is named. Planning and loading ask the same function.

use crate::exit::Failure;
use crate::machine::Described;
use crate::options::{DeviceChoice, ModelArguments};
use crate::target::Target;
use krasis_core::KvDtype;
use krasis_cuda::CudaError;
use krasis_engine::{DeviceKind, Options, Site, StartError, device};

/// The options of a command, and the machine as far as it was looked at.
pub struct Decided {
    pub options: Options,
    /// The machine with its GPU, or one that was described.
    pub site: Option<Site>,
}

impl ModelArguments {
    /// Options for the device that was named; without a name for the GPU, if there is one that can be
    /// used and the model fits, or else for the CPU, with a sentence that says why. `change` is what a
    /// command wants of its options besides, `described` a machine that is not at hand.
    pub fn decide(
        &self,
        target: &Target,
        described: Option<Described>,
        change: &dyn Fn(&mut Options),
    ) -> Result<Decided, Failure> {
        let on = |device| -> Result<Options, Failure> {
            let mut options = self.options_on(device)?;
            change(&mut options);
            Ok(options)
        };
        let (described, refusal) = described.map(|of| (of.site, of.refusal)).unzip();
        let refusal = refusal.flatten();
        let (alone, is_described) = (described.clone().map(without_gpus), described.is_some());
        if self.device != DeviceChoice::Auto {
            let options = on(self.device)?;
            let on_gpu = matches!(options.device, DeviceKind::Cuda(_));
            if on_gpu && options.kv == Some(KvDtype::F16) {
                return Err(StartError::GpuKv.into());
            }
            return match (on_gpu, described, refusal) {
                (true, _, Some(error)) => Err(Failure::new(Failure::GPU, error)),
                (true, Some(Site { card: None, .. }), _) => {
                    let message = "--machine: there is no GPU there: leave --device out";
                    Err(Failure::say(Failure::GPU, message))
                }
                (true, site, _) => {
                    named_are_there(&options, site.as_ref())?;
                    Ok(Decided { options, site })
                }
                (false, ..) => Ok(Decided { options, site: alone }),
            };
        }
        let on_cpu = |why: Option<String>| {
            let options = on(DeviceChoice::Auto)?;
            if let Some(why) = why {
                eprintln!("krasis: the CPU is used, because {why}");
            }
            Ok(Decided { options, site: alone.clone() })
        };
        if self.wants_no_gpu() {
            return on_cpu(None);
        }
        let found = match (described, refusal) {
            (_, Some(error)) => Err(error.into()),
            (Some(site), _) if site.card.is_none() => Err(CudaError::NoGpu.into()),
            (Some(site), _) => Ok(site),
            (None, None) => device::with_gpu(&on(DeviceChoice::Cuda)?),
        };
        let site = match found {
            Ok(site) => site,
            // Nobody misses what is not there.
            Err(StartError::Gpu(CudaError::NoDriver | CudaError::NoGpu)) => return on_cpu(None),
            Err(error) if self.is_about_a_gpu() => return Err(error.into()),
            Err(error) => return on_cpu(Some(error.to_string())),
        };
        let options = on(DeviceChoice::Cuda)?;
        if is_described {
            named_are_there(&options, Some(&site))?;
        }
        let proposed = match options.kv {
            Some(KvDtype::F16) => Err(StartError::GpuKv),
            _ => target.propose(&options, &site),
        };
        match proposed {
            Ok(_) => Ok(Decided { options, site: Some(site) }),
            Err(error) if self.is_about_a_gpu() => Err(error.into()),
            Err(
                error @ (StartError::Shortfall { .. }
                | StartError::Refused { .. }
                | StartError::GpuKv),
            ) => {
                let here = without_gpus(site.clone());
                // If nobody has room, what the GPU lacks is nearest to what would do.
                match target.propose(&on(DeviceChoice::Auto)?, &here) {
                    Ok(_) => on_cpu(Some(format!("{} is not enough: {error}", name(&site)))),
                    Err(_) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn name(site: &Site) -> &str {
    site.card.as_ref().map_or("the GPU", |card| &card.name)
}

fn without_gpus(site: Site) -> Site {
    Site { card: None, others: Vec::new(), ..site }
}

/// Refuses numbers of GPUs that a described machine does not have; of this one, the driver says it.
fn named_are_there(options: &Options, site: Option<&Site>) -> Result<(), Failure> {
    let Some(site) = site else { return Ok(()) };
    let found = 1 + site.others.len();
    match options.ranks.gpus.iter().find(|&&number| number as usize >= found) {
        Some(&number) => Err(Failure::new(Failure::GPU, CudaError::NoSuchGpu { number, found })),
        None => Ok(()),
    }
}
