//! What a run has found, for people and for programs.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

use super::latency::Latencies;
use super::process::load_average;

/// One stretch of a run that was measured.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Empty when it is the whole run.
    pub name: &'static str,
    /// Delivered, or published where nobody consumes.
    pub messages: u64,
    pub seconds: f64,
    /// The broker's user and system time, seconds; with `--pid` only.
    pub cpu: Option<f64>,
    /// That of the load.
    pub load_cpu: Option<f64>,
    /// The broker's resident memory at the end, bytes.
    pub resident: Option<u64>,
}

impl Part {
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            self.messages as f64 / self.seconds
        } else {
            0.0
        }
    }

    fn per_message(&self, seconds: Option<f64>) -> Option<f64> {
        (self.messages > 0)
            .then(|| Some(seconds? * 1e6 / self.messages as f64))
            .flatten()
    }
}

/// Connections that did nothing.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    pub connections: u32,
    pub seconds: f64,
    /// The broker's user and system time, seconds.
    pub cpu: Option<f64>,
    /// What the broker's memory grew by, bytes.
    pub resident: Option<u64>,
}

/// Everything a run has found.
#[derive(Debug, Default)]
pub struct Report {
    protocol: &'static str,
    parts: Vec<Part>,
    pub published: u64,
    pub confirmed: u64,
    pub rejected: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
    pub altered: u64,
    pub foreign: u64,
    pub latencies: Latencies,
    pub confirm_latencies: Latencies,
    pub idle: Option<Idle>,
    /// CPU and memory are those of this process.
    pub of_this_process: bool,
    /// Microseconds in calls that publish, of each message.
    pub publish_us: Option<f64>,
    /// Why the run ended early.
    pub fault: Option<String>,
}

const PERCENTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p999", 0.999),
    ("p9999", 0.9999),
];

impl Report {
    /// Of nothing yet.
    pub fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            ..Self::default()
        }
    }

    /// A stretch was measured.
    pub fn add(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Nothing was lost, altered or refused, and the broker kept going.
    pub fn is_good(&self) -> bool {
        self.fault.is_none() && self.lost == 0 && self.altered == 0 && self.rejected == 0
    }

    /// All parts together.
    fn whole(&self) -> Part {
        let sum = |of: fn(&Part) -> Option<f64>| {
            let values: Option<Vec<f64>> = self.parts.iter().map(of).collect();
            values
                .filter(|values| !values.is_empty())
                .map(|values| values.iter().sum())
        };
        Part {
            name: "",
            messages: self.parts.iter().map(|part| part.messages).max().unwrap_or(0),
            seconds: self.parts.iter().fold(0.0, |sum, part| sum + part.seconds),
            cpu: sum(|part| part.cpu),
            load_cpu: sum(|part| part.load_cpu),
            resident: self.parts.iter().filter_map(|part| part.resident).max(),
        }
    }

    /// One object, on one line.
    pub fn json(&self) -> String {
        let whole = self.whole();
        let latencies = if self.latencies.count() > 0 {
            &self.latencies
        } else {
            &self.confirm_latencies
        };
        let mut object = json!({
            "protocol": self.protocol,
            "messages_per_second": rounded(whole.rate()),
            "cpu_us_per_message": whole.per_message(whole.cpu).map(rounded),
            "rss_bytes": whole.resident,
            "latency_us": percentiles(latencies),
            "lost": self.lost,
            "duplicated": self.duplicated,
            "out_of_order": self.out_of_order,
            "altered": self.altered,
            "foreign": self.foreign,
            "published": self.published,
            "confirmed": self.confirmed,
            "rejected": self.rejected,
            "delivered": self.delivered,
            "seconds": rounded(whole.seconds),
            "confirm_latency_us": percentiles(&self.confirm_latencies),
            "load_cpu_us_per_message": whole.per_message(whole.load_cpu).map(rounded),
            "load_average": load_average(),
            "error": self.fault,
        });
        let fields = object.as_object_mut().expect("it is one");
        if let Some(publish_us) = self.publish_us {
            fields.insert("publish_us_per_message".into(), json!(rounded(publish_us)));
        }
        for part in self.parts.iter().filter(|part| !part.name.is_empty()) {
            let value = json!({
                "messages_per_second": rounded(part.rate()),
                "cpu_us_per_message": part.per_message(part.cpu).map(rounded),
                "rss_bytes": part.resident,
                "seconds": rounded(part.seconds),
            });
            fields.insert(part.name.into(), value);
        }
        if let Some(idle) = &self.idle {
            let each = f64::from(idle.connections.max(1));
            let value = json!({
                "connections": idle.connections,
                "connections_per_second": rounded(f64::from(idle.connections) / idle.seconds.max(1e-9)),
                "bytes_each": idle.resident.map(|bytes| rounded(bytes as f64 / each)),
                "cpu_us_each": idle.cpu.map(|cpu| rounded(cpu * 1e6 / each)),
            });
            fields.insert("idle".into(), value);
        }
        object.to_string()
    }
}

fn percentiles(latencies: &Latencies) -> Value {
    let mut object = Map::new();
    for (name, share) in PERCENTILES {
        object.insert(name.into(), json!(latencies.percentile(share)));
    }
    let max = (latencies.count() > 0).then(|| latencies.max());
    object.insert("max".into(), json!(max));
    Value::Object(object)
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            let title = if part.name.is_empty() { self.protocol } else { part.name };
            write!(
                f,
                "{title}: {} messages in {:.3} s",
                grouped(part.messages),
                part.seconds
            )?;
            writeln!(f, ", {} messages/s", grouped(part.rate() as u64))?;
            let mut costs = String::new();
            let whose = if self.of_this_process { "CPU" } else { "broker CPU" };
            if let Some(cpu) = part.per_message(part.cpu) {
                write!(costs, ", {whose} {cpu:.3} us a message")?;
            }
            if let Some(resident) = part.resident {
                write!(costs, ", resident memory {:.1} MiB", resident as f64 / 1048576.0)?;
            }
            if let Some(cpu) = part.per_message(part.load_cpu) {
                write!(costs, ", load CPU {cpu:.3} us a message")?;
            }
            if let Some(costs) = costs.strip_prefix(", ") {
                writeln!(f, "  {costs}")?;
            }
        }
        if let Some(publish_us) = self.publish_us {
            writeln!(f, "  in calls that publish: {publish_us:.3} us a message")?;
        }
        for (title, latencies) in [("latency", &self.latencies), ("confirm", &self.confirm_latencies)] {
            if latencies.count() == 0 {
                continue;
            }
            write!(f, "  {title} us:")?;
            for (name, share) in PERCENTILES {
                write!(f, " {name} {}", grouped(latencies.percentile(share).unwrap_or(0)))?;
            }
            writeln!(f, " max {}", grouped(latencies.max()))?;
        }
        if let Some(idle) = &self.idle {
            let each = f64::from(idle.connections.max(1));
            write!(
                f,
                "  {} idle connections, {:.0}/s",
                grouped(idle.connections.into()),
                f64::from(idle.connections) / idle.seconds.max(1e-9)
            )?;
            if let (Some(resident), Some(cpu)) = (idle.resident, idle.cpu) {
                write!(
                    f,
                    ", {:.2} KiB and {:.1} us CPU each",
                    resident as f64 / each / 1024.0,
                    cpu * 1e6 / each
                )?;
            }
            writeln!(f)?;
        }
        write!(
            f,
            "  published {}, confirmed {}",
            grouped(self.published),
            grouped(self.confirmed)
        )?;
        write!(
            f,
            ", delivered {}, lost {}",
            grouped(self.delivered),
            grouped(self.lost)
        )?;
        write!(
            f,
            ", duplicated {}, out of order {}",
            grouped(self.duplicated),
            grouped(self.out_of_order)
        )?;
        write!(f, ", altered {}", grouped(self.altered))?;
        if self.rejected > 0 {
            write!(f, ", not taken by the broker {}", grouped(self.rejected))?;
        }
        if self.foreign > 0 {
            write!(f, ", of other runs {}", grouped(self.foreign))?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_what_programs_look_for() {
        let mut report = Report::new("amqp");
        report.add(Part {
            name: "fill",
            messages: 1000,
            seconds: 0.5,
            cpu: Some(0.001),
            load_cpu: None,
            resident: Some(7),
        });
        report.add(Part {
            name: "drain",
            messages: 1000,
            seconds: 0.5,
            cpu: Some(0.003),
            load_cpu: None,
            resident: Some(5),
        });
        let value: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(value["messages_per_second"], 1000.0);
        assert_eq!(value["cpu_us_per_message"], 4.0);
        assert_eq!(value["rss_bytes"], 7);
        assert_eq!(value["drain"]["cpu_us_per_message"], 3.0);
        for name in ["lost", "duplicated", "out_of_order"] {
            assert_eq!(value[name], 0, "{name}");
        }
        assert!(value["latency_us"]["p99"].is_null());
        assert!(report.is_good());
        report.altered = 1;
        assert!(!report.is_good());
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
