//! Machines that are described in a file, to plan for what is not at hand.
//!
//! Sizes are in GiB, speeds in GB/s, TFLOP/s (BF16, of the tensor cores) and Gop/s (INT8, of all threads).
//! What is left out is that of the machine's kind; what nobody knows is refused.

use crate::exit::Failure;
use anyhow::{Context, Result, bail, ensure};
use krasis_core::Bytes;
use krasis_cuda::{CudaError, driver};
use krasis_engine::planner::{Card, Host, Site, class_multiply, class_of, class_read};
use krasis_machine::{Limit, Machine, Memory, Node, Processor, Topology};
use serde_json::Value;
use std::path::Path;

const GIB: f64 = (1u64 << 30) as f64;

/// What newer GPUs are taken for where a file says nothing of the generation: Ada.
const CAPABILITY: (i32, i32) = (8, 9);

/// Instructions that a processor is taken to have where the file says nothing.
const SIMD: [&str; 3] = ["avx2", "fma", "f16c"];

/// All that may be said.
const INSTRUCTIONS: [&str; 6] = ["avx2", "fma", "f16c", "avx_vnni", "avx512_vnni", "amx_int8"];

/// A machine, and why its GPU cannot be used, if it cannot.
pub struct Described {
    pub site: Site,
    pub refusal: Option<CudaError>,
}

/// Reads a description.
pub fn read(file: &Path) -> Result<Described, Failure> {
    let site = || -> Result<Described> {
        let text = std::fs::read_to_string(file)?;
        let value: Value = serde_json::from_str(&text)?;
        let machine = Fields::of(&value, &["name", "gpu", "host"])?;
        let card = machine.0.get("gpu").filter(|gpu| !gpu.is_null());
        let (mut cards, refusal) = match card.map(cards_of).transpose().context("gpu")? {
            Some((cards, refusal)) => (cards, refusal),
            None => (Vec::new(), None),
        };
        let others = cards.split_off(cards.len().min(1));
        let host = host_of(machine.0.get("host").context("there is no \"host\"")?);
        Ok(Described {
            site: Site { card: cards.pop(), others, host: host.context("host")? },
            refusal,
        })
    };
    let site = site().with_context(|| format!("--machine {}", file.display()));
    site.map_err(|error| Failure::new(Failure::CONFIG, error))
}

/// An object of known fields.
struct Fields<'a>(&'a serde_json::Map<String, Value>);

impl<'a> Fields<'a> {
    fn of(value: &'a Value, known: &[&str]) -> Result<Fields<'a>> {
        let fields = value.as_object().context("not an object")?;
        for field in fields.keys() {
            ensure!(
                known.contains(&field.as_str()),
                "there is no field {field:?}: use {}",
                known.join(", ")
            );
        }
        Ok(Fields(fields))
    }

    /// A positive number.
    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        match value.as_f64().filter(|&number| number > 0.0 && number < 1e9) {
            Some(number) => Ok(Some(number)),
            None => bail!("{name} is {value}, not a positive number"),
        }
    }

    fn size(&self, name: &str) -> Result<Option<Bytes>> {
        Ok(self.number(name)?.map(|gib| Bytes((gib * GIB) as u64)))
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(Value::as_str)
    }
}

/// Several GPUs are alike.
fn cards_of(value: &Value) -> Result<(Vec<Card>, Option<CudaError>)> {
    let fields = [
        "name",
        "count",
        "memory_gib",
        "free_gib",
        "read_gb_s",
        "tensor_tflops",
        "bus_gb_s",
        "multiprocessors",
        "clock_mhz",
        "capability",
        "cuda",
    ];
    let fields = Fields::of(value, &fields)?;
    let name = fields.text("name").unwrap_or("GPU").to_owned();
    let capability = match fields.number("capability")? {
        Some(number) => (number as i32, (number * 10.0).round() as i32 % 10),
        None => CAPABILITY,
    };
    let class = class_of(&name, capability);
    let memory = fields.size("memory_gib")?.context("there is no memory_gib")?;
    let free = fields.size("free_gib")?.unwrap_or(memory);
    ensure!(free <= memory, "free_gib is more than memory_gib");
    let processors = fields.number("multiprocessors")?.unwrap_or(60.0);
    let clock = fields.number("clock_mhz")?.unwrap_or(1800.0) * 1e6;
    // As the driver says it.
    let cuda = fields.number("cuda")?.map(|version| {
        let tenths = (version * 10.0).round() as i32;
        tenths / 10 * 1000 + tenths % 10 * 10
    });
    let refusal = driver::refusal(&name, capability, cuda.unwrap_or(driver::DRIVER_MIN));
    let count = fields.number("count")?.unwrap_or(1.0);
    ensure!((1.0..=64.0).contains(&count), "count is not between 1 and 64");
    let card = Card {
        memory,
        free,
        read: fields.number("read_gb_s")?.map_or(class.read, |speed| speed * 1e9),
        multiply: match fields.number("tensor_tflops")? {
            Some(speed) => speed * 1e12,
            None => processors * clock * class.per_clock,
        },
        bus: fields.number("bus_gb_s")?.map_or(class.bus, |speed| speed * 1e9),
        name,
    };
    Ok((vec![card; count as usize], refusal))
}

fn host_of(value: &Value) -> Result<Host> {
    let fields = [
        "name",
        "memory_gib",
        "available_gib",
        "group_limit_gib",
        "threads",
        "nodes",
        "simd",
        "read_gb_s",
        "disk_gb_s",
        "int8_gop_s",
    ];
    let fields = Fields::of(value, &fields)?;
    let total = fields.size("memory_gib")?.context("there is no memory_gib")?;
    let available = fields.size("available_gib")?.unwrap_or(Bytes(total.0 / 100 * 95));
    ensure!(available <= total, "available_gib is more than memory_gib");
    let limits = fields.size("group_limit_gib")?.map(|limit| Limit {
        group: "/described".into(),
        limit,
        used: Bytes(0),
    });
    let threads = fields.number("threads")?.unwrap_or(8.0) as u32;
    let nodes = fields.number("nodes")?.unwrap_or(1.0) as u32;
    ensure!((1..=1024).contains(&threads), "threads is not between 1 and 1024");
    ensure!((1..=64).contains(&nodes), "nodes is not between 1 and 64");
    let machine = Machine {
        processor: Processor {
            name: fields.text("name").map(str::to_owned),
            simd: Some(simd(fields.0.get("simd"))?),
        },
        topology: Topology { nodes: nodes_of(nodes, threads, total), ..topology(threads) },
        memory: Memory {
            total: Some(total),
            available: Some(available),
            limits: limits.into_iter().collect(),
            ..Memory::default()
        },
        ..Machine::default()
    };
    let threads = threads as usize;
    Ok(Host {
        threads,
        read: fields.number("read_gb_s")?.map_or_else(|| class_read(threads), |speed| speed * 1e9),
        disk: fields.number("disk_gb_s")?.map(|speed| speed * 1e9),
        multiply: fields
            .number("int8_gop_s")?
            .map_or_else(|| class_multiply(&machine, threads), |speed| speed * 1e9),
        machine,
    })
}

fn simd(value: Option<&Value>) -> Result<Vec<&'static str>> {
    let Some(value) = value else { return Ok(SIMD.to_vec()) };
    let names = value.as_array().context("simd is not a list")?;
    let known = |name: &Value| {
        let name = name.as_str()?;
        INSTRUCTIONS.into_iter().find(|known| *known == name)
    };
    let found: Option<Vec<&'static str>> = names.iter().map(known).collect();
    found.with_context(|| format!("simd may name {}", INSTRUCTIONS.join(", ")))
}

fn topology(threads: u32) -> Topology {
    let cpu = |number| krasis_machine::Cpu {
        number,
        allowed: true,
        siblings: vec![number],
        package: Some(0),
        node: None,
    };
    Topology { cpus: (0..threads).map(cpu).collect(), nodes: Vec::new(), quota: None }
}

/// Processors are dealt to nodes in turn.
fn nodes_of(nodes: u32, threads: u32, total: Bytes) -> Vec<Node> {
    let node = |number| Node {
        number,
        cpus: (number..threads).step_by(nodes as usize).collect(),
        total: Some(Bytes(total.0 / u64::from(nodes))),
        free: None,
        allowed: true,
        distances: Vec::new(),
    };
    (0..nodes).map(node).collect()
}
