//! A machine as plans see it: data, read from the real one or made up for planning.

use crate::options::Options;
use krasis_core::Bytes;
use krasis_cpu::{Team, isa::Isa, limits};
use krasis_cuda::WORKSPACE_BYTES;
use krasis_cuda::driver::Found;
use krasis_machine::Machine;
use std::time::Instant;

/// Bytes that reading is measured on: more than caches hold, and read in tenths of a second.
const READ_BYTES: u64 = 512 << 20;

/// Rounds of multiplying in registers: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// Where a plan is to be carried out.
#[derive(Clone, Debug)]
pub struct Site {
    /// The GPU that it is for; none for plans that live in host memory.
    pub card: Option<Card>,
    /// GPUs behind the first, for the layers behind its own.
    pub others: Vec<Card>,
    /// Everything else.
    pub host: Host,
}

/// A GPU. What it could do at most, not what our kernels make of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// As the driver calls it.
    pub name: String,
    /// All of its memory.
    pub memory: Bytes,
    /// What other processes, contexts and kernels leave of it.
    pub free: Bytes,
    /// Bytes a second from its memory.
    pub read: f64,
    /// BF16 operations a second of its tensor cores, two for a product and its sum.
    pub multiply: f64,
    /// Bytes a second from registered host memory.
    pub bus: f64,
}

/// Processors and memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    /// What its kernel says, limits of control groups included.
    pub machine: Machine,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes a second that they read together.
    pub read: f64,
    /// Bytes a second from the disk that experts may stay on; nothing if nobody has measured.
    pub disk: Option<f64>,
    /// INT8 operations a second that their vector units make together, two for a product and its sum. AMX
    /// is faster at that, but waits for unpacking.
    pub multiply: f64,
}

impl Site {
    /// The same with one device only: the GPU of number `rank`, or else the host, of which everybody may
    /// have what is left.
    pub fn of_rank(&self, rank: usize) -> Site {
        let card = match rank {
            0 => self.card.clone(),
            rank => self.others.get(rank - 1).cloned(),
        };
        Site { card, others: Vec::new(), host: self.host.clone() }
    }

    /// What a plan may take at most: of a GPU what is free, less the workspace of its kernels and what is
    /// left alone, of the host what is available; and no more than the user allows.
    pub fn available(&self, options: &Options) -> Bytes {
        let all = match &self.card {
            Some(card) => {
                let kept = WORKSPACE_BYTES.0.saturating_add(options.headroom.0);
                Bytes(card.free.0.saturating_sub(kept))
            }
            None => {
                let all = self.host.machine.available().unwrap_or(Bytes(u64::MAX));
                all.min(options.ram.unwrap_or(all))
            }
        };
        let all = match options.memory_fraction {
            Some(part) => Bytes((all.0 as f64 * part.clamp(0.1, 0.95)) as u64),
            None => all,
        };
        all.min(options.device_bytes.unwrap_or(Bytes(u64::MAX)))
    }
}

impl Host {
    /// The machine that this runs on, with the speeds of its kind: nothing is measured.
    pub fn read(options: &Options) -> Host {
        let machine = Machine::read(&options.machine_root);
        let threads = options.threads.unwrap_or_else(|| machine.topology.team());
        Host {
            threads,
            read: class_read(threads),
            disk: None,
            multiply: class_multiply(&machine, threads),
            machine,
        }
    }

    /// The same with measured speeds, which takes some tenths of a second.
    pub fn measured(options: &Options) -> Host {
        let host = Host::read(options);
        // Where memory is short, measuring must not take it.
        let bytes =
            host.machine.available().map_or(READ_BYTES, |Bytes(all)| (all / 8).min(READ_BYTES));
        let team = Team::new(options.threads);
        let read = limits::read_bandwidth(&team, bytes as usize);
        let products = limits::byte_products(vectors(), 1) * ROUNDS as u64 * team.threads() as u64;
        let pass = |_| {
            let start = Instant::now();
            team.run(|_| {
                std::hint::black_box(limits::byte_products(vectors(), ROUNDS));
            });
            2.0 * products as f64 / start.elapsed().as_secs_f64()
        };
        let measured = (0..5).map(pass).fold(0.0, f64::max);
        let multiply = if products == 0 { host.multiply } else { measured };
        Host { threads: team.threads(), read, multiply, ..host }
    }
}

/// Instructions whose speed stands for the processor's.
fn vectors() -> Isa {
    Isa::best().vectors()
}

/// Bytes a second that so many threads read: measured on two kinds of servers, 15 and 17 GB/s with one
/// thread, 30 and 33 with two, 107 with eight and 170 with sixteen.
pub fn class_read(threads: usize) -> f64 {
    16e9 * (threads.max(1) as f64).powf(0.86)
}

/// INT8 operations a second of so many threads, by the instructions that they have: measured per
/// thread with [`limits::byte_products`].
pub fn class_multiply(machine: &Machine, threads: usize) -> f64 {
    let simd = machine.processor.simd.as_deref().unwrap_or_default();
    let per_thread = [("avx512_vnni", 750e9), ("avx_vnni", 390e9), ("avx2", 200e9)];
    let found = per_thread.iter().find(|(name, _)| simd.contains(name));
    found.map_or(10e9, |(_, each)| *each) * threads.max(1) as f64
}

impl Card {
    /// A GPU that the driver shows, `free` of whose memory can be had.
    pub fn of(found: &Found, free: Bytes) -> Card {
        let class = class_of(&found.name, (found.major, found.minor));
        Card {
            name: found.name.clone(),
            memory: found.memory,
            free,
            // What copies reach on an H200: 4.26 of 4.92 TB/s.
            read: found.read.map_or(class.read, |raw| 0.87 * raw),
            multiply: found.limits.processors as f64
                * found.clock.unwrap_or(1.8e9)
                * class.per_clock,
            bus: found.link.map_or(class.bus, usable),
        }
    }
}

/// What can be said of GPUs of a generation without asking one.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// BF16 operations that a multiprocessor's tensor cores make in a clock, sums in f32.
    pub per_clock: f64,
    /// Bytes a second from memory.
    pub read: f64,
    /// Bytes a second over the bus.
    pub bus: f64,
}

/// The class of a GPU by name and compute capability. GeForce cards sum in f32 at half the speed of
/// their siblings for workstations.
pub fn class_of(name: &str, capability: (i32, i32)) -> Class {
    let half = if name.contains("GeForce") { 0.5 } else { 1.0 };
    let class = |per_clock: f64, read, bus| Class { per_clock: per_clock * half, read, bus };
    match capability {
        (8, 0) => class(2048.0, 1.5e12, 26e9),
        (8, _) => class(1024.0, 0.5e12, 26e9),
        // What `mma.sync` reaches, 640 of 989 TFLOP/s: our kernels have no other way to the tensor cores.
        (9, _) => class(2450.0, 3.3e12, 55e9),
        (10, _) => class(2450.0, 7e12, 55e9),
        _ => class(1024.0, 0.9e12, 55e9),
    }
}

/// Of a link's raw bytes a second, what copies of megabytes get: 55 of 63 GB/s.
fn usable(raw: f64) -> f64 {
    0.87 * raw
}
