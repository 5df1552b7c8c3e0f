//! Chat templates: byte for byte what Python renders, for messages as OpenAI clients send them.

mod common;

use common::specials;
use krasis_text::{Render, Template, TextError};
use serde_json::{Value, json};

fn template(source: &str) -> Template {
    Template::new(source, &specials()).unwrap()
}

fn render(source: &str, messages: Value) -> String {
    template(source).render(messages.as_array().unwrap(), &Render::default()).unwrap()
}

/// Rows of `templates/golden.json`, written by `templates/golden.py` with Jinja2.
#[test]
fn renders_as_python_does() {
    let golden: Value = serde_json::from_str(include_str!("templates/golden.json")).unwrap();
    for row in golden["rows"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let file = format!("{}/tests/templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
        let template = template(&std::fs::read_to_string(file).unwrap());
        let messages = golden["conversations"][row["conversation"].as_str().unwrap()].clone();
        let mut variables = serde_json::Map::new();
        if let Some(thinking) = row.get("enable_thinking") {
            variables.insert("enable_thinking".into(), thinking.clone());
        }
        let wanted = Render {
            tools: row["tools"].as_array().cloned().unwrap_or_default(),
            generation_prompt: row["add_generation_prompt"].as_bool().unwrap(),
            continue_final: false,
            variables,
        };
        let result = template.render(messages.as_array().unwrap(), &wanted);
        let at = format!("{name} with {}", row["conversation"]);
        match row["text"].as_str() {
            Some(text) => assert_eq!(result.expect(&at), text, "{at}"),
            None => match result.unwrap_err() {
                TextError::Refused { message } => assert_eq!(message, row["error"], "{at}"),
                error => panic!("{at}: {error}"),
            },
        }
    }
}

#[test]
fn dates_are_rendered_by_the_clock() {
    let year = render("{{ strftime_now('%Y') }}", json!([]));
    assert!(year.parse::<u32>().unwrap() >= 2026);
}

#[test]
fn developer_is_system_where_the_template_knows_no_developer() {
    let messages = json!([{"role": "developer", "content": "x"}]);
    assert_eq!(render("{{ messages[0].role }}", messages.clone()), "system");
    let knows = "{% if messages[0].role == 'developer' %}D{% endif %}";
    assert_eq!(render(knows, messages), "D");
}

/// Claude Code says more of the kind behind the first question.
#[test]
fn a_system_message_in_the_middle_is_never_lost() {
    let messages = json!([
        {"role": "system", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "developer", "content": "c"}, {"role": "user", "content": "d"},
    ]);
    let prints = "{% for m in messages %}{{ m.role[:1] }}{{ m.content }}{% endfor %}";
    let leaves_out = "{% for m in messages %}{% if loop.first or m.role == 'user' %}\
                      {{ m.role[:1] }}{{ m.content }}{% endif %}{% endfor %}";
    let refuses = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
                   {{ raise_exception('no') }}{% endif %}{{ m.role[:1] }}{{ m.content }}{% endfor %}";
    // Knows the role, and looks for it at the beginning alone.
    let developer = "{% for m in messages %}{% if m.role == 'user' or loop.first and m.role in \
                     ['system', 'developer'] %}{{ m.role[:1] }}{{ m.content }}{% endif %}{% endfor %}";
    for (source, expected) in [
        (prints, "saubscud"),
        (leaves_out, "saubucud"),
        (refuses, "saubucud"),
        (developer, "saubucud"),
    ] {
        assert_eq!(render(source, messages.clone()), expected, "{source}");
    }
}

#[test]
fn parts_and_strings_become_what_the_template_takes() {
    let string = "{% for m in messages %}{{ m.content + ';' }}{% endfor %}";
    let parts =
        "{% for m in messages %}{% for p in m.content %}{{ p.text }},{% endfor %}{% endfor %}";
    let either = "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}\
                  {% for p in m.content %}P{{ p.text }}{% endfor %}{% endif %}{% endfor %}";
    let prints = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
    ]);
    assert_eq!(render(string, messages.clone()), "a;b\nc;");
    assert_eq!(render(parts, messages.clone()), "a,b,c,");
    assert_eq!(render(either, messages.clone()), "SaPbPc");
    assert_eq!(render(prints, messages), "ab\nc");
}

#[test]
fn missing_content_is_never_printed_as_none() {
    let call =
        json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    let sources = [
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}\
         {% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.content + '' }}{% for c in m.tool_calls %}{{ c.function.name }}\
         {% endfor %}{% endfor %}",
        // Drops the call when there is an empty text.
        "{% for m in messages %}{% if m.content is none or m.role == 'user' %}\
         {% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}{% endif %}{% endfor %}",
    ];
    for source in sources {
        for content in [Value::Null, "".into()] {
            let message = json!({"role": "assistant", "content": content, "tool_calls": call});
            assert_eq!(render(source, json!([message])), "f", "{source}");
        }
        assert_eq!(render(source, json!([{"role": "assistant", "tool_calls": call}])), "f");
    }
}

#[test]
fn arguments_that_are_no_object_are_history_all_the_same() {
    let source = "{% for m in messages %}{% for c in m.tool_calls %}\
                  {% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}\
                  {% endfor %}{% endfor %}";
    let call = |arguments: Value| {
        json!([{"role": "assistant", "tool_calls":
            [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}])
    };
    for (arguments, rendered) in [
        (json!(r#"{"a": 1}"#), "a=1"),
        (json!({"a": 1}), "a=1"),
        (json!(""), ""),
        (json!(null), ""),
        (json!("{broken"), "arguments={broken"),
        (json!("[1]"), "arguments=[1]"),
        (json!([1]), "arguments=[1]"),
    ] {
        assert_eq!(render(source, call(arguments.clone())), rendered, "{arguments}");
    }
    let prints = "{% for m in messages %}{% for c in m.tool_calls %}\
                  {{ c.function.arguments + ';' }}{% endfor %}{% endfor %}";
    for arguments in ["{\"a\": 1}", "{broken", ""] {
        assert_eq!(render(prints, call(json!(arguments))), format!("{arguments};"));
    }
}

#[test]
fn kimis_ids_say_name_and_number() {
    let source = "{% for m in messages %}{% for c in m.tool_calls or [] %}<|tool_call_begin|>\
                  {{ c.id }}{% endfor %}{% if m.tool_call_id %}R{{ m.tool_call_id }}{% endif %}\
                  {% endfor %}";
    let call = |id: &str| json!({"id": id, "function": {"name": "f", "arguments": "{}"}});
    let messages = json!([
        {"role": "assistant", "tool_calls": [call("functions.f:0"), call("call_x")]},
        {"role": "tool", "tool_call_id": "call_x", "content": "r"},
        {"role": "tool", "tool_call_id": "functions.f:0", "content": "r"},
        {"role": "assistant", "tool_calls": [call("call_x")]},
        {"role": "tool", "tool_call_id": "call_x", "content": "r"},
    ]);
    assert_eq!(
        render(source, messages),
        "<|tool_call_begin|>functions.f:0<|tool_call_begin|>functions.f:1Rfunctions.f:1\
         Rfunctions.f:0<|tool_call_begin|>functions.f:2Rfunctions.f:2"
    );
}

#[test]
fn the_last_message_is_continued_where_it_ends() {
    let continued = |source: &str, content: Value| {
        let messages = [json!({"role": "assistant", "content": content})];
        let wanted = Render { continue_final: true, ..Render::default() };
        template(source).render(&messages, &wanted)
    };
    let keeps = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let trims = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}";
    assert_eq!(continued(keeps, json!("Once ")).unwrap(), "[Once ");
    assert_eq!(continued(trims, json!("Once ")).unwrap(), "[Once");
    assert_eq!(continued(keeps, json!("")).unwrap(), "[");
    assert_eq!(continued(keeps, json!([{"type": "text", "text": "Once"}])).unwrap(), "[Once");
    let error = continued(keeps, Value::Null).unwrap_err().to_string();
    assert_eq!(error, "continue_final_message: the last message has no text to continue");
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let dir = tempfile::tempdir().unwrap();
    let check = |tools: &[Value], expected: &str| {
        let wanted = Render { tools: tools.to_vec(), ..Render::default() };
        let text = Template::load(dir.path(), &specials()).and_then(|t| t.render(&[], &wanted));
        assert_eq!(text.unwrap(), expected);
    };
    let tool = [json!({"type": "function", "function": {"name": "f"}})];
    let error = Template::load(dir.path(), &specials()).err().unwrap().to_string();
    assert!(error.starts_with("this model has no chat template"), "{error}");

    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    check(&tool, "config");
    let named = r#"[{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]"#;
    write("tokenizer_config.json", &format!("{{\"chat_template\": {named}}}"));
    check(&[], "D");
    check(&tool, "T");
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    check(&[], "json");
    write("chat_template.jinja", "jinja{{ bos_token }}{{ pad_token }}");
    check(&[], "jinja<s>");
    write("chat_template.jinja", "{% if %}");
    let error = Template::load(dir.path(), &specials()).err().unwrap().to_string();
    assert!(error.contains("chat_template.jinja cannot be used: line 1"), "{error}");
}

#[test]
fn templates_that_never_end_are_stopped() {
    let r = "range(99999)";
    for source in [
        format!("{{% for i in {r} %}}{{% for j in {r} %}}{{% endfor %}}{{% endfor %}}"),
        format!("{{% for i in {r} %}}{{{{ '0123456789' * 10000 }}}}{{% endfor %}}"),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{{ 'x' * 10000000000 }}".into(),
        "{{ [1] | tojson(indent=10000000000) * 1000000 }}".into(),
    ] {
        let start = std::time::Instant::now();
        let result = template(&source).render(&[json!({"role": "user"})], &Render::default());
        assert!(result.is_err(), "{source}");
        // Compiled once and probed ten times, each time up to the bound.
        assert!(start.elapsed().as_secs() < 10, "{source}: {:?}", start.elapsed());
    }
}
