//! A model with everything that turns text into tokens and back.

use crate::exit::Failure;
use krasis_engine::{Options, Running, Watch};
use krasis_server::{Answers, Generation, Loaded};
use krasis_text::{Grammars, Template, TextError, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// Bytes of text per token of context that are tokenized at most. Tokens are shorter.
const BYTES_PER_TOKEN: usize = 32;

/// The small files of a model, which can be wrong before gigabytes are read.
pub struct Texts {
    tokenizer: Tokenizer,
    template: Result<Template, TextError>,
    generation: Generation,
}

impl Texts {
    /// Reads them.
    pub fn read(dir: &Path) -> Result<Texts, Failure> {
        let tokenizer = Tokenizer::load(dir)?;
        let template = match Template::load(dir, &tokenizer.specials) {
            // Models without a template complete texts.
            Err(TextError::NoTemplate) => Err(TextError::NoTemplate),
            template => Ok(template?),
        };
        let mut generation = Generation::read(dir)?;
        if generation.eos.is_empty() {
            let eos = tokenizer.specials.eos.as_deref();
            generation.eos.extend(eos.and_then(|eos| tokenizer.id(eos)));
        }
        Ok(Texts { tokenizer, template, generation })
    }
}

/// Reads a model and starts its engine.
pub fn load(dir: &Path, options: &Options, watch: &dyn Watch) -> Result<Loaded, Failure> {
    let texts = Texts::read(dir)?;
    Ok(with_engine(texts, krasis_engine::start_watched(dir, options, watch)?, options))
}

fn with_engine(mut texts: Texts, running: Running, options: &Options) -> Loaded {
    let Running { handle, regions, .. } = running;
    texts.tokenizer.bytes_max = BYTES_PER_TOKEN * handle.facts.context_max as usize;
    // Answers may differ between versions, devices and precisions, so these are what clients
    // compare.
    let precision = format!("{:?}-{:?}-{:?}", options.device, options.expert_bits, options.kv);
    let precision = precision.to_lowercase().replace(['(', ')'], "");
    let format = texts.template.as_ref().map(Template::format).unwrap_or_default();
    let tokenizer = Arc::new(texts.tokenizer);
    Loaded {
        handle,
        grammars: Grammars::new(tokenizer.clone()),
        tokenizer,
        template: texts.template,
        answers: Answers { format, ..Answers::default() },
        generation: texts.generation,
        device: format!("{:?}", options.device).to_lowercase(),
        regions: regions.into_iter().map(|(region, bytes)| (region, bytes.0)).collect(),
        fingerprint: format!("krasis-{}-{precision}", env!("CARGO_PKG_VERSION")),
    }
}
