//! What both kinds of completion requests may ask for: sampling, length, stops, form of the answer.

use crate::constraint::Constraint;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::limits::Limits;
use crate::{Generation, Loaded};
use krasis_engine::{Request, Sampling};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The common fields, checked.
#[derive(Debug)]
pub(crate) struct Wishes {
    pub sampling: Sampling,
    pub tokens_max: Option<u32>,
    pub n: u32,
    pub stops: Vec<String>,
    /// Stop strings are part of the answer's text.
    pub stop_included: bool,
    pub stop_tokens: Vec<u32>,
    pub specials_hidden: bool,
    pub token_ids: bool,
    /// Lower goes first.
    pub priority: i64,
    /// What the answer's text must be.
    pub constraint: Option<Constraint>,
    /// How to stream; `None` to answer in one piece.
    pub stream: Option<StreamUsage>,
}

/// Which chunks of a stream carry the usage.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamUsage {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

impl StreamUsage {
    pub fn at_end(self) -> bool {
        self.include_usage.unwrap_or(false)
    }

    pub fn always(self) -> bool {
        self.at_end() && self.continuous_usage_stats.unwrap_or(false)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Wishes {
    /// Takes the fields that chats and completions share. Where the request is silent, the
    /// model's defaults hold.
    pub fn take(fields: &mut Fields, generation: &Generation) -> Result<Wishes, ApiError> {
        let constraint = Constraint::take(fields)?;
        let ignore_eos = fields.flag("ignore_eos")?;
        let min_tokens = fields.take::<u32>("min_tokens")?.unwrap_or(0);
        if min_tokens > 0 && !ignore_eos {
            let message = "min_tokens is honoured only together with ignore_eos";
            return Err(ApiError::unsupported("min_tokens", message));
        }
        let mut stop_tokens = fields.take::<Vec<u32>>("stop_token_ids")?.unwrap_or_default();
        let most = fields.limits.stop_tokens;
        if stop_tokens.len() as u64 > most {
            let message = format!("stop_token_ids holds more than {most} tokens");
            return Err(ApiError::field("stop_token_ids", message));
        }
        if !ignore_eos {
            stop_tokens.extend(&generation.eos);
        }
        let usage = fields.take::<StreamUsage>("stream_options")?.unwrap_or_default();
        Ok(Wishes {
            sampling: sampling(fields, generation)?,
            tokens_max: None,
            n: fields.within("n", 1, fields.limits.samples as u32)?.unwrap_or(1),
            stops: stops(fields)?,
            stop_included: fields.flag("include_stop_str_in_output")?,
            stop_tokens,
            specials_hidden: fields.take("skip_special_tokens")?.unwrap_or(true),
            token_ids: fields.flag("return_token_ids")?,
            priority: priority(fields)?,
            constraint,
            stream: fields.flag("stream")?.then_some(usage),
        })
    }

    /// The engine's request for a prompt; `sample` counts answers to the same prompt.
    pub fn request(
        &self,
        loaded: &Loaded,
        prompt: Vec<u32>,
        sample: u32,
    ) -> Result<Request, ApiError> {
        let context = loaded.handle.facts.context_max;
        // A prompt of exactly the context's length can still be evaluated, with max_tokens 0.
        let room = context.checked_sub(prompt.len() as u32);
        let tokens_max = match (room, self.tokens_max) {
            (None | Some(0), None) => return Err(ApiError::too_long(prompt.len(), None, context)),
            (None, Some(tokens)) => {
                return Err(ApiError::too_long(prompt.len(), Some(tokens), context));
            }
            (Some(_), Some(tokens)) => tokens,
            (Some(room), None) => room.min(loaded.generation.tokens_max.unwrap_or(room)),
        };
        let mut sampling = self.sampling.clone();
        // The same seed for all samples would give the same answer n times.
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(sample.into()));
        Ok(Request {
            prompt,
            sampling,
            tokens_max,
            stop_tokens: self.stop_tokens.clone(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            priority: self.priority,
        })
    }
}

fn sampling(fields: &mut Fields, model: &Generation) -> Result<Sampling, ApiError> {
    let top_k = match fields.take::<i64>("top_k")? {
        None => None,
        // vLLM and Hugging Face switch it off with -1 as well as with 0.
        Some(-1) => Some(0),
        Some(top_k) => Some(u32::try_from(top_k).map_err(|_| {
            let message = format!("top_k is {top_k}: give the number of tokens, or 0 for all");
            ApiError::field("top_k", message)
        })?),
    };
    let seed: Option<i64> = fields.take("seed")?;
    let logit_bias = logit_bias(fields)?;
    let mut number = |name: &str| fields.take::<f32>(name);
    Ok(Sampling {
        repetition_penalty: number("repetition_penalty")?
            .or(model.repetition_penalty)
            .unwrap_or(1.0),
        presence_penalty: number("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: number("frequency_penalty")?.unwrap_or(0.0),
        temperature: number("temperature")?.or(model.temperature).unwrap_or(1.0),
        top_k: top_k.or(model.top_k).unwrap_or(0),
        top_p: number("top_p")?.or(model.top_p).unwrap_or(1.0),
        min_p: number("min_p")?.or(model.min_p).unwrap_or(0.0),
        seed: seed.map(|seed| seed as u64),
        logit_bias,
    })
}

fn priority(fields: &mut Fields) -> Result<i64, ApiError> {
    let (priority, most) = (fields.take::<i64>("priority")?.unwrap_or(0), fields.limits.priority);
    if priority.unsigned_abs() > most {
        let message = format!("priority is {priority}, but must be between -{most} and {most}");
        return Err(ApiError::field("priority", message));
    }
    Ok(priority)
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases: Map<String, Value> = fields.take("logit_bias")?.unwrap_or_default();
    let most = fields.limits.logit_biases;
    if biases.len() as u64 > most {
        let message = format!("logit_bias holds more than {most} tokens");
        return Err(ApiError::field("logit_bias", message));
    }
    let bias = |(token, bias): (String, Value)| {
        let pair = token.parse().ok().zip(bias.as_f64().map(|bias| bias as f32));
        pair.ok_or_else(|| {
            let message = format!("logit_bias: '{token}' must be a token id with a number");
            ApiError::field("logit_bias", message)
        })
    };
    biases.into_iter().map(bias).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.value("stop").map(serde_json::from_value) {
        None => Vec::new(),
        Some(Ok(OneOrMany::One(stop))) => vec![stop],
        Some(Ok(OneOrMany::Many(stops))) => stops,
        Some(Err(_)) => {
            return Err(ApiError::field("stop", "stop must be a string or a list of strings"));
        }
    };
    let Limits { stops: most, stop_bytes, .. } = fields.limits;
    let wrong = |stop: &String| stop.is_empty() || stop.len() as u64 > stop_bytes;
    if stops.len() as u64 > most || stops.iter().any(wrong) {
        let message = format!("stop takes up to {most} strings of 1 to {stop_bytes} bytes");
        return Err(ApiError::field("stop", message));
    }
    Ok(stops)
}
