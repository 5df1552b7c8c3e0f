//! Who may come in: every route with and without keys, hosts, web pages, HTTPS.

mod common;

use common::{Reply, Script, Server};
use krasis_server::{Access, Keys, Limits, ROUTES, Tls};

fn keyed(keys: &str) -> Access {
    Access { keys: Keys::read(None, Some(keys)).unwrap(), ..Access::local() }
}

fn with(access: Access) -> Server {
    let server = Server::with(Script::saying("x"), access, Limits::default());
    server.ready(true);
    server
}

/// A request that says no more than it must.
fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let headers = [headers, &[("Content-Type", "application/json")]].concat();
    server.send(method, path, &headers, if method == "POST" { b"{}" } else { b"" })
}

/// What tells nothing of this server but whether it is well: probes, and files that are built in.
const OPEN: [&str; 5] = ["/health", "/readyz", "/docs", "/", "/page/tiny"];

#[test]
fn every_route_but_the_probes_and_the_page_wants_a_key() {
    let server = with(keyed("first-key\nsecond-key"));
    let loading = Server::with(Script::saying("x"), keyed("first-key"), Limits::default());
    let wrong = [
        &[][..],
        &[("Authorization", "Bearer first-ke")],
        &[("Authorization", "Bearer first-key2")],
        &[("Authorization", "Bearer FIRST-KEY")],
        &[("Authorization", "first-key")],
        &[("x-api-key", "")],
    ];
    let right = [
        [("Authorization", "Bearer first-key")],
        [("authorization", "bearer second-key")],
        [("X-Api-Key", "second-key")],
    ];
    let routes = ROUTES.iter().map(|route| (route.method, route.path));
    // What does not exist is not told without a key either.
    for (method, path) in routes.chain([("GET", "/nowhere"), ("DELETE", "/v1/models")]) {
        let path = path.replace("{*id}", "tiny");
        let open = OPEN.contains(&path.as_str());
        for headers in wrong {
            for server in [&server, &loading] {
                let reply = ask(server, method, &path, headers);
                assert_eq!(reply.status == 401, !open, "{method} {path} with {headers:?}");
                if !open {
                    let error = &reply.json()["error"];
                    match path.starts_with("/v1/messages") {
                        true => assert_eq!(error["type"], "authentication_error"),
                        false => assert_eq!(error["code"], "invalid_api_key"),
                    }
                    assert_eq!(reply.header("www-authenticate"), "Bearer");
                }
            }
        }
        for headers in &right {
            let status = ask(&server, method, &path, headers).status;
            assert_ne!(status, 401, "{method} {path} with {headers:?}");
        }
    }
    let public: Vec<&str> = ROUTES
        .iter()
        .filter(|route| route.entry == krasis_server::Entry::Open)
        .map(|route| route.path)
        .collect();
    let public: Vec<String> = public.iter().map(|path| path.replace("{*id}", "tiny")).collect();
    assert_eq!(public, OPEN);
}

#[test]
fn keys_are_nowhere_to_be_read() {
    let server = with(keyed("very-secret"));
    let key = [("Authorization", "Bearer very-secret")];
    for path in ["/v1/status", "/metrics", "/openapi.json", "/docs", "/v1/models", "/"] {
        let reply = ask(&server, "GET", path, &key);
        assert_eq!(reply.status, 200, "{path}");
        assert!(!format!("{reply:?}").contains("secret"), "{path}");
    }
    let reply = ask(&server, "GET", "/v1/status", &[("Authorization", "Bearer other-secret")]);
    assert!(!format!("{reply:?}").contains("secret"));
}

#[test]
fn keys_change_while_the_server_runs() {
    let server = with(keyed("old"));
    let status = |key| ask(&server, "GET", "/version", &[("x-api-key", key)]).status;
    assert_eq!((status("old"), status("new")), (200, 401));
    server.app.access.keys.reload(None, Some("new")).unwrap();
    assert_eq!((status("old"), status("new")), (401, 200));
}

#[test]
fn names_that_others_point_here_are_refused() {
    let access = Access { hosts: vec!["llm.lan".into()], ..Access::local() };
    let server = with(access);
    for route in &ROUTES {
        let path = route.path.replace("{*id}", "tiny");
        let status = |host| ask(&server, route.method, &path, &[("Host", host)]).status;
        assert_eq!((status("evil.com"), status("evil.com:80")), (403, 403), "{path}");
        assert_ne!(status("llm.lan"), 403, "{path}");
    }
}

#[test]
fn web_pages_of_others_are_refused() {
    let access = Access { origins: vec!["https://ui.lan".into()], ..Access::local() };
    let server = with(access);
    for route in &ROUTES {
        let path = route.path.replace("{*id}", "tiny");
        let reply = |origin| ask(&server, route.method, &path, &[("Origin", origin)]);
        assert_eq!(reply("https://evil.com").status, 403, "{path}");
        assert_eq!(reply("null").status, 403, "{path}");
        let own = reply("http://localhost");
        assert_ne!(own.status, 403, "{path}");
        assert_eq!(own.header("access-control-allow-origin"), "", "{path}");
        let listed = reply("https://ui.lan");
        assert_ne!(listed.status, 403, "{path}");
        assert_eq!(listed.header("access-control-allow-origin"), "https://ui.lan", "{path}");
    }
    // What browsers ask before they send what a form could not.
    let preflight = |origin| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        server.send("OPTIONS", "/v1/completions", &headers, b"")
    };
    let listed = preflight("https://ui.lan");
    assert_eq!(listed.status, 200);
    assert_eq!(listed.header("access-control-allow-headers"), "authorization");
    assert_eq!(preflight("https://evil.com").status, 403);
}

#[test]
fn by_default_no_other_page_may_read() {
    let server = with(Access::local());
    let reply = ask(&server, "GET", "/v1/models", &[]);
    let cors = |(name, _): &&(String, String)| name.starts_with("access-control-allow");
    assert_eq!(reply.headers.iter().find(cors), None);
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
}

#[test]
fn https_is_spoken_with_a_certificate() {
    use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Arc;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

    let folder = tempfile::tempdir().unwrap();
    let file = |name| folder.path().join(name);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(file("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let tls = Tls::read(&file("cert.pem"), &file("key.pem")).unwrap();
    let server = Server::over(Some(tls), Script::saying("x"), Access::local(), Limits::default());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file("cert.pem")).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut socket = TcpStream::connect(server.address).unwrap();
    let mut stream = Stream::new(&mut connection, &mut socket);
    let request = "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    // Whoever speaks plainly hears nothing.
    let mut plain = [0; 64];
    let mut socket = server.open("GET", "/version", &[], b"");
    let heard = socket.read(&mut plain).unwrap_or(0);
    assert!(!plain[..heard].starts_with(b"HTTP"), "{:?}", &plain[..heard]);

    for (certificate, key) in [("key.pem", "key.pem"), ("cert.pem", "cert.pem"), ("no", "key.pem")]
    {
        let error = Tls::read(&file(certificate), &file(key)).err().unwrap().to_string();
        assert!(error.contains("a PEM file is expected"), "{error}");
    }
}
