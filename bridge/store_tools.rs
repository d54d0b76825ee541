//! `rocketbridge store check` and `rocketbridge store dump`: looking at the data of a broker that does not run.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use rocketbridge_core::message::Message;
use rocketbridge_core::store::inspect::{Counts, Finding, InspectError, Inspection, Item, RecordKind};

const CHECK_HELP: &str = "\
Exit codes:
  0  everything is whole; what a crash leaves at the log's end is not damage
  1  it cannot be read               5  a running broker uses the data directory
  2  wrong usage                     6  damaged, or of a newer version

Example:
  rocketbridge store check /var/lib/rocketbridge";

const DUMP_HELP: &str = "\
One line for each record: position, kind, stored time, and what it says. Of a message topic, key, how it came,
where it went, properties, and the begin of its body. Records that cannot be read are named and passed over.

Example:
  rocketbridge store dump /var/lib/rocketbridge --kind message --topic orders | less";

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Verify everything.
    Check { folder: PathBuf },
    /// Print records.
    Dump { folder: PathBuf, only: Only },
}

/// Which records are printed, and how.
#[derive(Debug)]
pub struct Only {
    from: u64,
    to: u64,
    kinds: Vec<String>,
    topic: Option<String>,
    body: usize,
}

/// The command line of `rocketbridge store`.
pub fn command() -> Command {
    let folder = || {
        Arg::new("dir")
            .value_name("DIR")
            .required(true)
            .value_parser(value_parser!(PathBuf))
            .help("The data directory of a broker that does not run")
    };
    let position = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("POSITION")
            .value_parser(value_parser!(u64))
            .help(help)
    };
    Command::new("store")
        .about("Looks at the data of a broker that does not run, and changes nothing")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("check")
                .about("Verifies every checksum, names what is damaged and what is lost by it")
                .after_help(CHECK_HELP)
                .arg(folder()),
        )
        .subcommand(
            Command::new("dump")
                .about("Prints the records of the log")
                .after_help(DUMP_HELP)
                .arg(folder())
                .arg(position("from", "Nothing before this position"))
                .arg(position("to", "Nothing from this position on"))
                .arg(
                    Arg::new("kind")
                        .long("kind")
                        .value_name("KIND,..")
                        .value_delimiter(',')
                        .value_parser(["message", "settle", "change", "segment"])
                        .help("Only records of these kinds"),
                )
                .arg(
                    Arg::new("topic")
                        .long("topic")
                        .value_name("NAME")
                        .help("Only messages of this topic"),
                )
                .arg(
                    Arg::new("body")
                        .long("body")
                        .value_name("BYTES")
                        .default_value("64")
                        .value_parser(value_parser!(usize))
                        .help("How much of each body is shown"),
                ),
        )
}

/// What the command line asks for.
pub fn parse(matches: &ArgMatches) -> Task {
    let folder = |matches: &ArgMatches| matches.get_one::<PathBuf>("dir").cloned().unwrap_or_default();
    match matches.subcommand() {
        Some(("dump", matches)) => Task::Dump {
            folder: folder(matches),
            only: Only {
                from: matches.get_one("from").copied().unwrap_or(0),
                to: matches.get_one("to").copied().unwrap_or(u64::MAX),
                kinds: matches.get_many("kind").into_iter().flatten().cloned().collect(),
                topic: matches.get_one("topic").cloned(),
                body: matches.get_one("body").copied().unwrap_or(64),
            },
        },
        Some((_, matches)) => Task::Check {
            folder: folder(matches),
        },
        None => unreachable!("a subcommand is required"),
    }
}

/// Does it; gives the exit code.
pub fn run(task: &Task) -> u8 {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = match task {
        Task::Check { folder } => check(folder, &mut out),
        Task::Dump { folder, only } => dump(folder, only, &mut out).map(|()| 0),
    };
    let result = result.and_then(|code| Ok(out.flush().map(|()| code)?));
    match result {
        Ok(code) => code,
        // Whoever reads has seen enough.
        Err(InspectError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "rocketbridge: {error}");
            match error {
                InspectError::Locked => 5,
                InspectError::Newer(_) => 6,
                InspectError::NoStore | InspectError::Io(_) => 1,
            }
        }
    }
}

fn check(folder: &std::path::Path, out: &mut impl Write) -> Result<u8, InspectError> {
    let inspection = Inspection::open(folder)?;
    let mut damaged = 0;
    let mut told = Ok(());
    let counts = inspection.check(&mut |finding| {
        damaged += u32::from(finding.damage);
        if told.is_ok() {
            told = tell(&finding, out);
        }
    })?;
    told?;
    let Counts {
        segments,
        messages,
        settlements,
        changes,
        bytes,
        checkpoints,
        pages,
    } = counts;
    writeln!(
        out,
        "{segments} segments with {messages} messages, {settlements} settlements and {changes} changes, {bytes} bytes; \
         {checkpoints} checkpoints; {pages} index pages"
    )?;
    if damaged > 0 {
        writeln!(out, "damaged in {damaged} places")?;
        return Ok(6);
    }
    writeln!(out, "whole")?;
    Ok(0)
}

fn tell(finding: &Finding, out: &mut impl Write) -> io::Result<()> {
    let Finding {
        file,
        offset,
        what,
        lost,
        damage,
    } = finding;
    let word = if *damage { "DAMAGED" } else { "note" };
    writeln!(out, "{word}  {file} at byte {offset}: {what}; lost: {lost}")
}

fn dump(folder: &std::path::Path, only: &Only, out: &mut impl Write) -> Result<(), InspectError> {
    let inspection = Inspection::open(folder)?;
    inspection.dump(only.from, only.to, &mut |item| print(&item, only, out))
}

fn print(item: &Item, only: &Only, out: &mut impl Write) -> io::Result<()> {
    let Item::Record {
        position,
        kind,
        stored_at,
        bytes,
        batch_goes_on,
        words,
        message,
        destinations,
        topic_queue,
    } = item
    else {
        let Item::Gap { position, bytes, why } = item else {
            return Ok(());
        };
        return match bytes {
            0 => writeln!(out, "{position} UNREADABLE {why}"),
            bytes => writeln!(out, "{position} UNREADABLE {bytes} bytes: {why}"),
        };
    };
    let kind = match kind {
        RecordKind::Segment => "segment",
        RecordKind::Message => "message",
        RecordKind::Settle => "settle",
        RecordKind::Change => "change",
    };
    if !only.kinds.is_empty() && !only.kinds.iter().any(|wanted| wanted == kind) {
        return Ok(());
    }
    if let Some(topic) = &only.topic {
        let is_of =
            |message: &Message| message.topic() == topic.as_bytes() || *message.topic_name() == *topic.as_bytes();
        if !message.as_ref().is_some_and(is_of) {
            return Ok(());
        }
    }
    write!(out, "{position} {kind} {} {bytes}B", time(*stored_at))?;
    if let Some(message) = message {
        print_message(message, destinations, *topic_queue, only.body, out)?;
    }
    if !words.is_empty() {
        write!(out, " {words}")?;
    }
    if *batch_goes_on {
        write!(out, " (the next record belongs to it)")?;
    }
    writeln!(out)
}

fn print_message(
    message: &Message,
    destinations: &[(u32, u64)],
    topic_queue: Option<(u32, u64)>,
    body_max: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    write!(
        out,
        " topic={} key={}",
        message.topic().escape_ascii(),
        message.key().escape_ascii()
    )?;
    write!(out, " by={}", format!("{:?}", message.entry()).to_lowercase())?;
    if let Some((queue, offset)) = topic_queue {
        write!(out, " in={queue}/{offset}")?;
    }
    for (queue, sequence) in destinations {
        write!(out, " queue={queue}/{sequence}")?;
    }
    if message.is_persistent() {
        write!(out, " persistent")?;
    }
    for (name, value) in message.attributes() {
        write!(out, " {}", property(&format!("{name:?}"), &format!("{value:?}")))?;
    }
    let body = message.body();
    let shown = &body[..body.len().min(body_max)];
    let rest = if shown.len() < body.len() { ".." } else { "" };
    write!(out, " body={}B \"{}\"{rest}", body.len(), shown.escape_ascii())
}

/// `Known(Priority)` and `Uint(3)` as `priority=3`.
fn property(name: &str, value: &str) -> String {
    let inner = |text: &str| match text.split_once('(') {
        Some((_, rest)) => rest.strip_suffix(')').unwrap_or(rest).to_owned(),
        None => text.to_lowercase(),
    };
    format!("{}={}", readable(&inner(name)), readable(&inner(value)))
}

/// A debug list of bytes as text.
fn readable(debug: &str) -> String {
    let Some(list) = debug.strip_prefix('[').and_then(|text| text.strip_suffix(']')) else {
        return debug.to_owned();
    };
    let bytes: Option<Vec<u8>> = list
        .split(", ")
        .filter(|number| !number.is_empty())
        .map(|number| number.parse().ok())
        .collect();
    bytes.map_or(debug.to_owned(), |bytes| bytes.escape_ascii().to_string())
}

/// Unix milliseconds as UTC.
fn time(millis: u64) -> String {
    let (days, rest) = (millis / 86_400_000, millis % 86_400_000);
    // Days since 0000-03-01, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 {
        month_shifted + 3
    } else {
        month_shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (rest / 3_600_000, rest / 60_000 % 60);
    let (second, milli) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(time(1_763_764_799_000), "2025-11-21T22:39:59.000Z");
        assert_eq!(time(4_102_444_800_000), "2100-01-01T00:00:00.000Z");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn properties_are_readable() {
        assert_eq!(property("Known(Priority)", "Uint(3)"), "Priority=3");
        assert_eq!(property("User([104, 105])", "Text([65])"), "hi=A");
        assert_eq!(property("User([104])", "Null"), "h=null");
    }
}
