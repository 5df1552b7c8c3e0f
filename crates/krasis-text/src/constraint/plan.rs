//! The stages of an answer: what is watched for, and what is under which grammar.
//!
//! | the answer | stages |
//! |---|---|
//! | has a form | thoughts or headers up to their end, then the form, or a call if there are tools |
//! | is a text with tags | text and thoughts in turn, up to what opens a tag, the tag, text again |
//! | must be a call | the call, whose first words are written already |
//! | may hold calls of strict tools | text and thoughts in turn, up to what opens a call, then calls |

use super::calls::{Arguments, Calls, Tool};
use super::error::{GrammarError, sentence};
use super::form::Form;
use super::guide::Guide;
use super::lark::Lark;
use super::vocabulary::Vocabulary;
use crate::answer::words::{HARMONY, THINK, THINK_END};
use crate::{Format, Reasoning, ToolFormat};
use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::Value;
use std::fmt;
use std::sync::{Arc, PoisonError};

/// What grammars are compiled in: they nest, and compilers recur.
const STACK_BYTES: usize = 512 << 20;

/// Line breaks that models write behind their thoughts.
const GAP: &str = "/\\n{0,2}/";

/// Openings of a message for the reader in gpt-oss's format.
const FINAL: [&str; 2] =
    ["<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"];

/// What an answer must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Of its text.
    pub form: Option<&'a Form>,
    /// How the model writes calls and thoughts.
    pub format: Format,
    /// OpenAI's objects: those that may be called.
    pub tools: &'a [Value],
    /// Whether one must be.
    pub demand: Demand<'a>,
    /// Whether one call is all.
    pub single: bool,
    /// What the model continues; its end tells whether it is thinking.
    pub prompt: &'a str,
}

/// Whether an answer must be a call.
#[derive(Clone, Copy, Debug)]
pub enum Demand<'a> {
    /// It need not.
    Free,
    /// It must.
    Call {
        /// The words that it begins with, which are written already.
        opening: &'a str,
        /// Calls of the conversation so far.
        number: usize,
    },
}

/// Rules, compiled.
#[derive(Clone)]
pub struct Grammar(Arc<Plan>);

/// The stages of an answer.
pub(super) struct Plan {
    pub vocabulary: Arc<Vocabulary>,
    pub stages: Vec<Stage>,
}

/// A part of an answer.
pub(super) enum Stage {
    /// Anything, up to a marker.
    Watch(Watch),
    /// Under a grammar, to the end.
    Within {
        grammar: Box<Matcher>,
        /// A token that may stand first instead, and the stage that it opens.
        instead: Option<(u32, usize)>,
        /// The stage behind its end, if the answer goes on.
        then: Option<usize>,
    },
}

/// A stage in which anything may come.
pub(super) struct Watch {
    /// Markers, and the stages that they open.
    pub markers: Vec<(String, usize)>,
    /// Whether the answer may end here.
    pub may_end: bool,
    /// Tokens that would end a marker and go on: of which marker, behind how many of its bytes.
    pub overshoots: Vec<(usize, usize, u32)>,
    /// What the answer goes on from, as far as markers may begin there.
    pub before: &'static str,
}

impl Rules<'_> {
    /// No rules.
    pub const FREE: Rules<'static> = Rules {
        form: None,
        format: Format { tools: None, reasoning: None },
        tools: &[],
        demand: Demand::Free,
        single: false,
        prompt: "",
    };

    /// Whether there is nothing to keep to.
    pub(super) fn leave_free(&self) -> bool {
        let strict = |tool: &Value| tool["function"]["strict"] == true;
        let strict = self.format.tools.is_some() && self.tools.iter().any(strict);
        self.form.is_none() && matches!(self.demand, Demand::Free) && !strict
    }
}

impl Grammar {
    /// An answer begins.
    pub fn begin(&self) -> Guide {
        Guide::new(self.0.clone())
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammar of {} stages", self.0.stages.len())
    }
}

/// Compiles rules on a thread of its own, whose stack is large enough for whatever they nest.
pub(super) fn compile(
    vocabulary: &Arc<Vocabulary>,
    rules: &Rules,
) -> Result<Grammar, GrammarError> {
    let failed = || GrammarError::Form("the grammar's compiler failed".into());
    let stages = std::thread::scope(|scope| {
        let compiler = std::thread::Builder::new().stack_size(STACK_BYTES);
        let work = || Compiler { vocabulary, rules }.stages();
        let thread = compiler.spawn_scoped(scope, work).map_err(|_| failed())?;
        thread.join().map_err(|_| failed())?
    })?;
    Ok(Grammar(Arc::new(Plan { vocabulary: vocabulary.clone(), stages })))
}

/// What makes stages of rules.
pub(super) struct Compiler<'a> {
    pub vocabulary: &'a Vocabulary,
    rules: &'a Rules<'a>,
}

impl Compiler<'_> {
    fn stages(&self) -> Result<Vec<Stage>, GrammarError> {
        let Rules { format, tools, demand, .. } = *self.rules;
        match (demand, self.rules.form, format.tools) {
            (Demand::Call { opening, number }, _, Some(format)) => {
                let opening = opening.trim_start().strip_prefix(THINK_END).unwrap_or(opening);
                let calls = self.calls(format, Tool::all(tools, true)?, number);
                Ok(vec![self.calls_after(&calls, opening.trim_start())?])
            }
            (_, Some(form), _) => self.formed(form),
            (_, None, Some(format)) => self.opened(format),
            (_, None, None) => {
                Err(GrammarError::Form("it is not known how this model writes calls".into()))
            }
        }
    }

    /// A form, behind thoughts.
    fn formed(&self, form: &Form) -> Result<Vec<Stage>, GrammarError> {
        if let Form::Tagged(tags) = form {
            return self.tagged(tags);
        }
        let thinks = self.rules.prompt.trim_end().ends_with(THINK);
        if self.is_harmony() {
            let mut stages = vec![self.form(form, false)?];
            let calls = self.openings(ToolFormat::Harmony, &mut stages)?;
            let finals = FINAL.iter().map(|opening| (opening.to_string(), 0));
            let markers = finals.chain(calls).collect();
            stages.push(self.watch(markers, false));
            stages.rotate_right(1);
            return Ok(shifted(stages));
        }
        let thinking = self.rules.format.reasoning == Some(Reasoning::Think);
        let token = self.vocabulary.marker(THINK).filter(|_| thinking && !self.thought());
        match (thinking && thinks, token) {
            (true, _) => Ok(vec![self.thoughts(1, false), self.form(form, true)?]),
            (false, None) => Ok(vec![self.form(form, false)?]),
            // The model may begin to think by itself.
            (false, Some(token)) => {
                let Stage::Within { grammar, .. } = self.form(form, false)? else {
                    unreachable!("forms are under a grammar")
                };
                let first = Stage::Within { grammar, instead: Some((token, 1)), then: None };
                Ok(vec![first, self.thoughts(2, false), self.form(form, true)?])
            }
        }
    }

    /// Whether the prompt closes thoughts, so that none are to come.
    fn thought(&self) -> bool {
        self.rules.prompt.trim_end().ends_with(THINK_END)
    }

    fn is_harmony(&self) -> bool {
        let Format { tools, reasoning } = self.rules.format;
        tools == Some(ToolFormat::Harmony) || reasoning == Some(Reasoning::Harmony)
    }

    /// Text with calls of tools, some of them strict.
    fn opened(&self, format: ToolFormat) -> Result<Vec<Stage>, GrammarError> {
        let mut stages = Vec::new();
        let markers = self.openings(format, &mut stages)?;
        Ok(self.in_turn(stages, markers, true))
    }

    /// Puts text and thoughts in turn before stages that markers open.
    pub fn in_turn(
        &self,
        mut stages: Vec<Stage>,
        mut markers: Vec<(String, usize)>,
        may_end: bool,
    ) -> Vec<Stage> {
        let thinking = self.rules.format.reasoning == Some(Reasoning::Think);
        let thoughts = stages.len();
        if thinking {
            markers.push((THINK.into(), thoughts));
            stages.push(self.thoughts(thoughts + 1, may_end));
        }
        let text = stages.len();
        stages.push(self.watch(markers, may_end));
        // The first stage is that in which the prompt leaves the model.
        let thinks = thinking && self.rules.prompt.trim_end().ends_with(THINK);
        let first = if thinks { thoughts } else { text };
        stages.swap(0, first);
        let renamed = |to: &mut usize| {
            if *to == 0 {
                *to = first;
            } else if *to == first {
                *to = 0;
            }
        };
        for stage in &mut stages {
            match stage {
                Stage::Watch(watch) => watch.markers.iter_mut().for_each(|(_, to)| renamed(to)),
                Stage::Within { then, .. } => then.iter_mut().for_each(renamed),
            }
        }
        stages
    }

    /// Markers that open calls, and stages with what follows them.
    fn openings(
        &self,
        format: ToolFormat,
        stages: &mut Vec<Stage>,
    ) -> Result<Vec<(String, usize)>, GrammarError> {
        let openers: &[&str] = match format {
            ToolFormat::Harmony => {
                &["<|channel|>commentary to=functions.", "<|start|>assistant to=functions."]
            }
            format => format.openers(),
        };
        let mut markers = Vec::new();
        if self.rules.tools.is_empty() {
            return Ok(markers);
        }
        for opener in openers {
            let calls = self.calls(format, Tool::all(self.rules.tools, false)?, 0);
            stages.push(self.calls_after(&calls, opener)?);
            markers.push((opener.to_string(), stages.len() - 1));
        }
        Ok(markers)
    }

    fn calls<'a>(&self, format: ToolFormat, tools: Vec<Tool<'a>>, number: usize) -> Calls<'a> {
        Calls { format, tools, number, single: self.rules.single }
    }

    fn calls_after(&self, calls: &Calls, before: &str) -> Result<Stage, GrammarError> {
        let mut lark = self.lark();
        let start = calls.after(before, &mut lark)?;
        let start = start.ok_or_else(|| GrammarError::Form("no tool can be called so".into()))?;
        self.within(lark.finish(&start)).map_err(|error| self.blamed(error, calls))
    }

    /// Which tool cannot be compiled: each by itself.
    fn blamed(&self, error: String, calls: &Calls) -> GrammarError {
        let alone = |tool: &&Tool| match &tool.arguments {
            Arguments::Free => false,
            Arguments::Schema(schema, strictness) => {
                let grammar = super::form::json_grammar(schema.clone(), *strictness);
                self.within(TopLevelGrammar::from_grammar(grammar)).is_err()
            }
        };
        let index = calls.tools.iter().find(alone).map_or(calls.tools[0].index, |tool| tool.index);
        GrammarError::Tool { index, reason: error }
    }

    /// The form, or calls where there are tools.
    fn form(&self, form: &Form, gap: bool) -> Result<Stage, GrammarError> {
        let mut lark = self.lark();
        let mut start = form.write(&mut lark)?;
        if let Some(format) = self.rules.format.tools.filter(|_| !self.is_harmony())
            && !self.rules.tools.is_empty()
        {
            let calls = self.calls(format, Tool::all(self.rules.tools, false)?, 0);
            let calls = calls.after("", &mut lark)?.map(|calls| lark.rule(&calls));
            start = lark
                .rule(&[Some(start), calls].into_iter().flatten().collect::<Vec<_>>().join(" | "));
        }
        if gap {
            start = format!("{} {start}", lark.terminal(GAP));
        }
        self.within(lark.finish(&start)).map_err(GrammarError::Form)
    }

    fn lark(&self) -> Lark<'_> {
        let mut markers = self.rules.format.markers();
        markers.extend(HARMONY);
        markers.extend(crate::answer::words::TAGS);
        Lark::new(self.vocabulary, markers)
    }

    /// A stage under a grammar; why there is none is a sentence.
    pub fn within(&self, grammar: TopLevelGrammar) -> Result<Stage, String> {
        let factory = self.vocabulary.factory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut grammar = Matcher::new(factory.create_parser(grammar));
        drop(factory);
        if let Some(error) = grammar.get_error() {
            return Err(sentence(error));
        }
        // What nothing fits is found out here.
        let accepting = grammar.is_accepting().map_err(sentence)?;
        let first = grammar.deep_clone().compute_mask().map_err(sentence);
        match first {
            Err(error) if !accepting => Err(match error.as_str() {
                "NoExtensionBias" => "nothing fits it".into(),
                _ => error,
            }),
            _ => Ok(Stage::Within { grammar: Box::new(grammar), instead: None, then: None }),
        }
    }

    /// Thoughts, up to their end.
    fn thoughts(&self, then: usize, may_end: bool) -> Stage {
        self.watch(vec![(THINK_END.into(), then)], may_end)
    }

    /// A stage up to markers.
    pub fn watch(&self, markers: Vec<(String, usize)>, may_end: bool) -> Stage {
        let mut overshoots = Vec::new();
        let last: Vec<u8> =
            markers.iter().filter_map(|(marker, _)| marker.bytes().last()).collect();
        for (token, bytes) in (0..).zip(&self.vocabulary.tokens) {
            // Most tokens hold no marker's last byte but at their end.
            if !bytes[..bytes.len().saturating_sub(1)].iter().any(|byte| last.contains(byte)) {
                continue;
            }
            for (index, (marker, _)) in markers.iter().enumerate() {
                let marker = marker.as_bytes();
                let holds = bytes.windows(marker.len()).position(|part| part == marker);
                if holds.is_some_and(|at| at + marker.len() < bytes.len()) {
                    overshoots.push((index, 0, token));
                }
                for known in 1..marker.len() {
                    let rest = &marker[known..];
                    if bytes.starts_with(rest) && bytes.len() > rest.len() {
                        overshoots.push((index, known, token));
                    }
                }
            }
        }
        let before = if self.is_harmony() { "<|start|>assistant" } else { "" };
        Stage::Watch(Watch { markers, may_end, overshoots, before })
    }
}

/// One stage has been put in front of the others.
fn shifted(mut stages: Vec<Stage>) -> Vec<Stage> {
    if let Some(Stage::Watch(watch)) = stages.first_mut() {
        watch.markers.iter_mut().for_each(|(_, stage)| *stage += 1);
    }
    stages
}
