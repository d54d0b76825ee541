//! Wakes tasks from a thread that is none of the runtime's workers.
//!
//! A waker that is used there puts its task into the queue that all workers share, and the worker that is woken to
//! look into it wakes another one to look as well: two threads for one answer. So the wakers are handed to a task
//! that reads a pipe. The worker that waits for sockets sees that as it sees a socket, and what it then
//! wakes it runs itself, calling others only when it is more than one task.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::{self, Receiver};

/// The thread's side. When it is dropped the task ends.
pub struct Bell {
    waiting: Arc<Mutex<Vec<Waker>>>,
    pipe: File,
}

impl Bell {
    /// Starts the task that answers it.
    ///
    /// # Errors
    /// The system gives no pipe, or cannot watch it.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn hang() -> io::Result<Self> {
        let (sender, receiver) = pipe::pipe()?;
        let waiting = Arc::default();
        tokio::spawn(answer(receiver, Arc::clone(&waiting)));
        Ok(Self {
            waiting,
            pipe: sender.into_nonblocking_fd()?.into(),
        })
    }

    /// Has them woken.
    pub fn wake(&self, mut wakers: Vec<Waker>) {
        if wakers.is_empty() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        // Whoever put the first in has rung for all.
        let rung = !waiting.is_empty();
        waiting.append(&mut wakers);
        drop(waiting);
        if !rung {
            // It fails when the pipe is full, which wakes as well, or when the runtime is gone with its tasks.
            let _ = (&self.pipe).write(&[0]);
        }
    }
}

fn lock(waiting: &Mutex<Vec<Waker>>) -> MutexGuard<'_, Vec<Waker>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(mut pipe: Receiver, waiting: Arc<Mutex<Vec<Waker>>>) {
    // More than is ever in it: what is read short needs no second look.
    let mut rings = [0; 16];
    loop {
        let count = pipe.read(&mut rings).await;
        let wakers = std::mem::take(&mut *lock(&waiting));
        wakers.into_iter().for_each(Waker::wake);
        if !matches!(count, Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::sync::oneshot;

    use super::*;

    /// A future that is pending until it was woken from the other thread so many times.
    async fn woken(times: usize, wake: std::sync::mpsc::Sender<Waker>) {
        for _ in 0..times {
            let mut asked = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut asked, true) {
                    return std::task::Poll::Ready(());
                }
                wake.send(cx.waker().clone()).expect("the thread is there");
                std::task::Poll::Pending
            })
            .await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everybody_is_woken_each_time() {
        let bell = Bell::hang().expect("a pipe");
        let (wake, asked) = std::sync::mpsc::channel::<Waker>();
        let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(woken(500, wake.clone()))).collect();
        drop(wake);
        let (ended, end) = oneshot::channel();
        thread::spawn(move || {
            while let Ok(first) = asked.recv() {
                bell.wake(std::iter::once(first).chain(asked.try_iter()).collect());
            }
            let _ = ended.send(());
        });
        for task in tasks {
            task.await.expect("it was woken");
        }
        end.await.expect("nobody is left to be woken");
    }
}
