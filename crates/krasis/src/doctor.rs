//! `krasis doctor`: what the machine is, and what about it is wrong for a model.

use crate::exit::Failure;
use crate::gpus::Gpus;
use crate::options::ModelArguments;
use clap::Args;
use krasis_core::Bytes;
use krasis_cpu::nodes::Rates;
use krasis_engine::planner::{Host, Overflow, Site};
use krasis_engine::preflight::{Preflight, sentence, team};
use krasis_engine::{DeviceKind, Options, StartError, propose, propose_dummy};
use krasis_machine::{Finding, Level, Machine, Need, What, check};
use serde_json::{Value, json};

/// Arguments of `krasis doctor`.
#[derive(Args)]
pub struct Doctor {
    #[command(flatten)]
    model: ModelArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// End with exit code 6 if no GPU can be used
    #[arg(long)]
    gpu: bool,
}

impl Doctor {
    /// Prints machine and findings; fails with the code of what refuses. A machine without a GPU
    /// is healthy.
    pub fn execute(self) -> Result<(), Failure> {
        let options = self.model.options()?;
        let machine = Machine::read(&options.machine_root);
        let (need, short) = match self.need(&options) {
            Ok((need, overflow)) => (need, overflow.map(|it| (Level::Warn, it.to_string()))),
            // Half the answer: what the plan says instead of being one.
            Err(Failure { code, error }) if code == Failure::MEMORY.into() => {
                (bare(&options), Some((Level::Refuse, error.to_string())))
            }
            Err(failure) => return Err(failure),
        };
        let mut findings = check(&machine, &need);
        if let Some((level, sentence)) = short {
            findings.retain(|finding| finding.what != What::Memory);
            findings.insert(0, Finding { level, what: What::Memory, sentence });
        }
        let nodes = nodes(&machine, &options);
        let gpus = Gpus::look();
        if self.json {
            let all: Vec<Value> = findings.iter().map(finding).collect();
            let report = json!({"machine": describe(&machine), "gpus": gpus.describe(),
                                "need": needs(&need), "findings": all,
                                "node_reads": nodes.as_ref().map(node_reads)});
            println!("{report:#}");
        } else {
            print(&machine, &gpus, nodes.as_ref(), &findings);
        }
        if let Some(error) = gpus.error.filter(|_| self.gpu) {
            return Err(Failure::new(Failure::GPU, error));
        }
        match findings.into_iter().find(|finding| finding.level == Level::Refuse) {
            Some(finding) => Err(Failure::say(Failure::MEMORY, finding.sentence)),
            None => Ok(()),
        }
    }

    /// What the model takes, if one was named, and what of it stays on the disk.
    fn need(&self, options: &Options) -> Result<(Need, Option<Overflow>), Failure> {
        if self.model.model_path.is_some() && matches!(options.device, DeviceKind::Cuda(_)) {
            let message = "--device cuda: the doctor tells of the CPU only whether a model fits; leave \
                           --device out, or ask `krasis plan`";
            return Err(Failure::say(Failure::CONFIG, message));
        }
        let site = Site { card: None, others: Vec::new(), host: Host::read(options) };
        let need = |proposal: krasis_engine::Proposal| (proposal.need, proposal.overflow);
        let planned: Result<_, StartError> = match &self.model.model_path {
            None => Ok((bare(options), None)),
            Some(path) if path.is_file() => {
                propose_dummy(&self.model.config()?, options, &site).map(need)
            }
            Some(_) => propose(&self.model.folder()?, options, &site).map(need),
        };
        Ok(planned?)
    }
}

/// No model, but what was chosen about running one.
fn bare(options: &Options) -> Need {
    Need { threads: options.threads, numa: options.numa, ..Need::default() }
}

/// What is measured at start where there are several NUMA nodes.
fn nodes(machine: &Machine, options: &Options) -> Option<std::io::Result<Rates>> {
    machine.topology.interleaved()?;
    Preflight::new(machine.clone(), options).measure(&team(options))
}

/// The same in bytes per second, or why it cannot be measured.
fn node_reads(nodes: &std::io::Result<Rates>) -> Value {
    match nodes {
        Ok(rates) => json!({"in_turn": rates.in_turn, "own_first": rates.own_first,
                            "own_is_faster": rates.own_is_faster()}),
        Err(error) => json!({"error": error.to_string()}),
    }
}

fn print(
    machine: &Machine,
    gpus: &Gpus,
    nodes: Option<&std::io::Result<Rates>>,
    findings: &[Finding],
) {
    let nodes = nodes.map(|nodes| match nodes {
        Ok(rates) => ("node reads", sentence(rates)),
        Err(error) => ("node reads", format!("could not be measured: {error}")),
    });
    for (name, value) in facts(machine).into_iter().chain(nodes).chain(gpus.facts()) {
        println!("{name:<12} {value}");
    }
    println!();
    for Finding { level, what, sentence } in findings {
        println!("{:<7} {:<11} {sentence}", word(*level), what.name());
    }
}

/// The machine in a line each.
fn facts(machine: &Machine) -> Vec<(&'static str, String)> {
    let Machine { processor, topology, memory, huge_pages, clock, resident: _ } = machine;
    let size = |bytes: Option<Bytes>| bytes.map_or("?".into(), |bytes| bytes.to_string());
    let name = processor.name.as_deref().unwrap_or("?");
    let simd = processor.simd.as_ref().map_or("?".into(), |simd| simd.join(" "));
    let cores = format!(
        "{} physical for this process, {} of {} processors",
        topology.cores().len(),
        topology.threads(),
        topology.cpus.len()
    );
    let mut facts = vec![("processor", name.to_owned()), ("SIMD", simd), ("cores", cores)];
    for node in &topology.nodes {
        let forbidden = if node.allowed { "" } else { ", not for this process" };
        let value = format!(
            "{}: {} processors, {}, {} free, distances {:?}{forbidden}",
            node.number,
            node.cpus.len(),
            size(node.total),
            size(node.free),
            node.distances
        );
        facts.push(("node", value));
    }
    let available = format!("{}, {} available", size(memory.total), size(memory.available));
    facts.push(("memory", available));
    for limit in &memory.limits {
        let value = format!("{} may have {} and holds {}", limit.group, limit.limit, limit.used);
        facts.push(("group", value));
    }
    facts.push(("swap", format!("{}, {} in use", size(memory.swap_total), memory.swapped())));
    let mode = |mode: &Option<String>| mode.clone().unwrap_or("?".into());
    let mut pages = format!(
        "transparent {}, defrag {}",
        mode(&huge_pages.transparent),
        mode(&huge_pages.defrag)
    );
    for pool in &huge_pages.pools {
        pages += &format!(", {} of {} ({} free)", pool.pages, pool.page, pool.free);
    }
    facts.push(("huge pages", pages));
    let governors: Vec<String> =
        clock.governors.iter().map(|(name, cpus)| format!("{name} on {cpus}")).collect();
    let governors = if governors.is_empty() { "?".into() } else { governors.join(", ") };
    let turbo = match clock.no_turbo {
        Some(true) => "off",
        Some(false) => "on",
        None => "?",
    };
    facts.push(("clock", format!("governor {governors}, turbo {turbo}")));
    facts
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warn => "warn",
        Level::Refuse => "refuse",
    }
}

fn finding(finding: &Finding) -> Value {
    json!({
        "level": word(finding.level),
        "what": finding.what.name(),
        "sentence": finding.sentence,
    })
}

/// Sizes in bytes; null is unknown or, for a model that was not named, not planned.
fn needs(need: &Need) -> Value {
    if need.total() == Bytes(0) {
        return Value::Null;
    }
    json!({
        "total": need.total().0,
        "weights": need.weights.0,
        "buffers": need.buffers.0,
        "cache": need.cache.0,
    })
}

fn describe(machine: &Machine) -> Value {
    let Machine { processor, topology, memory, huge_pages, clock, resident } = machine;
    let size = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
    let cpus = topology.cpus.iter().map(|cpu| {
        json!({"cpu": cpu.number, "allowed": cpu.allowed, "siblings": cpu.siblings,
               "package": cpu.package, "node": cpu.node})
    });
    let nodes = topology.nodes.iter().map(|node| {
        json!({"node": node.number, "cpus": node.cpus, "total": size(node.total),
               "free": size(node.free), "allowed": node.allowed, "distances": node.distances})
    });
    let limits = memory
        .limits
        .iter()
        .map(|limit| json!({"group": limit.group, "limit": limit.limit.0, "used": limit.used.0}));
    let pools = huge_pages
        .pools
        .iter()
        .map(|pool| json!({"page": pool.page.0, "pages": pool.pages, "free": pool.free}));
    let cores: Vec<u32> = topology.cores().iter().map(|core| core.cpu).collect();
    json!({
        "processor": {"name": processor.name, "simd": processor.simd},
        "cpus": cpus.collect::<Vec<_>>(),
        "cores": cores,
        "nodes": nodes.collect::<Vec<_>>(),
        "interleaved": topology.interleaved(),
        "memory": {
            "total": size(memory.total),
            "available": size(memory.available),
            "available_within_limits": size(machine.available()),
            "swap_total": size(memory.swap_total),
            "swap_free": size(memory.swap_free),
            "limits": limits.collect::<Vec<_>>(),
        },
        "huge_pages": {
            "transparent": huge_pages.transparent,
            "defrag": huge_pages.defrag,
            "pools": pools.collect::<Vec<_>>(),
        },
        "clock": {"governors": clock.governors, "no_turbo": clock.no_turbo},
        "resident": {"all": size(resident.all), "peak": size(resident.peak)},
    })
}
