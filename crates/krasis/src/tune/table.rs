//! Results in words.

use super::choice::{Choice, Trial, Way, best, decode_name, prefill_name};
use super::record::{Lengths, Record};
use super::trial::Planned;
use crate::measure::median;

/// A way's name.
pub fn name(way: &Way) -> String {
    format!("{}, {} tokens a step", prefill_name(way.prefill), way.chunk)
}

/// A choice in a sentence.
pub fn sentence(choice: &Choice, tokens: u32) -> String {
    let threshold =
        choice.threshold.map_or(String::new(), |rows| format!(" from {rows} tokens on"));
    format!(
        "{} for prompts{threshold} ({:.0} tok/s of {tokens}), {} for answers ({:.1} tok/s)",
        name(&choice.way),
        f64::from(tokens) / choice.prompt,
        decode_name(choice.decode),
        1.0 / choice.token,
    )
}

/// What a trial came to, beside what was foretold.
pub fn progress(trial: &Trial, planned: &Planned, lengths: &Lengths) -> String {
    if let Some(why) = &trial.failed {
        return format!("{} is left out: {why}", name(&trial.way));
    }
    let rate = median(&trial.prompt).map_or(0.0, |seconds| f64::from(lengths.prompt) / seconds);
    let prompt = format!(
        "prompts of {} at {rate:.0} tok/s, {:.0} were foretold",
        lengths.prompt, planned.prompt
    );
    let tokens = trial.decodes.iter().filter_map(|(decode, seconds)| {
        let foretold = planned.decodes.iter().find(|(of, _)| of == decode)?.1;
        let rate = 1.0 / median(seconds)?;
        Some(format!("; {} {rate:.1} tok/s, {foretold:.1} foretold", decode_name(*decode)))
    });
    prompt + &tokens.collect::<String>()
}

/// A table of medians, the best marked.
pub fn rows(record: &Record) -> Vec<String> {
    let Lengths { prompt, answer, .. } = record.lengths;
    let best = best(&record.trials);
    let mut rows = vec![
        format!(
            "| prompts | tokens a step | brought from | prefill {prompt}, tok/s | answers | decode {answer}, tok/s | |"
        ),
        "|---|---|---|---|---|---|---|".into(),
    ];
    for Trial { way, threshold, prompt: times, decodes, failed } in &record.trials {
        let (name, chunk) = (prefill_name(way.prefill), way.chunk);
        let from = threshold.map_or("-".into(), |rows| rows.to_string());
        let rate = median(times).map(|seconds| format!("{:.0}", f64::from(prompt) / seconds));
        let start = format!("| {name} | {chunk} | {from} | {}", rate.unwrap_or("-".into()));
        match failed {
            Some(why) => rows.push(format!("{start} | - | - | {why} |")),
            None if decodes.is_empty() => rows.push(format!("{start} | - | - | slower prompts |")),
            None => {}
        }
        for (decode, seconds) in decodes {
            let is_best =
                best.as_ref().is_some_and(|best| best.way == *way && best.decode == *decode);
            let rate =
                median(seconds).map_or("-".into(), |seconds| format!("{:.1}", 1.0 / seconds));
            let mark = if is_best { "best" } else { "" };
            rows.push(format!("{start} | {} | {rate} | {mark} |", decode_name(*decode)));
        }
    }
    rows
}
