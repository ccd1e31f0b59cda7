//! Reading ahead on threads.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Batches, Dataset};
use crate::error::{Error, Result};

/// The batches of an epoch in their order, read ahead by threads.
///
/// What comes out does not depend on the number of threads. At most `ahead` batches are held or being read beyond the one
/// that was given last. After an error, which comes at the place of the batch that failed, there is nothing more.
/// Dropping it stops the threads after the batch that each is reading.
pub struct Prefetch<B> {
    source: Source<B>,
    next: usize,
    end: usize,
    waits: u64,
    waited: Duration,
}

enum Source<B> {
    // Read when asked: no threads.
    Direct(Box<dyn Fn(usize) -> Result<B> + Send>),
    Threads { shared: Arc<Shared<B>>, handles: Vec<JoinHandle<()>> },
}

struct Shared<B> {
    state: Mutex<State<B>>,
    // A batch is ready, or the threads have ended.
    ready: Condvar,
    // There is room to read another, or to stop.
    room: Condvar,
}

struct State<B> {
    done: BTreeMap<usize, Result<B>>,
    // The next batch that no thread has taken.
    untaken: usize,
    // The next batch to give out.
    given: usize,
    stop: bool,
}

impl<B> fmt::Debug for Prefetch<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = match &self.source {
            Source::Direct(_) => 0,
            Source::Threads { handles, .. } => handles.len(),
        };
        f.debug_struct("Prefetch")
            .field("next", &self.next)
            .field("end", &self.end)
            .field("threads", &threads)
            .finish_non_exhaustive()
    }
}

impl<B: Send + 'static> Prefetch<B> {
    /// Starts reading `batches` of `data` from batch `start` on with `workers` threads, each with room for two batches;
    /// with 0 threads a batch is read when it is asked for.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no thread.
    pub fn new<D>(data: Arc<D>, batches: Batches, start: usize, workers: usize) -> Result<Prefetch<B>>
    where
        D: Dataset<Batch = B> + ?Sized + 'static,
    {
        Prefetch::with_room(data, batches, start, workers, workers.saturating_mul(2))
    }

    /// As [`Prefetch::new`], with room for `ahead` batches (at least 1).
    ///
    /// # Errors
    /// As [`Prefetch::new`].
    pub fn with_room<D>(
        data: Arc<D>,
        batches: Batches,
        start: usize,
        workers: usize,
        ahead: usize,
    ) -> Result<Prefetch<B>>
    where
        D: Dataset<Batch = B> + ?Sized + 'static,
    {
        let end = batches.len();
        let read = move |i: usize| match batches.get(i) {
            // A reader that panics must not leave the consumer waiting for ever.
            Some(indices) => catch_unwind(AssertUnwindSafe(|| data.batch(indices))).unwrap_or_else(|_| {
                Err(Error::data(format!("batch {i}: the reader panicked; this is a fault of the program")))
            }),
            None => Err(Error::argument(format!("batch {i}: expected a batch below {end}"))),
        };
        let workers = workers.min(end.saturating_sub(start));
        let source = if workers == 0 {
            Source::Direct(Box::new(read))
        } else {
            start_threads(Arc::new(read), start, end, workers, ahead.max(1))?
        };
        Ok(Prefetch { source, next: start, end, waits: 0, waited: Duration::ZERO })
    }
}

impl<B> Prefetch<B> {
    /// How often a batch was not ready when it was asked for.
    pub fn waits(&self) -> u64 {
        self.waits
    }

    /// How long the caller has waited for batches: much of the run's time means that reading is what limits it.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<B> Iterator for Prefetch<B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Result<B>> {
        if self.next >= self.end {
            return None;
        }
        let begun = Instant::now();
        let (batch, was_ready) = match &self.source {
            Source::Direct(read) => (read(self.next), false),
            Source::Threads { shared, .. } => shared.take(self.next),
        };
        if !was_ready {
            self.waits += 1;
            self.waited += begun.elapsed();
        }
        self.next = if batch.is_ok() { self.next + 1 } else { self.end };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error ends it early.
        (usize::from(self.next < self.end), Some(self.end - self.next.min(self.end)))
    }
}

impl<B> Drop for Prefetch<B> {
    fn drop(&mut self) {
        if let Source::Threads { shared, handles } = &mut self.source {
            stop(shared, handles);
        }
    }
}

fn stop<B>(shared: &Shared<B>, handles: &mut Vec<JoinHandle<()>>) {
    shared.lock().stop = true;
    shared.room.notify_all();
    for handle in handles.drain(..) {
        // Threads catch the reader's panics, so there is nothing to learn from the result.
        let _ = handle.join();
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        // Nothing panics while it holds the lock, so the state is whole even if the lock says otherwise.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for batch `i`, and whether it was there at once.
    fn take(&self, i: usize) -> (Result<B>, bool) {
        let mut state = self.lock();
        let mut was_ready = true;
        loop {
            if let Some(batch) = state.done.remove(&i) {
                state.given = i + 1;
                self.room.notify_all();
                return (batch, was_ready);
            }
            was_ready = false;
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next batch for a thread to read; `None` to end.
    fn claim(&self, end: usize, ahead: usize) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.stop || state.untaken >= end {
                return None;
            }
            if state.untaken < state.given.saturating_add(ahead) {
                state.untaken += 1;
                return Some(state.untaken - 1);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put(&self, i: usize, batch: Result<B>) {
        let mut state = self.lock();
        // What comes after an error is never given out.
        state.stop |= batch.is_err();
        state.done.insert(i, batch);
        drop(state);
        self.ready.notify_all();
    }
}

fn start_threads<B: Send + 'static>(
    read: Arc<impl Fn(usize) -> Result<B> + Send + Sync + 'static>,
    start: usize,
    end: usize,
    workers: usize,
    ahead: usize,
) -> Result<Source<B>> {
    let state = State { done: BTreeMap::new(), untaken: start, given: start, stop: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), ready: Condvar::new(), room: Condvar::new() });
    let mut handles = Vec::with_capacity(workers);
    for k in 0..workers {
        let (thread_shared, thread_read) = (Arc::clone(&shared), Arc::clone(&read));
        let spawned = std::thread::Builder::new().name(format!("data-{k}")).spawn(move || {
            while let Some(i) = thread_shared.claim(end, ahead) {
                thread_shared.put(i, thread_read(i));
            }
        });
        match spawned {
            Ok(handle) => handles.push(handle),
            Err(e) => {
                stop(&shared, &mut handles);
                return Err(Error::io("start a thread that reads", "data")(e));
            }
        }
    }
    Ok(Source::Threads { shared, handles })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Gives back its indices; fails or panics at chosen samples; counts how often it was asked.
    #[derive(Default)]
    struct Echo {
        fail_at: Option<usize>,
        panic_at: Option<usize>,
        asked: AtomicUsize,
    }

    impl Dataset for Echo {
        type Batch = Vec<usize>;

        fn len(&self) -> usize {
            40
        }

        fn batch(&self, indices: &[usize]) -> Result<Vec<usize>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            assert!(!indices.iter().any(|&i| Some(i) == self.panic_at), "planted");
            match indices.iter().find(|&&i| Some(i) == self.fail_at) {
                Some(i) => Err(Error::data(format!("sample {i} is broken"))),
                None => Ok(indices.to_vec()),
            }
        }
    }

    fn batches() -> Batches {
        Batches::new(40, 4, false, Some((super::super::Shuffle::new(3), 0))).unwrap()
    }

    fn all(data: Echo, start: usize, workers: usize) -> Vec<Result<Vec<usize>>> {
        Prefetch::new(Arc::new(data), batches(), start, workers).unwrap().collect()
    }

    #[test]
    fn batches_come_in_order_whatever_the_number_of_threads() {
        let expected: Vec<_> = (0..10).map(|i| batches().get(i).unwrap().to_vec()).collect();
        for workers in [0, 1, 2, 3, 7, 64] {
            let got: Vec<_> = all(Echo::default(), 0, workers).into_iter().map(Result::unwrap).collect();
            assert_eq!(got, expected, "{workers} threads");
            let rest: Vec<_> = all(Echo::default(), 7, workers).into_iter().map(Result::unwrap).collect();
            assert_eq!(rest, expected[7..], "{workers} threads from batch 7");
        }
        assert!(all(Echo::default(), 10, 2).is_empty());
    }

    #[test]
    fn an_error_comes_in_its_place_and_is_the_last() {
        for workers in [0, 1, 3] {
            let sample = batches().get(6).unwrap()[2];
            let got = all(Echo { fail_at: Some(sample), ..Default::default() }, 0, workers);
            assert_eq!(got.len(), 7, "{workers} threads");
            assert!(got[..6].iter().all(Result::is_ok));
            assert_eq!(got[6].as_ref().unwrap_err().to_string(), format!("sample {sample} is broken"));
        }
    }

    #[test]
    fn a_reader_that_panics_is_an_error_and_nobody_waits_for_ever() {
        for workers in [0, 2] {
            let sample = batches().get(1).unwrap()[0];
            let got = all(Echo { panic_at: Some(sample), ..Default::default() }, 0, workers);
            assert_eq!(got.len(), 2);
            assert!(got[1].as_ref().unwrap_err().to_string().starts_with("batch 1: the reader panicked"));
        }
    }

    #[test]
    fn no_more_is_read_ahead_than_there_is_room_for() {
        let data = Arc::new(Echo::default());
        let mut ahead = Prefetch::with_room(Arc::clone(&data), batches(), 0, 2, 3).unwrap();
        for given in 1..=5 {
            ahead.next().unwrap().unwrap();
            assert!(data.asked.load(Ordering::SeqCst) <= given + 3);
        }
        drop(ahead);
        assert!(data.asked.load(Ordering::SeqCst) <= 8);
        // Only this handle is left: the threads have ended.
        assert_eq!(Arc::strong_count(&data), 1);
    }
}
