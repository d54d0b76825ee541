//! The system's clocks. Nothing below this ring reads them: core and sessions are handed [`Now`].

use std::time::{SystemTime, UNIX_EPOCH};

use rocketbridge_core::time::{Clock, Millis, Now};
use tokio::time::{Duration, Instant};

/// The system's monotonic and wall clocks. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    epoch: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    pub fn start() -> Self {
        Self { epoch: Instant::now() }
    }

    /// When `mono` will be, for the runtime's timers.
    pub fn instant(&self, mono: Millis) -> Instant {
        self.epoch + Duration::from_millis(mono.0)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        // A wall clock before 1970 is a broken one; zero is as good as any answer.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono: Millis(self.epoch.elapsed().as_millis() as u64),
            wall: Millis(wall.as_millis() as u64),
        }
    }
}
