//! Random grammars: what llguidance makes of the translation, against the plain meaning of the rules.

use super::parse::{Grammar, Node, parse};
use super::to_lark;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};
use std::collections::{BTreeSet, HashMap};

/// Where parts of a text end that follow a rule: each rule from each position.
struct Plain<'a> {
    text: &'a [char],
    ends: HashMap<(usize, usize), BTreeSet<usize>>,
}

impl Plain<'_> {
    fn accepts(grammar: &Grammar, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let mut plain = Plain { text: &text, ends: HashMap::new() };
        // Rules lead to themselves, so what is known grows until it does not.
        loop {
            let before = plain.ends.clone();
            for at in 0..=text.len() {
                for rule in 0..grammar.rules.len() {
                    let ends = plain.ends_of(&grammar.rules[rule], at);
                    plain.ends.insert((rule, at), ends);
                }
            }
            if plain.ends == before {
                return plain.ends[&(grammar.root, 0)].contains(&text.len());
            }
        }
    }

    fn ends_of(&self, node: &Node, at: usize) -> BTreeSet<usize> {
        match node {
            Node::Chars(chars) => {
                let fits =
                    |c: &&char| chars.meets(&super::chars::Chars::range(**c as u32, **c as u32));
                self.text.get(at).filter(fits).map(|_| at + 1).into_iter().collect()
            }
            Node::Seq(all) => all.iter().fold(BTreeSet::from([at]), |from, node| {
                from.iter().flat_map(|at| self.ends_of(node, *at)).collect()
            }),
            Node::Alt(all) => all.iter().flat_map(|node| self.ends_of(node, at)).collect(),
            Node::Rule(rule) => self.ends.get(&(*rule, at)).cloned().unwrap_or_default(),
            Node::Repeat(node, low, high) => {
                let mut reached = BTreeSet::from([at]);
                let mut all = BTreeSet::new();
                for times in 0..=high.unwrap_or(30).min(30) {
                    if times >= *low {
                        all.extend(&reached);
                    }
                    reached = reached.iter().flat_map(|at| self.ends_of(node, *at)).collect();
                }
                all
            }
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % most
    }

    /// A part of a rule, in their notation.
    fn part(&mut self, depth: usize, rules: usize) -> String {
        match self.below(if depth == 0 { 4 } else { 9 }) {
            0 => "\"a\"".into(),
            1 => ["\"ab\"", "\"ba\"", "\"é\"", "\"bb\""][self.below(4)].into(),
            2 => ["[ab]", "[^a]", "[b-c]", "[a-cé]"][self.below(4)].into(),
            3 => format!("r{}", self.below(rules)),
            4 | 5 => {
                let parts = 2 + self.below(2);
                let parts: Vec<String> = (0..parts).map(|_| self.part(depth - 1, rules)).collect();
                format!("({})", parts.join(" "))
            }
            6 => format!("({} | {})", self.part(depth - 1, rules), self.part(depth - 1, rules)),
            _ => {
                let times = ["*", "+", "?", "{2}", "{1,2}", "{0,2}"][self.below(6)];
                format!("({}){times}", self.part(depth - 1, rules))
            }
        }
    }

    fn grammar(&mut self) -> String {
        let rules = 1 + self.below(3);
        let mut text = "root ::= r0\n".to_owned();
        for rule in 0..rules {
            let others = match self.below(3) {
                0 => String::new(),
                _ => format!(" | {}", self.part(2, rules)),
            };
            text += &format!("r{rule} ::= {}{others}\n", self.part(3, rules));
        }
        text
    }
}

/// A text that follows a rule, if chance finds one that is not too long.
fn spoken(node: &Node, grammar: &Grammar, random: &mut Random, depth: usize) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    match node {
        Node::Chars(chars) => {
            let fits = |c: &char| chars.meets(&super::chars::Chars::range(*c as u32, *c as u32));
            let all: Vec<char> = ['a', 'b', 'c', 'é'].into_iter().filter(fits).collect();
            Some(all[random.below(all.len())].into())
        }
        Node::Seq(all) => all.iter().map(|node| spoken(node, grammar, random, depth)).collect(),
        Node::Alt(all) => spoken(&all[random.below(all.len())], grammar, random, depth),
        Node::Repeat(node, low, high) => {
            let more = random.below(high.map_or(3, |high| high - low + 1) as usize);
            let times = 0..*low as usize + more;
            times.map(|_| spoken(node, grammar, random, depth)).collect()
        }
        Node::Rule(rule) => spoken(&grammar.rules[*rule], grammar, random, depth),
    }
}

fn matcher(factory: &ParserFactory, lark: &str) -> Result<Matcher, String> {
    let matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark.into())));
    match matcher.get_error() {
        Some(error) => Err(error),
        None => Ok(matcher),
    }
}

fn accepts(matcher: &Matcher, text: &str) -> bool {
    let mut matcher = matcher.deep_clone();
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    bytes.iter().all(|byte| matcher.try_consume_tokens(&[*byte]).is_ok_and(|taken| taken == 1))
        && matcher.is_accepting().unwrap_or(false)
}

#[test]
fn random_grammars_keep_their_language() {
    let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
    factory.quiet();
    let mut random = Random(5);
    let texts: Vec<String> = (0..4u32.pow(5))
        .flat_map(|number| (0..=5).map(move |length| (number, length)))
        .filter(|(number, length)| *number < 4u32.pow(*length))
        .map(|(number, length)| {
            (0..length).map(|at| ['a', 'b', 'c', 'é'][(number >> (2 * at)) as usize & 3]).collect()
        })
        .collect();
    let (mut yes, mut no, mut refused) = (0, 0, 0);
    for case in 0..400 {
        let text = random.grammar();
        let grammar = parse(&text).unwrap();
        let lark = to_lark(&text).unwrap();
        let matcher = matcher(&factory, &lark);
        for _ in 0..30 {
            let own = spoken(&grammar.rules[grammar.root], &grammar, &mut random, 12);
            let own = own.filter(|text| text.len() < 14 && random.below(2) == 0);
            let said = &own.unwrap_or_else(|| texts[random.below(texts.len())].clone());
            let expected = Plain::accepts(&grammar, said);
            match &matcher {
                Err(_) => {
                    refused += usize::from(expected);
                    assert!(!expected, "case {case}: {text}{lark}: {:?}", matcher.as_ref().err());
                }
                Ok(matcher) => {
                    let found = accepts(matcher, said);
                    assert_eq!(found, expected, "case {case}: {said:?} of\n{text}{lark}");
                    *(if expected { &mut yes } else { &mut no }) += 1;
                }
            }
        }
    }
    println!("{yes} accepted, {no} not; {refused} of grammars that were refused");
    assert!(yes > 1000 && no > 1000, "{yes} accepted, {no} not");
}

/// JSON, with blanks behind what it is made of.
const JSON: &str = "root ::= map\nmap ::= \"{\" ws (\n  pair\n  (\",\" ws pair)*\n)? \"}\" ws # and no more\n\
    pair ::= text \":\" ws value\nlist ::= \"[\" ws (value (\",\" ws value)*)? \"]\" ws\n\
    value ::= map | list | text | number | (\"true\" | \"null\") ws\n\
    text ::= \"\\\"\" character* \"\\\"\" ws\ncharacter ::= [^\"\\\\\\x00-\\x1F] | \"\\\\\" escape\n\
    escape ::= [\"\\\\/bfnrt] | \"u\" hex{4}\nhex ::= [0-9a-fA-F]\n\
    number ::= \"-\"? (\"0\" | [1-9] digit{0,15}) (\".\" digit+)? ws\ndigit ::= [0-9]\n\
    ws ::= ([ \\t\\n] ws)?\n";

/// Grammars as people write them, and texts that follow them or do not.
#[test]
fn grammars_of_people_keep_their_language() {
    let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
    factory.quiet();
    let sums = "root ::= line+\nline ::= \"let \" name \"be \" sum \"\\n\"\nsum ::= atom (\"+\" atom)*\n\
        atom ::= name | digit+ ws | \"[\" ws sum \"]\" ws\nname ::= letter (letter | digit)* ws\n\
        letter ::= [a-z]\ndigit ::= [0-9]\nws ::= [ \\n]*\n";
    let code = "root ::= line+\nline ::= type name \"=\" ws name \";\" | name \"(\" (name (\",\" name)*)? \")\" \";\" | \"if\" \"(\" name \")\" \"{\" line* \"}\"\n\
        type ::= \"int\" ws\n  | \"float\" ws\nname ::= [a-z]+ ws?\nws ::= [ \\n]+\n";
    for (grammar, yes, no) in [
        (
            sums,
            &["let a1 be 2 +b\n", "let a\nbe [ x +1] \n+y\n\nlet b be 3\n"][..],
            &["let a be 2", "let be 3\n", "let a be [x\n", "a be 2\n"][..],
        ),
        (
            JSON,
            &["{}", "{ \"a\" : [1, -2.5,{\"b\\u00e9\\n\": null} ] }\n", "{\"a\":\"é\"}"],
            &["[]", "{\"a\":01}", "{\"a\":1,}", "{\"a\":\"\n\"}", "{\"a\":tru}"],
        ),
        (
            code,
            &["int x= y;", "integer(a,b);", "int(a);", "if(a){int if= b;if(x);}", "float z =\ny;"],
            &["int x y;", "if(a){", "float=y;", "a(b"],
        ),
        (
            "root ::= [a-z]+ \"x\" | root \"-\" root",
            &["ax", "xxx", "ax-bxx-cx"],
            &["x", "ax-", "a"],
        ),
        ("root ::= \"\" | \"a\" . \"\\u00e9\"", &["", "a\né"], &["a", "aé"]),
    ] {
        let lark = to_lark(grammar).unwrap();
        let matcher = matcher(&factory, &lark).unwrap();
        for (texts, expected) in [(yes, true), (no, false)] {
            for text in texts {
                assert_eq!(accepts(&matcher, text), expected, "{text:?} of\n{grammar}\n{lark}");
                assert_eq!(Plain::accepts(&parse(grammar).unwrap(), text), expected, "{text:?}");
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (grammar, words) in [
        ("a ::= \"b\"", "there is no rule 'root'"),
        ("root ::= b", "the rule 'b' is not there"),
        ("root ::= \"a\"\nroot ::= \"b\"", "line 2: the rule was there already"),
        ("root ::= \"a", "line 1: a text is not closed"),
        ("root ::= [a", "not closed"),
        ("root ::= [b-a]", "backwards"),
        ("root ::= []", "empty"),
        ("root ::= (\"a\"", "a bracket is not closed"),
        ("root ::= \"a\")", "')' is not expected here"),
        ("root ::= \"a\"{3,2}", "more often than at most"),
        ("root ::= \"a\"{99999999999}", "repetitions are"),
        ("root ::= \"\\ud800\"", "digits"),
        ("root ::= \"\\q\"", "backslash"),
        ("root ::= <think> \"a\"", "tokens cannot be named"),
        ("root = \"a\"\nx ::= \"b\"", "line 1: '::=' is missing"),
        ("root ::=", "nothing"),
    ] {
        match to_lark(grammar) {
            Err(error) => assert!(error.contains(words), "{grammar}: {error}"),
            Ok(lark) => assert_eq!((words, lark.lines().count()), ("nothing", 2), "{lark}"),
        }
    }
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(10_000), ")".repeat(10_000));
    assert!(to_lark(&deep).unwrap_err().contains("nested deeper"));
}
