//! What a token costs: bytes, operations and calls, counted from the planned weights.

use crate::load::{Placed, bytes_of};
use crate::plan::PAGE;
use krasis_core::{Format, Weight};
use krasis_model::{Cache, CacheShape, Class, Ffn, Layer, Mixer, Model, Source};

/// Some weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// What they take.
    pub bytes: f64,
    /// How many numbers they are; twice that is the operations of one row.
    pub numbers: f64,
}

/// A model's work, by kind, over all layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Weights of every token that lie in lines, which are multiplied in INT8.
    pub lines: Count,
    /// Those that lie in rows: floats, and integers that are multiplied as floats.
    pub rows: Count,
    /// The output matrix, which only rows that are asked for see.
    pub head: Count,
    /// Whether it lies in lines.
    pub head_in_lines: bool,
    /// One routed expert of one layer.
    pub expert: Count,
    /// Whether experts lie in lines.
    pub experts_in_lines: bool,
    /// Routed experts of a layer.
    pub experts: f64,
    /// Of which a token is routed to so many.
    pub top_k: f64,
    /// Layers that have them.
    pub moe_layers: f64,
    /// Operations of grouped attention, per token and token of its past.
    pub attend: f64,
    /// Operations of latent attention, likewise, in its absorbed form.
    pub latent: f64,
    /// The same over keys and values of all heads.
    pub expanded: f64,
    /// What making these takes, per token.
    pub expand: f64,
    /// Layers with latent attention.
    pub latent_layers: f64,
    /// Bytes that a decoded token reads of each token of its past.
    pub past_bytes: f64,
    /// Operations of delta rules per token.
    pub delta: f64,
    /// Bytes of BF16 activations that a token's operations read and write.
    pub activations: f64,
    /// Calls of operations that a step makes.
    pub calls: f64,
}

impl Work {
    /// Counts a model whose weights have their formats.
    pub fn of(model: &Model<Source>, placed: &Placed, cache: CacheShape) -> Work {
        let mut work = Work::default();
        placed.each_weight(|class, weight| work.add_weight(class, weight));
        for (layer, bank) in model.layers.iter().zip(&placed.banks) {
            work.add_layer(layer);
            // Five times in and out of the residual stream's width.
            work.activations += 2.0 * 10.0 * f64::from(model.hidden);
            if let (Some(bank), Ffn::Moe(moe)) = (bank, &layer.ffn) {
                let each = f64::from(bank.experts);
                let numbers = |w: &Weight| f64::from(w.rows) * f64::from(w.cols) / each;
                let bytes = (bytes_of(&bank.gate_up) + bytes_of(&bank.down)).0 as f64 / each;
                work.expert =
                    Count { bytes, numbers: numbers(&bank.gate_up) + numbers(&bank.down) };
                work.experts_in_lines = in_lines(bank.gate_up.format);
                work.experts = each;
                work.top_k = f64::from(moe.routing.top_k);
                work.moe_layers += 1.0;
                // Of each pair the input, gate, up and their product, and the output.
                let pair = 3.0 * f64::from(bank.inter) + 2.0 * f64::from(model.hidden);
                work.activations += 2.0 * work.top_k * pair;
            }
        }
        let page_bytes = Cache::page_bytes(model, PAGE, cache.dtype).0;
        work.past_bytes = page_bytes as f64 / f64::from(PAGE);
        work
    }

    fn add_weight(&mut self, class: Class, weight: &Weight) {
        let count = match class {
            // A row of it is looked up.
            Class::Embedding => return,
            Class::Head => {
                self.head_in_lines = in_lines(weight.format);
                &mut self.head
            }
            _ if in_lines(weight.format) => &mut self.lines,
            _ => &mut self.rows,
        };
        count.bytes += bytes_of(weight).0 as f64;
        // Vectors are added or multiplied once, which is nothing beside matrices.
        if weight.rows > 1 {
            count.numbers += f64::from(weight.rows) * f64::from(weight.cols);
        }
    }

    fn add_layer(&mut self, layer: &Layer<Source>) {
        self.calls += match &layer.mixer {
            Mixer::Gqa(m) => {
                self.attend += 4.0 * f64::from(m.heads) * f64::from(m.dim);
                if m.gated { 5.0 } else { 4.0 }
            }
            Mixer::Mla(m) => {
                let h = &m.heads;
                let of_heads = |columns: u32| 2.0 * f64::from(h.count) * f64::from(columns);
                self.latent += of_heads(2 * h.latent + h.rope);
                self.expanded += of_heads(h.nope + h.rope + h.value);
                self.expand += of_heads(h.nope + h.value) * f64::from(h.latent);
                self.latent_layers += 1.0;
                7.0
            }
            Mixer::DeltaNet(m) => {
                // Decay, product with the key, correction and product with the query.
                self.delta += 6.0 * f64::from(m.heads.state());
                5.0
            }
        };
        self.calls += match &layer.ffn {
            Ffn::Dense(_) => 5.0,
            Ffn::Moe(moe) => match &moe.shared {
                Some(shared) if shared.gate.is_some() => 8.0,
                Some(_) => 7.0,
                None => 4.0,
            },
        };
    }

    /// How many of a layer's experts so many tokens are routed to, if experts are equally popular: as many
    /// as are hit by as many throws.
    pub fn touched(&self, tokens: f64) -> f64 {
        self.experts * (1.0 - (1.0 - self.top_k / self.experts.max(1.0)).powf(tokens))
    }

    /// All routed experts.
    pub fn all_experts(&self) -> Count {
        let times = self.experts * self.moe_layers;
        Count { bytes: self.expert.bytes * times, numbers: self.expert.numbers * times }
    }

    /// The routed experts of one token.
    pub fn active_experts(&self) -> Count {
        let times = self.top_k * self.moe_layers;
        Count { bytes: self.expert.bytes * times, numbers: self.expert.numbers * times }
    }

    /// Operations of a prompt of so many tokens, by what multiplies and adds must be made.
    pub fn prompt_operations(&self, tokens: f64) -> f64 {
        let weights = self.lines.numbers + self.rows.numbers + self.active_experts().numbers;
        let past = (self.attend + self.expanded) * tokens * tokens / 2.0 + self.expand * tokens;
        2.0 * weights * tokens + past + self.delta * tokens + 2.0 * self.head.numbers
    }

    /// Bytes of weights that a pass over so many tokens reads at least once.
    pub fn prompt_bytes(&self, tokens: f64) -> f64 {
        self.dense_bytes() + self.expert.bytes * self.touched(tokens) * self.moe_layers
    }

    /// Weights that every token reads, the output matrix included.
    pub fn dense_bytes(&self) -> f64 {
        self.lines.bytes + self.rows.bytes + self.head.bytes
    }
}

fn in_lines(format: Format) -> bool {
    matches!(format, Format::Lines(_))
}
