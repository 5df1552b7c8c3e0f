//! `krasis run`: one prompt, one answer, two numbers.

use crate::bar::Bar;
use crate::exit::Failure;
use crate::heat;
use crate::load::load;
use crate::options::ModelArguments;
use crate::submit::Stream;
use clap::Args;
use krasis_engine::{Event, Request, Sampling, Usage};
use krasis_server::Loaded;
use krasis_text::{Detokenizer, Render};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

/// Arguments of `krasis run`.
#[derive(Args)]
pub struct Run {
    /// What to answer; - reads standard input
    prompt: String,
    #[command(flatten)]
    pub model: ModelArguments,
    /// System message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as a text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Let the model think first, if it can
    #[arg(long, conflicts_with = "raw")]
    think: bool,
    /// 0 takes the likeliest token [default: the model's]
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Choose among the N likeliest tokens; 0 is off [default: the model's]
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Choose among the likeliest tokens up to this probability [default: the model's]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than P times the likeliest [default: the model's]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Tokens to generate at most [default: the rest of the context]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
}

impl Run {
    /// Loads the model and answers.
    pub fn execute(mut self) -> Result<(), Failure> {
        if self.prompt == "-" {
            self.prompt.clear();
            std::io::stdin()
                .read_to_string(&mut self.prompt)
                .map_err(|error| anyhow::anyhow!("cannot read the prompt: {error}"))?;
        }
        let (loaded, heat) = load(&self.model, &|_| {}, &Bar::new())?;
        let request = self.request(&loaded)?;
        let usage = answer(&loaded, request)?;
        if let Some(usage) = usage {
            eprintln!("{}", speeds(&usage));
        }
        heat::keep(heat.as_ref(), &loaded);
        Ok(())
    }

    fn request(&self, loaded: &Loaded) -> Result<Request, Failure> {
        let prompt = self.tokens(loaded)?;
        let context = loaded.handle.facts.context_max;
        let room = context.saturating_sub(prompt.len() as u32);
        let model = &loaded.generation;
        Ok(Request {
            tokens_max: self
                .max_tokens
                .unwrap_or(room.min(model.tokens_max.unwrap_or(room)).max(1)),
            prompt,
            sampling: Sampling {
                temperature: self.temperature.or(model.temperature).unwrap_or(1.0),
                top_k: self.top_k.or(model.top_k).unwrap_or(0),
                top_p: self.top_p.or(model.top_p).unwrap_or(1.0),
                min_p: self.min_p.or(model.min_p).unwrap_or(0.0),
                repetition_penalty: model.repetition_penalty.unwrap_or(1.0),
                seed: self.seed,
                ..Sampling::GREEDY
            },
            stop_tokens: model.eos.clone(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            priority: 0,
        })
    }

    fn tokens(&self, loaded: &Loaded) -> Result<Vec<u32>, Failure> {
        if self.raw {
            return Ok(loaded.tokenizer.encode(&self.prompt)?);
        }
        let Ok(template) = &loaded.template else {
            let message = "this model has no chat template: use --raw to continue the prompt";
            return Err(Failure::say(Failure::MODEL, message));
        };
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let user = json!({"role": "user", "content": self.prompt});
        let messages: Vec<_> = system.chain([user]).collect();
        let render = Render {
            tools: Vec::new(),
            generation_prompt: true,
            continue_final: false,
            variables: [("enable_thinking".to_owned(), json!(self.think))].into_iter().collect(),
        };
        Ok(loaded.tokenizer.encode_rendered(&template.render(&messages, &render)?)?)
    }
}

/// Prints the answer as it comes. `None` if nobody reads it any more.
fn answer(loaded: &Loaded, request: Request) -> Result<Option<Usage>, Failure> {
    let stop_tokens = request.stop_tokens.clone();
    let stream = Stream::start(&loaded.handle, request)?;
    let mut detokenizer = Detokenizer::new(loaded.tokenizer.clone());
    loop {
        let (text, usage) = match stream.next()? {
            Event::Token { id, .. } if stop_tokens.contains(&id) => continue,
            Event::Token { id, .. } => (detokenizer.push(id), None),
            Event::Done { usage, .. } => (detokenizer.finish() + "\n", Some(usage)),
            Event::Prompt { .. } | Event::Refused { .. } | Event::Failed { .. } => continue,
        };
        let mut output = std::io::stdout().lock();
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) if usage.is_none() => {}
            Ok(()) => return Ok(usage),
            // `krasis run … | head -1`
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
            Err(error) => return Err(anyhow::anyhow!("cannot write the answer: {error}").into()),
        }
    }
}

/// One line: what was read and written, and how fast. The first token belongs to the prompt's
/// time, so the others are what decoding is measured by.
fn speeds(usage: &Usage) -> String {
    let rate = |tokens: u32, time: Duration| match time.is_zero() || tokens == 0 {
        true => "-".to_owned(),
        false => format!("{:.1}", f64::from(tokens) / time.as_secs_f64()),
    };
    let read = usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens);
    format!(
        "prefill {} tokens, {} tok/s; decode {} tokens, {} tok/s",
        usage.prompt_tokens,
        rate(read, usage.prefill),
        usage.completion_tokens,
        rate(usage.completion_tokens.saturating_sub(1), usage.decode),
    )
}
