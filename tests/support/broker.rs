//! The real program as a child process, on free ports and a folder of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a broker may take to be ready; far longer than it should, for a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// The documented exit code of a listening address that another process has.
const EXIT_ADDRESS_TAKEN: i32 = 4;

/// Names another program than the one that was built with the tests, such as a release build.
const PROGRAM: &str = "ROCKETBRIDGE_PROGRAM";

/// A running broker. Dropping it kills it and removes its folder.
pub struct Broker {
    child: Child,
    folder: Arc<Folder>,
    data_dir: PathBuf,
    /// Listening addresses by the name in the ready line: `amqp`, `mqtt`, `remoting`, `name_server`.
    pub addresses: BTreeMap<String, SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

/// A temporary folder, removed with its last user.
pub struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How to start it.
#[derive(Clone, Default)]
pub struct Options {
    /// More configuration, TOML; tables that are not `amqp`, `mqtt`, `remoting`, or top-level keys.
    pub config: String,
    /// More lines of the table `mqtt`.
    pub mqtt: String,
    /// A program and arguments that run the broker, such as `strace ... `.
    pub wrapper: Vec<String>,
    /// Its data folder, if it is not to lie in the broker's own folder.
    pub data_dir: Option<PathBuf>,
}

impl Broker {
    /// On free ports and an empty folder.
    pub fn start() -> Self {
        Self::start_with(&Options::default())
    }

    pub fn start_with(options: &Options) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("rocketbridge-test-")
            .tempdir()
            .expect("a folder")
            .keep();
        Self::launch(options, Arc::new(Folder(folder)), &BTreeMap::new())
    }

    /// Starts again on the same data folder and the same ports.
    pub fn restart(mut self, options: &Options) -> Self {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let (mut broker, lines) = self.respawn(options);
            if broker.is_ready(&lines) {
                return broker;
            }
            // Meanwhile another program may have got one of the ports.
            let status = broker.child.wait().expect("it is our child");
            assert!(
                status.code() == Some(EXIT_ADDRESS_TAKEN) && Instant::now() < deadline,
                "it ended: {status}\n{}",
                broker.log()
            );
            self = broker;
        }
    }

    /// As [`restart`](Self::restart), but does not wait until it is ready.
    pub fn restart_unready(self, options: &Options) -> Self {
        self.respawn(options).0
    }

    fn respawn(mut self, options: &Options) -> (Self, Receiver<String>) {
        self.kill();
        let (folder, addresses) = (Arc::clone(&self.folder), std::mem::take(&mut self.addresses));
        drop(self);
        let (mut broker, lines) = Self::spawn(options, folder, &addresses);
        broker.addresses = addresses;
        (broker, lines)
    }

    fn launch(options: &Options, folder: Arc<Folder>, addresses: &BTreeMap<String, SocketAddr>) -> Self {
        let (mut broker, lines) = Self::spawn(options, folder, addresses);
        if !broker.is_ready(&lines) {
            panic!("it ended: {:?}\n{}", broker.child.wait(), broker.log());
        }
        broker
    }

    fn spawn(
        options: &Options,
        folder: Arc<Folder>,
        addresses: &BTreeMap<String, SocketAddr>,
    ) -> (Self, Receiver<String>) {
        let address = |name: &str| {
            addresses
                .get(name)
                .map_or("127.0.0.1:0".to_owned(), ToString::to_string)
        };
        let config = format!(
            "data_dir = {:?}\n{}\n[amqp]\nlisten = [{:?}]\n[mqtt]\nlisten = [{:?}]\nwebsocket_listen = [{:?}]\n{}\n\
             [stomp]\nlisten = [{:?}]\nwebsocket_listen = [{:?}]\n\
             [remoting]\nlisten = [{:?}]\nname_server_listen = [{:?}]\n",
            data_dir(options, &folder),
            options.config,
            address("amqp"),
            address("mqtt"),
            address("mqtt_websocket"),
            options.mqtt,
            address("stomp"),
            address("stomp_websocket"),
            address("remoting"),
            address("name_server"),
        );
        let file = folder.0.join("rocketbridge.toml");
        std::fs::write(&file, config).expect("the configuration is written");
        let mut words = options.wrapper.clone();
        words.extend([
            std::env::var(PROGRAM).unwrap_or_else(|_| env!("CARGO_BIN_EXE_rocketbridge").to_owned()),
            "serve".to_owned(),
            "--config".to_owned(),
        ]);
        let mut command = Command::new(&words[0]);
        // Those are settings of tests, or of whoever runs them.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ROCKETBRIDGE_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(&words[1..])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", words[0]));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, reader) = collect(child.stderr.take().expect("it is piped"), Arc::clone(&log));
        let broker = Self {
            child,
            data_dir: data_dir(options, &folder),
            folder,
            addresses: BTreeMap::new(),
            log,
            reader: Some(reader),
        };
        (broker, lines)
    }

    /// Waits for the ready line; `false` when it ends before that.
    fn is_ready(&mut self, lines: &Receiver<String>) -> bool {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("ready ") => {
                    self.addresses = ready_addresses(&line);
                    return true;
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("not ready in time: {}", self.log()),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// The listening address of that name.
    pub fn address(&self, name: &str) -> SocketAddr {
        *self
            .addresses
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.addresses))
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone()
    }

    /// A folder that lives as long as the broker.
    pub fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The child's process id; of the wrapper, if there is one.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic holds it").join("\n")
    }

    /// Everything it has logged, once it has ended and nothing more can come.
    pub fn whole_log(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("it does not panic");
        }
        self.log()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_none()
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end in time:\n{}", self.log());
            std::thread::yield_now();
        }
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("a number")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn data_dir(options: &Options, folder: &Folder) -> PathBuf {
    options.data_dir.clone().unwrap_or_else(|| folder.0.join("data"))
}

fn ready_addresses(line: &str) -> BTreeMap<String, SocketAddr> {
    let words = line.split_whitespace().filter_map(|word| word.split_once('='));
    let pairs = words.filter_map(|(name, list)| Some((name.to_owned(), list.split(',').next()?.parse().ok()?)));
    pairs.collect()
}

fn collect(
    stderr: impl std::io::Read + Send + 'static,
    log: Arc<Mutex<Vec<String>>>,
) -> (Receiver<String>, JoinHandle<()>) {
    let (sender, receiver) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            log.lock().expect("no panic holds it").push(line.clone());
            let _ = sender.send(line);
        }
    });
    (receiver, reader)
}
