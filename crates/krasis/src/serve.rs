//! `krasis serve`: listen first, then load, then answer.

use crate::bar::{Bar, words};
use crate::exit::{self, Failure};
use crate::hang;
use crate::heat::{self, HeatFile};
use crate::load::{Texts, load_beside};
use crate::options::ModelArguments;
use crate::submit::Stream;
use crate::supervise;
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use krasis_core::Bytes;
use krasis_engine::{Event, Fault, Options, Outlook, Phase, Request, Sampling, Watch};
use krasis_server::{
    Access, App, Keys, Limits, Loaded, Others, Over, Progress, ReasoningField, Stage, Tls, Unknown,
};
use krasis_text::{Reasoning, ToolFormat};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// Arguments of `krasis serve`.
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    pub model: ModelArguments,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// Name of the model in the API; more names are aliases [default: the folder's name]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    served_model_name: Vec<String>,
    /// Answer requests that name any other model too, instead of refusing them
    #[arg(long)]
    any_model: bool,
    /// Refuse fields of chats and completions that are not known, instead of ignoring them
    #[arg(long)]
    strict_api: bool,
    /// Requests that may wait; more are told to come back
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    queue_max: Option<u32>,
    /// Sequences that run at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_sequences: Option<u32>,
    /// Format of tool calls in answers; auto is what the chat template says, none leaves calls
    /// in the text
    #[arg(long, value_name = "FORMAT", default_value = "auto",
          value_parser = PossibleValuesParser::new(names(ToolFormat::names())))]
    tool_parser: String,
    /// Format of reasoning in answers; auto is what the chat template says, none leaves
    /// reasoning in the text
    #[arg(long, value_name = "FORMAT", default_value = "auto",
          value_parser = PossibleValuesParser::new(names(Reasoning::names())))]
    reasoning_parser: String,
    /// Field of a message that holds the reasoning
    #[arg(long, value_name = "FIELD", default_value = "reasoning_content")]
    reasoning_field: Field,
    /// File that holds the server's URL once the model is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// File of API keys, one a line, read again on SIGHUP; KRASIS_API_KEY may hold keys as well
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Serve other machines although no key is asked for
    #[arg(long)]
    allow_unauthenticated: bool,
    /// Host name that clients use for this server, besides addresses and localhost; * for any
    #[arg(long, value_name = "NAME", num_args = 1..)]
    allowed_host: Vec<String>,
    /// Web page, as scheme and host, whose scripts may use this server; * for any
    #[arg(long, value_name = "ORIGIN", num_args = 1..)]
    allowed_origin: Vec<String>,
    /// Certificate and its chain, PEM, for HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Bound of requests or connections, as --limit body_bytes=1000000; /v1/status lists them
    #[arg(long, value_name = "NAME=N", num_args = 1..)]
    limit: Vec<String>,
    /// Time for answers in flight after SIGTERM; a second signal ends them at once [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    drain_seconds: Option<u64>,
    /// End with code 75 when the engine has had work for so long and made no step; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=86_400))]
    hang_timeout: u64,
    /// Run the server in a process of its own, and start it again when its device fails
    #[arg(long)]
    pub supervise: bool,
    /// This is that process
    #[arg(long, hide = true)]
    supervised: bool,
    /// Fail in this forward pass, for tests
    #[arg(long, value_name = "N", hide = true)]
    fault_at_step: Option<u64>,
    /// Lose the device in this one
    #[arg(long, value_name = "N", hide = true)]
    lose_at_step: Option<u64>,
    /// Never come back from this one
    #[arg(long, value_name = "N", hide = true)]
    hang_at_step: Option<u64>,
}

/// Names of the field for reasoning.
#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Field {
    ReasoningContent,
    Reasoning,
    Both,
}

fn names(formats: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    ["auto", "none"].into_iter().chain(formats).collect()
}

impl Serve {
    /// Serves until a signal comes or the model cannot be loaded.
    pub fn execute(self) -> Result<(), Failure> {
        if self.supervise {
            return supervise::run();
        }
        if self.supervised {
            supervise::end_with_parent()?;
        }
        let dir = self.model.folder()?;
        let (queue, sequences) = (self.queue_max, self.max_sequences);
        let fault = self.fault_at_step.map(Fault::Panic);
        let fault = fault.or(self.lose_at_step.map(Fault::Lose));
        let fault = fault.or(self.hang_at_step.map(Fault::Hang));
        let wishes = move |options: &mut Options| {
            options.queue_max = queue.map_or(options.queue_max, |queue| queue as usize);
            options.sequences_max = sequences.unwrap_or(options.sequences_max);
            options.fault = fault;
            options.outlook = Outlook::Foretold;
        };
        let house = self.house()?;
        // Two threads for HTTP: the others are the engine's.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)?;
        let result = runtime.block_on(self.listen(&dir, wishes, house));
        // A half-loaded model is not waited for.
        runtime.shutdown_background();
        result
    }

    async fn listen(
        self,
        dir: &Path,
        wishes: impl Fn(&mut Options) + Send + 'static,
        house: House,
    ) -> Result<(), Failure> {
        let House { access, limits, tls, key_variable } = house;
        let address = SocketAddr::new(self.host, self.port);
        let listener =
            TcpListener::bind(address).await.map_err(|error| refused(address, &error))?;
        let bound = listener.local_addr().map_err(anyhow::Error::from)?;
        let url = format!("http{}://{bound}", if tls.is_some() { "s" } else { "" });
        eprintln!("krasis: listening on {url}, loading {}", dir.display());
        if !self.host.is_loopback() && !access.keys.wanted() {
            eprintln!("krasis: anyone who reaches {bound} can use the model: no key is asked for");
        }

        let mut app = App::new(self.names(dir), access, limits);
        if self.any_model {
            app.others = Others::Answered;
        }
        if self.strict_api {
            app.unknown = Unknown::Refused;
        }
        let app = Arc::new(app);
        let patience = Some(Duration::from_secs(self.hang_timeout)).filter(|time| !time.is_zero());
        let loading = start_loading(self.model.clone(), wishes, patience, app.clone())?;
        let (stop, stopped) = watch::channel(false);
        let mut stopping = stopped.clone();
        let server = krasis_server::serve(listener, tls, app.clone(), async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let mut server = std::pin::pin!(server);
        let mut ended = std::pin::pin!(signals(stop));
        let mut renewed =
            std::pin::pin!(renew_keys(&app, self.api_key_file.as_deref(), key_variable));
        let ready = async {
            let (mut loaded, heat, time) = loading.await.map_err(|_| {
                Failure::say(Failure::FAILED, "the thread that loads the model has ended")
            })??;
            self.read_answers(&mut loaded);
            self.announce(&app, &loaded, &url, time);
            app.ready(loaded);
            self.tell_ready(&url)?;
            keep_heat(&app, heat.as_ref()).await
        };
        let network = |result: std::io::Result<()>| {
            result.map_err(|error| Failure::new(Failure::NETWORK, error))
        };
        tokio::select! {
            result = &mut server => match app.stage() {
                Stage::Over(Over::Failed) => Err(exit::failed()),
                _ => network(result),
            },
            failure = ready => failure,
            failure = &mut ended => failure,
            failure = &mut renewed => failure,
        }
    }

    /// Who may come in and what they may take. Settings that cannot be are refused before anything
    /// is loaded.
    fn house(&self) -> Result<House, Failure> {
        let config = |error| Failure::new(Failure::CONFIG, error);
        let key_variable = match std::env::var("KRASIS_API_KEY") {
            Ok(keys) => Some(keys),
            Err(std::env::VarError::NotPresent) => None,
            Err(error) => return Err(config(anyhow::anyhow!("KRASIS_API_KEY: {error}"))),
        };
        let file = self.api_key_file.as_deref();
        let keys = Keys::read(file, key_variable.as_deref());
        let keys = keys.map_err(|error| config(error.into()))?;
        if !self.host.is_loopback() && !keys.wanted() && !self.allow_unauthenticated {
            let message = format!(
                "--host {} lets other machines in, and no key is asked for: give --api-key-file or \
                 KRASIS_API_KEY, or --allow-unauthenticated if everybody there may use the model",
                self.host
            );
            return Err(Failure::say(Failure::CONFIG, message));
        }
        file.into_iter().for_each(warn_if_others_read);
        let mut limits = Limits::default();
        for limit in &self.limit {
            limits.set(limit).map_err(|error| config(error.into()))?;
        }
        limits.drain_seconds = self.drain_seconds.unwrap_or(limits.drain_seconds);
        let tls = self.tls_cert.as_ref().zip(self.tls_key.as_ref());
        let tls = tls.map(|(certificate, key)| Tls::read(certificate, key)).transpose();
        let (hosts, origins) = (self.allowed_host.clone(), self.allowed_origin.clone());
        Ok(House {
            access: Access { keys, hosts, origins },
            limits,
            tls: tls.map_err(|error| config(error.into()))?,
            key_variable,
        })
    }

    /// Formats that the arguments name go before those of the template.
    fn read_answers(&self, loaded: &mut Loaded) {
        let format = &mut loaded.answers.format;
        if self.tool_parser != "auto" {
            format.tools = ToolFormat::named(&self.tool_parser);
        }
        if self.reasoning_parser != "auto" {
            format.reasoning = Reasoning::named(&self.reasoning_parser);
        }
        loaded.answers.reasoning_field = match self.reasoning_field {
            Field::ReasoningContent => ReasoningField::ReasoningContent,
            Field::Reasoning => ReasoningField::Reasoning,
            Field::Both => ReasoningField::Both,
        };
    }

    fn names(&self, dir: &Path) -> Vec<String> {
        if !self.served_model_name.is_empty() {
            return self.served_model_name.clone();
        }
        // The demo's folder is called "model", which says nothing.
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        match full.file_name().map(|name| name.to_string_lossy().into_owned()) {
            Some(_) if full.ends_with("demo/model") => vec!["krasis-demo".into()],
            Some(name) => vec![name],
            None => vec!["model".into()],
        }
    }

    fn announce(&self, app: &App, loaded: &Loaded, url: &str, time: Duration) {
        let context = loaded.handle.facts.context_max;
        let defaults = &loaded.generation;
        eprintln!(
            "krasis: ready on {url} after {:.1} s: model {}, context {context} tokens, \
             temperature {}, top_k {}, top_p {}",
            time.as_secs_f64(),
            app.name(),
            defaults.temperature.unwrap_or(1.0),
            defaults.top_k.unwrap_or(0),
            defaults.top_p.unwrap_or(1.0),
        );
        let format = loaded.answers.format;
        eprintln!(
            "krasis: tool calls {}, reasoning {}",
            format.tools.map_or("as text", ToolFormat::name),
            format.reasoning.map_or("as text", Reasoning::name),
        );
        if let Err(error) = &loaded.template {
            eprintln!("krasis: chats will be refused: {error}");
        }
    }

    fn tell_ready(&self, url: &str) -> Result<(), Failure> {
        if let Some(file) = &self.ready_file {
            std::fs::write(file, format!("{url}\n")).map_err(|error| {
                anyhow::anyhow!("cannot write --ready-file {}: {error}", file.display())
            })?;
        }
        Ok(())
    }
}

/// The server's rules.
struct House {
    access: Access,
    limits: Limits,
    tls: Option<Tls>,
    /// Keys from the environment, which stay when the file is read again.
    key_variable: Option<String>,
}

fn warn_if_others_read(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::metadata(file).is_ok_and(|data| data.permissions().mode() & 0o077 != 0) {
        eprintln!("krasis: other users can read the keys in {0}: chmod 600 {0}", file.display());
    }
}

/// How often the heat of experts is kept while it serves.
const HEAT_EVERY: Duration = Duration::from_secs(300);

/// Keeps the heat of the model's experts now and then, and when the server ends.
async fn keep_heat(app: &App, heat: Option<&HeatFile>) -> Result<(), Failure> {
    /// Whoever waits for the next time is dropped at the end.
    struct Last<'a>(&'a App, Option<&'a HeatFile>);
    impl Drop for Last<'_> {
        fn drop(&mut self) {
            self.0.loaded().into_iter().for_each(|loaded| heat::keep(self.1, loaded));
        }
    }
    let last = Last(app, heat);
    loop {
        tokio::time::sleep(HEAT_EVERY).await;
        last.0.loaded().into_iter().for_each(|loaded| heat::keep(heat, loaded));
    }
}

type Outcome = Result<(Loaded, Option<HeatFile>, Duration), Failure>;

/// Loads in a thread of its own, so that the server can say that it is loading.
fn start_loading(
    model: ModelArguments,
    wishes: impl Fn(&mut Options) + Send + 'static,
    patience: Option<Duration>,
    app: Arc<App>,
) -> Result<oneshot::Receiver<Outcome>, Failure> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("krasis-load".into())
        .spawn(move || {
            let start = Instant::now();
            let shown = Shown { bar: Bar::new(), app: app.clone() };
            let loading = || {
                let texts = Texts::read(&model.folder()?)?;
                texts.grammars.prepare();
                load_beside(texts, &model, &wishes, &shown)
            };
            let outcome = loading().and_then(|(loaded, heat)| {
                app.loading(Progress { phase: "warming up", percent: 0 });
                exit::on_engine_panic(move || app.over(Over::Failed));
                if let Some(patience) = patience {
                    let census = loaded.handle.census.clone();
                    hang::watch(census, patience, exit::engine_is_lost)
                        .map_err(anyhow::Error::from)?;
                }
                // Whatever it says: a model that was loaded and cannot answer has lost its device.
                warm(&loaded).map_err(|failure| Failure::new(Failure::DEVICE, failure.error))?;
                Ok((loaded, heat, start.elapsed()))
            });
            // Nobody waits when the server has been stopped meanwhile.
            let _ = sender.send(outcome);
        })
        .map_err(anyhow::Error::from)?;
    Ok(receiver)
}

/// Loading, as the terminal and clients see it.
struct Shown {
    bar: Bar,
    app: Arc<App>,
}

impl Watch for Shown {
    fn progress(&self, phase: Phase, done: Bytes, of: Bytes) {
        self.bar.progress(phase, done, of);
        self.app.loading(Progress::of(words(phase), done.0, of.0));
    }
}

/// More than the rows that a GPU sums in another way, and fewer than fill a page that would be kept.
const WARM_TOKENS: u32 = 12;

/// Lets the model read and write a little, so that the first request finds everything in its place
/// and a device that cannot work is found out before anybody relies on it.
fn warm(loaded: &Loaded) -> Result<(), Failure> {
    let facts = &loaded.handle.facts;
    let tokens_max = 2.min(facts.context_max - 1);
    let prompt = (0..WARM_TOKENS.min(facts.context_max - tokens_max)).map(|i| i % facts.vocab);
    let request = Request {
        prompt: prompt.collect(),
        sampling: Sampling::GREEDY,
        tokens_max,
        stop_tokens: Vec::new(),
        logprobs: None,
        prompt_logprobs: None,
        grammar: None,
        priority: 0,
    };
    let stream = Stream::start(&loaded.handle, request)?;
    while !matches!(stream.next()?, Event::Done { .. }) {}
    Ok(())
}

fn refused(address: SocketAddr, error: &std::io::Error) -> Failure {
    let message = match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {} on {} is in use: stop the program that has it or choose another with --port",
            address.port(),
            address.ip()
        ),
        _ => format!("cannot listen on {address}: {error}"),
    };
    Failure::say(Failure::NETWORK, message)
}

/// Reads the keys again on each SIGHUP. Keys that cannot be read leave those from before.
async fn renew_keys(
    app: &App,
    file: Option<&Path>,
    variable: Option<String>,
) -> Result<(), Failure> {
    let mut hangup = signal(SignalKind::hangup()).map_err(anyhow::Error::from)?;
    while hangup.recv().await.is_some() {
        match app.access.keys.reload(file, variable.as_deref()) {
            Ok(()) => eprintln!("krasis: the keys were read again"),
            Err(error) => eprintln!("krasis: the keys stay as they were: {error}"),
        }
    }
    std::future::pending().await
}

/// The first SIGINT or SIGTERM lets answers in flight finish, for a while; the second does not.
async fn signals(stop: watch::Sender<bool>) -> Result<(), Failure> {
    let signal = |kind| signal(kind).map_err(anyhow::Error::from);
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut next = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    next().await;
    eprintln!("krasis: finishing the answers in flight; a second signal ends them");
    stop.send_replace(true);
    next().await;
    Err(Failure::say(Failure::INTERRUPTED, "interrupted"))
}
