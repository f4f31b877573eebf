//! Reports in a real browser, headless: nothing on its console, everything there, light and dark, on a phone; and live, while
//! a run trains.
//!
//! Needs Chromium: `$TWOCLOCKS_BROWSER`, or `chromium`, `chromium-browser` or `google-chrome` on the path. Says SKIPPED
//! where there is none, and fails there if `TWOCLOCKS_REQUIRE_BROWSER=1`. With `TWOCLOCKS_TEST_REPORTS=DIR` the
//! pictures are kept there, to be looked at.
#![cfg(feature = "cli")]

mod common;

use common::command::{json_lines, text, twoclocks};
use common::runs::Scratch;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Width of a phone, pixels.
const PHONE: u32 = 360;

/// The browser of this machine; `None` is said, or a failure where one is required.
fn browser() -> Option<PathBuf> {
    let named = std::env::var_os("TWOCLOCKS_BROWSER").filter(|value| !value.is_empty());
    if let Some(path) = named.map(PathBuf::from) {
        assert!(path.is_file(), "TWOCLOCKS_BROWSER: there is no {}", path.display());
        return Some(path);
    }
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file());
    if found.is_none() {
        let required = std::env::var("TWOCLOCKS_REQUIRE_BROWSER").is_ok_and(|value| value == "1");
        assert!(!required, "TWOCLOCKS_REQUIRE_BROWSER=1, but there is none of {names:?}");
        println!("SKIPPED: no browser: none of {names:?} is on the path");
    }
    found
}

/// What a browser made of a page.
struct Seen {
    /// The document at the end, as text.
    document: String,
    /// Lines of its console.
    console: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scheme {
    Light,
    Dark,
}

/// Runs the browser to its end, with these flags behind those that all have.
fn run_browser(browser: &Path, scheme: Scheme, flags: &[String], url: &str) -> Seen {
    let scratch = Scratch::new("browser");
    let files = ["out", "err"].map(|name| scratch.path().join(name));
    let [out, err] = files.each_ref().map(|path| File::create(path).expect("a file"));
    let mut child = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ])
        .args(["--enable-logging=stderr", "--v=0"])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(scheme == Scheme::Light)))
        .arg(format!("--user-data-dir={}", scratch.path().join("profile").display()))
        .args(flags)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .expect("the browser starts");
    let status = wait(&mut child, Duration::from_secs(120)).expect("the browser ends");
    let [document, log] = files.map(|path| {
        String::from_utf8_lossy(&fs::read(path).expect("what the browser said")).into_owned()
    });
    assert!(status.success(), "{status}\n{log}");
    let console = log.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Seen { document, console }
}

fn wait(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(status) = child.try_wait().expect("waited") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn visit(browser: &Path, scheme: Scheme, url: &str) -> Seen {
    run_browser(browser, scheme, &["--dump-dom".to_owned()], url)
}

fn file_url(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn screenshot(browser: &Path, scheme: Scheme, page: &Path, [width, height]: [u32; 2]) -> Vec<u8> {
    let scratch = Scratch::new("screenshot");
    let picture = scratch.path().join("page.png");
    let flags =
        [format!("--screenshot={}", picture.display()), format!("--window-size={width},{height}")];
    run_browser(browser, scheme, &flags, &file_url(page));
    let bytes = fs::read(&picture).expect("a picture");
    assert!(bytes.starts_with(b"\x89PNG"), "{} bytes", bytes.len());
    bytes
}

/// A page around `page`, that wide, whose script writes down what it finds in there. Windows of a headless browser have a least
/// width, frames have not.
fn framed(page: &str, width: u32) -> String {
    const LOOK: &str = r"
        onload = () => {
            const page = document.querySelector('iframe').contentDocument;
            const found = [];
            const width = page.documentElement.clientWidth;
            found.push('width ' + width);
            for (const element of page.querySelectorAll('body *')) {
                const box = element.getBoundingClientRect();
                // Tables and text as it was written scroll in boxes of their own.
                const own = element.closest('.wide, pre') && !element.matches('.wide, pre');
                if (!own && !element.closest('svg svg, svg *') && box.right > width + 1) {
                    found.push('too wide: ' + element.tagName + ' ' + element.className + ' ' + box.right);
                }
            }
            for (const image of page.images) {
                if (!image.complete || image.naturalWidth === 0) found.push('broken: ' + image.alt);
                if (!image.alt) found.push('without a text: an image');
            }
            found.push('images ' + page.images.length);
            const light = (color) => {
                const [r, g, b] = color.match(/\d+(\.\d+)?/g).map(Number);
                return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
            };
            const style = getComputedStyle(page.body);
            found.push('background ' + light(style.backgroundColor).toFixed(2));
            found.push('text ' + light(style.color).toFixed(2));
            for (const figure of page.querySelectorAll('figure')) {
                if (!figure.querySelector('figcaption')) found.push('without a caption: a figure');
            }
            document.getElementById('found').textContent = found.join('\n');
        };";
    let mut quoted = String::new();
    for c in page.chars() {
        match c {
            '&' => quoted.push_str("&amp;"),
            '"' => quoted.push_str("&quot;"),
            c => quoted.push(c),
        }
    }
    format!(
        "<!doctype html><meta charset=\"utf-8\"><body style=\"margin:0\"><iframe \
         style=\"border:0;width:{width}px;height:3000px\" srcdoc=\"{quoted}\"></iframe>\
         <pre id=\"found\"></pre><script>{LOOK}</script>"
    )
}

/// What the script of [`framed`] wrote down.
fn look(browser: &Path, scheme: Scheme, page: &str, width: u32) -> (Vec<String>, Vec<String>) {
    let scratch = Scratch::new("framed");
    let path = scratch.path().join("framed.html");
    fs::write(&path, framed(page, width)).expect("written");
    let Seen { document, console } = visit(browser, scheme, &file_url(&path));
    let (_, found) = document.split_once("<pre id=\"found\">").expect("the frame's finding");
    let (found, _) = found.split_once("</pre>").expect("its end");
    (found.lines().map(str::to_owned).collect(), console)
}

/// The number that was written down under that name.
fn number(found: &[String], name: &str) -> f64 {
    let value = found.iter().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {found:?}"))
}

fn complaints(found: &[String]) -> Vec<&String> {
    let marks = ["too wide", "broken", "without"];
    found.iter().filter(|line| marks.iter().any(|mark| line.starts_with(mark))).collect()
}

#[test]
fn what_is_wrong_with_a_page_is_seen() {
    let Some(browser) = browser() else { return };
    let scratch = Scratch::new("planted");
    let page = scratch.path().join("planted.html");
    fs::write(&page, "<!doctype html><script>console.error('planted'); absent();</script>")
        .unwrap();
    let console = visit(&browser, Scheme::Light, &file_url(&page)).console;
    assert!(console.iter().any(|line| line.contains("planted")), "{console:?}");
    assert!(console.iter().any(|line| line.contains("absent is not defined")), "{console:?}");

    let page = "<!doctype html><div style='width:500px'>wide</div>\
                <img alt='broken one' src='data:image/png;base64,AAAA'>";
    let (found, _) = look(&browser, Scheme::Light, page, PHONE);
    let complaints = complaints(&found);
    assert!(complaints.iter().any(|line| line.starts_with("too wide: DIV")), "{found:?}");
    assert!(complaints.iter().any(|line| line.starts_with("broken: broken one")), "{found:?}");
}

#[test]
fn a_report_reads_well_in_light_and_dark_and_on_a_phone() {
    let Some(browser) = browser() else { return };
    let scratch = Scratch::new("report");
    for _ in 0..2 {
        let output = twoclocks()
            .args(["train", "digits", "--epochs", "4", "--json", "--quiet", "--out"])
            .arg(scratch.path())
            .output()
            .expect("the command starts");
        assert!(output.status.success(), "{}", text(&output));
    }
    let newest = twoclocks()
        .args(["runs", "list", "--json", "--out"])
        .arg(scratch.path())
        .output()
        .expect("the command starts");
    let lines = json_lines(&newest);
    let run = PathBuf::from(lines.last().expect("a run")["path"].as_str().expect("a path"));
    // With all that a short run leaves out.
    let output = twoclocks().args(["clocks", "--json"]).arg(&run).output().expect("clocks");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(json_lines(&output)[0]["spectra"].as_array().map(Vec::len), Some(3));
    let path = run.join("report.html");
    let page = fs::read_to_string(&path).expect("the report");

    let Seen { document, console } = visit(&browser, Scheme::Light, &file_url(&path));
    assert!(console.is_empty(), "{console:?}");
    for heading in [
        "Two clocks",
        "Curves",
        "Confusion",
        "Worst mistakes",
        "Singular values of the weights",
        "Profile of a step",
        "Earlier runs",
        "Configuration",
        "Environment",
    ] {
        assert!(document.contains(&format!("<h2>{heading}</h2>")), "no {heading}");
    }
    assert!(!document.contains("Left out"), "everything was found out");

    for (name, scheme, width) in [
        ("light", Scheme::Light, 1200),
        ("dark", Scheme::Dark, 1200),
        ("phone-light", Scheme::Light, PHONE),
        ("phone-dark", Scheme::Dark, 320),
    ] {
        let (found, console) = look(&browser, scheme, &page, width);
        assert!(console.is_empty(), "{name}: {console:?}");
        assert!(complaints(&found).is_empty(), "{name}: {found:?}");
        assert!((number(&found, "width") - f64::from(width)).abs() < 20.0, "{name}: {found:?}");
        let mistakes = number(&found, "images");
        assert!((1.0..=24.0).contains(&mistakes), "{name}: {found:?}");
        let (background, ink) = (number(&found, "background"), number(&found, "text"));
        let contrast = match scheme {
            Scheme::Light => background - ink,
            Scheme::Dark => ink - background,
        };
        assert!(contrast > 0.7, "{name}: {found:?}");
        let framed_page = scratch.path().join(format!("{name}.html"));
        fs::write(&framed_page, framed(&page, width)).expect("written");
        let picture = screenshot(&browser, scheme, &framed_page, [width.max(500), 3000]);
        if let Ok(folder) = std::env::var("TWOCLOCKS_TEST_REPORTS") {
            fs::write(Path::new(&folder).join(format!("report-{name}.png")), picture)
                .expect("kept");
        }
    }
}

/// Without a browser: what a run finds out itself, and what is filled in on demand.
#[test]
fn a_run_leaves_its_findings_and_the_rest_is_filled_in() {
    let scratch = Scratch::new("findings");
    let config = scratch.path().join("wide.toml");
    // Singular values of 256 x 2000 are too much for a run of ten steps.
    let wide = LONG.replace(
        "outputs = 32",
        "outputs = 256, bias = false },\n    { kind = \"linear\", outputs = 2000",
    );
    fs::write(&config, wide.replace("seconds = SECONDS", "steps = 10")).expect("written");
    let out = scratch.path().join("runs");
    let output =
        twoclocks().arg("train").arg(&config).args(["--quiet", "--out"]).arg(&out).output();
    let output = output.expect("the command starts");
    assert!(output.status.success(), "{}", text(&output));
    let run = fs::read_dir(&out).expect("runs").next().expect("a run").expect("an entry").path();
    let closing = || -> serde_json::Value {
        let text = fs::read_to_string(run.join("closing.json")).expect("closing.json");
        serde_json::from_str(&text).expect("JSON")
    };
    let found = closing();
    assert_eq!(found["step"], 10);
    let rows = found["test"]["confusion"].as_array().expect("a matrix").iter();
    let sum: u64 = rows
        .flat_map(|row| row.as_array().expect("a row"))
        .map(|count| count.as_u64().expect("a count"))
        .sum();
    assert_eq!(sum, 360, "the test rows of the digits");
    let left_out = found["left_out"].to_string();
    assert!(left_out.contains("singular values of"), "{left_out}");
    let page = || fs::read_to_string(run.join("report.html")).expect("a page");
    assert!(page().contains("Left out to keep the run short"), "{}", page());

    let name = run.file_name().expect("a name");
    let output =
        twoclocks().args(["runs", "report", "--json", "--out"]).arg(&out).arg(name).output();
    let output = output.expect("the command starts");
    assert!(output.status.success(), "{}", text(&output));
    let report = json_lines(&output)[0]["report"].as_str().map(PathBuf::from);
    assert_eq!(report, Some(run.join("report.html")));
    let found = closing();
    assert_eq!(found["spectra"].as_array().map(Vec::len), Some(3));
    assert!(found["left_out"].is_null(), "{found}");
    assert!(found["profile"]["nodes"].as_array().is_some_and(|nodes| nodes.len() > 5), "{found}");
    assert!(!page().contains("Left out to keep the run short"));

    let output = twoclocks().args(["clocks", "--json"]).arg(&run).output().expect("clocks");
    let line = &json_lines(&output)[0];
    assert_eq!((&line["event"], &line["state"]), (&"clocks".into(), &"finished".into()));
    let ranks = &line["spectra"][0]["stable_rank"];
    assert!(ranks[0].as_f64().is_some_and(|rank| rank > 1.0 && rank <= 64.0), "{line}");

    // Without its checkpoint the page is made all the same, and the error says what is missing.
    fs::remove_file(run.join("model.safetensors")).expect("removed");
    fs::remove_file(run.join("report.html")).expect("removed");
    let output = twoclocks().arg("clocks").arg(&run).output().expect("clocks");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("model.safetensors"), "{}", text(&output));
    assert!(page().contains("<h2>Curves</h2>"));
    let output = twoclocks().args(["clocks", "no-such-run"]).output().expect("clocks");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("no-such-run"), "{}", text(&output));
}

/// A run that goes on for a while, with many reviews.
const LONG: &str = r#"
recipe = "long"
[data]
source = "digits"
[model]
layers = [
    { kind = "flatten" },
    { kind = "linear", outputs = 32, activation = "relu" },
    { kind = "linear", outputs = 10 },
]
[optimizer]
kind = "adamw"
rate = 1e-3
[train]
batch = 64
seconds = SECONDS
"#;

/// A run with `--serve`, and where it is served.
struct Served {
    child: Child,
    /// `127.0.0.1:PORT`.
    address: String,
    scratch: Scratch,
}

impl Served {
    fn start(seconds: f64) -> Served {
        let scratch = Scratch::new("serve");
        let config = scratch.path().join("long.toml");
        fs::write(&config, LONG.replace("SECONDS", &seconds.to_string())).expect("written");
        let out = scratch.path().join("runs");
        let mut child = twoclocks()
            .arg("train")
            .arg(&config)
            .args(["--serve", "0", "--json", "--quiet", "--out"])
            .arg(&out)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(event["event"], "serve");
        let url = event["url"].as_str().expect("a URL");
        let address = url.strip_prefix("http://").and_then(|url| url.strip_suffix('/'));
        let address = address.expect("http://ADDRESS/").to_owned();
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        // The rest of its output must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Served { child, address, scratch }
    }

    /// Status, head and body of the answer.
    fn get(&self, target: &str, host: &str) -> (u32, String, String) {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), head.to_owned(), body.to_owned())
    }

    fn content(&self) -> (String, String) {
        let (status, head, body) = self.get("/content", &self.address);
        assert_eq!(status, 200, "{head}");
        (head, body)
    }

    /// Until its content has this text.
    fn wait_for(&self, what: &str) -> (String, String) {
        let began = Instant::now();
        loop {
            let (head, body) = self.content();
            if body.contains(what) || head.contains(what) {
                return (head, body);
            }
            assert!(began.elapsed() < Duration::from_secs(60), "no {what}: {head}\n{body}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn version(head: &str) -> &str {
    let line = head.lines().find_map(|line| line.strip_prefix("X-Version: "));
    line.unwrap_or_else(|| panic!("no version in {head}")).trim()
}

#[test]
fn the_page_of_a_run_follows_it_and_ends_with_it() {
    let mut served = Served::start(4.0);
    served.wait_for("<h2>Two clocks</h2>");
    let (head, _) = served.content();
    let seen = version(&head).to_owned();
    assert!(head.contains("Cache-Control: no-store"), "{head}");
    // Made anew at most once a second: nothing new at once, and something later.
    std::thread::sleep(Duration::from_millis(1100));
    let (status, head, body) = served.get(&format!("/content?seen={seen}"), &served.address);
    assert_eq!(status, 200, "{head}");
    assert_ne!(version(&head), seen);
    assert!(body.contains(">running<"), "{body}");
    let now = version(&head).to_owned();
    let (status, _, body) = served.get(&format!("/content?seen={now}"), &served.address);
    assert_eq!((status, &body[..]), (204, ""));
    // As a page of elsewhere would ask, under its own name for this address.
    assert_eq!(served.get("/content", "evil.example").0, 403);
    assert_eq!(served.get("/none", &served.address).0, 404);
    // A connection that says nothing holds up nobody.
    let silent = TcpStream::connect(&served.address).expect("it listens");
    let (head, body) = served.wait_for("X-Ended: 1");
    drop(silent);
    assert!(body.contains("The report of the run: <code>"), "{head}\n{body}");
    assert!(body.contains(">finished<"), "{body}");
    let status = wait(&mut served.child, Duration::from_secs(20)).expect("it ends");
    assert!(status.success(), "{status}");
    assert!(TcpStream::connect(&served.address).is_err(), "it still listens");
    drop(served.scratch);
}

#[test]
fn a_browser_follows_a_run() {
    let Some(browser) = browser() else { return };
    let mut served = Served::start(60.0);
    served.wait_for("<h2>Two clocks</h2>");
    let url = format!("http://{}/", served.address);
    let flags = ["--dump-dom", "--virtual-time-budget=4000"].map(str::to_owned);
    let Seen { document, console } = run_browser(&browser, Scheme::Light, &flags, &url);
    assert!(console.is_empty(), "{console:?}");
    assert!(document.contains("Live: as of"), "the script did not run: {document}");
    assert!(document.contains("<h2>Two clocks</h2>"), "{document}");
    if let Ok(folder) = std::env::var("TWOCLOCKS_TEST_REPORTS") {
        let picture = Path::new(&folder).join("live.png");
        let mut flag = String::new();
        write!(flag, "--screenshot={}", picture.display()).expect("a string");
        let flags = [flag, "--window-size=1200,1600".to_owned()];
        run_browser(&browser, Scheme::Dark, &flags, &url);
    }
    served.child.kill().expect("killed");
    served.child.wait().expect("waited");
}

#[test]
fn a_port_that_is_taken_is_refused_before_anything_is_trained() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let scratch = Scratch::new("taken");
    for port in [&port[..], "65536", "http"] {
        let output = twoclocks()
            .args(["train", "digits", "--serve", port, "--out"])
            .arg(scratch.path().join("runs"))
            .output()
            .expect("the command starts");
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("--serve") && said.contains(port), "{said}");
        assert!(!scratch.path().join("runs").exists(), "{said}");
    }
}
