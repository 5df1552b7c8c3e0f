//! What was measured, as it is kept: for which circumstances, and how far it has come.

use super::choice::{Choice, Trial, Way, best, decode_name, prefill_name};
use krasis_cuda::driver;
use krasis_engine::{DecodeStrategy, Options, PrefillStrategy, Site};
use serde_json::{Map, Value, json};

/// The field of the file.
const FIELD: &str = "tuned";

/// Records of a model that are kept: of other options, mostly.
const RECORDS: usize = 16;

/// Lengths that were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of a prompt.
    pub prompt: u32,
    /// Tokens of an answer.
    pub answer: u32,
    /// Runs of each.
    pub runs: u32,
}

/// Results.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Of what.
    pub lengths: Lengths,
    /// Whether everything was measured that was to be.
    pub complete: bool,
    /// In the order in which they were measured.
    pub trials: Vec<Trial>,
}

/// What speeds depend on: with anything else they were measured for another machine or model.
pub fn circumstances(model: u64, options: &Options, site: &Site) -> Value {
    let Options { device, expert_bits, group, attention, shared_expert, dense_mlp, .. } = options;
    let Options { lm_head, kv, device_bytes, memory_fraction, headroom, prompt_rows, .. } = options;
    let Options { pass_tokens, threads, numa, context_max, kv_pages, prefill_chunk, .. } = options;
    let card = site.card.as_ref();
    let machine = &site.host.machine;
    json!({
        "krasis": concat!(env!("CARGO_PKG_VERSION"), " of ", env!("KRASIS_COMMIT")),
        "model": format!("{model:016x}"),
        "gpu": card.map(|card| card.name.clone()),
        "gpu_memory": card.map(|card| card.memory.0),
        "gpu_bus": card.map(|card| card.bus.round() as u64),
        "gpu_driver": card.and_then(|_| driver::open().ok()),
        "processor": machine.processor.name,
        "cores": machine.topology.cores().len(),
        "memory_gib": machine.memory.total.map(|total| total.0 >> 30),
        "device": format!("{device:?}"),
        "weights": format!(
            "{expert_bits:?} {group} {attention:?} {shared_expert:?} {dense_mlp:?} {lm_head:?}"
        ),
        "kv_dtype": format!("{kv:?}"),
        "room": format!("{device_bytes:?} {memory_fraction:?} {headroom:?}"),
        "context": format!("{context_max:?} {kv_pages:?}"),
        "steps": format!("{prefill_chunk} {pass_tokens} {prompt_rows:?}"),
        "threads": format!("{threads:?} {numa:?}"),
    })
}

/// How far a record has come. What was complete stays until another one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Begun,
    Complete,
}

impl Stage {
    fn is_of(self, record: &Value, circumstances: &Value) -> bool {
        let complete = record.get("complete") == Some(&json!(true));
        record.get("for") == Some(circumstances) && complete == (self == Stage::Complete)
    }
}

/// The record for these circumstances, or what else there is: a sentence about it, if it is wrong.
pub fn find(
    fields: &Map<String, Value>,
    wanted: &Value,
    stage: Stage,
) -> Result<Option<Record>, String> {
    let Some(records) = fields.get(FIELD) else { return Ok(None) };
    let Some(records) = records.as_array() else { return Err("it is damaged".into()) };
    if let Some(record) = records.iter().find(|record| stage.is_of(record, wanted)) {
        return parse(record).map(Some).ok_or_else(|| "it is damaged".into());
    }
    if records.iter().any(|record| record.get("for") == Some(wanted)) {
        return Ok(None);
    }
    let differs = |record: &Value| -> Vec<String> {
        let fields = wanted.as_object().into_iter().flatten();
        let others = fields.filter(|(name, value)| record["for"].get(name.as_str()) != Some(value));
        others.map(|(name, _)| name.clone()).collect()
    };
    match records.iter().map(differs).min_by_key(Vec::len) {
        Some(names) => Err(format!("it was measured with another {}", names.join(", "))),
        None => Ok(None),
    }
}

/// Puts a record in the place of the one for the same circumstances.
pub fn put(fields: &mut Map<String, Value>, circumstances: &Value, record: &Record) {
    let mut records = match fields.remove(FIELD) {
        Some(Value::Array(records)) => records,
        _ => Vec::new(),
    };
    let replaced = |old: &Value| {
        Stage::Begun.is_of(old, circumstances)
            || (record.complete && Stage::Complete.is_of(old, circumstances))
    };
    records.retain(|old| !replaced(old));
    records.insert(0, written(circumstances, record));
    records.truncate(RECORDS);
    fields.insert(FIELD.into(), records.into());
}

fn written(circumstances: &Value, record: &Record) -> Value {
    let trial = |trial: &Trial| {
        let decodes = trial.decodes.iter().map(
            |(decode, seconds)| json!({"decode": decode_name(*decode), "token_seconds": seconds}),
        );
        json!({"prefill": prefill_name(trial.way.prefill), "prefill_chunk": trial.way.chunk,
               "gpu_prefill_threshold": trial.threshold, "prompt_seconds": trial.prompt,
               "decodes": decodes.collect::<Vec<_>>(), "failed": trial.failed})
    };
    let Lengths { prompt, answer, runs } = record.lengths;
    // For people and scripts; who reads it here chooses again.
    let best =
        best(&record.trials).map(|Choice { way, decode, threshold, prompt, token, .. }| {
            json!({"prefill": prefill_name(way.prefill), "decode": decode_name(decode),
               "prefill_chunk": way.chunk, "gpu_prefill_threshold": threshold,
               "prompt_seconds": prompt, "token_seconds": token})
        });
    json!({"for": circumstances, "prompt_tokens": prompt, "answer_tokens": answer, "runs": runs,
           "complete": record.complete, "best": best,
           "trials": record.trials.iter().map(trial).collect::<Vec<_>>()})
}

fn parse(value: &Value) -> Option<Record> {
    let trials = value["trials"].as_array()?.iter().map(parse_trial).collect::<Option<_>>()?;
    let lengths = Lengths {
        prompt: number(&value["prompt_tokens"])?,
        answer: number(&value["answer_tokens"])?,
        runs: number(&value["runs"])?,
    };
    Some(Record { lengths, complete: value["complete"].as_bool()?, trials })
}

fn parse_trial(value: &Value) -> Option<Trial> {
    let prefill = match value["prefill"].as_str()? {
        "persistent" => None,
        name => Some(PrefillStrategy::named(name)?),
    };
    let decode = |value: &Value| {
        let decode = match (value["decode"].as_str()?, prefill) {
            ("persistent", None) => None,
            (name, Some(_)) => Some(DecodeStrategy::named(name)?),
            _ => return None,
        };
        Some((decode, times(&value["token_seconds"])?))
    };
    let threshold = match &value["gpu_prefill_threshold"] {
        Value::Null => None,
        rows => Some(number(rows)?),
    };
    Some(Trial {
        way: Way { prefill, chunk: number(&value["prefill_chunk"])? },
        threshold,
        prompt: times(&value["prompt_seconds"])?,
        decodes: value["decodes"].as_array()?.iter().map(decode).collect::<Option<_>>()?,
        failed: value["failed"].as_str().map(str::to_owned),
    })
}

/// At least one.
fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok().filter(|&number| number > 0)
}

/// Seconds in order.
fn times(value: &Value) -> Option<Vec<f64>> {
    let time = |value: &Value| value.as_f64().filter(|&time| time > 0.0 && time < 1e9);
    let times: Vec<f64> = value.as_array()?.iter().map(time).collect::<Option<_>>()?;
    times.is_sorted().then_some(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use krasis_core::random::SplitMix64;

    fn record() -> Record {
        let trial = |prefill: Option<PrefillStrategy>, decodes: &[Option<DecodeStrategy>]| Trial {
            way: Way { prefill, chunk: 512 },
            threshold: prefill.map(|_| 77),
            prompt: vec![0.5, 0.75, 1.5],
            decodes: decodes.iter().map(|&decode| (decode, vec![0.01, 0.02])).collect(),
            failed: None,
        };
        let failed = Trial {
            failed: Some("it does not fit".into()),
            prompt: Vec::new(),
            ..trial(Some(PrefillStrategy::LayerGrouped(4)), &[])
        };
        let hybrid = [Some(DecodeStrategy::HcsHybrid), Some(DecodeStrategy::Lru)];
        Record {
            lengths: Lengths { prompt: 8192, answer: 64, runs: 3 },
            complete: true,
            trials: vec![
                trial(None, &[None]),
                trial(Some(PrefillStrategy::HcsPrefill), &hybrid),
                failed,
            ],
        }
    }

    #[test]
    fn records_are_found_by_their_circumstances() {
        let mut fields = Map::new();
        assert_eq!(find(&fields, &json!({"gpu": "A"}), Stage::Begun), Ok(None));
        for number in 0..RECORDS + 3 {
            put(&mut fields, &json!({"gpu": "A", "number": number}), &record());
        }
        let (last, complete) = (json!({"gpu": "A", "number": RECORDS + 2}), Stage::Complete);
        // What is only begun does not take the place of what was complete.
        let other = Record { complete: false, ..record() };
        put(&mut fields, &last, &other);
        assert_eq!(find(&fields, &last, Stage::Begun), Ok(Some(other)));
        assert_eq!(find(&fields, &last, complete), Ok(Some(record())));
        put(&mut fields, &last, &record());
        assert_eq!(find(&fields, &last, Stage::Begun), Ok(None));
        assert_eq!(find(&fields, &last, complete), Ok(Some(record())));
        assert_eq!(find(&fields, &json!({"gpu": "A", "number": 5}), complete), Ok(Some(record())));
        let lost = find(&fields, &json!({"gpu": "A", "number": 0}), complete);
        assert_eq!(lost, Err("it was measured with another number".into()));
        let best = &fields[FIELD][0]["best"];
        assert_eq!(
            (&best["prefill"], &best["token_seconds"]),
            (&json!("persistent"), &json!(0.02))
        );
    }

    /// Whatever is changed in a record, it is read as what it says or not at all.
    #[test]
    fn damaged_records_are_no_records() {
        let wanted = json!({"gpu": "A"});
        let whole = written(&wanted, &record());
        for (pointer, value) in [
            ("/trials/1/prefill", json!("layer_grouped_0")),
            ("/trials/1/decodes/0/decode", json!("persistent")),
            ("/trials/0/decodes/0/decode", json!("lru")),
            ("/trials/1/gpu_prefill_threshold", json!(-1)),
            ("/trials/1/prefill_chunk", json!(0)),
            ("/trials/1/prefill_chunk", json!(1u64 << 40)),
            ("/trials/1/prompt_seconds", json!([1.0, 0.5])),
            ("/trials/1/prompt_seconds/0", json!(-1.0)),
            ("/trials/1/decodes", json!({})),
            ("/trials", json!("none")),
            ("/runs", Value::Null),
        ] {
            let mut record = whole.clone();
            *record.pointer_mut(pointer).unwrap() = value.clone();
            let fields = Map::from_iter([(FIELD.to_owned(), json!([record]))]);
            let found = find(&fields, &wanted, Stage::Complete);
            assert_eq!(found, Err("it is damaged".into()), "{pointer} {value}");
        }
        let mut random = SplitMix64(3);
        let text = whole.to_string();
        for _ in 0..2000 {
            let mut bytes = text.clone().into_bytes();
            let at = (random.bits() % bytes.len() as u64) as usize;
            bytes[at] = b' ' + (random.bits() % 95) as u8;
            if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
                let _ = find(
                    &Map::from_iter([(FIELD.to_owned(), json!([value]))]),
                    &wanted,
                    Stage::Complete,
                );
            }
        }
    }
}
