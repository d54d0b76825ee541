//! The broker's process as the kernel accounts for it.

use std::fs;
use std::io;

/// The clock ticks of `/proc/PID/stat`, fixed by the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time, seconds.
    pub cpu: f64,
    /// Resident memory, bytes.
    pub resident: u64,
}

/// Reads what process `pid` has used.
///
/// # Errors
/// There is no such process, or no `/proc`.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse(&stat, &status).ok_or_else(|| io::Error::other("it is not as Linux writes it"))
}

fn parse(stat: &str, status: &str) -> Option<Usage> {
    // The name in parentheses may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    let cpu = (ticks()? + ticks()?) / TICKS_PER_SECOND;
    // A process that ends has no memory any more.
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0_u64);
    Some(Usage {
        cpu,
        resident: resident * 1024,
    })
}

/// The machine's load of the last minute: other programs make every figure larger.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_past_a_name_with_parentheses() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0";
        let usage = parse(stat, "Name:\tx\nVmRSS:\t  2048 kB\n").unwrap();
        assert_eq!((usage.cpu, usage.resident), (3.0, 2 << 20));
    }

    #[test]
    fn this_process_runs_and_one_that_cannot_be_does_not() {
        assert!(usage(std::process::id()).unwrap().resident > 0);
        assert!(usage(u32::MAX).is_err());
    }
}
