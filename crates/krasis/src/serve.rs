//! `krasis serve`: listen first, then load, then answer.

use crate::exit::Failure;
use crate::load::load;
use crate::options::ModelArguments;
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use krasis_engine::Options;
use krasis_server::{App, Loaded, ReasoningField};
use krasis_text::{Reasoning, ToolFormat};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// Answers in flight may take this long after the first signal.
const FAREWELL: Duration = Duration::from_secs(30);

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
        let dir = self.model.folder()?;
        let mut options = self.model.options()?;
        options.queue_max = self.queue_max.map_or(options.queue_max, |queue| queue as usize);
        options.sequences_max = self.max_sequences.unwrap_or(options.sequences_max);
        // Two threads for HTTP: the others are the engine's.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)?;
        let result = runtime.block_on(self.listen(&dir, options));
        // A half-loaded model is not waited for.
        runtime.shutdown_background();
        result
    }

    async fn listen(self, dir: &Path, options: Options) -> Result<(), Failure> {
        let address = SocketAddr::new(self.host, self.port);
        let listener =
            TcpListener::bind(address).await.map_err(|error| refused(address, &error))?;
        let bound = listener.local_addr().map_err(anyhow::Error::from)?;
        let url = format!("http://{bound}");
        eprintln!("krasis: listening on {url}, loading {}", dir.display());
        if !self.host.is_loopback() {
            eprintln!(
                "krasis: anyone who reaches {bound} can use the model: there are no keys yet"
            );
        }

        let app = Arc::new(App::new(self.names(dir)));
        let loading = start_loading(dir.to_owned(), options)?;
        let (stop, stopped) = watch::channel(false);
        let mut stopping = stopped.clone();
        let server = krasis_server::serve(listener, app.clone(), async move {
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let mut server = std::pin::pin!(server);
        let mut ended = std::pin::pin!(signals(stop));
        let ready = async {
            let (mut loaded, time) = loading.await.map_err(|_| {
                Failure::say(Failure::FAILED, "the thread that loads the model has ended")
            })??;
            self.read_answers(&mut loaded);
            self.announce(&app, &loaded, &url, time)?;
            app.ready(loaded);
            std::future::pending::<Result<(), Failure>>().await
        };
        let network = |result: std::io::Result<()>| {
            result.map_err(|error| Failure::new(Failure::NETWORK, error))
        };
        tokio::select! {
            result = &mut server => network(result),
            failure = ready => failure,
            failure = &mut ended => failure,
        }
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

    fn announce(
        &self,
        app: &App,
        loaded: &Loaded,
        url: &str,
        time: Duration,
    ) -> Result<(), Failure> {
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
        if let Some(file) = &self.ready_file {
            std::fs::write(file, format!("{url}\n")).map_err(|error| {
                anyhow::anyhow!("cannot write --ready-file {}: {error}", file.display())
            })?;
        }
        Ok(())
    }
}

type Outcome = Result<(Loaded, Duration), Failure>;

/// Loads in a thread of its own, so that the server can say that it is loading.
fn start_loading(dir: PathBuf, options: Options) -> Result<oneshot::Receiver<Outcome>, Failure> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("krasis-load".into())
        .spawn(move || {
            let start = Instant::now();
            let outcome = load(&dir, &options).map(|loaded| (loaded, start.elapsed()));
            // Nobody waits when the server has been stopped meanwhile.
            let _ = sender.send(outcome);
        })
        .map_err(anyhow::Error::from)?;
    Ok(receiver)
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

/// The first SIGINT or SIGTERM lets answers in flight finish, the second does not; nor does time.
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
    match tokio::time::timeout(FAREWELL, next()).await {
        Ok(()) => Err(Failure::say(Failure::INTERRUPTED, "interrupted")),
        Err(_) => Ok(()),
    }
}
