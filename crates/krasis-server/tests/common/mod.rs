//! A server on a loopback port with a scripted engine behind it, and a client that sees raw bytes.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod random;
#[path = "../../../krasis-text/tests/common/mod.rs"]
pub mod text;

use krasis_engine::constraint::Bounds;
use krasis_engine::{Census, Event, Facts, Finish, Handle, Logprob, Submission, Usage};
use krasis_server::{Access, Answers, App, Generation, Limits, Loaded, Tls};
use krasis_text::{Grammars, Template, Tokenizer};
use random::Random;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const BOS: u32 = 261;
pub const EOS: u32 = 262;
pub const VOCAB: u32 = 300;
pub const CONTEXT: u32 = 64;

/// Prints roles and contents, and tools by name.
const TEMPLATE: &str = "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}\
    {% for m in messages %}{{ m.role[:1] }}:{{ m.content }}\
    {% for c in m.tool_calls or [] %}<tool>{{ c.function.arguments | tojson }}{% endfor %};\
    {% endfor %}{% if add_generation_prompt %}a:{% endif %}{{ 'think' if enable_thinking }}";

/// What the scripted engine answers with.
#[derive(Clone)]
pub struct Script {
    /// Tokens of every answer, then EOS for ever.
    pub answer: Vec<u32>,
    /// Time that each token takes.
    pub step: Duration,
    /// The queue's bound.
    pub queue_max: usize,
    /// What happens instead of the second token.
    pub fault: Option<Fault>,
    /// The chat template, and the tokens that prompt and answer may have.
    pub template: &'static str,
    pub context: u32,
    /// How answers are read; `None` for what the template says.
    pub answers: Option<Answers>,
    pub tokenizer: Arc<Tokenizer>,
    /// Whether answers under a grammar go on behind the script with whatever it allows, by random
    /// logits.
    pub random: bool,
}

/// How an engine may fail.
#[derive(Clone, Copy)]
pub enum Fault {
    /// It says so.
    Said,
    /// Its thread ends.
    Death,
}

impl Script {
    pub fn saying(answer: &str) -> Script {
        let answer = text::byte_level().encode_rendered(answer).unwrap();
        Script {
            answer,
            step: Duration::ZERO,
            queue_max: 64,
            fault: None,
            template: TEMPLATE,
            context: CONTEXT,
            answers: None,
            tokenizer: text::byte_level(),
            random: false,
        }
    }
}

impl Script {
    /// Whatever a grammar allows, in the tokens of the demo model.
    pub fn random(template: &'static str) -> Script {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
        let tokenizer = Arc::new(Tokenizer::load(&folder).unwrap());
        Script { random: true, tokenizer, template, context: 16_384, ..Script::saying("") }
    }

    /// The script's words first.
    pub fn saying_first(self, words: &str) -> Script {
        Script { answer: self.tokenizer.encode_rendered(words).unwrap(), ..self }
    }

    pub fn vocab(&self) -> u32 {
        VOCAB.max(self.tokenizer.size())
    }

    pub fn eos(&self) -> u32 {
        self.tokenizer.id("<|im_end|>").unwrap_or(EOS)
    }
}

/// A server in the background.
pub struct Server {
    pub address: SocketAddr,
    pub app: Arc<App>,
    /// Requests that the engine has seen, in order.
    pub seen: Arc<Mutex<Vec<krasis_engine::Request>>>,
    pub tokens: Arc<AtomicUsize>,
    pub cancelled: Arc<AtomicUsize>,
    /// Ends the server, which then finishes its answers.
    pub stop: Option<tokio::sync::oneshot::Sender<()>>,
    script: Script,
}

impl Server {
    /// Listens, without a model.
    pub fn loading(script: Script) -> Server {
        Server::with(script, Access::local(), Limits::default())
    }

    /// The same under other rules.
    pub fn with(script: Script, access: Access, limits: Limits) -> Server {
        Server::over(None, script, access, limits)
    }

    /// The same over HTTPS, with a certificate.
    pub fn over(tls: Option<Tls>, script: Script, access: Access, limits: Limits) -> Server {
        let names = vec!["tiny".into(), "org/alias".into()];
        Server::of(tls, script, App::new(names, access, limits))
    }

    /// The usual rules but for what is told.
    pub fn told(script: Script, tell: impl FnOnce(&mut App)) -> Server {
        let names = vec!["tiny".into()];
        let mut app = App::new(names, Access::local(), Limits::default());
        tell(&mut app);
        Server::of(None, script, app)
    }

    fn of(tls: Option<Tls>, script: Script, app: App) -> Server {
        let app = Arc::new(app);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let served = app.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async move {
            if stopped.await.is_err() {
                std::future::pending().await
            }
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                krasis_server::serve(listener, tls, served, stopped).await.unwrap();
            });
        });
        Server {
            address,
            app,
            stop: Some(stop),
            script,
            seen: Arc::default(),
            tokens: Arc::default(),
            cancelled: Arc::default(),
        }
    }

    pub fn start(script: Script) -> Server {
        let server = Server::loading(script);
        server.ready(true);
        server
    }

    /// The model is there; `serves` is false for an engine that never takes a request.
    pub fn ready(&self, serves: bool) {
        let facts = Facts { vocab: self.script.vocab(), context_max: self.script.context };
        let (handle, submissions) = Handle::new(facts, self.script.queue_max);
        let (script, seen) = (self.script.clone(), self.seen.clone());
        let (tokens, cancelled) = (self.tokens.clone(), self.cancelled.clone());
        let census = handle.census.clone();
        std::thread::spawn(move || match serves {
            true => {
                // What an engine with nothing to do would say.
                census.pages.store(8, Ordering::Relaxed);
                census.pages_available.store(8, Ordering::Relaxed);
                engine(&submissions, &script, &seen, &tokens, &cancelled, &census);
            }
            false => loop {
                std::thread::park();
                let _ = &submissions;
            },
        });
        let template = Template::new(self.script.template, &text::specials());
        let format = template.as_ref().map(Template::format).unwrap_or_default();
        let answers = Answers { format, ..Answers::default() };
        let grammars = Grammars::new(self.script.tokenizer.clone());
        grammars.prepare();
        self.app.ready(Loaded {
            handle,
            tokenizer: self.script.tokenizer.clone(),
            grammars,
            template,
            answers: self.script.answers.unwrap_or(answers),
            generation: Generation { eos: vec![self.script.eos()], ..Generation::default() },
            fingerprint: "test".into(),
            device: "a script".into(),
            regions: vec![("weights".into(), 7)],
        });
    }

    pub fn post(&self, path: &str, body: Value) -> Reply {
        self.send(
            "POST",
            path,
            &[("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    /// A request whose answer is not waited for.
    pub fn ask(&self, path: &str, body: &Value) -> TcpStream {
        let json = [("Content-Type", "application/json")];
        self.open("POST", path, &json, body.to_string().as_bytes())
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut socket = self.open(method, path, headers, body);
        let mut bytes = Vec::new();
        // A refused body may end in a reset after the answer.
        let _ = socket.read_to_end(&mut bytes);
        Reply::parse(&bytes)
    }

    /// A connection on which a request has been sent.
    pub fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += "Host: localhost\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).unwrap();
        let _ = socket.write_all(body);
        socket
    }
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Reply {
        let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a response");
        let head = std::str::from_utf8(&bytes[..split]).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = bytes[split + 4..].to_vec();
        if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
            body = unchunked(&body);
        }
        Reply { status, headers, body: String::from_utf8(body).unwrap() }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Names and data of the events of a stream in which all have a name, and say it twice.
    pub fn named_events(&self) -> Vec<(String, Value)> {
        assert_eq!(self.header("content-type"), "text/event-stream");
        let event = |event: &str| {
            let (name, data) = event.split_once('\n').expect("two lines");
            let name = name.strip_prefix("event: ").expect("a name").to_owned();
            let data = data.strip_prefix("data: ").expect("data");
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(data["type"], name.as_str());
            (name, data)
        };
        self.body.split("\n\n").filter(|part| !part.is_empty()).map(event).collect()
    }

    /// The data of the events of a stream, `[DONE]` not included but demanded.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), "text/event-stream");
        let events: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        let data = |event: &&str| event.strip_prefix("data: ").expect("data").to_owned();
        let mut data: Vec<String> = events.iter().map(data).collect();
        assert_eq!(data.pop().unwrap(), "[DONE]");
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    body
}

/// Serves one request after the other, as the script says.
fn engine(
    submissions: &Receiver<Submission>,
    script: &Script,
    seen: &Mutex<Vec<krasis_engine::Request>>,
    tokens: &AtomicUsize,
    cancelled: &AtomicUsize,
    census: &Census,
) {
    let mut random = Random::new(script);
    for Submission { request, mut sink, cancelled: flag, .. } in submissions {
        census.queued.fetch_sub(1, Ordering::Relaxed);
        seen.lock().unwrap().push(request.clone());
        if let Some(top) = request.prompt_logprobs {
            let logprobs = request.prompt[1..].iter().map(|&id| logprob(id, top)).collect();
            sink(Event::Prompt { logprobs });
        }
        let mut usage = Usage {
            prompt_tokens: request.prompt.len() as u32,
            cached_tokens: 1,
            ..Usage::default()
        };
        let grammar = request.grammar.as_deref().filter(|_| script.random);
        let mut bounds = grammar.map(Bounds::new);
        let mut answer = script.answer.iter().copied().chain(std::iter::repeat(script.eos()));
        let mut written = script.answer.iter().copied();
        let event = loop {
            if flag.load(Ordering::Relaxed) {
                cancelled.fetch_add(1, Ordering::Relaxed);
                break Event::Done { finish: Finish::Cancelled, usage };
            }
            if usage.completion_tokens == request.tokens_max {
                break Event::Done { finish: Finish::Length, usage };
            }
            match script.fault.filter(|_| usage.completion_tokens == 1) {
                Some(Fault::Said) => break Event::Failed { message: "the GPU is gone".into() },
                Some(Fault::Death) => return,
                None => {}
            }
            std::thread::sleep(script.step);
            let id = match &mut bounds {
                None => answer.next().unwrap(),
                Some(bounds) => {
                    match random.next(bounds, &request, written.next(), usage.completion_tokens) {
                        Ok(Some(id)) => id,
                        Ok(None) => break Event::Done { finish: Finish::Stop, usage },
                        Err(message) => break Event::Refused { message },
                    }
                }
            };
            usage.completion_tokens += 1;
            tokens.fetch_add(1, Ordering::Relaxed);
            sink(Event::Token { id, logprob: request.logprobs.map(|top| logprob(id, top)) });
            if request.stop_tokens.contains(&id) {
                break Event::Done { finish: Finish::Stop, usage };
            }
            if let Some(bounds) = &mut bounds {
                bounds.accept(id);
                if bounds.is_finished() {
                    break Event::Done { finish: Finish::Stop, usage };
                }
            }
        };
        sink(event);
    }
}

/// Every token has probability e^-0.1 but for `z`, which comes second to `y`.
fn logprob(token: u32, top: u32) -> Logprob {
    let (first, second) = match token {
        0x7a => ((0x79, -0.1), (0x7a, -2.3)),
        token => ((token, -0.1), (0x7a, -2.3)),
    };
    let mut alternatives = vec![first, second, (0x80, -3.0), (0x81, -4.0)];
    alternatives.truncate(top as usize);
    Logprob { token, logprob: if token == 0x7a { -2.3 } else { -0.1 }, top: alternatives }
}

/// Everything that still comes.
pub fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = socket.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until something holds.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
