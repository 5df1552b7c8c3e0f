//! A model with everything that turns text into tokens and back.

use crate::exit::Failure;
use crate::heat::HeatFile;
use crate::options::ModelArguments;
use crate::target::Target;
use crate::tune::settle_with_heat;
use krasis_engine::{Options, Running, Watch};
use krasis_server::{Answers, Generation, Loaded};
use krasis_text::{Grammars, Template, TextError, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// Bytes of text per token of context that are tokenized at most. Tokens are shorter.
const BYTES_PER_TOKEN: usize = 32;

/// The small files of a model, which can be wrong before gigabytes are read.
pub struct Texts {
    tokenizer: Arc<Tokenizer>,
    /// What answers can be held to.
    pub grammars: Grammars,
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
        let tokenizer = Arc::new(tokenizer);
        let grammars = Grammars::new(tokenizer.clone());
        Ok(Texts { tokenizer, grammars, template, generation })
    }
}

/// Reads a model and starts its engine, with what a command wants of its options besides. Whoever has
/// answered with it may keep the heat of its experts, if some are to be hot.
pub fn load(
    model: &ModelArguments,
    change: &dyn Fn(&mut Options),
    watch: &dyn Watch,
) -> Result<(Loaded, Option<HeatFile>), Failure> {
    load_beside(Texts::read(&model.folder()?)?, model, change, watch)
}

/// The same, with what has been read already.
pub fn load_beside(
    texts: Texts,
    model: &ModelArguments,
    change: &dyn Fn(&mut Options),
    watch: &dyn Watch,
) -> Result<(Loaded, Option<HeatFile>), Failure> {
    let target = Target::Folder(model.folder()?);
    let (options, heat) = settle_with_heat(model, &target, watch, change)?;
    Ok((with_engine(texts, target.start(&options, watch)?, &options), heat))
}

fn with_engine(texts: Texts, running: Running, options: &Options) -> Loaded {
    let Running { handle, regions, .. } = running;
    let bytes_max = BYTES_PER_TOKEN * handle.facts.context_max as usize;
    texts.tokenizer.bytes_max.set(bytes_max).expect("nobody else knows the context");
    // Answers may differ between versions, devices and precisions, so these are what clients
    // compare.
    let precision = format!("{:?}-{:?}-{:?}", options.device, options.expert_bits, options.kv);
    let precision = precision.to_lowercase().replace(['(', ')'], "");
    let format = texts.template.as_ref().map(Template::format).unwrap_or_default();
    Loaded {
        handle,
        grammars: texts.grammars,
        tokenizer: texts.tokenizer,
        template: texts.template,
        answers: Answers { format, ..Answers::default() },
        generation: texts.generation,
        device: format!("{:?}", options.device).to_lowercase(),
        regions: regions.into_iter().map(|(region, bytes)| (region, bytes.0)).collect(),
        fingerprint: format!("krasis-{}-{precision}", env!("CARGO_PKG_VERSION")),
    }
}
