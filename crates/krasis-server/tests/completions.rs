//! `/v1/completions`: prompts in four forms, echo and the log-probabilities that lm-eval reads.

mod common;

use common::{BOS, EOS, Script, Server};
use serde_json::{Value, json};

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn prompts_are_taken_in_four_forms() {
    let server = Server::start(Script::saying("!"));
    let prompts_of = |prompt: Value| {
        server.seen.lock().unwrap().clear();
        let answer = server.post("/v1/completions", json!({"prompt": prompt})).json();
        let indices: Vec<_> = answer["choices"].as_array().unwrap().iter().enumerate().collect();
        assert!(indices.iter().all(|(at, choice)| choice["index"] == *at));
        assert_eq!(answer["object"], "text_completion");
        server.seen.lock().unwrap().iter().map(|r| r.prompt.clone()).collect::<Vec<_>>()
    };
    // Texts get the BOS of the tokenizer, ids are taken verbatim.
    assert_eq!(prompts_of(json!("a")), [[BOS, 97]]);
    assert_eq!(prompts_of(json!(["a", "b"])), [[BOS, 97], [BOS, 98]]);
    assert_eq!(prompts_of(json!([97, 98])), [[97, 98]]);
    assert_eq!(prompts_of(json!([[97], [98]])), [[97], [98]]);
}

#[test]
fn samples_follow_their_prompt() {
    let server = Server::start(Script::saying("!"));
    let body = json!({"prompt": ["a", "b"], "n": 2, "echo": true});
    let answer = server.post("/v1/completions", body.clone()).json();
    assert_eq!(texts(&answer), ["a!", "a!", "b!", "b!"]);
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    assert_eq!(answer["usage"]["completion_tokens"], 8);
}

#[test]
fn a_batch_larger_than_the_queue_is_served() {
    let server = Server::start(Script { queue_max: 2, ..Script::saying("!") });
    let prompts: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let answer = server.post("/v1/completions", json!({"prompt": prompts, "echo": true})).json();
    assert_eq!(texts(&answer), prompts.iter().map(|p| format!("{p}!")).collect::<Vec<_>>());
}

/// The request and the arithmetic of lm-evaluation-harness (models/api_models.py).
#[test]
fn lm_eval_finds_its_sums() {
    let server = Server::start(Script::saying(""));
    let body = json!({"model": "tiny", "prompt": [[97, 98, 122, 99], [100, 101]], "temperature": 0,
        "max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234});
    let answer = server.post("/v1/completions", body).json();
    let first = &answer["choices"][0];
    let lists = &first["logprobs"];
    assert_eq!(lists["tokens"], json!(["a", "b", "z", "c", "</s>"]));
    assert_eq!(lists["token_logprobs"][0], json!(null));
    assert_eq!(lists["top_logprobs"][0], json!(null));
    assert_eq!(lists["text_offset"], json!([0, 1, 2, 3, 4]));
    assert_eq!(first["text"], "abzc");
    // The chosen token is listed even when it is not among the top, with the very same float.
    let sums = |choice: &Value, context: usize| {
        let lists = &choice["logprobs"];
        let tokens = lists["token_logprobs"].as_array().unwrap();
        let tops = lists["top_logprobs"].as_array().unwrap();
        let within = context..tokens.len() - 1;
        let greedy =
            tokens[within.clone()].iter().zip(&tops[within.clone()]).all(|(token, top)| {
                let values = top.as_object().unwrap().values().map(|value| value.as_f64().unwrap());
                token.as_f64().unwrap() == values.fold(f64::NEG_INFINITY, f64::max)
            });
        (tokens[within].iter().map(|token| token.as_f64().unwrap()).sum::<f64>(), greedy)
    };
    let (sum, greedy) = sums(first, 2);
    assert!((sum + 2.4).abs() < 1e-6 && !greedy);
    let (sum, greedy) = sums(&answer["choices"][1], 1);
    assert!((sum + 0.1).abs() < 1e-6 && greedy);
}

#[test]
fn tokens_with_the_same_text_leave_the_likeliest() {
    let server = Server::start(Script { answer: vec![0x80], ..Script::saying("") });
    let body = json!({"prompt": "a", "max_tokens": 1, "logprobs": 4});
    let answer = server.post("/v1/completions", body).json();
    let top = &answer["choices"][0]["logprobs"]["top_logprobs"][0];
    assert_eq!(top.as_object().unwrap().len(), 2, "{top}");
    assert!((top["\u{FFFD}"].as_f64().unwrap() + 0.1).abs() < 1e-6);
}

#[test]
fn a_prompt_alone_is_evaluated() {
    let server = Server::start(Script::saying("!"));
    let body = json!({"prompt": [97, 98], "max_tokens": 0, "echo": true, "logprobs": 0});
    let answer = server.post("/v1/completions", body).json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len(), 1);
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[test]
fn streams_echo_first() {
    let server = Server::start(Script::saying("xy"));
    let texts_of = |events: &[Value]| {
        let texts = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap().to_owned());
        texts.collect::<Vec<_>>()
    };
    let body = json!({"prompt": "ab", "echo": true, "stream": true, "return_token_ids": true});
    let events = server.post("/v1/completions", body).events();
    assert_eq!(texts_of(&events), ["ab", "x", "y", ""]);
    assert_eq!(events[0]["choices"][0]["prompt_token_ids"], json!([BOS, 97, 98]));
    assert_eq!(events[3]["choices"][0]["token_ids"], json!([EOS]));
    assert_eq!(events[3]["choices"][0]["finish_reason"], "stop");

    let body = json!({"prompt": [97, 98], "echo": true, "stream": true, "logprobs": 1});
    let events = server.post("/v1/completions", body).events();
    assert_eq!(texts_of(&events), ["ab", "x", "y", ""]);
    assert_eq!(events[0]["choices"][0]["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
}

#[test]
fn ids_of_prompt_and_answer_stand_in_each_choice() {
    let server = Server::start(Script::saying("x"));
    let body = json!({"prompt": [[97], [98]], "return_token_ids": true});
    let answer = server.post("/v1/completions", body).json();
    assert_eq!(answer["choices"][1]["prompt_token_ids"], json!([98]));
    assert_eq!(answer["choices"][1]["token_ids"], json!([120, EOS]));
    assert!(answer.get("prompt_token_ids").is_none());
}

#[test]
fn a_prompt_is_read_once_for_all_its_answers() {
    let server = Server::start(Script::saying("xy"));
    let body =
        json!({"prompt": [[97, 98], [99]], "n": 2, "echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = server.post("/v1/completions", body.clone()).json();
    let choices = answer["choices"].as_array().unwrap();
    let of = |choice: &Value| (choice["text"].clone(), choice["logprobs"].clone());
    assert_eq!(choices.len(), 4);
    assert_eq!((of(&choices[0]), of(&choices[2])), (of(&choices[1]), of(&choices[3])));
    assert_eq!(choices[1]["logprobs"]["tokens"], json!(["a", "b", "x"]));
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let asked = |wanted: bool| {
        let seen = server.seen.lock().unwrap();
        seen.iter().filter(|request| request.prompt_logprobs.is_some() == wanted).count()
    };
    assert_eq!((asked(true), asked(false)), (2, 2), "log-probabilities are those of all");
    let mut body = body;
    body["stream"] = true.into();
    let mut texts = [const { String::new() }; 4];
    for event in server.post("/v1/completions", body).events() {
        let choice = &event["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["abx", "abx", "cx", "cx"]);
}
