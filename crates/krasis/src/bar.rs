//! How far loading is: a bar on a terminal, now and then a line elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use krasis_core::Bytes;
use krasis_engine::{Phase, Watch};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What takes less time is not shown.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between lines, where there is no terminal.
const SILENCE: Duration = Duration::from_secs(5);

/// Shows one phase at a time on standard error.
pub struct Bar {
    terminal: bool,
    shown: Mutex<Option<Shown>>,
}

struct Shown {
    words: &'static str,
    start: Instant,
    /// What was there before.
    first: Bytes,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Nothing is shown yet.
    pub fn new() -> Bar {
        Bar { terminal: std::io::stderr().is_terminal(), shown: Mutex::new(None) }
    }

    /// Shows that so much is done; all of it ends the bar.
    pub fn show(&self, words: &'static str, done: Bytes, of: Bytes) {
        let mut shown = self.shown.lock().expect("drawing does not panic");
        let now = Instant::now();
        if shown.as_ref().is_none_or(|shown| shown.words != words) {
            *shown = Some(Shown { words, start: now, first: done, told: now, bar: None });
        }
        let Some(state) = shown.as_mut() else { return };
        if done >= of {
            if let Some(bar) = &state.bar {
                bar.finish_and_clear();
            }
            *shown = None;
        } else if self.terminal && now - state.start > PATIENCE {
            state.bar.get_or_insert_with(|| bar(words, of)).set_position(done.0);
        } else if !self.terminal && now - state.told > SILENCE {
            eprintln!("krasis: {words}: {done} of {of}{}", state.rest(done, of));
            state.told = now;
        }
    }
}

impl Shown {
    /// How long it will take, going on as so far.
    fn rest(&self, done: Bytes, of: Bytes) -> String {
        let new = done.0.saturating_sub(self.first.0);
        if new == 0 {
            return String::new();
        }
        let seconds = self.start.elapsed().as_secs_f64() * (of.0 - done.0) as f64 / new as f64;
        format!(", {seconds:.0} s left")
    }
}

impl Watch for Bar {
    fn progress(&self, phase: Phase, done: Bytes, of: Bytes) {
        self.show(words(phase), done, of);
    }
}

/// A phase in words.
pub fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Building => "quantising",
        Phase::Waiting => "waiting for the process that quantises",
        Phase::Loading => "loading",
    }
}

fn bar(words: &'static str, of: Bytes) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::with_draw_target(Some(of.0), ProgressDrawTarget::stderr());
    bar.set_style(style.expect("the template is one"));
    bar.set_message(words);
    bar
}
