//! Random answers and what this crate reads in them, one JSON object a line, for comparison with other
//! parsers (`tests/parsers` at the root of the repository):
//!
//! `cargo run --release -p krasis-text --example answers -- 2000`
//!
//! Half of them are as templates write them; in the others something is missing or strange.

#[path = "../tests/answers"]
mod answers {
    pub mod random;
    pub mod writing;
}

use answers::random::{format, mutated, prompt, written};
use answers::writing::{Told, told};
use krasis_text::{End, ToolFormat};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

fn main() {
    let count = std::env::args().nth(1);
    let count: usize = count.map_or(100, |count| count.parse().expect("a number of answers"));
    let mut random = TestRunner::deterministic();
    for _ in 0..count.div_ceil(2) {
        let one = written().new_tree(&mut random).expect("a strategy without filters").current();
        print("written", one.format, &one.tools, &one.answer);
        let (format, answer) =
            mutated().new_tree(&mut random).expect("a strategy without filters").current();
        print("mutated", format, &[], &answer);
    }
}

fn print(origin: &str, tools_format: ToolFormat, tools: &[Value], answer: &str) {
    let (format, start) = (format(tools_format), prompt(tools_format));
    let Told { text, reasoning, calls } = told(format, tools, start, &[answer], End::Stop);
    let calls: Vec<Value> = calls
        .into_iter()
        .map(|call| json!({"name": call.name, "arguments": call.arguments, "complete": call.complete}))
        .collect();
    let line = json!({"origin": origin, "format": tools_format.name(), "tools": tools,
        "answer": answer, "text": text, "reasoning": reasoning, "calls": calls});
    println!("{line}");
}
