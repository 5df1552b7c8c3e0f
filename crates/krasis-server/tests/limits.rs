//! What one client may take of the server: dawdlers, floods and lies.

mod common;

use common::{Script, Server, eventually, rest};
use krasis_server::{Access, Limits};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn with(limits: Limits) -> Server {
    let server = Server::with(Script::saying("x"), Access::local(), limits);
    server.ready(true);
    server
}

/// More clients, where the machine has time: as many as the variable says.
fn clients(few: usize) -> usize {
    std::env::var("KRASIS_FAULT_CLIENTS").map_or(few, |clients| clients.parse().unwrap())
}

fn in_flight(server: &Server) -> u64 {
    server.get("/v1/status").json()["requests"]["http"].as_u64().unwrap()
}

/// Whether the other side has ended the connection.
fn ended(socket: &mut TcpStream) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut bytes = [0; 1024];
    match socket.read(&mut bytes) {
        Ok(bytes) => bytes == 0,
        Err(error) => {
            use std::io::ErrorKind::{TimedOut, WouldBlock};
            !matches!(error.kind(), WouldBlock | TimedOut)
        }
    }
}

#[test]
fn heads_and_bodies_that_trickle_in_are_cut() {
    let server = with(Limits { header_seconds: 1, body_grace_seconds: 1, ..Limits::default() });
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: 1000\r\n"
    );
    let connect = |index: usize| {
        let mut socket = TcpStream::connect(server.address).unwrap();
        match index % 4 {
            0 => {}
            1 => socket.write_all(b"GET /he").unwrap(),
            2 => socket.write_all(head.as_bytes()).unwrap(),
            _ => socket.write_all(format!("{head}\r\n{{").as_bytes()).unwrap(),
        }
        (index, socket)
    };
    let mut sockets: Vec<(usize, TcpStream)> = (0..clients(60)).map(connect).collect();
    while !sockets.is_empty() {
        // Others are served meanwhile.
        assert_eq!(server.get("/health").status, 200);
        sockets.retain_mut(|(index, socket)| {
            // One byte and another: each is progress, and still too slow.
            let byte: &[u8] = if *index % 4 == 2 { b"x" } else { b" " };
            *index % 4 == 0 || socket.write_all(byte).is_ok()
        });
        sockets.retain_mut(|(_, socket)| !ended(socket));
        std::thread::sleep(Duration::from_millis(100));
    }
    eventually("nothing in flight", || in_flight(&server) == 0);
}

#[test]
fn a_slow_body_is_408_and_a_slow_but_steady_one_is_read() {
    let limits = Limits { body_grace_seconds: 1, body_rate: 20, ..Limits::default() };
    let server = with(limits);
    let body = json!({"prompt": "a", "user": "x".repeat(60)}).to_string();
    let send = |bytes: usize| {
        let mut socket = TcpStream::connect(server.address).unwrap();
        let length = body.len();
        let head = format!(
            "POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).unwrap();
        for chunk in body.as_bytes()[..bytes].chunks(20) {
            std::thread::sleep(Duration::from_millis(400));
            socket.write_all(chunk).unwrap();
        }
        rest(socket)
    };
    // 80 bytes at 20 a second: longer than the grace, within what they have earned.
    assert!(send(body.len()).starts_with("HTTP/1.1 200"));
    assert!(send(10).starts_with("HTTP/1.1 408"));
}

#[test]
fn waiting_for_the_next_request_is_no_dawdling() {
    let server = with(Limits { header_seconds: 1, ..Limits::default() });
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for _ in 0..2 {
        socket.write_all(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut reply = [0; 1024];
        let bytes = socket.read(&mut reply).unwrap();
        assert!(reply[..bytes].starts_with(b"HTTP/1.1 200"));
        std::thread::sleep(Duration::from_millis(1500));
    }
    // But a head that has begun must go on.
    socket.write_all(b"GET /version HTTP/1.1\r\n").unwrap();
    assert_eq!(rest(socket), "");
}

#[test]
fn idle_connections_end() {
    let server = with(Limits { header_seconds: 1, idle_seconds: 1, ..Limits::default() });
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.write_all(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert!(rest(socket).starts_with("HTTP/1.1 200"));
}

#[test]
fn readers_that_stop_reading_are_cut_and_cancelled() {
    // More than the system's buffers take: each token becomes about 200 bytes.
    let script = Script { context: 200_000, ..Script::saying(&"a".repeat(60_000)) };
    let server =
        Server::with(script, Access::local(), Limits { stall_seconds: 1, ..Limits::default() });
    server.ready(true);
    let body = json!({"prompt": "a", "stream": true, "ignore_eos": true});
    let sockets: Vec<TcpStream> = (0..clients(4)).map(|_| server.ask(TEXT, &body)).collect();
    eventually("streams in flight", || in_flight(&server) > 0);
    eventually("nothing in flight", || in_flight(&server) == 0);
    for socket in sockets {
        assert!(!rest(socket).contains("[DONE]"));
    }
    // Whoever reads gets all.
    let whole = rest(server.ask(TEXT, &json!({"prompt": "a", "stream": true})));
    assert!(whole.contains("[DONE]"));
}

#[test]
fn more_connections_than_places_wait() {
    let server = with(Limits { connections: 2, header_seconds: 1, ..Limits::default() });
    let idle: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    // Answered once the idle ones are cut.
    assert_eq!(server.get("/health").status, 200);
    drop(idle);
}

#[test]
fn bodies_over_the_limit_are_refused_unread() {
    let server = with(Limits { body_bytes: 10_000, ..Limits::default() });
    let raw = |headers: &str, body: &[u8]| {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = format!(
            "POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             {headers}\r\n"
        );
        let _ = socket.write_all(head.as_bytes());
        let _ = socket.write_all(body);
        rest(socket)
    };
    // A length alone is enough: nothing of the body is sent.
    for length in ["10001", "34603008", "9223372036854775807"] {
        let reply = raw(&format!("Content-Length: {length}\r\n"), b"");
        assert!(reply.starts_with("HTTP/1.1 413"), "{length}: {reply}");
    }
    let reply = raw("Content-Length: 99999999999999999999999\r\n", b"");
    assert!(reply.starts_with("HTTP/1.1 400"), "{reply}");
    // Chunks that never end.
    let chunk = [b"1000\r\n".as_slice(), &[b' '; 0x1000], b"\r\n"].concat();
    let reply = raw("Transfer-Encoding: chunked\r\n", &chunk.repeat(4));
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    // Two lengths: whatever the proxy before us believed, only one request is answered.
    let smuggled =
        b"0\r\n\r\nGET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let reply = raw("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", smuggled);
    assert!(!reply.contains("\"version\""), "{reply}");
}

#[test]
fn heads_over_the_limit_are_431() {
    let server = with(Limits::default());
    let reply = |headers: &str| {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = format!("GET /version HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n");
        let _ = socket.write_all(head.as_bytes());
        let mut status = [0; 12];
        let _ = socket.read_exact(&mut status);
        String::from_utf8_lossy(&status).into_owned()
    };
    assert_eq!(reply(&"x: y\r\n".repeat(10_000)), "HTTP/1.1 431");
    assert_eq!(reply(&"x: y\r\n".repeat(101)), "HTTP/1.1 431");
    assert_eq!(reply(&format!("x: {}\r\n", "y".repeat(40_000))), "HTTP/1.1 431");
    let mut one = String::from("Connection: close\r\n");
    one += &"x: y\r\n".repeat(50);
    assert_eq!(reply(&one), "HTTP/1.1 200");
}

#[test]
fn counts_over_their_limit_are_400() {
    let server = with(Limits {
        messages: 2,
        tools: 1,
        schema_bytes: 200,
        samples: 2,
        stops: 1,
        stop_bytes: 3,
        stop_tokens: 1,
        logit_biases: 1,
        priority: 0,
        ..Limits::default()
    });
    let message = json!({"role": "user", "content": "a"});
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let big =
        json!({"type": "function", "function": {"name": "f", "description": "x".repeat(200)}});
    let many = |item: &Value, times| Value::Array(vec![item.clone(); times]);
    for (field, within, over) in [
        ("messages", many(&message, 2), many(&message, 3)),
        ("tools", many(&tool, 1), many(&tool, 2)),
        ("tools", many(&tool, 1), many(&big, 1)),
        ("n", json!(2), json!(3)),
        ("stop", json!(["qqq"]), json!(["q", "r"])),
        ("stop", json!("qqq"), json!("qqqq")),
        ("stop_token_ids", json!([1]), json!([1, 2])),
        ("logit_bias", json!({"1": 1}), json!({"1": 1, "2": 1})),
        ("priority", json!(0), json!(-1)),
    ] {
        let status = |value: Value| {
            let mut body = json!({"messages": [message], "max_tokens": 1});
            body[field] = value;
            let reply = server.post(CHAT, body);
            (reply.status, reply.json()["error"]["param"].as_str().map(str::to_owned))
        };
        assert_eq!(status(within), (200, None), "{field}");
        assert_eq!(status(over), (400, Some(field.to_owned())));
    }
}
