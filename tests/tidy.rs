//! Style as a test: what a reviewer would otherwise have to look for in every change.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust sources below `folder`, tests included.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.map(|entry| entry.expect("a readable folder")) {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() != "target" {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a readable source");
            found.push((path, text));
        }
    }
}

/// `file:line: word` for every line that holds one of `words`.
fn lines_with(files: &[(PathBuf, String)], words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in files {
        for (index, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(*word)) {
                let path = path.strip_prefix(root()).unwrap_or(path);
                hits.push(format!("{}:{}: {word}", path.display(), index + 1));
            }
        }
    }
    hits
}

fn assert_none(hits: &[String], why: &str) {
    assert!(hits.is_empty(), "{why}:\n{}", hits.join("\n"));
}

/// The folders of `protocols/` that speak one; `session` is what they share.
fn protocols() -> Vec<String> {
    let entries = fs::read_dir(root().join("protocols")).expect("the folder is there");
    let names = entries.map(|entry| {
        entry
            .expect("a readable folder")
            .file_name()
            .into_string()
            .expect("a name")
    });
    let mut names: Vec<_> = names.filter(|name| name != "session").collect();
    names.sort();
    assert!(names.len() >= 3, "{names:?}");
    names
}

/// The names of the `[dependencies]` (not of tests) in a manifest.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    let dependencies = manifest.get("dependencies").and_then(|value| value.as_table());
    dependencies
        .map(|table| table.keys().cloned().collect())
        .unwrap_or_default()
}

#[test]
fn only_the_bridge_touches_sockets_tasks_and_clocks() {
    let words = [
        "Instant::now",
        "SystemTime::now",
        "tokio::",
        "std::net::Tcp",
        "net::TcpStream",
        "net::TcpListener",
        "UdpSocket",
    ];
    for folder in ["core", "protocols"] {
        let mut files = sources(folder);
        // A benchmark stands where the bridge stands: outside, with a clock in its hand.
        files.retain(|(path, _)| !path.components().any(|part| part.as_os_str() == "benches"));
        assert_none(&lines_with(&files, &words), "this belongs into bridge/");
    }
}

#[test]
fn core_names_no_protocol() {
    let files: Vec<_> = sources("core")
        .into_iter()
        .map(|(path, text)| (path, text.to_lowercase()))
        .collect();
    assert_none(
        &lines_with(&files, &["amqp", "mqtt", "stomp"]),
        "core knows RocketMQ's words only",
    );
}

#[test]
fn dependencies_point_downwards() {
    assert_eq!(
        dependencies("protocols/session")
            .iter()
            .filter(|name| is_ours(name))
            .count(),
        1
    );
    for name in dependencies("core") {
        assert!(!is_ours(&name), "core depends on {name}");
    }
    for protocol in protocols() {
        for name in dependencies(&format!("protocols/{protocol}")) {
            let allowed = ["rocketbridge-core", "rocketbridge-session"].contains(&&name[..]);
            assert!(allowed || !is_ours(&name), "protocols/{protocol} depends on {name}");
            assert_ne!(name, "tokio", "protocols/{protocol} depends on a runtime");
        }
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("rocketbridge")
}

#[test]
fn every_protocol_has_a_mapping_vectors_and_a_fuzz_body() {
    for protocol in protocols() {
        let folder = root().join("protocols").join(&protocol);
        for file in ["MAPPING.md", "tests/codec_vectors.rs", "src/fuzzing.rs", "src/lib.rs"] {
            assert!(folder.join(file).is_file(), "protocols/{protocol}/{file} is missing");
        }
    }
}

#[test]
fn no_test_sleeps_until_something_may_have_happened() {
    // Put together, for this file must not find itself.
    let sleeps = ["thread", "time"].map(|module| format!("{module}::sleep"));
    let words: Vec<_> = sleeps.iter().map(String::as_str).collect();
    let mut tests = sources("tests");
    // A load generator holds its rate by sleeping, and is no test.
    tests.retain(|(path, _)| !path.starts_with(root().join("tests/bench")));
    for folder in ["core", "protocols", "bridge"] {
        tests.extend(sources(folder).into_iter().filter(|(path, _)| {
            let path = path.strip_prefix(root()).unwrap_or(path);
            path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
        }));
    }
    assert_none(
        &lines_with(&tests, &words),
        "wait for the event, or poll with a deadline",
    );
}
