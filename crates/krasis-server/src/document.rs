//! The description of the API, from the table of routes and a table of fields: OpenAPI for programs,
//! a page for people.

use crate::dialect::Dialect;
use crate::routes::{Entry, ROUTES, Route};
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    AnyOf, AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathItem,
    PathsBuilder, Ref, RefOr, Required, ResponseBuilder,
};

/// A field of a request.
struct Field {
    name: &'static str,
    kind: Kind,
    about: &'static str,
}

/// What a field may hold. Null is the same as leaving it out.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Flag,
    Integer(i64, i64),
    Number(f64, f64),
    /// Of anything, at least one.
    List,
    Object,
    Messages,
    Tools,
    /// Token ids with numbers.
    Biases,
    /// One text or several.
    Texts,
    /// Texts or token ids, one or several.
    Prompts,
    Ids,
    /// `"auto"` or an object.
    Choice,
    /// A text or the items of a response.
    Input,
    /// A text or Anthropic's blocks.
    Blocks,
    /// Anthropic's tools.
    Functions,
    /// Several texts.
    Strings,
}

const fn field(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, about }
}

const TOKENS_MAX: i64 = u32::MAX as i64;

/// Of all that is answered by the model.
const PRIORITY: Field = field(
    "priority",
    Kind::Integer(-1000, 1000),
    "Lower numbers leave the queue first and give memory back last; equal ones in turn. 0 if left out. \
     As long as requests of lower numbers keep coming, others wait",
);

/// What chats and completions share.
const SAMPLING: [Field; 31] = [
    field("model", Kind::Text, "A name of the model; it may be left out"),
    field("stream", Kind::Flag, "Send the answer as server-sent events"),
    field("stream_options", Kind::Object, "include_usage, continuous_usage_stats"),
    field("n", Kind::Integer(1, 8), "Answers per prompt"),
    field("temperature", Kind::Number(0.0, 2.0), "0 takes the most likely token"),
    field("top_p", Kind::Number(0.0, 1.0), "Keep the likeliest tokens up to this probability"),
    field("top_k", Kind::Integer(-1, TOKENS_MAX), "Keep so many tokens; 0 or -1 keeps all"),
    field("min_p", Kind::Number(0.0, 1.0), "Drop tokens less likely than this part of the best"),
    field("seed", Kind::Integer(i64::MIN, i64::MAX), "Same seed, same request, same answer"),
    field("presence_penalty", Kind::Number(-2.0, 2.0), "Against tokens that were said"),
    field("frequency_penalty", Kind::Number(-2.0, 2.0), "The same, per occurrence"),
    field("repetition_penalty", Kind::Number(0.01, 10.0), "Divides their logits"),
    field("logit_bias", Kind::Biases, "Token ids and what is added to their logits"),
    field("stop", Kind::Texts, "Strings that end the answer"),
    field("stop_token_ids", Kind::Ids, "Tokens that end the answer"),
    field("include_stop_str_in_output", Kind::Flag, "Keep the string that ended it"),
    field("ignore_eos", Kind::Flag, "Go on after the end of the text"),
    field("min_tokens", Kind::Integer(0, TOKENS_MAX), "Only together with ignore_eos"),
    field("skip_special_tokens", Kind::Flag, "Leave special tokens out of the text"),
    field("return_token_ids", Kind::Flag, "Report token ids beside the text"),
    PRIORITY,
    field(
        "response_format",
        Kind::Object,
        "The form of the answer's text: {type: text}, {type: json_object}, or {type: json_schema, \
         json_schema: {schema, strict}}; with strict, keywords that cannot be kept to are refused; \
         {type: structural_tag} has forms in turn or in a text, as vLLM and SGLang have them",
    ),
    field(
        "structured_outputs",
        Kind::Object,
        "The same as vLLM has it: one of json (a schema), regex, choice (texts), grammar (Lark or \
         llama.cpp's GBNF), structural_tag, json_object",
    ),
    field("guided_json", Kind::Object, "structured_outputs.json"),
    field("guided_regex", Kind::Text, "structured_outputs.regex"),
    field("guided_choice", Kind::List, "structured_outputs.choice"),
    field("guided_grammar", Kind::Text, "structured_outputs.grammar"),
    field("json_schema", Kind::Object, "structured_outputs.json, as llama.cpp has it"),
    field("grammar", Kind::Text, "structured_outputs.grammar, as llama.cpp has it"),
    field("ebnf", Kind::Text, "structured_outputs.grammar, as SGLang has it"),
    field("regex", Kind::Text, "structured_outputs.regex, as SGLang has it"),
];

const CHAT: [Field; 14] = [
    field("messages", Kind::Messages, "The conversation"),
    field("max_tokens", Kind::Integer(1, TOKENS_MAX), "Tokens of the answer at most"),
    field("max_completion_tokens", Kind::Integer(1, TOKENS_MAX), "The same, and wins"),
    field("logprobs", Kind::Flag, "Report log-probabilities"),
    field("top_logprobs", Kind::Integer(0, 20), "Alternatives per token"),
    field(
        "tools",
        Kind::Tools,
        "Functions that the model may call; arguments of those with strict are held to their schemas",
    ),
    field(
        "tool_choice",
        Kind::Choice,
        "Which of them; arguments of a demanded call are held to its schema",
    ),
    field("chat_template_kwargs", Kind::Object, "Variables of the template"),
    field("documents", Kind::List, "A variable of the template"),
    field("reasoning_effort", Kind::Text, "A variable of the template"),
    field("continue_final_message", Kind::Flag, "Continue the last message"),
    field("add_generation_prompt", Kind::Flag, "Begin a new message"),
    field("user", Kind::Text, "Ignored"),
    field("metadata", Kind::Object, "Ignored"),
];

const COMPLETION: [Field; 7] = [
    field("prompt", Kind::Prompts, "What to continue"),
    field("max_tokens", Kind::Integer(0, TOKENS_MAX), "Tokens of each answer at most"),
    field("logprobs", Kind::Integer(0, 20), "Alternatives per token"),
    field("echo", Kind::Flag, "Answers begin with the prompt"),
    field("add_special_tokens", Kind::Flag, "Begin prompts as the model is used to"),
    field("suffix", Kind::Text, "Only the empty one"),
    field("best_of", Kind::Integer(1, 8), "As n"),
];

const RESPONSE: [Field; 19] = [
    field("model", Kind::Text, "A name of the model; it may be left out"),
    field("input", Kind::Input, "What to answer: a text, or items"),
    field("instructions", Kind::Text, "A system message, for this answer only"),
    field("previous_response_id", Kind::Text, "The response that the input follows"),
    field("store", Kind::Flag, "Keep the response, to be followed; true if left out"),
    field("stream", Kind::Flag, "Send the answer as server-sent events"),
    field("max_output_tokens", Kind::Integer(1, TOKENS_MAX), "Tokens of the answer at most"),
    field("temperature", Kind::Number(0.0, 2.0), "0 takes the most likely token"),
    field("top_p", Kind::Number(0.0, 1.0), "Keep the likeliest tokens up to this probability"),
    field("include", Kind::List, "message.output_text.logprobs, reasoning.encrypted_content"),
    field("top_logprobs", Kind::Integer(0, 20), "Alternatives per token"),
    field("tools", Kind::Tools, "Functions that the model may call"),
    field("tool_choice", Kind::Choice, "Which of them"),
    field("parallel_tool_calls", Kind::Flag, "More than one call"),
    field("text", Kind::Object, "The form of the answer, as text.format"),
    field("reasoning", Kind::Object, "How much to think, as reasoning.effort"),
    field("chat_template_kwargs", Kind::Object, "Variables of the template"),
    PRIORITY,
    field("metadata", Kind::Object, "Ignored"),
];

/// What a message and the count of its tokens share.
const CONVERSATION: [Field; 6] = [
    field("model", Kind::Text, "A name of the model; it may be left out"),
    field("messages", Kind::Messages, "The conversation"),
    field("system", Kind::Blocks, "What stands before it"),
    field("tools", Kind::Functions, "Functions that the model may call"),
    field("tool_choice", Kind::Object, "Which of them: type, name, disable_parallel_tool_use"),
    field("thinking", Kind::Object, "Whether to think: type"),
];

const MESSAGE: [Field; 9] = [
    field("max_tokens", Kind::Integer(1, TOKENS_MAX), "Tokens of the answer at most"),
    field("stream", Kind::Flag, "Send the answer as server-sent events"),
    field("stop_sequences", Kind::Strings, "Strings that end the answer"),
    field("temperature", Kind::Number(0.0, 2.0), "0 takes the most likely token"),
    field("top_p", Kind::Number(0.0, 1.0), "Keep the likeliest tokens up to this probability"),
    field("top_k", Kind::Integer(-1, TOKENS_MAX), "Keep so many tokens; 0 or -1 keeps all"),
    field("output_format", Kind::Object, "The form of the answer: type, schema"),
    PRIORITY,
    field("metadata", Kind::Object, "Ignored"),
];

const TOKENIZE: [Field; 5] = [
    field("model", Kind::Text, "A name of the model; it may be left out"),
    field("prompt", Kind::Text, "A text"),
    field("messages", Kind::Messages, "A conversation instead"),
    field("add_special_tokens", Kind::Flag, "Begin the text as the model is used to"),
    field("return_token_strs", Kind::Flag, "Report the tokens' texts as well"),
];

const DETOKENIZE: [Field; 2] = [
    field("model", Kind::Text, "A name of the model; it may be left out"),
    field("tokens", Kind::Ids, "Token ids"),
];

/// A route's fields, and which of them must be there.
fn fields(path: &str) -> (Vec<&'static Field>, Option<&'static str>) {
    match path {
        "/v1/chat/completions" => (CHAT.iter().chain(&SAMPLING).collect(), Some("messages")),
        "/v1/completions" => (COMPLETION.iter().chain(&SAMPLING).collect(), Some("prompt")),
        "/v1/responses" => (RESPONSE.iter().collect(), Some("input")),
        "/v1/messages" => (CONVERSATION.iter().chain(&MESSAGE).collect(), Some("messages")),
        "/v1/messages/count_tokens" => (CONVERSATION.iter().collect(), Some("messages")),
        "/tokenize" => (TOKENIZE.iter().collect(), None),
        "/detokenize" => (DETOKENIZE.iter().collect(), Some("tokens")),
        _ => (Vec::new(), None),
    }
}

/// The document.
pub(crate) fn openapi() -> OpenApi {
    let paths = ROUTES.iter().fold(PathsBuilder::new(), |paths, route| {
        let method = match route.method {
            "POST" => HttpMethod::Post,
            "DELETE" => HttpMethod::Delete,
            _ => HttpMethod::Get,
        };
        paths.path(public(route.path), PathItem::new(method, operation(route)))
    });
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = ComponentsBuilder::new()
        .schema("Error", error())
        .schema("AnthropicError", anthropic_error())
        .security_scheme("key", SecurityScheme::Http(bearer));
    let about = "OpenAI's and Anthropic's APIs over a model on this machine. Fields that are not \
                 listed are ignored.";
    let info = InfoBuilder::new()
        .title("Krasis")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(about));
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components.build())).build()
}

/// A path as OpenAPI writes it.
fn public(path: &str) -> String {
    path.replace("{*", "{")
}

fn operation(route: &Route) -> Operation {
    let id = format!("{} {}", route.method, public(route.path));
    let mut operation = OperationBuilder::new()
        .summary(Some(route.about))
        .operation_id(Some(id))
        .response("200", ResponseBuilder::new().description("The answer"));
    let error = match Dialect::of(route.path) {
        Dialect::Anthropic => "AnthropicError",
        Dialect::OpenAi | Dialect::Responses => "Error",
    };
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(error))).build();
    // Probes are told how far loading is, in the form of an answer.
    let problem = match route.entry {
        Entry::Open => ResponseBuilder::new().description("Not yet, or no more"),
        Entry::Keyed => {
            let security = SecurityRequirement::new("key", Vec::<String>::new());
            operation = operation.security(security);
            ResponseBuilder::new().description("Why not").content("application/json", problem)
        }
    };
    operation = operation.response("default", problem);
    if route.path.contains('{') {
        let text = ObjectBuilder::new().schema_type(Type::String);
        let id = ParameterBuilder::new()
            .name("id")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(text));
        operation = operation.parameter(id);
    }
    let (fields, required) = fields(route.path);
    if !fields.is_empty() {
        let body = fields.iter().fold(ObjectBuilder::new(), |body, field| {
            body.property(field.name, field.kind.schema(field.about))
        });
        let body = required.into_iter().fold(body, ObjectBuilder::required);
        let content = ContentBuilder::new().schema(Some(body)).build();
        let body = RequestBodyBuilder::new()
            .content("application/json", content)
            .required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    operation.build()
}

fn error() -> Schema {
    let text =
        |kind: Type| ObjectBuilder::new().schema_type(SchemaType::from_iter([kind, Type::Null]));
    let inner = ObjectBuilder::new()
        .property("message", ObjectBuilder::new().schema_type(Type::String))
        .property("type", ObjectBuilder::new().schema_type(Type::String))
        .property("param", text(Type::String))
        .property("code", text(Type::String))
        .required("message")
        .required("type");
    ObjectBuilder::new().property("error", inner).required("error").build().into()
}

fn anthropic_error() -> Schema {
    let inner = ObjectBuilder::new()
        .property("type", text())
        .property("message", text())
        .required("type")
        .required("message");
    ObjectBuilder::new()
        .property("type", text().enum_values(Some(["error"])))
        .property("error", inner)
        .required("type")
        .required("error")
        .build()
        .into()
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// A message as most clients send them; what else is understood has no place in a schema.
fn message() -> ObjectBuilder {
    let roles = ["system", "user", "assistant"];
    ObjectBuilder::new()
        .property("role", text().enum_values(Some(roles)))
        .property("content", text())
        .required("role")
        .required("content")
}

fn tool() -> ObjectBuilder {
    let function = ObjectBuilder::new()
        .property("name", text())
        .property("description", text())
        .property("parameters", ObjectBuilder::new().schema_type(Type::Object))
        .required("name");
    ObjectBuilder::new()
        .property("type", text().enum_values(Some(["function"])))
        .property("function", function)
        .required("type")
        .required("function")
}

fn function() -> ObjectBuilder {
    ObjectBuilder::new()
        .property("name", text())
        .property("description", text())
        .property("input_schema", ObjectBuilder::new().schema_type(Type::Object))
        .required("name")
}

fn block() -> ObjectBuilder {
    ObjectBuilder::new()
        .property("type", text().enum_values(Some(["text"])))
        .property("text", text())
        .required("type")
        .required("text")
}

impl Kind {
    fn schema(self, about: &str) -> RefOr<Schema> {
        let about = Some(about);
        let one = |kind: Type| {
            let nullable = SchemaType::from_iter([kind, Type::Null]);
            ObjectBuilder::new().schema_type(nullable).description(about)
        };
        let list = |item: ObjectBuilder| ArrayBuilder::new().items(item);
        let id = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let any = |builder: AnyOfBuilder| builder.description(about).into();
        match self {
            Kind::Text => one(Type::String).into(),
            Kind::Flag => one(Type::Boolean).into(),
            Kind::Object => one(Type::Object).into(),
            Kind::Integer(low, high) => {
                one(Type::Integer).minimum(Some(low)).maximum(Some(high)).into()
            }
            Kind::Number(low, high) => {
                one(Type::Number).minimum(Some(low)).maximum(Some(high)).into()
            }
            Kind::List => list(ObjectBuilder::new()).min_items(Some(1)).description(about).into(),
            Kind::Messages => list(message()).min_items(Some(1)).description(about).into(),
            Kind::Tools => list(tool()).description(about).into(),
            Kind::Biases => {
                let number = ObjectBuilder::new().schema_type(Type::Number);
                let number = number.minimum(Some(-100)).maximum(Some(100));
                one(Type::Object).additional_properties(Some(number)).into()
            }
            Kind::Ids => list(id()).description(about).into(),
            Kind::Texts => any(AnyOfBuilder::new().item(text()).item(list(text()))),
            Kind::Prompts => any(AnyOf::builder()
                .item(text())
                .item(list(text()).min_items(Some(1)))
                .item(list(id()).min_items(Some(1)))),
            Kind::Input => any(AnyOfBuilder::new().item(text()).item(list(message()))),
            Kind::Blocks => any(AnyOfBuilder::new().item(text()).item(list(block()))),
            Kind::Strings => list(text()).description(about).into(),
            Kind::Functions => list(function()).description(about).into(),
            Kind::Choice => any(AnyOfBuilder::new().item(text()).item(ObjectBuilder::new())),
        }
    }
}

/// The page. Whether keys are wanted is all that it says of this server, and any refusal says it too.
pub(crate) fn page(keys: bool) -> String {
    let with = if keys { ", with a key" } else { "" };
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Krasis: routes</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"page/icon.svg\"><link rel=\"stylesheet\" href=\"page/page.css\"></head>\
         <body class=\"docs\"><h1>Krasis</h1><p>OpenAI's and Anthropic's APIs over a model on this machine; for programs, \
         <a href=\"openapi.json\">openapi.json</a>{with}. To chat, <a href=\".\">the page</a>. Fields that \
         are not listed are ignored.</p>"
    );
    for route in &ROUTES {
        let (path, (fields, required)) = (public(route.path), fields(route.path));
        let open = if route.entry == Entry::Open { ", without a key" } else { "" };
        page +=
            &format!("<h2><code>{} {path}</code></h2><p>{}{open}.</p>", route.method, route.about);
        if fields.is_empty() {
            continue;
        }
        page += "<details><summary>Fields</summary><table>";
        for field in fields {
            let must = if required == Some(field.name) { ", needed" } else { "" };
            let (name, kind) = (field.name, field.kind.words());
            let about = field.about;
            page += &format!(
                "<tr><td><code>{name}</code></td><td>{kind}{must}</td><td>{about}</td></tr>"
            );
        }
        page += "</table></details>";
    }
    page += "</body></html>";
    page
}

impl Kind {
    fn words(self) -> String {
        match self {
            Kind::Integer(i64::MIN, _) => "integer".into(),
            Kind::Integer(low, TOKENS_MAX) => format!("integer from {low}"),
            Kind::Integer(low, high) => format!("integer, {low} to {high}"),
            Kind::Number(low, high) => format!("number, {low} to {high}"),
            Kind::Text => "text".into(),
            Kind::Flag => "true or false".into(),
            Kind::List => "list".into(),
            Kind::Object => "object".into(),
            Kind::Messages => "messages".into(),
            Kind::Tools => "tools".into(),
            Kind::Biases => "token ids and numbers".into(),
            Kind::Texts => "text or texts".into(),
            Kind::Prompts => "text, texts or token ids".into(),
            Kind::Ids => "token ids".into(),
            Kind::Choice => "text or object".into(),
            Kind::Input => "text or items".into(),
            Kind::Blocks => "text or blocks".into(),
            Kind::Functions => "tools".into(),
            Kind::Strings => "texts".into(),
        }
    }
}
