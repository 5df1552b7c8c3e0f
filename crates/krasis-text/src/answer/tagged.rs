//! Answers with thoughts between `<think>` tags and calls between markers.

use super::calls::{Calls, Fault};
use super::format::{Reasoning, THINK, THINK_END, ToolFormat};
use super::glm::Glm;
use super::hermes::Hermes;
use super::lexer::{Lexer, Reader, Symbol};
use super::qwen_coder::QwenCoder;
use super::schema::Tools;
use super::sections::Section;
use super::{End, Event, Format, Start};
use std::sync::Arc;

/// What stands behind the marker that opens a call or several: one format's state machine.
pub(super) trait Block: Send {
    /// Markers that mean something here.
    fn markers(&self) -> &'static [&'static str];
    /// One of them.
    fn marker(&mut self, marker: &'static str, calls: &mut Calls) -> Flow;
    /// Anything else.
    fn plain(&mut self, c: char, calls: &mut Calls) -> Flow;
    /// The model has ended its answer: completes what lacks nothing but a marker.
    fn stop(&mut self, calls: &mut Calls) -> Flow;
}

/// How an answer goes on behind a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The block goes on.
    Inside,
    /// It ended with the symbol.
    Over,
    /// It ended before the symbol.
    Before,
    /// The symbol does not belong here: no call of this format.
    Fault,
}

/// An answer's state.
pub(super) struct Tagged {
    lexer: Lexer,
    tools: Option<ToolFormat>,
    schemas: Arc<Tools>,
    /// Markers in text: those that open something, and the others, which are dropped.
    in_text: Vec<&'static str>,
    mode: Mode,
    calls: Calls,
    /// White space that may stand between text and a marker.
    gap: String,
    /// What the gap follows.
    before: Before,
    /// Whether there has been text and thought.
    said: bool,
    thought: bool,
    /// Whether markers mean nothing in text.
    literal: bool,
}

enum Mode {
    Text,
    Reasoning,
    Block(Box<dyn Block>),
    /// Inside of a malformed block, which is text up to its end.
    Verbatim,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Text, or nothing.
    Text,
    /// Thoughts or calls, whose line breaks belong to the format.
    Block,
}

impl Tagged {
    pub fn new(format: Format, schemas: Tools, start: Start) -> Tagged {
        let mut in_text = Vec::new();
        if let Some(tools) = format.tools {
            in_text.extend(tools.openers().iter().chain(tools.closers()));
        }
        let mut mode = Mode::Text;
        if format.reasoning == Some(Reasoning::Think) {
            in_text.extend([THINK, THINK_END]);
            let thinks = match start {
                Start::Prompt(prompt) => prompt.trim_end().ends_with(THINK),
                Start::Continued(text) => text.rfind(THINK) > text.rfind(THINK_END),
            };
            if thinks {
                mode = Mode::Reasoning;
            }
        }
        Tagged {
            lexer: Lexer::default(),
            tools: format.tools,
            schemas: Arc::new(schemas),
            in_text,
            mode,
            calls: Calls::default(),
            gap: String::new(),
            before: Before::Text,
            said: false,
            thought: false,
            literal: false,
        }
    }

    pub fn read_text_literally(&mut self) {
        self.literal = true;
    }

    pub fn is_reasoning(&self) -> bool {
        matches!(self.mode, Mode::Reasoning)
    }

    pub fn push(&mut self, text: &str) -> Vec<Event> {
        self.read(text);
        self.calls.events.take()
    }

    pub fn finish(&mut self, end: End) -> Vec<Event> {
        let cut = end == End::Length && matches!(self.mode, Mode::Block(_));
        // What looks like a marker's beginning in a call that is cut off probably is one.
        if !cut {
            self.read_rest();
        }
        match std::mem::replace(&mut self.mode, Mode::Text) {
            Mode::Text if self.before == Before::Text => self.release(),
            Mode::Block(_) if end == End::Length => self.calls.cut(),
            Mode::Block(mut block) => {
                if block.stop(&mut self.calls) == Flow::Fault {
                    self.calls.fault();
                }
            }
            Mode::Text | Mode::Reasoning | Mode::Verbatim => {}
        }
        self.calls.events.take()
    }

    fn fault(&mut self, symbol: Symbol) {
        self.before = Before::Text;
        self.mode = Mode::Text;
        match (self.calls.fault(), symbol) {
            (Fault::Late, symbol) => self.symbol(symbol),
            (Fault::Taken, Symbol::Marker(marker)) if self.closes(marker) => self.said = true,
            (Fault::Taken, _) => (self.mode, self.said) = (Mode::Verbatim, true),
        }
    }

    fn closes(&self, marker: &str) -> bool {
        self.tools.is_some_and(|tools| tools.closers().contains(&marker))
    }

    /// A marker outside of calls.
    fn marker(&mut self, marker: &'static str) {
        match (&self.mode, marker) {
            (Mode::Reasoning, THINK_END) => {
                self.gap.clear();
                (self.mode, self.before) = (Mode::Text, Before::Block);
            }
            (Mode::Reasoning, _) => {}
            (Mode::Text, THINK) => {
                self.gap.clear();
                self.mode = Mode::Reasoning;
                self.before = Before::Block;
            }
            (Mode::Verbatim, marker) if self.closes(marker) => {
                self.calls.events.text(marker);
                self.mode = Mode::Text;
            }
            // What closes nothing is part of the format, and not of the text.
            (_, marker) => {
                if let Some(tools) = self.tools.filter(|tools| tools.openers().contains(&marker)) {
                    let gap = std::mem::take(&mut self.gap);
                    self.calls.begin(&(gap + marker));
                    self.mode = Mode::Block(self.block(tools, marker));
                }
            }
        }
    }

    fn block(&self, tools: ToolFormat, marker: &'static str) -> Box<dyn Block> {
        match (tools, tools.words()) {
            (_, Some(words)) => Box::new(Section::new(words, marker)),
            (ToolFormat::QwenCoder, _) => Box::new(QwenCoder::new(self.schemas.clone(), marker)),
            (ToolFormat::Glm, _) => Box::new(Glm::new(self.schemas.clone())),
            _ => Box::new(Hermes::default()),
        }
    }

    /// A character outside of calls.
    fn plain(&mut self, c: char) {
        match self.mode {
            Mode::Verbatim => self.calls.events.text(c.encode_utf8(&mut [0; 4])),
            _ if c.is_whitespace() => self.gap.push(c),
            Mode::Reasoning => {
                let gap = std::mem::take(&mut self.gap);
                match (self.thought, self.before) {
                    (false, _) => {}
                    (true, Before::Text) => self.calls.events.reasoning(&gap),
                    // Thoughts that are continued behind something else.
                    (true, Before::Block) => self.calls.events.reasoning("\n"),
                }
                (self.thought, self.before) = (true, Before::Text);
                self.calls.events.reasoning(c.encode_utf8(&mut [0; 4]));
            }
            _ => {
                self.release();
                self.calls.events.text(c.encode_utf8(&mut [0; 4]));
            }
        }
    }

    /// Text comes behind the gap: it is text too, unless it only sets off a format's block.
    fn release(&mut self) {
        let gap = std::mem::take(&mut self.gap);
        if self.said || self.before == Before::Text {
            self.calls.events.text(&gap);
        }
        (self.said, self.before) = (true, Before::Text);
    }
}

impl Reader for Tagged {
    fn lexer(&mut self) -> &mut Lexer {
        &mut self.lexer
    }

    fn next(&mut self) -> Option<Symbol> {
        let markers = match &self.mode {
            Mode::Text if self.literal && (self.said || self.before == Before::Block) => &[][..],
            Mode::Text | Mode::Verbatim => &self.in_text,
            Mode::Reasoning => &[THINK, THINK_END][..],
            Mode::Block(block) => block.markers(),
        };
        self.lexer.next(markers)
    }

    fn symbol(&mut self, symbol: Symbol) {
        let Mode::Block(block) = &mut self.mode else {
            return match symbol {
                Symbol::Marker(marker) => self.marker(marker),
                Symbol::Char(c) => self.plain(c),
            };
        };
        let flow = match symbol {
            Symbol::Marker(marker) => {
                self.calls.record(marker);
                block.marker(marker, &mut self.calls)
            }
            Symbol::Char(c) => {
                self.calls.record(c.encode_utf8(&mut [0; 4]));
                block.plain(c, &mut self.calls)
            }
        };
        match flow {
            Flow::Inside => {}
            Flow::Over | Flow::Before => {
                (self.mode, self.before) = (Mode::Text, Before::Block);
                if flow == Flow::Before {
                    self.symbol(symbol);
                }
            }
            Flow::Fault => self.fault(symbol),
        }
    }
}
