//! Who may come in: the host that a request names, the web page that it comes from, its key.
//!
//! A web page that the user visits can send requests to a server on loopback, and through a name
//! that it points there (DNS rebinding) read the answers. Such a request names the page's host, so
//! only known hosts are served: addresses, which no page can redirect, `localhost`, and what the user
//! lists. Other pages are known by the `Origin` that browsers add.

use crate::error::ApiError;
use crate::keys::Keys;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use std::net::IpAddr;

/// The rules.
pub struct Access {
    /// Without any, everybody may come in.
    pub keys: Keys,
    /// Host names besides addresses and `localhost`; `*` for all.
    pub hosts: Vec<String>,
    /// Web pages (`https://example.com`) besides those that the server itself serves; `*` for all.
    pub origins: Vec<String>,
}

impl Access {
    /// What suits a server on loopback: no keys, no other names, no other pages.
    pub fn local() -> Access {
        Access { keys: Keys::none(), hosts: Vec::new(), origins: Vec::new() }
    }

    /// Whether the request means this server.
    pub(crate) fn host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let authority = authority(uri, headers)?;
        let name = name(authority);
        let known = name.eq_ignore_ascii_case("localhost") || is_address(name);
        if known || self.hosts.iter().any(|host| host == "*" || host.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let message = format!(
            "this server does not answer to '{authority}': use its address, or start it with \
             --allowed-host"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, Some("unknown_host"), message))
    }

    /// Whether the web page that sends the request, if one does, may do so.
    pub(crate) fn origin(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let same = || {
            let page = origin.to_str().ok()?.split_once("://")?.1;
            Some(page.eq_ignore_ascii_case(authority(uri, headers).ok()?))
        };
        if self.admits(origin) || same() == Some(true) {
            return Ok(());
        }
        let message = "this server does not answer web pages of that origin: start it with \
                       --allowed-origin to allow one";
        Err(ApiError::new(StatusCode::FORBIDDEN, Some("unknown_origin"), message.into()))
    }

    /// Whether an origin is listed.
    pub(crate) fn admits(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|known| known == "*" || origin.as_bytes() == known.as_bytes())
    }

    /// Whether the request brings a key, if one is wanted: `Authorization: Bearer` or `x-api-key`.
    pub(crate) fn key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if !self.keys.wanted() {
            return Ok(());
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(bearer);
        let plain = headers.get("x-api-key").map(HeaderValue::as_bytes);
        if bearer.into_iter().chain(plain).any(|key| self.keys.open(key)) {
            return Ok(());
        }
        let message = match bearer.or(plain) {
            None => "this server wants a key: send it as 'Authorization: Bearer KEY'",
            Some(_) => "this key does not open this server",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message.into()))
    }
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Host and port that the request names: a URI with a host comes before the header (RFC 9112).
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, ApiError> {
    let wrong = |message: &str| {
        ApiError::new(StatusCode::BAD_REQUEST, Some("invalid_host"), message.to_owned())
    };
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(wrong("there is more than one Host header"));
    }
    if let Some(authority) = uri.authority() {
        return Ok(authority.as_str());
    }
    let host = host.ok_or_else(|| wrong("there is no Host header"))?;
    host.to_str().map_err(|_| wrong("the Host header is no host"))
}

/// The host without its port.
fn name(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    }
}

fn is_address(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn hosts_are_addresses_or_listed_names() {
        let access = Access { hosts: vec!["llm.lan".into()], ..Access::local() };
        let status = |uri: &str, host: &str| {
            let found = access.host(&uri.parse().unwrap(), &headers(&[("host", host)]));
            found.map_or_else(|error| error.status.as_u16(), |()| 200)
        };
        for (uri, host, expected) in [
            ("/", "127.0.0.1:8080", 200),
            ("/", "127.0.0.1", 200),
            ("/", "[::1]:8080", 200),
            ("/", "[::1]", 200),
            ("/", "192.168.1.7:80", 200),
            ("/", "LOCALHOST:1", 200),
            ("/", "llm.lan:443", 200),
            ("/", "LLM.lan", 200),
            ("/", "evil.com", 403),
            ("/", "evil.com:8080", 403),
            ("/", "localhost.evil.com", 403),
            ("/", "127.0.0.1.evil.com", 403),
            ("/", "llm.lan.evil.com", 403),
            ("/", "evil.com:127.0.0.1", 403),
            ("/", "", 403),
            ("/", "localhost@evil.com", 403),
            ("http://evil.com/", "localhost", 403),
            ("http://localhost/", "evil.com", 200),
        ] {
            assert_eq!(status(uri, host), expected, "{uri} at {host}");
        }
        let uri = "/".parse().unwrap();
        let twice = {
            let mut twice = headers(&[("host", "localhost")]);
            twice.append("host", "evil.com".parse().unwrap());
            twice
        };
        assert_eq!(access.host(&uri, &twice).unwrap_err().status, 400);
        assert_eq!(access.host(&uri, &HeaderMap::new()).unwrap_err().status, 400);
        let open = Access { hosts: vec!["*".into()], ..Access::local() };
        assert!(open.host(&uri, &headers(&[("host", "evil.com")])).is_ok());
    }

    #[test]
    fn pages_are_our_own_or_listed() {
        let access = Access { origins: vec!["https://ui.lan".into()], ..Access::local() };
        for (origin, allowed) in [
            ("http://127.0.0.1:8080", true),
            ("https://ui.lan", true),
            ("http://ui.lan", false),
            ("https://ui.lan.evil.com", false),
            ("http://127.0.0.1:9090", false),
            ("https://evil.com", false),
            ("null", false),
            ("", false),
        ] {
            let headers = headers(&[("host", "127.0.0.1:8080"), ("origin", origin)]);
            let found = access.origin(&"/".parse().unwrap(), &headers).is_ok();
            assert_eq!(found, allowed, "{origin}");
        }
    }

    #[test]
    fn keys_come_in_either_header() {
        let access = Access { keys: Keys::read(None, Some("k1\nk2")).unwrap(), ..Access::local() };
        for (pairs, allowed) in [
            (&[("authorization", "Bearer k1")][..], true),
            (&[("authorization", "bearer  k2 ")], true),
            (&[("x-api-key", "k2")], true),
            (&[("authorization", "Bearer dummy"), ("x-api-key", "k1")], true),
            (&[], false),
            (&[("authorization", "Bearer k3")], false),
            (&[("authorization", "Basic k1")], false),
            (&[("authorization", "k1")], false),
            (&[("authorization", "Bearer")], false),
            (&[("authorization", "Bearer ")], false),
            (&[("x-api-key", "")], false),
        ] {
            assert_eq!(access.key(&headers(pairs)).is_ok(), allowed, "{pairs:?}");
        }
    }
}
