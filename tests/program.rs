//! The real program, as its operator meets it: ready line, exit codes, messages, signals.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long the program may take for anything in here.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory of one test, removed with it.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rocketbridge-program-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).expect("the temporary directory is writable");
        Self(dir)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).expect("the temporary directory is writable");
        file
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `serve` on ports that the system chooses.
fn serve(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rocketbridge"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROCKETBRIDGE_") {
            command.env_remove(name);
        }
    }
    command.arg("serve").arg("--data-dir").arg(data_dir.join("data"));
    for protocol in [
        "amqp",
        "mqtt",
        "mqtt-websocket",
        "stomp",
        "stomp-websocket",
        "remoting",
        "name-server",
    ] {
        command.arg(format!("--{protocol}-listen=127.0.0.1:0"));
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A running broker; killed if a test fails.
struct Broker {
    child: Child,
    lines: Receiver<String>,
    ready: String,
}

impl Broker {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let lines = read_lines(child.stderr.take().expect("stderr is piped"));
        let mut broker = Self {
            child,
            lines,
            ready: String::new(),
        };
        broker.ready = broker.wait_for_line("ready ");
        broker
    }

    fn wait_for_line(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no line with {part:?} ({error}) among {seen:#?}"),
            }
        }
    }

    fn address(&self, protocol: &str) -> SocketAddr {
        let named = self
            .ready
            .split_whitespace()
            .find_map(|word| word.strip_prefix(&format!("{protocol}=")[..]));
        let address = named.unwrap_or_else(|| panic!("no {protocol} in {:?}", self.ready));
        address.parse().expect("an address")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &pid])
            .status()
            .expect("there is a kill command");
        assert!(status.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.code();
            }
            thread::yield_now();
        }
        panic!("it does not end");
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stderr: ChildStderr) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Exit code and stderr of a program that refuses to run.
fn refused(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().expect("the program starts");
    (
        status.code().expect("it exits"),
        String::from_utf8_lossy(&stderr).into_owned(),
    )
}

#[test]
fn the_ready_line_names_every_address_and_they_accept() {
    let dir = TestDir::new();
    let broker = Broker::start(serve(dir.path()));
    for protocol in [
        "amqp",
        "mqtt",
        "mqtt_websocket",
        "stomp",
        "stomp_websocket",
        "remoting",
        "name_server",
    ] {
        let address = broker.address(protocol);
        assert!(address.ip().is_loopback() && address.port() != 0);
        TcpStream::connect(address).unwrap_or_else(|error| panic!("{protocol}: {error}"));
    }
    assert!(broker.ready.contains("startup_ms="), "{}", broker.ready);
}

#[test]
fn an_empty_list_turns_a_listener_off() {
    let dir = TestDir::new();
    let mut command = serve(dir.path());
    let config = dir.file("broker.toml", "[mqtt]\nlisten = []\n");
    // The flag is what `serve` added last for it.
    command.arg("--config").arg(config).arg("--set").arg("mqtt.listen=[]");
    let broker = Broker::start(command);
    assert!(
        broker.ready.contains(" amqp=") && !broker.ready.contains("mqtt="),
        "{}",
        broker.ready
    );
}

#[test]
fn a_taken_address_has_its_own_exit_code_and_is_named() {
    let dir = TestDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, stderr) = refused(serve(dir.path()).arg("--set").arg(format!("mqtt.listen={address}")));
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains(&address) && stderr.contains("mqtt"), "{stderr}");
}

#[test]
fn a_data_directory_in_use_has_its_own_exit_code() {
    let dir = TestDir::new();
    let _first = Broker::start(serve(dir.path()));
    let (code, stderr) = refused(&mut serve(dir.path()));
    assert_eq!(code, 5, "{stderr}");
    assert!(stderr.contains("data") && stderr.contains("in use"), "{stderr}");
}

#[test]
fn an_unknown_key_is_refused_with_file_line_and_nearest_key() {
    let dir = TestDir::new();
    let config = dir.file("broker.toml", "data_dir = \"x\"\n\n[amqp]\nlisen = [\"127.0.0.1:0\"]\n");
    let (code, stderr) = refused(serve(dir.path()).arg("--config").arg(&config));
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains(&format!("{}:4:", config.display())), "{stderr}");
    assert!(
        stderr.contains("`lisen`") && stderr.contains("did you mean `listen`?"),
        "{stderr}"
    );
}

#[test]
fn environment_replaces_the_file_and_flags_replace_both() {
    let dir = TestDir::new();
    let config = dir.file("broker.toml", "[log]\nformat = \"text\"\nlevel = \"error\"\n");
    let mut command = serve(dir.path());
    command.arg("--config").arg(config).arg("--log-level").arg("info");
    command
        .env("ROCKETBRIDGE_LOG__FORMAT", "json")
        .env("ROCKETBRIDGE_LOG__LEVEL", "warn");
    let broker = Broker::start(command);
    // At `error` or `warn` there is no ready line.
    assert!(broker.ready.starts_with('{'), "{}", broker.ready);

    let (code, stderr) = refused(serve(dir.path()).env("ROCKETBRIDGE_STORE__FLUHS", "sync"));
    assert_eq!(code, 3, "{stderr}");
    assert!(
        stderr.contains("ROCKETBRIDGE_STORE__FLUHS") && stderr.contains("`flush`"),
        "{stderr}"
    );
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let dir = TestDir::new();
    assert_eq!(refused(serve(dir.path()).arg("--no-such-flag")).0, 2);
    assert_eq!(refused(&mut Command::new(env!("CARGO_BIN_EXE_rocketbridge"))).0, 2);
}

#[test]
fn a_terminated_broker_exits_0_and_can_start_again_in_its_directory() {
    let dir = TestDir::new();
    for signal in ["TERM", "INT"] {
        let mut broker = Broker::start(serve(dir.path()));
        let mut open = TcpStream::connect(broker.address("amqp")).unwrap();
        broker.signal(signal);
        assert_eq!(broker.exit_code(), Some(0));
        // Everybody was let go.
        open.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        let _ = open.read_to_end(&mut rest);
    }
}

#[test]
fn one_connection_too_many_is_closed_and_the_others_stay() {
    let dir = TestDir::new();
    let mut command = serve(dir.path());
    command.args(["--set", "limits.connections_max=2"]);
    let mut broker = Broker::start(command);
    let mut open: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(broker.address("mqtt")).unwrap())
        .collect();
    let last = open.last_mut().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    let read = last.read(&mut [0; 1]);
    let closed = match &read {
        Ok(count) => *count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    assert!(closed, "{read:?}");
    broker.wait_for_line("limits.connections_max");
    // Nothing was sent, so the first ones wait for their clients, in vain for now.
    open[0].set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert_eq!(open[0].read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(open);
}

#[test]
fn hangup_reloads_what_can_change_and_names_what_needs_a_restart() {
    let dir = TestDir::new();
    let config = dir.file("broker.toml", "[log]\nlevel = \"info\"\n");
    let mut command = serve(dir.path());
    command.arg("--config").arg(&config);
    let mut broker = Broker::start(command);

    dir.file("broker.toml", "[log]\nlevel = \"debug\"\n[store]\nflush = \"async\"\n");
    broker.signal("HUP");
    assert!(broker.wait_for_line("configuration reloaded").contains("log.level"));
    assert!(broker.wait_for_line("restart").contains("store.flush"));
    TcpStream::connect(broker.address("amqp")).unwrap();
    // Connections are logged at debug.
    broker.wait_for_line("open");

    dir.file("broker.toml", "[log]\nlevle = \"error\"\n");
    broker.signal("HUP");
    assert!(broker.wait_for_line("nothing is changed").contains("broker.toml:2:1"));
    TcpStream::connect(broker.address("amqp")).unwrap();
    broker.wait_for_line("open");
}

#[test]
fn every_help_teaches_with_an_example() {
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_rocketbridge"))
            .args(arguments)
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(
            help.contains("Example") && help.contains("rocketbridge serve --"),
            "{help}"
        );
    }
}
