//! A timeline of operations, or of a GPU's kernels and copies, in the trace event format that Chrome and
//! Perfetto read.

use crate::exit::Failure;
use anyhow::Context;
use krasis_core::Bytes;
use krasis_engine::{Span, Track};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A longer pause lies between requests.
const PAUSE: Duration = Duration::from_millis(1);

/// Writes the timeline, and prints what the time went to.
pub fn write(file: &Path, mut spans: Vec<Span>) -> Result<(), Failure> {
    spans.sort_by_key(|span| span.start);
    let Some(first) = spans.first() else { return Ok(()) };
    let cannot = || format!("cannot write {}", file.display());
    let mut out = BufWriter::new(std::fs::File::create(file).with_context(cannot)?);
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    let mut before = "[";
    for track in [Track::Host, Track::Kernels, Track::Copies] {
        let (tid, name) = row(track);
        let event = json!({
            "name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": name},
        });
        writeln!(out, "{before}{event}").with_context(cannot)?;
        before = ",";
    }
    for span in &spans {
        let amount = match span.track {
            Track::Host => "rows",
            Track::Kernels => "blocks",
            Track::Copies => "bytes",
        };
        let mut args = json!({ amount: span.amount });
        if let Some(layer) = span.layer {
            args["layer"] = layer.into();
        }
        let event = json!({
            "name": span.name, "ph": "X", "pid": 1, "tid": row(span.track).0, "args": args,
            "ts": micros(span.start - first.start), "dur": micros(span.time),
        });
        writeln!(out, ",{event}").with_context(cannot)?;
    }
    writeln!(out, "]").with_context(cannot)?;
    out.flush().with_context(cannot)?;
    let of = |track| spans.iter().filter(move |span| span.track == track);
    if of(Track::Kernels).next().is_some() {
        gpu_summary(&spans);
    } else {
        host_summary(&spans);
    }
    Ok(())
}

/// Where a track stands, and what it is called there.
fn row(track: Track) -> (u32, &'static str) {
    match track {
        Track::Host => (1, "host"),
        Track::Kernels => (2, "GPU kernels"),
        Track::Copies => (3, "GPU copies"),
    }
}

/// Calls of one name, and their time.
type Times<K> = BTreeMap<K, (u32, Duration)>;

fn longest_first<K: Ord>(times: Times<K>) -> impl Iterator<Item = (K, u32, Duration)> {
    let mut sorted: Vec<_> = times.into_iter().collect();
    sorted.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    sorted.into_iter().map(|(key, (calls, time))| (key, calls, time))
}

/// Time in each operation, and between them: those of single rows, which are decode steps, and those of
/// many apart.
fn host_summary(spans: &[Span]) {
    let mut times: Times<(bool, &str)> = BTreeMap::new();
    let many = |rows: u64| rows > 16;
    for pair in spans.windows(2) {
        let [span, next] = pair else { unreachable!("windows of two") };
        let (calls, time) = times.entry((many(span.amount), span.name)).or_default();
        *calls += 1;
        *time += span.time;
        let gap = next.start.saturating_duration_since(span.start + span.time);
        if gap < PAUSE {
            let (calls, time) = times.entry((many(span.amount), "between")).or_default();
            *calls += 1;
            *time += gap;
        }
    }
    for ((many, name), calls, time) in longest_first(times) {
        let rows = if many { "many rows" } else { "few rows" };
        let each = time / calls;
        eprintln!("{rows}: {name:<14} {calls:>8} calls of {each:>10.1?}, {time:>9.1?} in all");
    }
}

/// Time in each kernel and copy, and how busy a GPU was.
fn gpu_summary(spans: &[Span]) {
    let mut times: Times<(Track, &str)> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.track != Track::Host) {
        let (calls, time) = times.entry((span.track, span.name)).or_default();
        *calls += 1;
        *time += span.time;
    }
    for ((track, name), calls, time) in longest_first(times) {
        let (each, row) = (time / calls, row(track).1);
        eprintln!("{row}: {name:<20} {calls:>8} of {each:>10.1?}, {time:>9.1?} in all");
    }
    eprintln!("{}", Busy::of(spans));
}

/// What a GPU did with its time between pauses.
#[derive(Debug, PartialEq)]
struct Busy {
    all: Duration,
    kernels: Duration,
    copies: Duration,
    either: Duration,
    copied: Bytes,
}

impl Busy {
    /// Of spans in the order of their beginnings.
    fn of(spans: &[Span]) -> Busy {
        let times = |wanted: &dyn Fn(Track) -> bool| {
            let spans = spans.iter().filter(|span| wanted(span.track));
            covered(spans.map(|span| (span.start, span.start + span.time)))
        };
        let (either, gaps) = times(&|track| track != Track::Host);
        let copies = spans.iter().filter(|span| span.track == Track::Copies);
        Busy {
            all: either + gaps,
            kernels: times(&|track| track == Track::Kernels).0,
            copies: times(&|track| track == Track::Copies).0,
            either,
            copied: Bytes(copies.map(|span| span.amount).sum()),
        }
    }
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Busy { all, kernels, copies, either, copied } = self;
        let percent =
            |time: &Duration| 100.0 * time.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE);
        write!(
            f,
            "GPU: {all:.1?} between pauses, kernels busy {:.1} %, copies busy {:.1} %, idle {:.1} %",
            percent(kernels),
            percent(copies),
            100.0 - percent(either)
        )?;
        if *copies > Duration::ZERO {
            let rate = copied.0 as f64 / copies.as_secs_f64() / 1e9;
            write!(f, "; {copied} copied, {rate:.1} GB/s while copies ran")?;
        }
        Ok(())
    }
}

/// Time that is covered, and the gaps between that are no pauses.
fn covered(spans: impl Iterator<Item = (Instant, Instant)>) -> (Duration, Duration) {
    let (mut covered, mut gaps) = (Duration::ZERO, Duration::ZERO);
    let mut until: Option<Instant> = None;
    for (start, end) in spans {
        let before = until.unwrap_or(start);
        let gap = start.saturating_duration_since(before);
        if gap < PAUSE {
            gaps += gap;
        }
        covered += end.saturating_duration_since(start.max(before));
        until = Some(before.max(end));
    }
    (covered, gaps)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(track, begin, end)` in tenths of a millisecond.
    fn spans(all: &[(Track, u64, u64)]) -> Vec<Span> {
        let origin = Instant::now();
        let tenths = |n: u64| Duration::from_micros(100 * n);
        let span = |&(track, begin, end): &(Track, u64, u64)| Span {
            name: "something",
            track,
            layer: None,
            amount: 1000,
            start: origin + tenths(begin),
            time: tenths(end - begin),
        };
        all.iter().map(span).collect()
    }

    #[test]
    fn overlaps_count_once_and_pauses_not_at_all() {
        use Track::{Copies, Host, Kernels};
        let all = spans(&[
            (Host, 0, 5),
            (Kernels, 10, 20),
            (Copies, 15, 28),
            (Kernels, 16, 18),
            // A gap, and a pause.
            (Kernels, 30, 34),
            (Copies, 60, 64),
        ]);
        let tenths = |n: u64| Duration::from_micros(100 * n);
        let wanted = Busy {
            all: tenths(28),
            kernels: tenths(14),
            copies: tenths(17),
            either: tenths(26),
            copied: Bytes(2000),
        };
        assert_eq!(Busy::of(&all), wanted);
        assert_eq!(
            wanted.to_string(),
            "GPU: 2.8ms between pauses, kernels busy 50.0 %, copies busy 60.7 %, idle 7.1 %; \
             1.95 KiB copied, 0.0 GB/s while copies ran"
        );
    }
}
