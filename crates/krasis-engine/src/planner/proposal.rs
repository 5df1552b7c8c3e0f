//! A plan as people and scripts read it: where memory goes, which strategies, how fast.

use super::forecast::{Forecast, Time};
use super::parts::{Part, need_of};
use super::site::Site;
use crate::error::StartError;
use crate::experts::{DecodeStrategy, PrefillStrategy};
use crate::load::Stock;
use crate::options::Options;
use crate::plan::Plan;
use krasis_core::{Bytes, KvDtype};
use krasis_cuda::WORKSPACE_BYTES;
use krasis_machine::{Need, Numa};
use krasis_model::{Model, Source};
use std::fmt;
use std::ops::Range;

/// Prompts whose speed is foretold.
const PROMPTS: [u32; 3] = [2048, 8192, 32_768];

/// What would be done with a model on a machine.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Memory that a plan may take of the device: the GPU's, or the host's; of several, of all.
    pub available: Bytes,
    /// What it takes there.
    pub device: Vec<(&'static str, Bytes)>,
    /// The same for each of several devices, in the order of their layers.
    pub ranks: Vec<OnRank>,
    /// What it takes of the host's memory besides.
    pub host: Vec<(&'static str, Bytes)>,
    /// All that it takes of the host's, for [`krasis_machine::check`].
    pub need: Need,
    /// How that is spread over NUMA nodes; empty where it is not.
    pub nodes: Vec<(u32, Bytes)>,
    /// Tokens that a conversation may have.
    pub context_max: u32,
    /// Tokens that all conversations may have together.
    pub kv_tokens: u64,
    /// How they are kept.
    pub kv: KvDtype,
    /// Prompt tokens of a chunk, and of a pass that brings experts once.
    pub prefill_chunk: u32,
    /// See there.
    pub pass_tokens: u32,
    /// What becomes of experts in host memory; none if they are on the device.
    pub away: Option<Away>,
    /// Experts on the disk; none if memory holds all.
    pub overflow: Option<Overflow>,
    /// Routed experts of all layers.
    pub experts: u32,
    /// Prompts that fit into the context, by length: time to the first token.
    pub prompts: Vec<(u32, Time)>,
    /// One token of an answer.
    pub token: Time,
}

/// What one of the devices has.
#[derive(Clone, Debug)]
pub struct OnRank {
    /// The GPU; none for parts of the host.
    pub card: Option<String>,
    /// Its layers; none if it helps with prompts.
    pub layers: Range<usize>,
    /// Memory that a plan may take of it.
    pub available: Bytes,
    /// What is taken.
    pub regions: Vec<(&'static str, Bytes)>,
}

/// Experts in host memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Away {
    /// For prompts.
    pub prefill: PrefillStrategy,
    /// For answers.
    pub decode: DecodeStrategy,
    /// Prompt tokens from which experts are brought.
    pub threshold: u32,
    /// Experts that the GPU has room for.
    pub slots: u32,
    /// Those of them that stay.
    pub hot: u32,
    /// The share of routed tokens that are expected to find their expert there.
    pub hit: f64,
}

/// Experts on the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overflow {
    /// Experts that memory has room for.
    pub slots: u32,
    /// What all experts take, and what of that is not in memory.
    pub all: Bytes,
    /// See there.
    pub on_disk: Bytes,
    /// The share of routed tokens that are expected to find their expert in memory.
    pub hit: f64,
    /// Bytes a second that the disk gives, if it was measured or described.
    pub rate: Option<f64>,
    /// Seconds a token.
    pub token: f64,
}

impl Overflow {
    /// Of a plan on a machine.
    pub fn of(model: &Model<Source>, plan: &Plan, site: &Site) -> Option<Overflow> {
        let overflow = plan.overflow.as_ref()?;
        let forecast = Forecast::new(model, plan, site);
        let (all, held) = (overflow.all(), overflow.held());
        Some(Overflow {
            slots: overflow.pool.experts,
            all,
            on_disk: Bytes(all.0.saturating_sub(held.0)),
            hit: forecast.hit(),
            rate: site.host.disk,
            token: forecast.token().seconds,
        })
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overflow { all, on_disk, token, .. } = self;
        let speed = 1.0 / token;
        write!(
            f,
            "{on_disk} of {all} of experts stay on the disk; predicted {speed:.1} tok/s decode "
        )?;
        match self.rate {
            Some(rate) => write!(f, "(disk {:.2} GB/s)", rate / 1e9),
            None => write!(f, "(the disk was not measured)"),
        }
    }
}

impl Proposal {
    /// Plans a model and looks at the result.
    pub fn new(
        model: &Model<Source>,
        stock: &impl Stock,
        options: &Options,
        site: &Site,
    ) -> Result<Proposal, StartError> {
        let mut parts = Plan::parts(model, stock, options, options.device.act_bytes(), site)?;
        if parts[0].plan.overflow.is_some() && site.host.disk.is_none() {
            parts[0].site.host.disk = stock.disk_rate();
        }
        let forecasts: Vec<Forecast> = parts.iter().map(Part::forecast).collect();
        let mut ranks: Vec<OnRank> = parts.iter().map(|part| OnRank::of(part, options)).collect();
        let all = model.layers.len();
        let helpers = (1..).zip(&parts[0].plan.helpers);
        ranks.extend(helpers.map(|(rank, arena)| {
            let regions = vec![("a helper's experts and rows", arena.bytes())];
            OnRank::with(&parts[0].site.of_rank(rank), all..all, regions, options)
        }));
        let mut device: Vec<(&'static str, Bytes)> = Vec::new();
        let mut host = Vec::new();
        for Part { plan, .. } in &parts {
            add(&mut host, &plan.host_regions);
        }
        ranks.iter().for_each(|rank| add(&mut device, &rank.regions));
        let away = || parts.iter().filter_map(|part| part.plan.away.as_ref());
        let layers = |forecast: &&Forecast| forecast.work().moe_layers;
        let hits = forecasts.iter().map(|forecast| forecast.hit() * layers(&forecast));
        let hit = hits.sum::<f64>() / forecasts.iter().map(|f| layers(&f)).sum::<f64>().max(1.0);
        let all = |time: &dyn Fn(&Forecast) -> Time| -> Time { forecasts.iter().map(time).sum() };
        let (plan, need) = (&parts[0].plan, need_of(&parts));
        let lengths = PROMPTS.into_iter().filter(|&tokens| tokens <= plan.context_max);
        let banks = parts.iter().flat_map(|part| part.plan.placed.banks.iter().flatten());
        Ok(Proposal {
            available: ranks.iter().map(|rank| rank.available).sum(),
            device,
            ranks,
            host,
            need,
            nodes: nodes(site, options, need.total()),
            context_max: plan.context_max,
            kv_tokens: u64::from(plan.cache.pages) * u64::from(plan.cache.page),
            kv: plan.cache.dtype,
            prefill_chunk: plan.rows_max - options.sequences_max.max(1),
            pass_tokens: plan.pass_tokens,
            overflow: Overflow::of(model, plan, &parts[0].site),
            away: away().next().map(|first| Away {
                prefill: first.prefill,
                decode: first.decode,
                threshold: first.threshold,
                slots: away().map(|away| away.pool.experts).sum(),
                hot: away().map(|away| away.hot).sum(),
                hit,
            }),
            experts: banks.map(|bank| bank.experts).sum(),
            prompts: lengths.map(|n| (n, all(&|forecast| forecast.prompt(n)))).collect(),
            token: all(&|forecast| forecast.token()),
        })
    }

    /// All that it takes of the device.
    pub fn device_bytes(&self) -> Bytes {
        self.device.iter().map(|(_, bytes)| *bytes).sum()
    }
}

impl OnRank {
    /// All that is taken.
    pub fn bytes(&self) -> Bytes {
        self.regions.iter().map(|(_, bytes)| *bytes).sum()
    }

    fn of(part: &Part, options: &Options) -> OnRank {
        let Part { layers, site, plan, .. } = part;
        OnRank::with(site, layers.clone(), plan.regions.clone(), options)
    }

    fn with(
        site: &Site,
        layers: Range<usize>,
        mut regions: Vec<(&'static str, Bytes)>,
        options: &Options,
    ) -> OnRank {
        let workspace = site.card.as_ref().map(|_| ("workspace", WORKSPACE_BYTES));
        let room = workspace.map_or(0, |(_, bytes)| bytes.0);
        regions.extend(workspace);
        OnRank {
            card: site.card.as_ref().map(|card| card.name.clone()),
            layers,
            available: Bytes(site.available(options).0.saturating_add(room)),
            regions,
        }
    }
}

/// Regions of one name are one region.
fn add(all: &mut Vec<(&'static str, Bytes)>, more: &[(&'static str, Bytes)]) {
    for &(name, bytes) in more {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += bytes,
            None => all.push((name, bytes)),
        }
    }
}

/// Pages take turns, so that nodes have equal parts.
fn nodes(site: &Site, options: &Options, host: Bytes) -> Vec<(u32, Bytes)> {
    let spread = site.host.machine.topology.interleaved();
    let nodes = spread.filter(|_| options.numa != Numa::Off).unwrap_or_default();
    let count = nodes.len().max(1) as u64;
    nodes.into_iter().map(|node| (node, Bytes(host.0 / count))).collect()
}
