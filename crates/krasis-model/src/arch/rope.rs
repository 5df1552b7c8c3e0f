//! Rotary frequencies from a config, in both dialects: top-level `rope_theta` with `rope_scaling`
//! (older hub files), or `rope_parameters` (newer).

use super::config::{ConfigError, Fields};
use crate::model::Rope;
use crate::source::Source;
use std::f64::consts::TAU;

/// What a config says about rotation.
pub struct Rotary {
    theta: f64,
    yarn: Option<Yarn>,
    /// Share of a head's elements that turn, if the config says so.
    pub partial: Option<f64>,
}

/// YaRN (Peng et al., 2023) as transformers computes it: fast pairs keep their frequency, slow
/// ones are divided by `factor`, between two bounds a ramp.
struct Yarn {
    factor: f64,
    original: f64,
    beta_fast: f64,
    beta_slow: f64,
    truncate: bool,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
}

impl Rotary {
    pub fn of(config: &Fields, context_max: u32) -> Result<Rotary, ConfigError> {
        // As in transformers, the older key wins where a file has both.
        let section = match config.section("rope_scaling")? {
            Some(section) => Some(section),
            None => config.section("rope_parameters")?,
        };
        let empty = serde_json::Value::Null;
        let p = section.unwrap_or(Fields::new(&empty));
        let theta = match p.positive("rope_theta")? {
            Some(theta) => theta,
            None => config.positive("rope_theta")?.unwrap_or(10_000.0),
        };
        let partial = match p.positive("partial_rotary_factor")? {
            Some(partial) => Some(partial),
            None => config.positive("partial_rotary_factor")?,
        };
        let kind = match p.text("rope_type")? {
            Some(kind) => Some(("rope_type", kind)),
            None => p.text("type")?.map(|kind| ("type", kind)),
        };
        let yarn = match kind {
            None | Some((_, "default")) => None,
            Some((_, "yarn")) => Some(Yarn::of(&p, context_max)?),
            Some((field, other)) => {
                return Err(ConfigError::Unsupported {
                    field: format!("rope_scaling.{field}"),
                    found: format!("\"{other}\""),
                    supported: "default, yarn".into(),
                });
            }
        };
        Ok(Rotary { theta, yarn, partial })
    }

    /// Rotation of `dims` elements.
    pub fn rope(&self, dims: u32) -> Rope<Source> {
        let plain = |i: u32| 1.0 / self.theta.powf(f64::from(2 * i) / f64::from(dims));
        let pairs = 0..dims / 2;
        match &self.yarn {
            None => Rope {
                freqs: Source::numbers(pairs.map(|i| plain(i) as f32).collect()),
                scale: 1.0,
            },
            Some(yarn) => {
                let (low, high) = yarn.ramp(f64::from(dims), self.theta);
                let freq = |i: u32| {
                    let slow = ((f64::from(i) - low) / (high - low)).clamp(0.0, 1.0);
                    (plain(i) * (1.0 - slow) + plain(i) / yarn.factor * slow) as f32
                };
                Rope {
                    freqs: Source::numbers(pairs.map(freq).collect()),
                    scale: yarn.attention_factor() as f32,
                }
            }
        }
    }

    /// Factor of latent attention's softmax scale: mscale squared (DeepSeek-V2's model code).
    pub fn mla_scale(&self) -> f32 {
        let yarn = self.yarn.as_ref();
        let all_dim =
            yarn.and_then(|yarn| Some((yarn, yarn.mscale_all_dim.filter(|m| *m != 0.0)?)));
        all_dim.map_or(1.0, |(yarn, mscale)| yarn.mscale(mscale).powi(2)) as f32
    }
}

impl Yarn {
    fn of(p: &Fields, context_max: u32) -> Result<Yarn, ConfigError> {
        let context_max = f64::from(context_max);
        let original = p.positive("original_max_position_embeddings")?.unwrap_or(context_max);
        Ok(Yarn {
            factor: p.positive("factor")?.unwrap_or(context_max / original),
            original,
            beta_fast: p.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: p.positive("beta_slow")?.unwrap_or(1.0),
            truncate: p.flag_or("truncate", true)?,
            mscale: p.number("mscale")?,
            mscale_all_dim: p.number("mscale_all_dim")?,
            attention_factor: p.number("attention_factor")?,
        })
    }

    /// The pairs where the ramp begins and ends.
    fn ramp(&self, dims: f64, theta: f64) -> (f64, f64) {
        // The pair that makes `turns` turns over the original context.
        let pair = |turns: f64| dims * (self.original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }

    fn mscale(&self, mscale: f64) -> f64 {
        if self.factor > 1.0 { 0.1 * mscale * self.factor.ln() + 1.0 } else { 1.0 }
    }

    fn attention_factor(&self) -> f64 {
        let given = |m: Option<f64>| m.filter(|m| *m != 0.0);
        match (self.attention_factor, given(self.mscale), given(self.mscale_all_dim)) {
            (Some(factor), _, _) => factor,
            (None, Some(mscale), Some(all_dim)) => self.mscale(mscale) / self.mscale(all_dim),
            (None, _, _) => self.mscale(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Origin;
    use serde_json::json;

    fn freqs(rope: Rope<Source>) -> Vec<f32> {
        let Origin::Numbers(freqs) = rope.freqs.origin else { panic!("computed") };
        freqs
    }

    #[test]
    fn both_dialects_say_the_same() {
        let old = json!({"rope_theta": 50000.0, "rope_scaling": {"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}});
        let new = json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 64.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}});
        let [old, new] =
            [&old, &new].map(|config| Rotary::of(&Fields::new(config), 262_144).unwrap());
        assert_eq!(freqs(old.rope(64)), freqs(new.rope(64)));
        // Kimi K2's published softmax factor: (0.1 ln 64 + 1)².
        assert!((old.mla_scale() - 2.004_74).abs() < 1e-4, "{}", old.mla_scale());
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_slows_slow_ones() {
        let config = json!({"rope_scaling": {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}});
        let yarn = Rotary::of(&Fields::new(&config), 163_840).unwrap();
        let plain = Rotary { theta: 10_000.0, yarn: None, partial: None };
        let (yarn, plain) = (freqs(yarn.rope(64)), freqs(plain.rope(64)));
        assert_eq!(yarn[0], plain[0]);
        assert!((yarn[31] - plain[31] / 40.0).abs() < 1e-9);
    }

    #[test]
    fn other_kinds_are_refused_by_name() {
        let config = json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}});
        let error = Rotary::of(&Fields::new(&config), 4096).err().unwrap().to_string();
        assert!(error.contains("rope_type") && error.contains("llama3"), "{error}");
    }
}
