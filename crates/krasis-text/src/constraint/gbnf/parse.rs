//! llama.cpp's notation.

use super::chars::Chars;
use std::collections::HashMap;

/// Brackets within brackets.
const DEPTH_MAX: usize = 100;

/// What a part of a rule stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// One of these characters.
    Chars(Chars),
    /// All of them in turn; of none, the empty text.
    Seq(Vec<Node>),
    /// One of them.
    Alt(Vec<Node>),
    /// So many times, from and to.
    Repeat(Box<Node>, u32, Option<u32>),
    /// What that rule stands for.
    Rule(usize),
}

/// All rules.
#[derive(Debug)]
pub(super) struct Grammar {
    pub rules: Vec<Node>,
    /// The rule that a text has to follow.
    pub root: usize,
}

/// Reads a grammar; what is wrong with it is a sentence that names the line.
pub(super) fn parse(text: &str) -> Result<Grammar, String> {
    let mut parser =
        Parser { text, at: 0, depth: 0, names: HashMap::new(), rules: Vec::new(), line: 1 };
    parser.space(Lines::Many);
    while parser.peek().is_some() {
        parser.rule().map_err(|reason| format!("line {}: {reason}", parser.line))?;
    }
    let Parser { names, rules, .. } = parser;
    let name = |index| names.iter().find(|(_, at)| **at == index).map_or("", |(name, _)| *name);
    let Some(&root) = names.get("root") else { return Err("there is no rule 'root'".into()) };
    let all = rules.into_iter().enumerate();
    let rules = all.map(|(index, rule)| {
        rule.ok_or_else(|| format!("the rule '{}' is not there", name(index)))
    });
    Ok(Grammar { rules: rules.collect::<Result<_, _>>()?, root })
}

/// Whether white space goes on in other lines.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    One,
    Many,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    depth: usize,
    names: HashMap<&'a str, usize>,
    /// Those that have been named, and what they are if that is known.
    rules: Vec<Option<Node>>,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn took(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        self.at += if there { text.len() } else { 0 };
        there
    }

    /// Blanks and comments.
    fn space(&mut self, lines: Lines) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => {}
                '\r' | '\n' if lines == Lines::Many => {}
                '#' => {
                    let end = self.rest().find('\n').unwrap_or(self.rest().len());
                    self.at += end;
                    continue;
                }
                _ => break,
            }
            self.take();
        }
    }

    fn name(&mut self) -> Result<usize, String> {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let length = self.rest().find(|c| !part(c)).unwrap_or(self.rest().len());
        let name = &self.rest()[..length];
        if name.is_empty() {
            return Err(match self.peek() {
                Some('<' | '!') => "tokens cannot be named: give their text".into(),
                Some(c) => format!("'{c}' is not expected here"),
                None => "it ends in the middle of a rule".into(),
            });
        }
        self.at += length;
        let known = self.names.len();
        let index = *self.names.entry(name).or_insert(known);
        if index == known {
            self.rules.push(None);
        }
        Ok(index)
    }

    fn rule(&mut self) -> Result<(), String> {
        let index = self.name()?;
        self.space(Lines::One);
        if !self.took("::=") {
            return Err("'::=' is missing behind the rule's name".into());
        }
        self.space(Lines::Many);
        let node = self.alternatives(Lines::One)?;
        if self.rules[index].replace(node).is_some() {
            return Err("the rule was there already".into());
        }
        self.space(Lines::One);
        if !matches!(self.peek(), None | Some('\r' | '\n')) {
            self.name()?;
            return Err("a rule ends with its line".into());
        }
        self.space(Lines::Many);
        Ok(())
    }

    fn alternatives(&mut self, lines: Lines) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("brackets are nested deeper than {DEPTH_MAX}"));
        }
        let mut all = vec![self.sequence(lines)?];
        loop {
            // Others begin the next line with the bar, which no rule begins with.
            let (at, line) = (self.at, self.line);
            self.space(Lines::Many);
            if !self.took("|") {
                (self.at, self.line) = (at, line);
                break;
            }
            self.space(Lines::Many);
            all.push(self.sequence(lines)?);
        }
        self.depth -= 1;
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Alt(all) })
    }

    fn sequence(&mut self, lines: Lines) -> Result<Node, String> {
        let mut all: Vec<Node> = Vec::new();
        loop {
            self.space(lines);
            let node = match self.peek() {
                None | Some('|' | ')' | '\r' | '\n') => break,
                Some('"') => self.literal()?,
                Some('[') => Node::Chars(self.class()?),
                Some('.') => {
                    self.take();
                    Node::Chars(Chars::all())
                }
                Some('(') => {
                    self.take();
                    let node = self.alternatives(Lines::Many)?;
                    self.space(Lines::Many);
                    if !self.took(")") {
                        return Err("a bracket is not closed".into());
                    }
                    node
                }
                Some(_) => Node::Rule(self.name()?),
            };
            let node = self.repeated(node, lines)?;
            all.push(node);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Seq(all) })
    }

    fn repeated(&mut self, mut node: Node, lines: Lines) -> Result<Node, String> {
        loop {
            self.space(lines);
            let (low, high) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.bounds()?,
                _ => return Ok(node),
            };
            self.take();
            if high.is_some_and(|high| high < low) {
                return Err("something repeats at least more often than at most".into());
            }
            node = Node::Repeat(Box::new(node), low, high);
        }
    }

    /// `{3}`, `{3,}`, `{,3}`, `{3,4}`, up to the last bracket.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), String> {
        let wrong = || "repetitions are {3}, {3,} or {3,4}".to_owned();
        let end = self.rest().find('}').ok_or_else(wrong)?;
        let inner = &self.rest()[1..end];
        self.at += end;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        Ok(match inner.split_once(',') {
            None => (number(inner)?, Some(number(inner)?)),
            Some((low, high)) => (
                if low.trim().is_empty() { 0 } else { number(low)? },
                if high.trim().is_empty() { None } else { Some(number(high)?) },
            ),
        })
    }

    fn literal(&mut self) -> Result<Node, String> {
        self.take();
        let mut all = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err("a text is not closed".into()),
                Some('"') => break,
                Some(_) => {
                    let c = self.character()?;
                    all.push(Node::Chars(Chars::range(c, c)));
                }
            }
        }
        self.take();
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Seq(all) })
    }

    fn class(&mut self) -> Result<Chars, String> {
        self.take();
        let negated = self.took("^");
        let mut all = Chars::default();
        loop {
            match self.peek() {
                None | Some('\n') => return Err("a set of characters is not closed".into()),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.character()?;
            let last = match self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                true => {
                    self.take();
                    self.character()?
                }
                false => first,
            };
            if last < first {
                return Err("a range of characters goes backwards".into());
            }
            all.add(&Chars::range(first, last));
        }
        self.take();
        let all = if negated { all.others() } else { all };
        match all.class() {
            Some(_) => Ok(all),
            None => Err("a set of characters is empty".into()),
        }
    }

    fn character(&mut self) -> Result<u32, String> {
        let digits = match self.take() {
            Some('\\') => match self.take() {
                Some('n') => return Ok(u32::from('\n')),
                Some('r') => return Ok(u32::from('\r')),
                Some('t') => return Ok(u32::from('\t')),
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                Some(c) if c.is_ascii_punctuation() => return Ok(u32::from(c)),
                _ => return Err("what is behind a backslash is not known".into()),
            },
            Some(c) => return Ok(u32::from(c)),
            None => return Err("it ends in the middle of a text".into()),
        };
        let hex = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let code = hex.filter(|code| char::from_u32(*code).is_some());
        self.at += digits;
        code.ok_or_else(|| {
            format!("\\x, \\u and \\U are followed by a character's {digits} digits")
        })
    }
}
