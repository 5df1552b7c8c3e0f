//! Coding agents: the requests that the real ones sent to this server, in their form and with other
//! words (`tests/clients/agents`), and what has to come of them.

mod common;

use common::{Script, Server, text};
use serde_json::{Value, json};

/// ChatML in short. Tools are at the beginning; calls are as Qwen3 writes them.
const QWEN3: &str = "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}\
    {% for m in messages %}{{ m.role[:1] }}:{{ m.content or '' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
    \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %};{% endfor %}\
    {% if add_generation_prompt %}a:{% endif %}";

fn says(answer: &str) -> Server {
    Server::start(Script { template: QWEN3, context: 60_000, ..Script::saying(answer) })
}

/// Path and requests of an agent's conversation, in order.
fn agent(name: &str) -> (String, Vec<Value>) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients/agents");
    let file = std::fs::read_to_string(format!("{root}/{name}.json")).unwrap();
    let mut agent: Value = serde_json::from_str(&file).unwrap();
    let path = agent["path"].as_str().unwrap().to_owned();
    let mut requests = agent["requests"].take().as_array().unwrap().clone();
    for request in &mut requests {
        request["model"] = "tiny".into();
    }
    (path, requests)
}

/// The answer's stream.
fn events(server: &Server, path: &str, request: &Value) -> Vec<Value> {
    assert_eq!(request["stream"], true, "agents read streams");
    let reply = server.post(path, request.clone());
    assert_eq!(reply.status, 200, "{}", reply.body);
    match path {
        "/v1/chat/completions" => reply.events(),
        _ => reply.named_events().into_iter().map(|(_, event)| event).collect(),
    }
}

/// The prompt of the last request.
fn prompt(server: &Server) -> String {
    let prompt = server.seen.lock().unwrap().last().unwrap().prompt.clone();
    text::byte_level().decode_all(&prompt)
}

/// What was read once has not to be read again.
#[test]
fn every_request_goes_on_where_the_one_before_ended() {
    for name in ["claude_code", "codex", "opencode", "cline", "qwen_code"] {
        let (path, requests) = agent(name);
        let server = says("x");
        let mut before = String::new();
        assert!(requests.len() > 1);
        for (number, request) in requests.iter().enumerate() {
            events(&server, &path, request);
            let prompt = prompt(&server);
            let begun = before.strip_suffix("a:").unwrap_or_default();
            assert!(prompt.starts_with(begun), "{name}, request {number}: {before}\n{prompt}");
            assert!(prompt.len() > before.len(), "{name}, request {number}");
            assert!(!prompt.contains("not readable"), "{name}, request {number}: {prompt}");
            before = prompt;
        }
    }
}

/// Claude Code lists a few of its tools, and has the model search for the others.
#[test]
fn a_tool_is_read_where_it_was_found() {
    let (path, requests) = agent("claude_code");
    let call = "<tool_call>\n{\"name\": \"WebFetch\", \"arguments\": {\"url\": 5}}\n</tool_call>";
    let server = says(call);
    let called = |request: &Value| {
        let events = events(&server, &path, request);
        let block = |event: &Value| event["content_block"]["name"].as_str().map(str::to_owned);
        events.iter().find_map(block)
    };
    let listed = |prompt: &str| prompt.matches("T:").count();

    // Not offered yet: what looks like a call of it is one all the same, as of any other name.
    called(&requests[0]);
    let first = prompt(&server);
    assert!(!first.contains("WebFetch;") && !first.contains("Placeholder"), "{first}");
    assert_eq!(called(&requests[1]).as_deref(), Some("WebFetch"));
    let second = prompt(&server);
    assert_eq!(listed(&first), listed(&second), "{second}");
    let definition = "t:{\"type\":\"function\",\"function\":{\"name\":\"WebFetch\"";
    assert_eq!(second.matches(definition).count(), 1, "{second}");

    // One of them can be demanded, and one that nobody has found cannot.
    let demand = |name: &str, request: &Value| {
        let mut request = request.clone();
        request["tool_choice"] = json!({"type": "tool", "name": name});
        server.post(&path, request).status
    };
    assert_eq!(demand("WebFetch", &requests[0]), 400);
    assert_eq!(demand("WebFetch", &requests[1]), 200);
    let mut lost = requests[1].clone();
    lost["tools"] = json!([]);
    let reply = server.post(&path, lost);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(prompt(&server).contains("t:[WebFetch is no tool]"), "{}", prompt(&server));
}

/// Codex has a namespace for each MCP server.
#[test]
fn namespaces_are_names_for_the_model_and_come_apart_for_the_client() {
    let (path, requests) = agent("codex");
    let call = "<tool_call>\n{\"name\": \"mcp__demo__weather\", \"arguments\": {\"city\": \"Oslo\"}}\n\
                </tool_call>\n<tool_call>\n{\"name\": \"exec_command\", \"arguments\": \
                {\"cmd\": \"ls\"}}\n</tool_call>";
    let server = says(call);
    let events = events(&server, &path, &requests[0]);
    let first = prompt(&server);
    assert!(
        first.contains("T:exec_command;") && first.contains("T:mcp__demo__weather;"),
        "{first}"
    );
    for (kind, path) in [
        ("response.output_item.added", "/item"),
        ("response.output_item.done", "/item"),
        ("response.function_call_arguments.done", ""),
    ] {
        let told: Vec<&Value> = events
            .iter()
            .filter(|event| event["type"] == kind)
            .map(|event| event.pointer(path).unwrap())
            .collect();
        assert_eq!(
            (&told[0]["name"], &told[1]["name"]),
            (&json!("weather"), &json!("exec_command"))
        );
        if !path.is_empty() {
            assert_eq!(told[0]["namespace"], "mcp__demo");
            assert_eq!(told[1].get("namespace"), None);
        }
    }
    let response = &events.last().unwrap()["response"];
    assert_eq!(response["output"][0]["namespace"], "mcp__demo");
    assert_eq!(response["tools"], requests[0]["tools"]);

    // The call comes back as it was given, and is a choice too.
    self::events(&server, &path, &requests[1]);
    let again = "a:<tool_call>\n{\"name\": \"mcp__demo__weather\", \"arguments\": ";
    assert!(prompt(&server).contains(again), "{}", prompt(&server));
    let choose = |choice: Value| {
        let mut request = requests[0].clone();
        request["tool_choice"] = choice;
        server.post(&path, request).status
    };
    let weather = json!({"type": "function", "namespace": "mcp__demo", "name": "weather"});
    assert_eq!(choose(weather.clone()), 200);
    assert!(prompt(&server).ends_with("{\"name\": \"mcp__demo__weather\", \"arguments\":"));
    assert_eq!(choose(json!({"type": "function", "name": "weather"})), 400);
    let allowed = json!({"type": "allowed_tools", "mode": "auto", "tools": [weather]});
    assert_eq!(choose(allowed), 200);
    assert!(prompt(&server).starts_with("T:mcp__demo__weather;s:"), "{}", prompt(&server));
}

/// Agents shorten a conversation by what they read out of the refusal.
#[test]
fn a_prompt_beyond_the_context_is_refused_in_words_that_agents_read() {
    for (name, lead, between) in [
        ("claude_code", "prompt is too long: ", " tokens > "),
        ("codex", "maximum context length is ", " tokens, but "),
        ("opencode", "maximum context length is ", " tokens, but "),
    ] {
        let (path, requests) = agent(name);
        let script = Script { template: QWEN3, context: 100, ..Script::saying("x") };
        let reply = Server::start(script).post(&path, requests[0].clone());
        let error = reply.json()["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert_eq!((reply.status, &error["type"]), (400, &json!("invalid_request_error")));
        let (_, rest) = message.split_once(lead).unwrap_or_else(|| panic!("{message}"));
        let (number, rest) = rest.split_once(between).unwrap_or_else(|| panic!("{message}"));
        let tokens = match name {
            "claude_code" => {
                assert_eq!(rest, "99 maximum");
                number
            }
            _ => {
                assert_eq!((number, &error["code"]), ("100", &json!("context_length_exceeded")));
                rest.split_once("resulted in ").unwrap().1.split_once(" tokens").unwrap().0
            }
        };
        assert!(tokens.parse::<u32>().unwrap() > 99, "{message}");
    }
}
