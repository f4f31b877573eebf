//! `twoclocks train --serve`: the report of a run while it trains, for browsers of this machine.
//!
//! A few lines of HTTP/1.1 on the loopback: a page, what it shows now, its script. A thread waits for connections; the page is made
//! anew when somebody asks, and at most once a second. Requests for another host are refused, so that no page
//! of elsewhere can read along under a name of its own for this address.

use crate::output;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use twoclocks::runs::page::{self, escape};
use twoclocks::runs::report::Report;
use twoclocks::{Error, Result};

const SCRIPT: &str = include_str!("live.js");
/// The page is made anew after that, if there is something new.
const EVERY: Duration = Duration::from_secs(1);
/// Who asked so recently is still looking.
const LOOKING: Duration = Duration::from_secs(3);
/// How long an ended run waits for those who look, at most.
const LAST_LOOK: Duration = Duration::from_millis(2500);
/// Bytes of a request, and how long it may take.
const REQUEST: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections at once; more are closed.
const CONNECTIONS: usize = 32;

/// The live page of one run.
pub struct Server {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

struct Shared {
    address: SocketAddr,
    stop: AtomicBool,
    connections: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Folder and report of the run, once it has begun.
    run: Option<(PathBuf, Option<Report>)>,
    ended: bool,
    /// Bytes of the journal and whether the run had ended, the page's content then, and when that was made.
    content: Option<((u64, bool), String, Instant)>,
    asked: Option<Instant>,
    /// Whether somebody got the content of the end.
    last_was_seen: bool,
}

/// An answer to a request.
struct Answer {
    status: &'static str,
    kind: &'static str,
    version: Option<String>,
    ended: bool,
    body: String,
}

impl Answer {
    fn new(status: &'static str, kind: &'static str, body: impl Into<String>) -> Answer {
        Answer { status, kind, version: None, ended: false, body: body.into() }
    }
}

const HTML: &str = "text/html; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

impl Server {
    /// Listens on that port of the loopback, 0 for any that is free, and says where.
    pub fn start(port: u16, json: bool) -> Result<Server> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|e| {
            Error::config("--serve", format!("cannot listen on 127.0.0.1:{port}: {e}"))
        })?;
        let url = format!("http://{address}/");
        if json {
            output::event(json!({ "event": "serve", "url": url }));
        }
        output::note(format_args!("live: {url}"));
        let shared = Arc::new(Shared {
            address,
            stop: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            state: Mutex::default(),
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("serve".to_owned())
            .spawn(move || listen(&listener, &for_thread))
            .map_err(|e| Error::config("--serve", format!("cannot start a thread: {e}")))?;
        Ok(Server { shared, thread })
    }

    /// Shows the run of that folder from now on.
    pub fn show(&self, folder: &Path) {
        self.shared.state().run = Some((folder.to_owned(), None));
    }

    /// Ends with the run: whoever looks is shown its end first.
    pub fn end(self) {
        let looking = {
            let mut state = self.shared.state();
            state.ended = true;
            state.run.is_some() && state.asked.is_some_and(|asked| asked.elapsed() < LOOKING)
        };
        let began = Instant::now();
        while looking && began.elapsed() < LAST_LOOK && !self.shared.state().last_was_seen {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        // It waits for a connection: the last one. Where that fails the process ends all the same.
        if TcpStream::connect(self.shared.address).is_ok() {
            let _ = self.thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors, say: not to be asked again at once.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let counted = Counted::new(shared);
        if counted.number > CONNECTIONS {
            continue;
        }
        // Browsers open connections that they use later: none may hold up another.
        let _ = std::thread::Builder::new().name("serve one".to_owned()).spawn(move || {
            // A reader that went away is no concern of the run's.
            let _ = serve(stream, &counted.shared);
        });
    }
}

/// A connection, as long as it is open.
struct Counted {
    shared: Arc<Shared>,
    number: usize,
}

impl Counted {
    fn new(shared: &Arc<Shared>) -> Counted {
        let number = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
        Counted { shared: Arc::clone(shared), number }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers one request.
fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request);
    let answer = shared.answer(&request);
    let mut head = format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n",
        answer.status,
        answer.kind,
        answer.body.len()
    );
    if let Some(version) = &answer.version {
        head.push_str(&format!("X-Version: {version}\r\n"));
    }
    if answer.ended {
        head.push_str("X-Ended: 1\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if !request.starts_with("HEAD ") {
        stream.write_all(answer.body.as_bytes())?;
    }
    stream.flush()?;
    if answer.ended {
        shared.state().last_was_seen = true;
    }
    Ok(())
}

impl Shared {
    fn answer(&self, request: &str) -> Answer {
        let mut lines = request.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !["GET", "HEAD"].contains(&method) {
            return Answer::new("405 Method Not Allowed", PLAIN, "only GET and HEAD\n");
        }
        let host = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("host").then(|| value.trim().to_ascii_lowercase())
        });
        let port = self.address.port();
        let ours = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
        if !host.is_some_and(|host| ours.contains(&host)) {
            return Answer::new("403 Forbidden", PLAIN, "not a name of this server\n");
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        match path {
            "/" => self.page(),
            "/content" => self.content(query.strip_prefix("seen=")),
            "/live.js" => Answer::new("200 OK", "text/javascript; charset=utf-8", SCRIPT),
            "/favicon.ico" => Answer::new("204 No Content", PLAIN, ""),
            _ => Answer::new("404 Not Found", PLAIN, "there is /, /content and /live.js\n"),
        }
    }

    fn page(&self) -> Answer {
        let mut content = self.content(None);
        let name = match &self.state().run {
            Some((folder, _)) => {
                folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
            None => "starting".to_owned(),
        };
        let version = content.version.clone().unwrap_or_default();
        content.body = page::live(&name, &version, &content.body);
        content
    }

    /// What the page shows, or nothing where `seen` is its version.
    fn content(&self, seen: Option<&str>) -> Answer {
        let mut state = self.state();
        state.asked = Some(Instant::now());
        let ended = state.ended;
        if let Err(error) = state.refresh() {
            let body = format!("<p class=\"live lost\">{}</p>\n", escape(&error.to_string()));
            return Answer { ended, ..Answer::new("200 OK", HTML, body) };
        }
        let Some(((length, end), content, _)) = &state.content else {
            return Answer::new("200 OK", HTML, "<p>The run is being prepared.</p>\n");
        };
        let version = format!("{length}-{end}");
        let answer = match seen == Some(&version) {
            true => Answer::new("204 No Content", HTML, ""),
            false => Answer::new("200 OK", HTML, content.clone()),
        };
        Answer { version: Some(version), ended, ..answer }
    }
}

impl State {
    /// Makes the content anew, where it is old and there is something new.
    fn refresh(&mut self) -> Result<()> {
        let Some((folder, report)) = &mut self.run else { return Ok(()) };
        let journal = folder.join(twoclocks::runs::folder::METRICS);
        let length = std::fs::metadata(&journal).map_or(0, |journal| journal.len());
        let version = (length, self.ended);
        if let Some((made, _, at)) = &self.content {
            // The end is shown at once.
            if *made == version || at.elapsed() < EVERY && made.1 == self.ended {
                return Ok(());
            }
        }
        let report = match report {
            Some(report) => report,
            none => none.insert(Report::open(folder)?),
        };
        let mut content = report.content()?;
        if self.ended {
            let path = folder.join(twoclocks::runs::folder::REPORT);
            content.push_str(&format!(
                "<p>The report of the run: <code>{}</code></p>\n",
                escape(&path.display().to_string())
            ));
        }
        self.content = Some((version, content, Instant::now()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)),
            stop: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    #[test]
    fn only_this_host_is_answered() {
        let shared = shared();
        let status = |request: &str| shared.answer(request).status;
        for host in ["127.0.0.1:4000", "localhost:4000", "LocalHost:4000"] {
            assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), "200 OK");
        }
        for host in ["127.0.0.1:4001", "evil.example:4000", "127.0.0.1", ""] {
            let status = status(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            assert_eq!(status, "403 Forbidden", "{host}");
        }
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "403 Forbidden");
        assert_eq!(
            status("POST / HTTP/1.1\r\nHost: localhost:4000\r\n\r\n"),
            "405 Method Not Allowed"
        );
        assert_eq!(
            status("GET /../secret HTTP/1.1\r\nHost: localhost:4000\r\n\r\n"),
            "404 Not Found"
        );
        assert_eq!(status(""), "405 Method Not Allowed");
    }

    #[test]
    fn before_the_run_there_is_a_page() {
        let answer = shared().answer("GET / HTTP/1.1\r\nHost: localhost:4000\r\n\r\n");
        assert!(answer.body.contains("being prepared") && answer.body.contains("live.js"));
        assert!(answer.version.is_none() && !answer.ended);
    }
}
