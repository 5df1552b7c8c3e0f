//! `krasis eval`: perplexity on given tokens, exactness on given tasks.

use crate::bar::Bar;
use crate::exit::Failure;
use crate::load::load;
use crate::options::ModelArguments;
use crate::submit::{self, Answer};
use anyhow::Context;
use clap::Args;
use krasis_engine::{Options, Request, Sampling};
use krasis_server::Loaded;
use krasis_text::Render;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `krasis eval`.
#[derive(Args)]
pub struct Eval {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Perplexity of lines {"ids": [...]}
    #[arg(long, value_name = "FILE", required_unless_present = "tasks")]
    text: Option<PathBuf>,
    /// Exactness on lines {"kind", "messages", "tools", "answer"}
    #[arg(long, value_name = "FILE")]
    tasks: Option<PathBuf>,
    /// Tokens per answer to a task
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    /// Take the first N lines only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Sequences that run at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_sequences: Option<u32>,
    /// Print each task that fails
    #[arg(long)]
    show_failures: bool,
}

impl Eval {
    /// Loads the model and measures.
    pub fn execute(self) -> Result<(), Failure> {
        let text = self.text.as_deref().map(|file| self.lines(file)).transpose()?;
        let tasks = self.tasks.as_deref().map(|file| self.lines(file)).transpose()?;
        let sequences = |options: &mut Options| {
            options.sequences_max = self.max_sequences.unwrap_or(options.sequences_max);
        };
        let (loaded, _) = load(&self.model, &sequences, &Bar::new())?;
        if let Some(lines) = text {
            perplexity(&loaded, &lines)?;
        }
        if let Some(lines) = tasks {
            self.exactness(&loaded, &lines)?;
        }
        Ok(())
    }

    fn lines(&self, file: &Path) -> Result<Vec<Value>, Failure> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let lines = text.lines().enumerate().take(self.limit.unwrap_or(usize::MAX));
        let parsed = lines.map(|(at, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}, line {}: not JSON", file.display(), at + 1))
        });
        Ok(parsed.collect::<Result<_, anyhow::Error>>()?)
    }

    fn exactness(&self, loaded: &Loaded, tasks: &[Value]) -> Result<(), Failure> {
        let mut requests = Vec::new();
        let mut strangers = 0;
        for (at, task) in tasks.iter().enumerate() {
            let prompt = prompt(loaded, task).with_context(|| format!("task {}", at + 1))?;
            if let Some(expected) = task["prompt_ids"].as_array()
                && !expected.iter().map(Value::as_u64).eq(prompt.iter().map(|&id| Some(id.into())))
            {
                strangers += 1;
            }
            let room = loaded.handle.facts.context_max.saturating_sub(prompt.len() as u32);
            requests
                .push(Request { tokens_max: self.max_tokens.min(room), ..silent(loaded, prompt) });
        }
        if strangers > 0 {
            eprintln!("krasis: {strangers} prompts have other tokens than the file's prompt_ids");
        }
        let start = Instant::now();
        let answers = run(loaded, requests)?;
        let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (task, answer) in tasks.iter().zip(&answers) {
            let text = loaded.tokenizer.decode(&answer.tokens);
            let right = matches(&text, &task["answer"]);
            let (rights, total) = kinds.entry(task["kind"].as_str().unwrap_or("?")).or_default();
            *total += 1;
            *rights += usize::from(right);
            if self.show_failures && !right {
                println!("{}: wanted {} got {text:?}", task["kind"], task["answer"]);
            }
        }
        println!("{:<16} {:>6} {:>6} {:>8}", "kind", "right", "of", "%");
        let all = kinds.values().fold((0, 0), |sum, kind| (sum.0 + kind.0, sum.1 + kind.1));
        for (kind, (right, total)) in kinds.into_iter().chain([("all", all)]) {
            let percent = 100.0 * right as f64 / total.max(1) as f64;
            println!("{kind:<16} {right:>6} {total:>6} {percent:>8.1}");
        }
        eprintln!("{}", throughput(&answers, start));
        Ok(())
    }
}

/// Teacher-forced: every token but the first of each line is predicted from those before it.
fn perplexity(loaded: &Loaded, lines: &[Value]) -> Result<(), Failure> {
    let ids = |line: &Value| -> Option<Vec<u32>> {
        line["ids"].as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    let requests = lines.iter().enumerate().map(|(at, line)| {
        let ids = ids(line).with_context(|| format!("line {}: no list of ids", at + 1))?;
        Ok(Request { prompt_logprobs: Some(0), ..silent(loaded, ids) })
    });
    let requests = requests.collect::<Result<_, anyhow::Error>>()?;
    let start = Instant::now();
    let answers = run(loaded, requests)?;
    let logprobs = answers.iter().flat_map(|answer| &answer.prompt);
    let (tokens, sum) =
        logprobs.fold((0usize, 0.0), |(n, sum), entry| (n + 1, sum - f64::from(entry.logprob)));
    let mean = sum / tokens.max(1) as f64;
    println!("{:<16} {:>10}", "lines", lines.len());
    println!("{:<16} {tokens:>10}", "tokens");
    println!("{:<16} {mean:>10.4}", "nats per token");
    println!("{:<16} {:>10.4}", "perplexity", mean.exp());
    eprintln!("{}", throughput(&answers, start));
    Ok(())
}

fn silent(loaded: &Loaded, prompt: Vec<u32>) -> Request {
    Request {
        prompt,
        sampling: Sampling::GREEDY,
        tokens_max: 0,
        stop_tokens: loaded.generation.eos.clone(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        priority: 0,
    }
}

fn prompt(loaded: &Loaded, task: &Value) -> anyhow::Result<Vec<u32>> {
    let template = match &loaded.template {
        Ok(template) => template,
        Err(error) => anyhow::bail!("{error}"),
    };
    let mut variables: Map<String, Value> =
        task["chat_template_kwargs"].as_object().cloned().unwrap_or_default();
    let thinking = task.get("enable_thinking").cloned().unwrap_or(json!(false));
    variables.entry("enable_thinking").or_insert(thinking);
    let render = Render {
        tools: task["tools"].as_array().cloned().unwrap_or_default(),
        generation_prompt: true,
        continue_final: false,
        variables,
    };
    let messages = task["messages"].as_array().context("the task has no messages")?;
    Ok(loaded.tokenizer.encode_rendered(&template.render(messages, &render)?)?)
}

fn run(loaded: &Loaded, requests: Vec<Request>) -> Result<Vec<Answer>, Failure> {
    let total = requests.len();
    let shown = std::io::stderr().is_terminal();
    submit::all(&loaded.handle, requests, |done| {
        if shown {
            eprint!("\r{done} of {total}{}", if done == total { "\n" } else { "" });
            let _ = std::io::stderr().flush();
        }
    })
}

/// Whether an answer is the expected one: a text exactly, tool calls as JSON. Thoughts before it
/// do not count.
fn matches(text: &str, expected: &Value) -> bool {
    let answer = text.rsplit("</think>").next().unwrap_or_default().trim();
    match expected {
        Value::String(expected) => answer == expected.trim(),
        Value::Array(expected) => calls(answer).as_ref() == Some(expected),
        expected => calls(answer).is_some_and(|calls| calls == [expected.clone()]),
    }
}

/// The calls in a text of nothing but `<tool_call>{...}</tool_call>`.
fn calls(text: &str) -> Option<Vec<Value>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (call, after) = rest.strip_prefix("<tool_call>")?.split_once("</tool_call>")?;
        calls.push(serde_json::from_str(call.trim()).ok()?);
        rest = after.trim_start();
    }
    Some(calls)
}

fn throughput(answers: &[Answer], start: Instant) -> String {
    let seconds = start.elapsed().as_secs_f64();
    let sum =
        |tokens: fn(&Answer) -> u32| answers.iter().map(|a| u64::from(tokens(a))).sum::<u64>();
    let (read, written) =
        (sum(|answer| answer.usage.prompt_tokens), sum(|answer| answer.usage.completion_tokens));
    format!(
        "{read} tokens read and {written} written in {seconds:.1} s ({:.1} tok/s)",
        (read + written) as f64 / seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_by_meaning() {
        let call = json!({"name": "f", "arguments": {"b": 1, "a": "x"}});
        let said =
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":\"x\", \"b\":1}}\n</tool_call>";
        for (text, expected, right) in [
            ("4", json!("4"), true),
            (" 4\n", json!("4"), true),
            ("<think>\nhm\n</think>\n\n4", json!("4"), true),
            ("44", json!("4"), false),
            (said, call.clone(), true),
            ("I call f", call.clone(), false),
            (&format!("{said}\n{said}"), json!([call, call]), true),
            (&format!("{said}\n{said}"), call.clone(), false),
            ("", json!([]), true),
        ] {
            assert_eq!(matches(text, &expected), right, "{text}");
        }
    }
}
