//! Who is shown what: from a request's head to an answer, or to what is to be answered.
//!
//! Guarantees: a request is answered only if it names this server by one of its own names (another
//! site's name that was pointed at this address, "DNS rebinding", is not one), does not come from
//! another site's page, and only reads; all but totals wants the secret of the address as well. No
//! path leads to a file. Every answer forbids the browser to run or load anything from elsewhere, to
//! show the page inside another, and to tell anybody its address. Pure.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request::Parts},
};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A file of the page.
    Asset(&'static Asset),
    /// What happens, as it happens.
    Events,
    /// The log of one machine; the text is its name in the events.
    Log(String),
    /// Totals.
    Metrics,
}

/// A file of the page, part of this program.
#[derive(Debug, PartialEq, Eq)]
pub struct Asset {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
}

const ASSETS: [Asset; 4] = [
    Asset {
        name: "",
        media_type: "text/html; charset=utf-8",
        text: include_str!("assets/index.html"),
    },
    Asset {
        name: "page.css",
        media_type: "text/css; charset=utf-8",
        text: include_str!("assets/page.css"),
    },
    Asset {
        name: "page.js",
        media_type: "text/javascript; charset=utf-8",
        text: include_str!("assets/page.js"),
    },
    Asset { name: "icon.svg", media_type: "image/svg+xml", text: include_str!("assets/icon.svg") },
];

/// Sent with every answer.
const HEADERS: [(header::HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (
        header::HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=(), usb=()",
    ),
];

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is for a server of another name.
    OtherName,
    /// Another site's page makes the browser ask.
    OtherSite,
    /// It wants more than to look.
    Method,
    /// There is no such thing, or the secret is wrong.
    Unknown,
}

impl Refusal {
    /// It as an answer.
    #[must_use]
    pub fn answer(self) -> Response<Body> {
        let (status, text) = match self {
            Self::OtherName => (
                StatusCode::MISDIRECTED_REQUEST,
                "not found under this name: the page's address is in the terminal of portcullis\n",
            ),
            Self::OtherSite => (StatusCode::FORBIDDEN, "pages of other sites are told nothing\n"),
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "there is nothing to do here but to look\n")
            }
            Self::Unknown => (
                StatusCode::NOT_FOUND,
                "not found: the page's whole address is in the terminal of portcullis\n",
            ),
        };
        let mut response = short(status, text);
        if self == Self::Method {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        }
        response
    }
}

/// Who may ask for what.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Names of this server, each with its port.
    hosts: Vec<String>,
    /// The first part of every path but that of the totals.
    secret: String,
}

impl Gate {
    /// A server that is reached at `hosts` (`127.0.0.1:64173`) by those who know `secret`.
    #[must_use]
    pub fn new(hosts: Vec<String>, secret: String) -> Self {
        Self { hosts, secret }
    }

    /// What is asked for.
    ///
    /// # Errors
    /// Why nothing is answered.
    pub fn pass(&self, request: &Parts) -> Result<Asked, Refusal> {
        let named = |host: &str| self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host));
        let host = single(&request.headers, header::HOST);
        // A target that is a whole address goes before the field (RFC 9112 section 3.2.2).
        let authority = request.uri.authority().map(|authority| authority.as_str());
        if !authority.or(host).is_some_and(named) || !host.is_some_and(named) {
            Err(Refusal::OtherName)
        } else if !self.is_own(&request.headers) {
            Err(Refusal::OtherSite)
        } else if request.method != Method::GET {
            Err(Refusal::Method)
        } else {
            self.find(request.uri.path()).ok_or(Refusal::Unknown)
        }
    }

    /// Whether a person or a program asks, or this page itself: browsers say of what other sites' pages
    /// ask for that it is theirs (`Origin`; Fetch Metadata). A link that was followed is a person's.
    fn is_own(&self, headers: &HeaderMap) -> bool {
        let own = |origin: &str| {
            origin
                .strip_prefix("http://")
                .is_some_and(|host| self.hosts.iter().any(|one| one == host))
        };
        let field = |name: &'static str| single(headers, header::HeaderName::from_static(name));
        let origin = match headers.contains_key(header::ORIGIN) {
            true => single(headers, header::ORIGIN).is_some_and(own),
            false => true,
        };
        let site = match field("sec-fetch-site") {
            None | Some("same-origin" | "none") => true,
            Some(_) => field("sec-fetch-mode") == Some("navigate"),
        };
        origin && site
    }

    fn find(&self, path: &str) -> Option<Asked> {
        if path == "/metrics" {
            return Some(Asked::Metrics);
        }
        let (secret, name) = path.strip_prefix('/')?.split_once('/')?;
        if !equal(secret.as_bytes(), self.secret.as_bytes()) {
            return None;
        }
        match name {
            "events" => Some(Asked::Events),
            _ => match name.strip_prefix("log/") {
                Some(machine) => Some(Asked::Log(machine.to_owned())),
                None => ASSETS.iter().find(|asset| asset.name == name).map(Asked::Asset),
            },
        }
    }
}

/// A field that is there once, as text.
fn single(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Compares in a time that says nothing of where they differ.
fn equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

impl Asset {
    /// It as an answer.
    #[must_use]
    pub fn answer(&self) -> Response<Body> {
        answer(StatusCode::OK, self.media_type, self.text)
    }
}

/// An answer with everything that a browser is forbidden.
pub fn answer(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A few words, after which the connection is closed: who was refused holds no place here.
pub fn short(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = answer(status, "text/plain; charset=utf-8", text);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn ask(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Asked, u16> {
        let hosts = ["127.0.0.1:64173", "localhost:64173"].map(str::to_owned).to_vec();
        let gate = Gate::new(hosts, SECRET.to_owned());
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        gate.pass(&parts).map_err(|refusal| {
            let response = refusal.answer();
            for (name, value) in HEADERS {
                assert_eq!(response.headers()[name], value);
            }
            assert_eq!(response.headers()[header::CONNECTION], "close");
            response.status().as_u16()
        })
    }

    fn at(path: &str, fields: &[(&str, &str)]) -> Result<Asked, u16> {
        let path = path.replace('*', SECRET);
        ask("GET", &path, &[&[("Host", "127.0.0.1:64173")], fields].concat())
    }

    #[test]
    fn those_who_know_the_address_see_the_page_and_everybody_the_totals() {
        for (name, asset) in ["", "page.css", "page.js", "icon.svg"].into_iter().zip(&ASSETS) {
            assert_eq!(at(&format!("/*/{name}"), &[]), Ok(Asked::Asset(asset)));
        }
        assert_eq!(at("/*/events", &[]), Ok(Asked::Events));
        assert_eq!(at("/*/log/a:1", &[]), Ok(Asked::Log("a:1".to_owned())));
        assert_eq!(at("/metrics", &[]), Ok(Asked::Metrics));
        let zeros = "0".repeat(32);
        for path in ["/", "/*", "/events", &format!("/{zeros}/"), "/x*/", "/*x/", "//*/", "/*//"] {
            assert_eq!(at(path, &[]), Err(404), "{path}");
        }
    }

    #[test]
    fn no_path_leads_elsewhere() {
        for path in [
            "/*/../../etc/passwd",
            "/*/..%2f..%2fetc%2fpasswd",
            "/*/assets/page.js",
            "/*/page.js/",
            "/*/%70age.js",
            "/*/./page.js",
            "/../*/",
        ] {
            assert_eq!(at(path, &[]), Err(404), "{path}");
        }
    }

    #[test]
    fn another_name_for_this_address_is_refused() {
        let page = format!("/{SECRET}/");
        let hosts = |hosts: &[&str]| {
            let fields: Vec<_> = hosts.iter().map(|host| ("Host", *host)).collect();
            ask("GET", &page, &fields)
        };
        for own in ["127.0.0.1:64173", "localhost:64173", "LOCALHOST:64173"] {
            assert!(hosts(&[own]).is_ok(), "{own}");
        }
        for other in
            ["evil.example:64173", "127.0.0.1", "127.0.0.1:1", "127.0.0.1:64173.evil.example", ""]
        {
            assert_eq!(hosts(&[other]), Err(421), "{other}");
        }
        assert_eq!(hosts(&[]), Err(421));
        assert_eq!(hosts(&["127.0.0.1:64173", "evil.example"]), Err(421));
        let fields = [("Host", "127.0.0.1:64173")];
        assert!(ask("GET", &format!("http://localhost:64173{page}"), &fields).is_ok());
        assert_eq!(ask("GET", &format!("http://evil.example{page}"), &fields), Err(421));
        // Also the totals, which need no secret.
        assert_eq!(ask("GET", "/metrics", &[("Host", "evil.example")]), Err(421));
    }

    #[test]
    fn other_sites_pages_are_told_nothing() {
        for fields in [
            &[("Origin", "http://evil.example")][..],
            &[("Origin", "null")],
            &[("Origin", "https://127.0.0.1:64173")],
            &[("Origin", "http://127.0.0.1:64173"), ("Origin", "http://evil.example")],
            &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")],
            // Another server on this computer, also another user's.
            &[("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "cors")],
            &[("Sec-Fetch-Site", "cross-site")],
        ] {
            assert_eq!(at("/*/events", fields), Err(403), "{fields:?}");
            assert_eq!(at("/metrics", fields), Err(403), "{fields:?}");
        }
        for fields in [
            &[("Origin", "http://127.0.0.1:64173"), ("Sec-Fetch-Site", "same-origin")][..],
            &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")],
            &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")],
        ] {
            assert!(at("/*/", fields).is_ok(), "{fields:?}");
        }
    }

    #[test]
    fn nothing_can_be_sent_here() {
        let fields = [("Host", "127.0.0.1:64173")];
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "x"] {
            assert_eq!(ask(method, &format!("/{SECRET}/"), &fields), Err(405), "{method}");
        }
    }

    #[test]
    fn what_the_page_is_made_of_obeys_its_own_policy() {
        let [index, style, script, _] = ASSETS.map(|asset| asset.text);
        assert!(index.contains("<script type=\"module\" src=\"page.js\"></script>"));
        for (text, words) in [
            (index, &["<style", "style=", "onclick", "javascript:", "http:", "https:", "//"][..]),
            (style, &["@import", "url("]),
            (
                script,
                &[
                    "innerHTML",
                    "outerHTML",
                    "insertAdjacentHTML",
                    "document.write",
                    "eval(",
                    "Function(",
                    "import ",
                    "https:",
                ],
            ),
        ] {
            for word in words {
                assert!(!text.contains(word), "{word}");
            }
        }
        // One script, and nothing in it.
        assert_eq!(index.matches("<script").count(), 1);
    }
}
