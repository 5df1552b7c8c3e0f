//! `krasis serve --supervise`: a parent that holds no model and starts the server again when its
//! device fails. A GPU whose context is lost is only got back by another process.

use crate::exit::Failure;
use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// Before the first start again, and after one that lasted.
const PAUSE: Duration = Duration::from_secs(1);

/// Pauses double until they are this long.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A server that ran this long did not fail because of how it was started.
const LASTING: Duration = Duration::from_secs(600);

/// Runs the server until it ends for another reason than its device, or a signal ends both.
pub fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    runtime.block_on(supervise())
}

/// Lets the supervised process end when its parent is gone, however that came.
pub fn end_with_parent() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(anyhow::Error::from)?;
    Ok(())
}

async fn supervise() -> Result<(), Failure> {
    let program = std::env::current_exe().context("cannot find this program again")?;
    let mut signals = Signals::new()?;
    let mut pause = PAUSE;
    for starts in 0.. {
        let start = Instant::now();
        let mut server = Command::new(&program)
            .args(arguments(starts))
            // A terminal's Ctrl-C reaches the server through us, once.
            .process_group(0)
            .spawn()
            .context("cannot start the server")?;
        let pid = server.id().and_then(|id| Pid::from_raw(id as i32));
        let status = loop {
            tokio::select! {
                status = server.wait() => break status.context("cannot wait for the server")?,
                signal = signals.next() => {
                    // If it has just ended, there is nobody to tell.
                    let _ = pid.map(|pid| kill_process(pid, signal));
                }
            }
        };
        if signals.stopping || !failed(status) {
            return ended(status);
        }
        if start.elapsed() > LASTING {
            pause = PAUSE;
        }
        eprintln!("krasis: the server failed ({status}); it starts again in {} s", pause.as_secs());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = signals.stop() => return Ok(()),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}

/// Our own arguments, for the server that we supervise, after so many starts. What is to be done again is
/// done once.
fn arguments(starts: u64) -> impl Iterator<Item = OsString> {
    let done = move |argument: &OsString| {
        starts > 0 && (argument == "--force-optimize" || argument == "--force-load")
    };
    let all = std::env::args_os().skip(1).filter(move |argument| !done(argument));
    all.map(|argument| match argument.to_str() {
        Some("--supervise") => "--supervised".into(),
        _ => argument,
    })
}

/// Whether another process may do better: the device is lost, or a driver has crashed.
fn failed(status: ExitStatus) -> bool {
    let crashes = [Signal::SEGV, Signal::BUS, Signal::ABORT, Signal::ILL, Signal::FPE];
    let crashed = |signal| crashes.iter().any(|crash| crash.as_raw() == signal);
    status.code() == Some(Failure::DEVICE.into()) || status.signal().is_some_and(crashed)
}

/// The server's end is ours. What it had to say it has said.
fn ended(status: ExitStatus) -> Result<(), Failure> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => {
            Err(Failure::say(code as u8, format!("the server ended with code {code}")))
        }
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            let message = format!("the server was ended by signal {signal}");
            Err(Failure::say(128 + signal as u8, message))
        }
    }
}

/// What the server is to hear as well.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// One of the first two has come.
    stopping: bool,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let signal = |kind| signal(kind).map_err(anyhow::Error::from);
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            stopping: false,
        })
    }

    async fn next(&mut self) -> Signal {
        let signal = tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        };
        self.stopping |= signal != Signal::HUP;
        signal
    }

    async fn stop(&mut self) {
        while !self.stopping {
            self.next().await;
        }
    }
}
