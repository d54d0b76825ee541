//! Client programs of other languages, run against a broker.
//!
//! `tests/interop/prepare` builds them once. Each prints `ok NAME` or `FAILED NAME: why` for every check;
//! `await kill` and `await start` ask for the broker's death and return, answered on their stdin.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use super::broker::{Broker, Options};

/// Longest time without a line: a check's own limit is a third of it.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Who makes the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    Go,
    Python,
    Node,
    /// With the RocketMQ client of that version.
    Java(&'static str),
    /// Java with Spring's STOMP clients.
    Spring,
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Python => "python",
            Self::Node => "node",
            Self::Java(_) | Self::Spring => "java",
        }
    }

    /// The program, built if need be, without its arguments. It may write to `home`.
    fn command(self, home: &Path) -> Command {
        let folder = prepared(self.name());
        let mut command = match self {
            Self::Go => Command::new(folder.join("interop")),
            Self::Python => {
                let mut command = Command::new(folder.join("venv/bin/python"));
                command.arg("-u").arg(sources().join("python/interop.py"));
                command
            }
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(folder.join("package/interop.js"));
                command
            }
            Self::Java(version) => java(&folder.join(version), home, "rocketbridge.interop.Main"),
            Self::Spring => java(&folder.join("spring"), home, "rocketbridge.interop.Spring"),
        };
        command.env("HOME", home).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// A Java program of the classes and libraries in `build`.
fn java(build: &Path, home: &Path, main: &str) -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-Djava.net.preferIPv4Stack=true"]);
    // Short lives are not worth the second compiler's work.
    command.arg("-XX:TieredStopAtLevel=1");
    // RocketMQ's 3 s are short for a busy machine.
    command.arg("-Dcom.rocketmq.remoting.client.connect.timeout=60000");
    command.arg(format!("-Duser.home={}", home.display()));
    let (classes, jars) = (build.join("classes"), build.join("lib/*"));
    command
        .arg("-cp")
        .arg(format!("{}:{}", classes.display(), jars.display()));
    command.arg(main);
    command
}

/// Where the clients of that language are built; builds them if need be.
pub fn folder(language: Language) -> PathBuf {
    prepared(language.name())
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

/// Builds the clients of a language once and says where they are.
fn prepared(language: &'static str) -> PathBuf {
    static DONE: OnceLock<Mutex<BTreeMap<&'static str, PathBuf>>> = OnceLock::new();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in the target folder");
    let mut done = DONE
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = done.entry(language).or_insert_with(|| {
        let script = sources().join("prepare");
        let output = Command::new(&script).arg(language).arg(target.join("interop")).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{} {language}: {}\n{said}",
            script.display(),
            output.status
        );
        target.join("interop").join(language)
    });
    folder.clone()
}

/// Runs a suite against a fresh broker. `checks` is how many lines must say `ok`: a check that was left out
/// is a failure like one that failed.
pub fn run(language: Language, suite: &str, checks: usize) {
    let mut broker = Some(Broker::start());
    let own = broker.as_ref().expect("it runs");
    let mut command = language.command(own.folder());
    command
        .arg(suite)
        .args(["--amqp", &format!("amqp://guest:guest@{}/", own.address("amqp"))])
        .args(["--mqtt", &own.address("mqtt").to_string()])
        .args(["--name-server", &own.address("name_server").to_string()]);
    if !matches!(language, Language::Java(_)) {
        command.args(["--stomp", &own.address("stomp").to_string()]);
        command.args(["--stomp-websocket", &own.address("stomp_websocket").to_string()]);
        command.args(["--mqtt-websocket", &own.address("mqtt_websocket").to_string()]);
    }
    let mut program = Running::start(&mut command);
    let mut passed = Vec::new();
    let mut failed = Vec::new();
    while let Some(line) = program.next_line() {
        println!("{line}");
        match line.split_once(' ') {
            Some(("ok", name)) => passed.push(name.to_owned()),
            Some(("FAILED", _)) => failed.push(line),
            Some(("await", "kill")) => {
                broker.as_mut().expect("it runs").kill();
                program.answer();
            }
            Some(("await", "start")) => {
                broker = Some(broker.take().expect("it was there").restart(&Options::default()));
                program.answer();
            }
            _ => {}
        }
    }
    let (success, said) = program.end();
    let log = broker.map(|broker| broker.log()).unwrap_or_default();
    assert!(
        failed.is_empty() && success,
        "{language:?} {suite}:\n{}\n--- the program said\n{}\n--- the broker said\n{}",
        failed.join("\n"),
        last_lines(&said),
        last_lines(&log)
    );
    passed.sort();
    let all = passed.len();
    passed.dedup();
    assert_eq!(
        passed.len(),
        all,
        "{language:?} {suite}: a check has the name of another"
    );
    assert_eq!(all, checks, "{language:?} {suite}: number of checks that ran");
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A program that is being read. Dropping it kills it.
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("it is piped");
        let mut stderr = child.stderr.take().expect("it is piped");
        let stdin = child.stdin.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        Self {
            child,
            stdin,
            lines,
            stderr: Some(stderr),
        }
    }

    /// The next line of its output; `None` when it has ended.
    fn next_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE_MAX) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("not a line within {SILENCE_MAX:?}"),
        }
    }

    fn answer(&mut self) {
        writeln!(self.stdin, "done")
            .and_then(|()| self.stdin.flush())
            .expect("it reads its stdin");
    }

    /// Whether it ended well, and what it wrote to stderr.
    fn end(mut self) -> (bool, String) {
        let status = self.child.wait().expect("it is our child");
        let stderr = self
            .stderr
            .take()
            .expect("taken once")
            .join()
            .expect("the reader does not panic");
        (status.success(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
