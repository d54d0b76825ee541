//! The README's programs, as they stand there, against the real program: each receives what the others send.

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use support::broker::Broker;
use support::clients::{Language, folder};

const README: &str = include_str!("../README.md");

/// How long a message may take, on a busy machine that has just started four programs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The first code block of that language.
fn program(language: &str) -> &'static str {
    let start = format!("```{language}\n");
    let begin = README
        .find(&start)
        .unwrap_or_else(|| panic!("no {language} in the README"))
        + start.len();
    let length = README[begin..].find("```").expect("the block ends");
    &README[begin..begin + length]
}

/// A program that is killed when it is dropped, and the lines it prints.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Reads until all of these have come.
    fn receives(&self, who: &str, texts: &[&str]) {
        let mut missing: BTreeSet<String> = texts.iter().map(|text| format!("{who}{text}")).collect();
        while !missing.is_empty() {
            let line = self.lines.recv_timeout(PATIENCE);
            missing.remove(&line.unwrap_or_else(|_| panic!("{missing:?} did not come")));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python(broker: &Broker) -> Running {
    let source = program("python").replace("127.0.0.1:5672", &broker.address("amqp").to_string());
    let file = broker.folder().join("dashboard.py");
    std::fs::write(&file, source).expect("written");
    Running::start(Command::new(folder(Language::Python).join("venv/bin/python")).arg(file))
}

fn go(broker: &Broker) -> Running {
    let source = program("go").replace("127.0.0.1:9876", &broker.address("name_server").to_string());
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/go");
    let project = broker.folder().join("archive");
    std::fs::create_dir(&project).expect("made");
    std::fs::write(project.join("archive.go"), source).expect("written");
    for file in ["go.mod", "go.sum"] {
        std::fs::copy(module.join(file), project.join(file)).expect("copied");
    }
    folder(Language::Go); // has fetched the modules
    let built = Command::new("go")
        .args(["build", "-o", "archive", "."])
        .current_dir(&project)
        .output()
        .expect("go runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Running::start(Command::new(project.join("archive")).env("HOME", broker.folder()))
}

fn rust(broker: &Broker) -> Running {
    assert!(
        include_str!("../examples/devices.rs").ends_with(program("rust")),
        "examples/devices.rs is another program"
    );
    let test = std::env::current_exe().expect("this test is a file");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let port = broker.address("mqtt").port().to_string();
    Running::start(Command::new(profile.join("examples/devices")).env("MQTT_PORT", port))
}

fn javascript(broker: &Broker) -> Running {
    let source = program("javascript").replace("127.0.0.1:15674", &broker.address("stomp_websocket").to_string());
    let file = broker.folder().join("page.js");
    std::fs::write(&file, source).expect("written");
    let modules = folder(Language::Node).join("package/node_modules");
    Running::start(Command::new("node").arg(file).env("NODE_PATH", modules))
}

/// The last shell block: a subscriber in the background and a publisher.
fn mosquitto(broker: &Broker) -> (Command, Command) {
    let begin = README.rfind("```sh\nmosquitto_sub").expect("the block is there") + "```sh\n".len();
    let mut lines = README[begin..].lines();
    let mut shell = || {
        let line = lines.next().expect("two lines").trim_end_matches(" &");
        let (tool, words) = line.split_once(' ').expect("a command");
        let mut command = Command::new("sh");
        let port = broker.address("mqtt").port();
        command.args(["-c", &format!("exec stdbuf -oL {tool} -p {port} {words} $MORE")]);
        command
    };
    (shell(), shell())
}

#[test]
fn every_program_of_the_readme_receives_what_the_others_send() {
    const PYTHON: &str = "dim the light, says Python";
    const GO: &str = "lock the door, says Go";
    const RUST: &str = "reboot, says Rust";
    const JAVASCRIPT: &str = "close the blinds, says JavaScript";
    const MOSQUITTO: &str = "21.5 degrees, says mosquitto";
    let broker = Broker::start();
    let (mut subscribe, mut publish) = mosquitto(&broker);
    // Also the topic of each message, and when the subscription is there.
    let device = Running::start(subscribe.env("MORE", "-v -d"));
    while !device
        .lines
        .recv_timeout(PATIENCE)
        .expect("SUBACK")
        .starts_with("Subscribed")
    {}
    let python = python(&broker);
    python.receives("python received ", &[PYTHON]);
    let rust = rust(&broker);
    rust.receives("rust received ", &[RUST]);
    let javascript = javascript(&broker);
    javascript.receives("javascript received ", &[JAVASCRIPT]);
    let go = go(&broker);
    assert!(publish.status().expect("it runs").success());

    go.receives("go received ", &[PYTHON, RUST, JAVASCRIPT, GO, MOSQUITTO]);
    python.receives("python received ", &[RUST, JAVASCRIPT, GO, MOSQUITTO]);
    rust.receives("rust received ", &[JAVASCRIPT, GO, MOSQUITTO]);
    javascript.receives("javascript received ", &[GO, MOSQUITTO]);
    device.receives("devices/42/cmd ", &[PYTHON, RUST, JAVASCRIPT, GO]);
}
