//! How often experts were asked for, from one run to the next: the hot ones are then hot from the start.

use crate::exit::Failure;
use crate::kept::Kept;
use krasis_engine::{ExpertCensus, HeatMap};
use krasis_server::Loaded;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The field of the file.
const FIELD: &str = "heat_map";

/// What other runs asked of a layer counts for at most so many choices: what people want now matters more
/// than what they have wanted for a year.
const PAST_MAX: u64 = 1 << 22;

/// A model's heat and the file that keeps it.
pub struct HeatFile {
    kept: Kept,
    model: String,
    before: HeatMap,
}

impl HeatFile {
    /// The heat of a model: of a file that was named, or of what is kept with the model's cache. Where
    /// there is none yet, it begins with nothing. That of another model is refused if it was named, and
    /// else ignored with a sentence.
    pub fn open(named: Option<&Path>, kept: &Kept, model: u64) -> Result<HeatFile, Failure> {
        let mut file = HeatFile {
            kept: named.map_or_else(|| kept.clone(), Kept::at),
            model: format!("{model:016x}"),
            before: HeatMap::default(),
        };
        let mut found = None;
        for (path, fields) in file.kept.read() {
            let map = fields.and_then(|fields| parse(&fields, &file.model));
            match (map, named) {
                (Ok(map), _) => found = found.or(map),
                (Err(why), Some(_)) => {
                    let message = format!(
                        "--heat-map {}: {why}; leave it out, or name a file that does not exist yet",
                        path.display()
                    );
                    return Err(Failure::say(Failure::CONFIG, message));
                }
                // Whoever reads the rest of it says what is wrong with it.
                (Err(_), None) => {}
            }
        }
        file.before = found.unwrap_or_default();
        Ok(file)
    }

    /// What is known, if anything is.
    pub fn map(&self) -> Option<HeatMap> {
        (!self.before.layers.is_empty()).then(|| self.before.clone())
    }

    /// Keeps what was asked for since the start along with what was known then. What goes wrong is said;
    /// nobody waits for heat.
    pub fn save(&self, experts: &ExpertCensus) {
        let Some(asked) = experts.asked().filter(|_| experts.strategies().is_some()) else {
            return;
        };
        let asked: Vec<Vec<u64>> = asked.map(|(_, counts)| counts).collect();
        self.write(&self.together(asked.iter().map(Vec::as_slice)));
    }

    /// Adds what was asked for to what is known, and keeps it.
    pub fn save_counts<'a>(&mut self, asked: impl Iterator<Item = &'a [u64]>) {
        self.before = self.together(asked);
        self.write(&self.before);
    }

    fn together<'a>(&self, asked: impl Iterator<Item = &'a [u64]>) -> HeatMap {
        let none = Vec::new();
        let layers = asked.enumerate().map(|(layer, counts)| {
            let before = self.before.layers.get(layer).unwrap_or(&none);
            let sum = before.iter().fold(0u64, |sum, &count| sum.saturating_add(count));
            let part = |count: u64| {
                (u128::from(count) * u128::from(PAST_MAX) / u128::from(sum.max(PAST_MAX))) as u64
            };
            let before = before.iter().map(|&count| part(count)).chain(std::iter::repeat(0));
            counts.iter().zip(before).map(|(&now, before)| now.saturating_add(before)).collect()
        });
        HeatMap { layers: layers.collect() }
    }

    fn write(&self, map: &HeatMap) {
        if map.layers.iter().flatten().all(|&count| count == 0) {
            return;
        }
        let kept = self.kept.change(|fields| {
            fields.insert(FIELD.into(), json!({"model": self.model, "layers": map.layers}));
        });
        if let Err(why) = kept {
            eprintln!("krasis: the heat of experts is not kept: {why}");
        }
    }
}

/// Keeps the heat of a model that has answered.
pub fn keep(file: Option<&HeatFile>, loaded: &Loaded) {
    if let (Some(file), Some(experts)) = (file, loaded.handle.census.experts.get()) {
        file.save(experts);
    }
}

/// The heat in a file, which has to be this model's.
fn parse(fields: &Map<String, Value>, model: &str) -> Result<Option<HeatMap>, String> {
    let Some(value) = fields.get(FIELD) else { return Ok(None) };
    match value.get("model").and_then(Value::as_str) {
        Some(of) if of == model => {}
        Some(of) => {
            return Err(format!("it is the heat of another model ({of}, and this one is {model})"));
        }
        None => return Err("it is damaged: it does not say of which model it is".into()),
    }
    let layer = |layer: &Value| layer.as_array()?.iter().map(Value::as_u64).collect();
    let layers = value.get("layers").and_then(Value::as_array);
    let layers = layers.and_then(|layers| layers.iter().map(layer).collect());
    layers
        .map(|layers| Some(HeatMap { layers }))
        .ok_or("it is damaged: layers are lists of counts".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_is_added_up_and_kept_for_its_model_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heat.json");
        let kept = Kept::default();
        let mut file = HeatFile::open(Some(&path), &kept, 7).unwrap();
        assert_eq!(file.map(), None);
        file.save_counts([&[1, 2][..], &[0, 5]].into_iter());
        file.save_counts([&[1, 0][..], &[0, 1]].into_iter());
        let again = HeatFile::open(Some(&path), &kept, 7).unwrap();
        assert_eq!(again.map(), Some(HeatMap { layers: vec![vec![2, 2], vec![0, 6]] }));
        let error = HeatFile::open(Some(&path), &kept, 8).err().unwrap();
        assert!(error.error.to_string().contains("another model"), "{}", error.error);
        // The past counts for so much and no more, and nothing overflows.
        let mut long = HeatFile::open(None, &kept, 7).unwrap();
        long.before = HeatMap { layers: vec![vec![u64::MAX, u64::MAX]] };
        assert_eq!(long.together([&[3, 0][..]].into_iter()).layers[0].len(), 2);
        assert!(long.together([&[3, 0][..]].into_iter()).layers[0][0] <= PAST_MAX + 3);
        for damaged in [
            r#"{"format": 1, "heat_map": 5}"#,
            r#"{"format": 1, "heat_map": {"model": "0000000000000007", "layers": [[1.5]]}}"#,
            r#"{"format": 1, "heat_map": {"model": "0000000000000007", "layers": 3}}"#,
            "{",
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = HeatFile::open(Some(&path), &kept, 7).err().unwrap();
            assert!(error.error.to_string().contains("damaged"), "{}", error.error);
            assert!(HeatFile::open(None, &Kept::at(&path), 7).unwrap().map().is_none());
        }
    }
}
