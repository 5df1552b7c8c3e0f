//! Clients that leave at any moment: afterwards everything is as before. Alone in its file, because
//! it counts the open files of its process.

mod common;

use common::{Script, Server, eventually};
use serde_json::json;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// 0 to `most` - 1, the same at each run.
fn random(state: &mut u64, most: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % most
}

#[test]
fn whoever_leaves_leaves_nothing_behind() {
    let step = Duration::from_millis(1);
    let server = Server::start(Script { step, ..Script::saying(&"a".repeat(40)) });
    let times = std::env::var("KRASIS_FAULT_DISCONNECTS").map_or(300, |n| n.parse().unwrap());
    assert_eq!(server.get("/health").status, 200);
    let before = open_files();
    let mut state = 7;
    let mut sockets = Vec::new();
    for _ in 0..times {
        let stream = random(&mut state, 2) == 0;
        let mut socket = server.ask("/v1/completions", &json!({"prompt": "a", "stream": stream}));
        match random(&mut state, 4) {
            // At once, while it waits or before its first token.
            0 => drop(socket),
            // In the middle of what has come so far.
            1 => {
                let mut some = [0; 100];
                let _ = socket.read(&mut some);
            }
            // Later, when others have come.
            _ => sockets.push(socket),
        }
        while sockets.len() > random(&mut state, 20) as usize {
            let index = random(&mut state, sockets.len() as u64) as usize;
            drop(sockets.swap_remove(index));
        }
    }
    drop(sockets);
    let idle = || {
        let requests = &server.get("/v1/status").json()["requests"];
        requests["http"] == 0 && requests["waiting"] == 0
    };
    eventually("nothing in flight or waiting", idle);
    eventually("files as before", || open_files() <= before);
    let seen = server.seen.lock().unwrap().len();
    let cancelled = server.cancelled.load(Ordering::Relaxed);
    assert!(cancelled > times / 10, "{cancelled} of {seen} were cancelled");
    let metrics = server.get("/metrics").body;
    let aborted = format!("finished_reason=\"abort\",model_name=\"tiny\"}} {cancelled}");
    assert!(metrics.contains(&aborted), "{metrics}");
    assert_eq!(server.post("/v1/completions", json!({"prompt": "a"})).status, 200);
}
