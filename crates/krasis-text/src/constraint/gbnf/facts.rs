//! What is known of a grammar's rules, however they are cut.

use super::chars::Chars;
use super::parse::{Grammar, Node};
use std::cell::Cell;

/// Parts of a lexeme, with rules resolved.
const WEIGHT_MAX: usize = 1000;
/// Steps that a grammar may take to be understood, of some 10 ns.
const STEPS_MAX: usize = 50_000_000;

/// Facts about each rule.
pub(super) struct Facts<'a> {
    pub grammar: &'a Grammar,
    /// Whether the empty text follows it.
    nullable: Vec<bool>,
    /// Characters that its texts begin with.
    first: Vec<Chars>,
    /// Parts of it; `None` if they are endless or too many.
    weight: Vec<Option<usize>>,
    /// Taken so far.
    steps: Cell<usize>,
}

impl<'a> Facts<'a> {
    pub fn of(grammar: &'a Grammar) -> Result<Facts<'a>, String> {
        let rules = grammar.rules.len();
        let (nullable, first) = (vec![false; rules], vec![Chars::default(); rules]);
        let (weight, steps) = (vec![None; rules], Cell::new(0));
        let mut facts = Facts { grammar, nullable, first, weight, steps };
        loop {
            facts.check()?;
            let mut changed = false;
            // Rules are mostly made of those below them.
            for (index, rule) in grammar.rules.iter().enumerate().rev() {
                let (nullable, first) = (facts.is_nullable(rule), facts.first(rule));
                changed |= nullable != facts.nullable[index];
                facts.nullable[index] = nullable;
                changed |= facts.first[index].add(&first);
            }
            if !changed {
                break;
            }
        }
        let mut seen = vec![false; rules];
        (0..rules).for_each(|rule| facts.weigh(rule, &mut seen));
        Ok(facts)
    }

    fn step(&self, steps: usize) {
        self.steps.set(self.steps.get() + steps);
    }

    pub fn check(&self) -> Result<(), String> {
        match self.steps.get() <= STEPS_MAX {
            true => Ok(()),
            false => Err("it takes too many steps to understand".into()),
        }
    }

    /// Rules that lead to themselves are met while they are weighed, and so have no weight.
    fn weigh(&mut self, rule: usize, seen: &mut [bool]) {
        if !std::mem::replace(&mut seen[rule], true) {
            let grammar = self.grammar;
            named(&grammar.rules[rule], &mut |other| self.weigh(other, seen));
            self.weight[rule] = self.weight(&grammar.rules[rule]);
        }
    }

    pub fn is_nullable(&self, node: &Node) -> bool {
        self.step(1);
        match node {
            Node::Chars(_) => false,
            Node::Seq(all) => all.iter().all(|node| self.is_nullable(node)),
            Node::Alt(all) => all.iter().any(|node| self.is_nullable(node)),
            Node::Repeat(node, low, _) => *low == 0 || self.is_nullable(node),
            Node::Rule(rule) => self.nullable[*rule],
        }
    }

    pub fn first(&self, node: &Node) -> Chars {
        let first = match node {
            Node::Chars(chars) => chars.clone(),
            Node::Seq(all) => self.first_of(all, &Chars::default()),
            Node::Alt(all) => all.iter().fold(Chars::default(), |mut first, node| {
                first.add(&self.first(node));
                first
            }),
            Node::Repeat(node, ..) => self.first(node),
            Node::Rule(rule) => self.first[*rule].clone(),
        };
        self.step(10 + first.ranges());
        first
    }

    /// What a sequence begins with that has something behind it.
    pub fn first_of(&self, all: &[Node], behind: &Chars) -> Chars {
        let mut first = Chars::default();
        for node in all {
            first.add(&self.first(node));
            if !self.is_nullable(node) {
                return first;
            }
        }
        first.add(behind);
        first
    }

    pub fn weight(&self, node: &Node) -> Option<usize> {
        self.step(1);
        let sum =
            |all: &[Node]| all.iter().try_fold(1usize, |sum, node| Some(sum + self.weight(node)?));
        let weight = match node {
            Node::Chars(_) => Some(1),
            Node::Seq(all) | Node::Alt(all) => sum(all),
            Node::Repeat(node, ..) => Some(1 + self.weight(node)?),
            Node::Rule(rule) => self.weight[*rule],
        };
        weight.filter(|weight| *weight <= WEIGHT_MAX)
    }

    /// A regular expression for what has a weight.
    pub fn regex(&self, node: &Node) -> String {
        self.step(10);
        let joined = |all: &[Node], by: &str| {
            all.iter().map(|node| self.regex(node)).collect::<Vec<_>>().join(by)
        };
        match node {
            Node::Chars(chars) => chars.class().expect("sets of characters are not empty"),
            Node::Seq(all) => format!("(?:{})", joined(all, "")),
            Node::Alt(all) => format!("(?:{})", joined(all, "|")),
            Node::Repeat(node, low, high) => {
                format!("(?:{}){}", self.regex(node), times(*low, *high))
            }
            Node::Rule(rule) => self.regex(&self.grammar.rules[*rule]),
        }
    }

    /// Whether what has a weight is one character.
    pub fn is_single(&self, node: &Node) -> bool {
        match node {
            Node::Chars(_) => true,
            Node::Alt(all) => all.iter().all(|node| self.is_single(node)),
            Node::Seq(all) => all.len() == 1 && self.is_single(&all[0]),
            Node::Repeat(node, 1, Some(1)) => self.is_single(node),
            Node::Repeat(..) => false,
            Node::Rule(rule) => self.is_single(&self.grammar.rules[*rule]),
        }
    }
}

/// Calls for each rule that is named.
fn named(node: &Node, call: &mut impl FnMut(usize)) {
    match node {
        Node::Chars(_) => {}
        Node::Seq(all) | Node::Alt(all) => all.iter().for_each(|node| named(node, call)),
        Node::Repeat(node, ..) => named(node, call),
        Node::Rule(rule) => call(*rule),
    }
}

/// How repetitions are written.
pub(super) fn times(low: u32, high: Option<u32>) -> String {
    match (low, high) {
        (0, None) => "*".into(),
        (1, None) => "+".into(),
        (0, Some(1)) => "?".into(),
        (low, None) => format!("{{{low},}}"),
        (low, Some(high)) => format!("{{{low},{high}}}"),
    }
}
