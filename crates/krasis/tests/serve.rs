//! `krasis serve` from outside: settings, signals, keys, failures, and what is left behind.

mod common;

use common::{krasis, tiny};
use krasis_machine::fake::{Fake, FakeNode, meminfo, put};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A server of a tiny model.
struct Served {
    process: Child,
    /// What it says on the terminal, line by line.
    lines: Receiver<String>,
    /// Host and port.
    address: String,
    model: tempfile::TempDir,
}

impl Served {
    /// Starts it and waits until it is ready.
    fn start(arguments: &[&str]) -> Served {
        Served::with_key(arguments, None)
    }

    fn with_key(arguments: &[&str], key: Option<&str>) -> Served {
        let model = tiny();
        let dir = model.path().to_str().unwrap();
        let base = ["serve", "--port", "0", "--no-cache", "--model-path", dir];
        let mut command = krasis(&[&base, arguments].concat());
        let command =
            command.env_remove("KRASIS_API_KEY").envs(key.map(|key| ("KRASIS_API_KEY", key)));
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(process.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            // The pipe is read to its end, or the server would wait for us.
            for line in said.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut served = Served { process, lines, address: String::new(), model };
        served.await_ready();
        served
    }

    /// Reads what it says until it says this.
    fn says(&self, words: &str) -> String {
        let mut heard = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => heard.push(line),
                Err(_) => panic!("'{words}' was not said: {heard:#?}"),
            }
        }
    }

    fn await_ready(&mut self) {
        let line = self.says("ready on http");
        let address = line.split("://").nth(1).unwrap().split(' ').next().unwrap();
        self.address = address.to_owned();
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Sends a request whose answer is not waited for.
    fn send(&self, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut socket = self.connect();
        let method = if body.is_empty() { "GET" } else { "POST" };
        let length = body.len();
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        socket
    }

    fn ask(&self, path: &str, headers: &str, body: &str) -> String {
        rest(self.send(path, headers, body))
    }

    fn status(&self) -> Value {
        let reply = self.ask("/v1/status", "", "");
        serde_json::from_str(reply.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    fn signal(&self, name: &str) {
        let signalled =
            Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status();
        assert!(signalled.unwrap().success());
    }

    fn code(mut self) -> Option<i32> {
        for _ in 0..PATIENCE.as_millis() / 20 {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server does not end");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // A supervisor's server ends with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rest(mut socket: TcpStream) -> String {
    let mut reply = Vec::new();
    let _ = socket.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 20 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("never happened: {what}");
}

const TEXT: &str = "/v1/completions";

fn prompt(tokens: u32, stream: bool) -> String {
    json!({"prompt": "hi", "max_tokens": tokens, "ignore_eos": true, "stream": stream}).to_string()
}

#[test]
fn settings_that_cannot_be_are_refused_before_loading() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, spaced) = (file("empty", "# none\n"), file("spaced", "a b\n"));
    let keys = file("keys", "k\n");
    for (arguments, key, code, sentence) in [
        (&["--host", "0.0.0.0"][..], None, 3, "--allow-unauthenticated"),
        (&["--host", "::"], None, 3, "--allow-unauthenticated"),
        (&["--api-key-file", "/nowhere/keys"], None, 3, "cannot read the keys"),
        (&["--api-key-file", &empty], None, 3, "holds no key"),
        (&["--api-key-file", &spaced], None, 3, "line 1"),
        (&[], Some(""), 3, "KRASIS_API_KEY holds no key"),
        (&["--limit", "bodies=1"], None, 3, "the limits are connections"),
        (&["--limit", "stops=x"], None, 3, "NAME=N"),
        (&["--tls-cert", &keys], None, 2, "--tls-key"),
        (&["--tls-cert", &keys, "--tls-key", &keys], None, 3, "PEM"),
        (&["--drain-seconds", "soon"], None, 2, "--drain-seconds"),
    ] {
        let mut command = krasis(&[&["serve", "--port", "0"], arguments].concat());
        let command =
            command.env_remove("KRASIS_API_KEY").envs(key.map(|key| ("KRASIS_API_KEY", key)));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(sentence), "{arguments:?}: {said}");
        assert!(!said.contains("listening"), "{arguments:?}: {said}");
    }
}

#[test]
fn serve_listens_answers_and_ends_on_a_signal() {
    let ready = tempfile::NamedTempFile::new().unwrap();
    let server = Served::start(&["--ready-file", ready.path().to_str().unwrap()]);
    eventually("the ready file has the URL", || {
        std::fs::read_to_string(ready.path()).is_ok_and(|text| text.contains(&server.address))
    });
    let reply = server.ask(TEXT, "", &prompt(3, false));
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(reply.contains("\"completion_tokens\":3"), "{reply}");
    server.signal("TERM");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn what_is_asked_again_and_again_is_not_logged() {
    let server = Served::start(&[]);
    for path in ["/health", "/readyz", "/metrics", "/v1/status", "/status", "/v1/status/experts"] {
        assert!(server.ask(path, "", "").starts_with("HTTP/1.1 200"), "{path}");
    }
    server.ask("/version", "", "");
    let line = server.says(" GET /");
    assert!(line.contains("GET /version") && line.contains("INFO"), "{line}");
}

#[test]
fn the_first_signal_drains_and_the_second_ends() {
    for (second, code) in [(false, Some(0)), (true, Some(130))] {
        let server = Served::start(&[]);
        // In flight, because its body is not complete.
        let body = prompt(2, false);
        let (begin, end) = body.split_at(10);
        let mut slow = server.connect();
        write!(
            slow,
            "POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{begin}",
            body.len()
        )
        .unwrap();
        eventually("it is in flight", || server.status()["requests"]["http"] == 1);
        server.signal("INT");
        server.says("finishing the answers");
        eventually("readiness ends", || server.ask("/readyz", "", "").contains(" 503 "));
        let refused = server.ask(TEXT, "", &prompt(1, false));
        assert!(refused.contains(" 503 ") && refused.contains("retry-after"), "{refused}");
        if second {
            server.signal("TERM");
        } else {
            slow.write_all(end.as_bytes()).unwrap();
            let reply = rest(slow);
            assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        }
        assert_eq!(server.code(), code);
    }
}

#[test]
fn keys_come_from_file_and_variable_and_change_on_sighup() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old-key\n").unwrap();
    let arguments = ["--host", "0.0.0.0", "--api-key-file", file.path().to_str().unwrap()];
    let mut server = Served::with_key(&arguments, Some("fixed-key"));
    server.address = server.address.replace("0.0.0.0", "127.0.0.1");
    let status = |key: &str| {
        let reply = server.ask("/version", &format!("Authorization: Bearer {key}\r\n"), "");
        reply.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!([status("old-key"), status("fixed-key"), status("new-key")], ["200", "200", "401"]);
    std::fs::write(file.path(), "new-key\n").unwrap();
    server.signal("HUP");
    server.says("the keys were read again");
    assert_eq!([status("old-key"), status("fixed-key"), status("new-key")], ["401", "200", "200"]);
    // A file that is being written leaves the keys as they were.
    std::fs::write(file.path(), "").unwrap();
    server.signal("HUP");
    let line = server.says("the keys stay as they were");
    assert!(!line.contains("-key\n"), "{line}");
    assert_eq!(status("new-key"), "200");
    assert!(server.ask("/health", "", "").starts_with("HTTP/1.1 200"));
}

/// A stream that has begun ends with an error of the engine.
fn assert_breaks_off(reply: &str) {
    assert!(reply.starts_with("HTTP/1.1 200") && !reply.contains("[DONE]"), "{reply}");
    let last = reply.rsplit("data: ").next().unwrap();
    assert!(last.contains("\"error\"") && last.contains("engine_"), "{reply}");
}

#[test]
fn a_failing_engine_tells_its_clients_and_ends_with_75() {
    let server = Served::start(&["--fault-at-step", "20"]);
    assert_breaks_off(&server.ask(TEXT, "", &prompt(100, true)));
    assert_eq!(server.code(), Some(75));
}

/// A sentence in place of a panic's report, and readiness ends before the process does.
#[test]
fn a_device_that_is_lost_tells_its_clients_and_ends_with_75() {
    let server = Served::start(&["--lose-at-step", "20"]);
    assert_breaks_off(&server.ask(TEXT, "", &prompt(100, true)));
    let line = server.says("is lost");
    assert!(
        line.starts_with("krasis: GPU 0 is lost: the NVIDIA driver answered CUDA_ERROR"),
        "{line}"
    );
    assert_eq!(server.code(), Some(75));
}

#[test]
fn an_engine_that_hangs_is_given_up() {
    let server = Served::start(&["--hang-at-step", "20", "--hang-timeout", "10"]);
    // A second request finds the thread gone, and is told as well.
    let second = server.send(TEXT, "", &prompt(100, true));
    let reply = server.ask(TEXT, "", &prompt(100, true));
    for reply in [reply, rest(second)] {
        assert_breaks_off(&reply);
    }
    server.says("has not gone on for 10 s");
    assert_eq!(server.code(), Some(75));
}

/// Others take the memory while somebody waits for an answer.
#[test]
fn memory_that_runs_out_is_told_before_the_end() {
    let root = tempfile::tempdir().unwrap();
    let node = FakeNode { number: 0, cpus: "0-3", mib: 8_000 };
    let machine = Fake {
        online: "0-3",
        cpus_allowed: "0-3",
        mems_allowed: "0",
        cores: &["0,2", "1,3"],
        nodes: &[node],
        mib: (8_000, 6_000),
    };
    machine.write(root.path()).unwrap();
    let folder = root.path().to_str().unwrap();
    let server = Served::start(&["--machine-root", folder, "--hang-at-step", "20"]);
    let waiting = server.send(TEXT, "", &prompt(100, true));
    eventually("it runs", || server.status()["requests"]["running"] == 1);
    put(root.path(), "proc/meminfo", &meminfo(8_000, 300)).unwrap();
    let reply = rest(waiting);
    assert!(reply.starts_with("HTTP/1.1 200") && !reply.contains("[DONE]"), "{reply}");
    let last = reply.rsplit("data: ").next().unwrap();
    assert!(last.contains("\"error\""), "{reply}");
    server.says("only 300.00 MiB of 7.81 GiB");
    assert_eq!(server.code(), Some(137));
}

#[test]
fn a_model_that_cannot_answer_is_never_ready() {
    let model = tiny();
    let dir = model.path().to_str().unwrap();
    for fault in ["--fault-at-step", "--lose-at-step"] {
        let arguments = ["serve", "--port", "0", "--no-cache", fault, "0"];
        let output = krasis(&[&arguments[..], &["--model-path", dir]].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{said}");
        assert!(!said.contains("ready on"), "{said}");
    }
}

#[test]
fn a_supervised_server_is_started_again() {
    let mut server = Served::start(&["--supervise", "--fault-at-step", "20"]);
    let first = server.address.clone();
    let reply = server.ask(TEXT, "", &prompt(100, true));
    assert!(!reply.contains("[DONE]"), "{reply}");
    server.says("it starts again in 1 s");
    server.await_ready();
    assert!(TcpStream::connect(first).is_err());
    let reply = server.ask(TEXT, "", &prompt(3, false));
    assert!(reply.contains("\"completion_tokens\":3"), "{reply}");
    server.signal("TERM");
    let second = server.address.clone();
    assert_eq!(server.code(), Some(0));
    assert!(TcpStream::connect(second).is_err());
}

#[test]
fn a_server_ends_with_its_supervisor() {
    let server = Served::start(&["--supervise"]);
    server.signal("KILL");
    eventually("nobody listens", || TcpStream::connect(&server.address).is_err());
}

#[test]
fn failures_that_a_restart_cannot_mend_are_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let output =
        krasis(&["serve", "--supervise", "--port", "0", "--model-path", dir]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("tokenizer.json is missing"), "{said}");
}

#[test]
fn clients_that_leave_give_their_pages_back() {
    let server = Served::start(&["--max-sequences", "3"]);
    let pages = server.status()["kv_pages"].clone();
    assert!(pages["total"].as_u64() > Some(0) && pages["total"] == pages["available"], "{pages}");
    let mut sockets = Vec::new();
    for index in 0..60u32 {
        let mut socket = server.send(TEXT, "", &prompt(200, index % 3 > 0));
        if index % 2 == 0 {
            let mut some = [0; 64];
            let _ = socket.read(&mut some);
        }
        sockets.push(socket);
        if index % 7 == 6 {
            sockets.clear();
        }
    }
    drop(sockets);
    eventually("all is as before", || {
        let status = server.status();
        let pages = &status["kv_pages"];
        let requests = &status["requests"];
        requests["http"] == 0
            && requests["running"] == 0
            && requests["waiting"] == 0
            && pages["available"] == pages["total"]
    });
    let reply = server.ask(TEXT, "", &prompt(3, false));
    assert!(reply.contains("\"completion_tokens\":3"), "{reply}");
    assert!(server.model.path().exists());
}
