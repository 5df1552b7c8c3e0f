//! The demo model's own tokenizer and template, against the prompts that its training code made.

use krasis_text::{Detokenizer, Render, Template, Tokenizer};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

#[test]
fn demo_prompts_have_the_ids_of_the_training_code() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
    let Ok(tasks) = std::fs::read_to_string(demo.join("heldout/tasks.jsonl")) else {
        return println!("skipped: {} holds no heldout/tasks.jsonl", demo.display());
    };
    let tokenizer = Arc::new(Tokenizer::load(&demo.join("model")).unwrap());
    let template = Template::load(&demo.join("model"), &tokenizer.specials).unwrap();
    let mut compared = 0;
    for line in tasks.lines() {
        let task: Value = serde_json::from_str(line).unwrap();
        let Some(expected) = task["prompt_ids"].as_array() else { continue };
        let expected: Vec<u32> = expected.iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let thinking = task.get("enable_thinking").cloned();
        let render = Render {
            tools: task["tools"].as_array().cloned().unwrap_or_default(),
            generation_prompt: true,
            continue_final: false,
            variables: thinking.map(|on| ("enable_thinking".to_owned(), on)).into_iter().collect(),
        };
        let text = template.render(task["messages"].as_array().unwrap(), &render).unwrap();
        let ids = tokenizer.encode_rendered(&text).unwrap();
        assert_eq!(ids, expected, "{text}");
        let mut detokenizer = Detokenizer::with_specials(tokenizer.clone());
        let pieces: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        assert_eq!(pieces + &detokenizer.finish(), text);
        compared += 1;
    }
    assert!(compared > 0, "no task carries prompt_ids");
}
