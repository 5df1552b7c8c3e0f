//! `krasis plan`: what a model would take of a machine, how it would run there, and how fast.

use crate::decide::Decided;
use crate::exit::Failure;
use crate::machine;
use crate::options::ModelArguments;
use crate::overrides;
use crate::target::Target;
use clap::Args;
use krasis_core::Bytes;
use krasis_engine::planner::{Rule, Site, Time};
use krasis_engine::{Options, PrefillStrategy, Proposal, device};
use krasis_machine::Numa;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Arguments of `krasis plan`.
#[derive(Args)]
pub struct Plan {
    #[command(flatten)]
    model: ModelArguments,
    /// A machine described in JSON, in place of this one (fixtures/machines has examples)
    #[arg(long, value_name = "FILE")]
    machine: Option<PathBuf>,
    /// Changes a field of a config before it is planned for, as in num_hidden_layers=12
    #[arg(long, value_name = "FIELD=JSON", value_parser = overrides::field)]
    config_override: Vec<(String, Value)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Without the summary
    #[arg(long)]
    quiet: bool,
}

impl Plan {
    /// Prints the summary to stderr, and JSON to stdout if it is asked for.
    pub fn execute(self) -> Result<(), Failure> {
        let target = self.target()?;
        let described = self.machine.as_deref().map(machine::read).transpose()?;
        let Decided { options, site } = self.model.decide(&target, described, &|_| {})?;
        // Of this machine, more is known once its GPU is open and its speeds are measured.
        let site = match site {
            Some(site) if self.machine.is_some() => site,
            _ => device::site(&options)?,
        };
        let proposal = target.propose(&options, &site)?;
        if !self.quiet {
            summary(&proposal, &site);
        }
        if self.json {
            println!("{:#}", describe(&proposal, &options, &site));
        }
        Ok(())
    }

    /// A folder is planned for as its weights are stored, a `config.json` alone as if in BF16.
    fn target(&self) -> Result<Target, Failure> {
        let alone = match &self.model.model_path {
            Some(path) if path.is_file() => true,
            Some(path) => path.is_dir() && !has_weights(path),
            None => false,
        };
        if alone || !self.config_override.is_empty() {
            return Target::shapes(&self.model, &self.config_override, None);
        }
        Ok(Target::Folder(self.model.folder()?))
    }
}

fn has_weights(folder: &std::path::Path) -> bool {
    let mut files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.any(|file| file.path().extension().is_some_and(|end| end == "safetensors"))
}

fn summary(p: &Proposal, site: &Site) {
    for line in lines(p, site) {
        eprintln!("{line}");
    }
}

/// The plan in words.
fn lines(p: &Proposal, site: &Site) -> Vec<String> {
    let parts = |regions: &[(&str, Bytes)]| {
        let parts: Vec<String> =
            regions.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect();
        parts.join(", ")
    };
    let mut lines = Vec::new();
    let place = match &site.card {
        Some(card) => card.name.clone(),
        None => "host memory".into(),
    };
    let (taken, of) = (p.device_bytes(), p.available);
    match &p.ranks[..] {
        [_] => lines.push(format!("{place}: {taken} of {of} ({})", parts(&p.device))),
        ranks => lines.extend(ranks.iter().zip(0..).map(|(rank, number)| {
            let (taken, of) = (rank.bytes(), rank.available);
            let name = rank.card.as_deref().unwrap_or("host memory");
            let parts = parts(&rank.regions);
            let does = match rank.layers.clone() {
                layers if layers.is_empty() => "helps with prompts".into(),
                layers => format!("layers {} to {}", layers.start, layers.end - 1),
            };
            format!("{number}: {name}, {does}: {taken} of {of} ({parts})")
        })),
    }
    if !p.host.is_empty() {
        let all: Bytes = p.host.iter().map(|(_, bytes)| *bytes).sum();
        let of = site.host.machine.available().map_or("?".into(), |bytes| bytes.to_string());
        lines.push(format!("host memory: {all} of {of} ({})", parts(&p.host)));
    }
    if !p.nodes.is_empty() {
        let nodes: Vec<String> =
            p.nodes.iter().map(|(node, bytes)| format!("{node}: {bytes}")).collect();
        let reads = match p.need.numa {
            Numa::Auto => "threads read their own node's first if that measures faster at start",
            Numa::Local => "threads read their own node's first",
            Numa::Interleave | Numa::Off => "threads read what comes",
        };
        lines.push(format!("NUMA nodes: {}; {reads}", nodes.join(", ")));
    }
    lines.push(format!(
        "context: {} tokens, {} for all conversations together, as {:?}",
        p.context_max, p.kv_tokens, p.kv
    ));
    if let Some(overflow) = &p.overflow {
        lines.push(format!(
            "experts: {} of {} fit into memory, for {:.0} % of what is asked for; {overflow}",
            overflow.slots,
            p.experts,
            100.0 * overflow.hit
        ));
    }
    lines.extend(match &p.away {
        None if p.overflow.is_some() => None,
        None => Some(format!("experts: all {} where everything else is", p.experts)),
        Some(away) => Some(format!(
            "experts: {} of {} stay on the GPU, for {:.0} % of what is asked for; prompts bring the \
             others from {} tokens on ({}, --expert-divisor {}), answers are {}",
            away.hot,
            p.experts,
            100.0 * away.hit,
            away.threshold,
            away.prefill,
            divisor(away.prefill),
            away.decode,
        )),
    });
    lines.push(format!("prompts are read {} tokens at a time", p.prefill_chunk));
    for (tokens, time) in &p.prompts {
        let rate = f64::from(*tokens) / time.seconds;
        lines.push(format!(
            "prompt of {tokens}: {rate:.0} tok/s, first token after {:.2} s; {}",
            time.seconds,
            bounds(time, p)
        ));
    }
    lines.push(format!("answers: {:.1} tok/s; {}", 1.0 / p.token.seconds, bounds(&p.token, p)));
    lines
}

/// Both bounds, and the one that rules.
fn bounds(time: &Time, p: &Proposal) -> String {
    let way = if p.overflow.is_some() { "from the disk" } else { "over the bus" };
    let bus = match time.bus {
        0.0 => String::new(),
        bus => format!(", {way} {}", duration(bus)),
    };
    format!(
        "at least {} for bytes{bus}, {} for operations: {}",
        duration(time.bytes),
        duration(time.operations),
        rule(time.rule(), p)
    )
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s => format!("{:.2} ms", s * 1e3),
    }
}

const fn rule(rule: Rule, p: &Proposal) -> &'static str {
    match rule {
        Rule::Bytes => "bytes rule",
        Rule::Bus if p.overflow.is_some() => "the disk rules",
        Rule::Bus => "the bus rules",
        Rule::Operations => "operations rule",
    }
}

/// The flag's value that stands for a strategy.
fn divisor(prefill: PrefillStrategy) -> i64 {
    match prefill {
        PrefillStrategy::LayerGrouped(groups) => i64::from(groups),
        PrefillStrategy::Chunked => 0,
        PrefillStrategy::ActiveOnly => -1,
        PrefillStrategy::HcsPrefill => -3,
    }
}

/// The plan for scripts: sizes in bytes, times in seconds.
fn describe(p: &Proposal, options: &Options, site: &Site) -> Value {
    let regions = |regions: &[(&str, Bytes)]| -> Value {
        regions.iter().map(|(name, bytes)| json!({"region": name, "bytes": bytes.0})).collect()
    };
    let time = |time: &Time| {
        json!({"seconds": time.seconds, "bytes_bound": time.bytes, "bus_bound": time.bus,
               "operations_bound": time.operations, "rule": rule(time.rule(), p)})
    };
    let prompts = p.prompts.iter().map(|(tokens, of)| {
        json!({"tokens": tokens, "tokens_per_second": f64::from(*tokens) / of.seconds,
               "ttft": time(of)})
    });
    let card = site.card.as_ref().map(|card| {
        json!({"name": card.name, "memory": card.memory.0, "free": card.free.0,
               "read_bytes_per_second": card.read, "operations_per_second": card.multiply,
               "bus_bytes_per_second": card.bus})
    });
    let host = json!({
        "available": site.host.machine.available().map(|bytes| bytes.0),
        "threads": site.host.threads,
        "read_bytes_per_second": site.host.read,
        "operations_per_second": site.host.multiply,
    });
    let away = p.away.as_ref().map(|away| {
        json!({"prefill": away.prefill.to_string(), "decode": away.decode.to_string(),
               "expert_divisor": divisor(away.prefill), "gpu_prefill_threshold": away.threshold,
               "slots": away.slots, "hot": away.hot, "hit": away.hit})
    });
    let overflow = p.overflow.map(|overflow| {
        json!({"slots": overflow.slots, "bytes": overflow.all.0, "on_disk": overflow.on_disk.0,
               "hit": overflow.hit, "disk_bytes_per_second": overflow.rate})
    });
    let nodes: Vec<Value> =
        p.nodes.iter().map(|(node, bytes)| json!({"node": node, "bytes": bytes.0})).collect();
    let ranks = p.ranks.iter().map(|rank| {
        json!({"gpu": rank.card, "first_layer": rank.layers.start, "layers": rank.layers.len(),
               "available": rank.available.0, "regions": regions(&rank.regions)})
    });
    json!({
        "machine": {"gpu": card, "host": host},
        "device": format!("{:?}", options.device),
        "available": p.available.0,
        "regions": regions(&p.device),
        "device_bytes": p.device_bytes().0,
        "ranks": ranks.collect::<Vec<_>>(),
        "host_regions": regions(&p.host),
        "host_bytes": p.need.total().0,
        "nodes": nodes,
        "context_max": p.context_max,
        "kv_tokens": p.kv_tokens,
        "kv_dtype": format!("{:?}", p.kv),
        "prefill_chunk": p.prefill_chunk,
        "pass_tokens": p.pass_tokens,
        "experts": p.experts,
        "strategy": away,
        "overflow": overflow,
        "prefill": prompts.collect::<Vec<_>>(),
        "decode": {"tokens_per_second": 1.0 / p.token.seconds, "token": time(&p.token)},
    })
}
