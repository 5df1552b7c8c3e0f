//! A timeline of operations, in the trace event format that Chrome and Perfetto read.

use crate::exit::Failure;
use anyhow::Context;
use krasis_engine::Span;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// Writes the timeline, and prints which operations took the time: those of single rows, which are
/// decode steps, and those of many apart.
pub fn write(file: &Path, spans: &[Span]) -> Result<(), Failure> {
    let Some(first) = spans.first() else { return Ok(()) };
    let cannot = || format!("cannot write {}", file.display());
    let mut out = BufWriter::new(std::fs::File::create(file).with_context(cannot)?);
    let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
    for (i, span) in spans.iter().enumerate() {
        let event = json!({
            "name": span.name, "ph": "X", "pid": 1, "tid": 1, "args": {"rows": span.rows},
            "ts": micros(span.start - first.start), "dur": micros(span.time),
        });
        let before = if i == 0 { "[" } else { "," };
        writeln!(out, "{before}{event}").with_context(cannot)?;
    }
    writeln!(out, "]").with_context(cannot)?;
    out.flush().with_context(cannot)?;
    summary(spans);
    Ok(())
}

/// Time in each operation, and between them.
fn summary(spans: &[Span]) {
    let mut times: BTreeMap<(bool, &str), (u32, Duration)> = BTreeMap::new();
    let many = |rows: u32| rows > 16;
    for pair in spans.windows(2) {
        let [span, next] = pair else { unreachable!("windows of two") };
        let (calls, time) = times.entry((many(span.rows), span.name)).or_default();
        *calls += 1;
        *time += span.time;
        let gap = next.start - (span.start + span.time);
        // A longer one lies between requests.
        if gap < Duration::from_millis(1) {
            let (calls, time) = times.entry((many(span.rows), "between")).or_default();
            *calls += 1;
            *time += gap;
        }
    }
    let mut sorted: Vec<_> = times.into_iter().collect();
    sorted.sort_by_key(|(_, (_, time))| std::cmp::Reverse(*time));
    for ((many, name), (calls, time)) in sorted {
        let rows = if many { "many rows" } else { "few rows" };
        let each = time / calls;
        eprintln!("{rows}: {name:<14} {calls:>8} calls of {each:>10.1?}, {time:>9.1?} in all");
    }
}
