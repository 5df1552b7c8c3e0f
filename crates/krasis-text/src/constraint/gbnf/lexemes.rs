//! Which parts of a grammar are lexemes.

use super::chars::Chars;
use super::facts::{Facts, times};
use super::parse::{Grammar, Node};
use llguidance::derivre::{RegexAst, RegexBuilder};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;

/// Steps that comparing two lexemes may take; what takes more may be anything.
const FUEL: u64 = 200_000;
/// Lexemes that are compared, and times that they are taken apart. After so many all are characters.
const PAIRS_MAX: usize = 500;
const ROUNDS_MAX: usize = 50;

/// A lexeme.
struct Lexeme {
    name: String,
    first: Chars,
    /// What may stand behind it.
    follow: Chars,
    /// Whether it is one character, which cannot swallow another.
    single: bool,
}

pub(super) fn to_lark(grammar: &Grammar) -> Result<String, String> {
    let facts = Facts::of(grammar)?;
    let (mut apart, mut pairs) = (HashSet::new(), 0);
    for _ in 0..ROUNDS_MAX {
        let (lark, lexemes) = Writer::new(&facts, Cut::But(&apart)).finish()?;
        let greedy: Vec<&String> = lexemes
            .iter()
            .filter(|(regex, lexeme)| {
                let mut others = lexemes.iter().filter(|(_, one)| one.first.meets(&lexeme.first));
                !lexeme.single
                    && others.any(|(other, one)| {
                        pairs += 1;
                        pairs <= PAIRS_MAX && swallows(regex, other, &one.follow)
                    })
            })
            .map(|(regex, _)| regex)
            .collect();
        if pairs > PAIRS_MAX {
            break;
        }
        if greedy.is_empty() {
            return Ok(lark);
        }
        apart.extend(greedy.into_iter().cloned());
    }
    Ok(Writer::new(&facts, Cut::Characters).finish()?.0)
}

/// Whether a lexeme, as long as it can be, may take what stands behind another one.
fn swallows(lexeme: &str, other: &str, follow: &Chars) -> bool {
    let Some(follow) = follow.class() else { return false };
    let regex = |text: &str| RegexAst::Regex(text.into());
    let longer = RegexAst::Concat(vec![regex(other), regex(&follow), regex("(?s:.*)")]);
    let mut builder = RegexBuilder::new();
    let both = builder.mk(&RegexAst::And(vec![regex(lexeme), longer]));
    let both = both.and_then(|both| builder.into_regex_limited(both, FUEL));
    // What cannot be told is taken for a yes.
    both.map_or(true, |mut both| !both.always_empty())
}

/// What is a lexeme.
#[derive(Clone, Copy)]
enum Cut<'a> {
    /// Whatever can be but these.
    But(&'a HashSet<String>),
    Characters,
}

/// Writes a grammar's rules, again and again until it is known what follows what.
struct Writer<'a> {
    facts: &'a Facts<'a>,
    cut: Cut<'a>,
    lexemes: BTreeMap<String, Lexeme>,
    /// What may stand behind a rule.
    follow: Vec<Chars>,
    /// Rules that are named.
    named: Vec<bool>,
    changed: bool,
}

impl<'a> Writer<'a> {
    fn new(facts: &'a Facts<'a>, cut: Cut<'a>) -> Writer<'a> {
        let rules = facts.grammar.rules.len();
        let (follow, named) = (vec![Chars::default(); rules], vec![false; rules]);
        Writer { facts, cut, lexemes: BTreeMap::new(), follow, named, changed: false }
    }

    /// All of it in Lark's notation, and the lexemes by their regular expressions.
    fn finish(mut self) -> Result<(String, BTreeMap<String, Lexeme>), String> {
        let grammar = self.facts.grammar;
        loop {
            self.facts.check()?;
            self.changed = false;
            let mut lark =
                format!("start: {}\n", self.part(&Node::Rule(grammar.root), &Chars::default()));
            let mut written = vec![false; grammar.rules.len()];
            while let Some(rule) =
                (0..written.len()).find(|&rule| self.named[rule] && !written[rule])
            {
                written[rule] = true;
                let follow = self.follow[rule].clone();
                let body = self.inside(&grammar.rules[rule], &follow);
                let _ = writeln!(lark, "r{rule}: {body}");
            }
            if !self.changed {
                for (regex, lexeme) in &self.lexemes {
                    let _ = writeln!(lark, "{}: /{regex}/", lexeme.name);
                }
                return Ok((lark, self.lexemes));
            }
        }
    }

    /// A part of a rule, before what may follow it.
    fn part(&mut self, node: &Node, follow: &Chars) -> String {
        if self.facts.is_nullable(node) || self.facts.weight(node).is_none() {
            return self.inside_or_name(node, follow);
        }
        let regex = self.facts.regex(node);
        let single = self.facts.is_single(node);
        let whole = match self.cut {
            Cut::But(apart) => !apart.contains(&regex),
            Cut::Characters => single,
        };
        if !whole {
            return self.inside_or_name(node, follow);
        }
        let known = self.lexemes.len();
        let lexeme = self.lexemes.entry(regex).or_insert_with(|| Lexeme {
            name: format!("T{known}"),
            first: self.facts.first(node),
            follow: Chars::default(),
            single,
        });
        lexeme.follow.add(follow);
        lexeme.name.clone()
    }

    fn inside_or_name(&mut self, node: &Node, follow: &Chars) -> String {
        let Node::Rule(rule) = node else { return self.inside(node, follow) };
        self.changed |= !std::mem::replace(&mut self.named[*rule], true);
        self.changed |= self.follow[*rule].add(follow);
        format!("r{rule}")
    }

    /// What is no lexeme as a whole: its parts.
    fn inside(&mut self, node: &Node, follow: &Chars) -> String {
        match node {
            Node::Chars(_) | Node::Rule(_) => self.part(node, follow),
            Node::Seq(all) if all.is_empty() => "\"\"".into(),
            Node::Seq(all) => {
                let part = |at: usize| {
                    let behind = self.facts.first_of(&all[at + 1..], follow);
                    self.part(&all[at], &behind)
                };
                (0..all.len()).map(part).collect::<Vec<_>>().join(" ")
            }
            Node::Alt(all) => {
                let parts: Vec<String> = all.iter().map(|node| self.part(node, follow)).collect();
                format!("({})", parts.join(" | "))
            }
            Node::Repeat(_, _, Some(0)) => "\"\"".into(),
            // A lexeme is not empty, so none of it is another way.
            Node::Repeat(inner, 0, high) if !self.facts.is_nullable(inner) && *high != Some(1) => {
                let some = Node::Repeat(inner.clone(), 1, *high);
                format!("({})?", self.part(&some, follow))
            }
            Node::Repeat(inner, low, high) => {
                let mut behind = follow.clone();
                if *high != Some(1) {
                    behind.add(&self.facts.first(inner));
                }
                format!("({}){}", self.part(inner, &behind), times(*low, *high))
            }
        }
    }
}
