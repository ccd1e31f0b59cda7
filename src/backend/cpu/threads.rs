//! Work split over rayon so that the result does not depend on the number of threads.
//!
//! Pieces are cut at boundaries that follow from the amount of work alone, and partial results are combined in the order
//! of the pieces. Work that costs less than waking a thread stays on the caller. A caller that is itself a worker of the
//! pool (`pool.install(|| ..)`) pays nanoseconds for a split, any other thread pays microseconds: put a whole training
//! run inside `install`.
//!
//! ```
//! use perfrun::backend::cpu::threads::{Rows, RowsMut, rows};
//! let x = vec![1.0f32; 6 * 4];
//! let mut sums = vec![0.0f32; 6];
//! rows(6, 4, (Rows::new(&x, 4), RowsMut::new(&mut sums, 1)), |_first, (x, sums)| {
//!     for (s, row) in sums.data.iter_mut().zip(x.data.chunks(4)) {
//!         *s = row.iter().sum();
//!     }
//! });
//! assert_eq!(sums, [4.0; 6]);
//! ```

use std::ops::Range;

use rayon::prelude::*;

/// Work of one piece, in arithmetic operations (count a value read from memory and written back as eight): about ten
/// microseconds of one thread.
pub const PIECE: usize = 128 * 1024;

/// How many threads the current pool has.
pub fn count() -> usize {
    rayon::current_num_threads()
}

/// Whether `work` operations are worth more than one thread.
pub fn worth(work: usize) -> bool {
    work >= 2 * PIECE && count() > 1
}

/// Something that consists of rows and can be cut between two of them.
pub trait Parts: Send + Sized {
    /// The first `row` rows, and the others.
    fn cut(self, row: usize) -> (Self, Self);
}

/// Rows of `width` values that are read.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a, T> {
    /// The values of these rows.
    pub data: &'a [T],
    /// Values a row.
    pub width: usize,
}

/// Rows of `width` values that are written.
#[derive(Debug)]
pub struct RowsMut<'a, T> {
    /// The values of these rows.
    pub data: &'a mut [T],
    /// Values a row.
    pub width: usize,
}

impl<'a, T> Rows<'a, T> {
    /// `data` as rows of `width` values.
    pub fn new(data: &'a [T], width: usize) -> Self {
        Rows { data, width }
    }
}

impl<'a, T> RowsMut<'a, T> {
    /// `data` as rows of `width` values.
    pub fn new(data: &'a mut [T], width: usize) -> Self {
        RowsMut { data, width }
    }
}

impl<T: Sync> Parts for Rows<'_, T> {
    fn cut(self, row: usize) -> (Self, Self) {
        let (a, b) = self.data.split_at(row.saturating_mul(self.width).min(self.data.len()));
        (Rows { data: a, ..self }, Rows { data: b, ..self })
    }
}

impl<T: Send> Parts for RowsMut<'_, T> {
    fn cut(self, row: usize) -> (Self, Self) {
        let at = row.saturating_mul(self.width).min(self.data.len());
        let (a, b) = self.data.split_at_mut(at);
        (RowsMut { data: a, width: self.width }, RowsMut { data: b, width: self.width })
    }
}

impl Parts for () {
    fn cut(self, _: usize) -> (Self, Self) {
        ((), ())
    }
}

macro_rules! tuple_parts {
    ($($name:ident)+) => {
        impl<$($name: Parts),+> Parts for ($($name,)+) {
            #[allow(non_snake_case, reason = "one name for the type and its value")]
            fn cut(self, row: usize) -> (Self, Self) {
                let ($($name,)+) = self;
                $(let $name = $name.cut(row);)+
                (($($name.0,)+), ($($name.1,)+))
            }
        }
    };
}
tuple_parts!(A);
tuple_parts!(A B);
tuple_parts!(A B C);
tuple_parts!(A B C D);
tuple_parts!(A B C D E);
tuple_parts!(A B C D E F);
tuple_parts!(A B C D E F G);
tuple_parts!(A B C D E F G H);

/// Rows in one piece of work.
fn piece_rows(work_per_row: usize) -> usize {
    (PIECE / work_per_row.max(1)).max(1)
}

/// Calls `f(first, parts)` for pieces of `rows` rows that together cover all of them, each row once. `first` is the
/// piece's first row. `work_per_row` is counted as in [`PIECE`].
pub fn rows<P: Parts>(rows: usize, work_per_row: usize, parts: P, f: impl Fn(usize, P) + Sync) {
    if rows == 0 {
        return;
    }
    let piece = piece_rows(work_per_row);
    let threads = if worth(rows.saturating_mul(work_per_row)) { count() } else { 1 };
    descend(0, rows, piece, threads > 1, parts, &f);
}

fn descend<P: Parts>(first: usize, rows: usize, piece: usize, spawn: bool, parts: P, f: &(impl Fn(usize, P) + Sync)) {
    if rows <= piece {
        return f(first, parts);
    }
    let left = rows.div_ceil(piece).div_ceil(2) * piece;
    let (a, b) = parts.cut(left);
    if spawn {
        rayon::join(
            || descend(first, left, piece, true, a, f),
            || descend(first + left, rows - left, piece, true, b, f),
        );
    } else {
        descend(first, left, piece, false, a, f);
        descend(first + left, rows - left, piece, false, b, f);
    }
}

/// Maps pieces of the rows `0..rows` to partial results and folds these in the order of the pieces; `None` without rows.
/// The pieces are the same for any number of threads, so the result is too.
pub fn reduce<R: Send>(
    rows: usize,
    work_per_row: usize,
    map: impl Fn(Range<usize>) -> R + Sync,
    fold: impl FnMut(R, R) -> R,
) -> Option<R> {
    let piece = piece_rows(work_per_row);
    let range = |i: usize| i * piece..(i * piece).saturating_add(piece).min(rows);
    let pieces = rows.div_ceil(piece);
    if worth(rows.saturating_mul(work_per_row)) {
        let parts: Vec<R> = (0..pieces).into_par_iter().with_max_len(1).map(|i| map(range(i))).collect();
        parts.into_iter().reduce(fold)
    } else {
        (0..pieces).map(|i| map(range(i))).reduce(fold)
    }
}

/// Calls `f` for every item; `work` is that of all items together, counted as in [`PIECE`]. Each item is a unit of
/// stealing: make a few for every thread.
pub fn each<T: Send>(work: usize, items: Vec<T>, f: impl Fn(T) + Sync) {
    if items.len() > 1 && worth(work) {
        items.into_par_iter().with_max_len(1).for_each(&f);
    } else {
        items.into_iter().for_each(f);
    }
}

#[cfg(test)]
pub(super) fn in_pool<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once_with_its_own_index() {
        for (n, work) in [(0, 1), (1, 1), (7, PIECE), (1000, PIECE / 3), (100_000, 8)] {
            for threads in [1, 2, 3, 5] {
                let mut seen = vec![0usize; n * 2];
                let index: Vec<usize> = (0..n).collect();
                in_pool(threads, || {
                    rows(n, work, (RowsMut::new(&mut seen, 2), Rows::new(&index, 1)), |first, (seen, index)| {
                        assert_eq!(seen.data.len(), 2 * index.data.len());
                        for (i, s) in seen.data.chunks_mut(2).enumerate() {
                            assert_eq!(index.data[i], first + i);
                            s[0] += first + i;
                            s[1] += 1;
                        }
                    });
                });
                assert!((0..n).all(|i| seen[2 * i] == i && seen[2 * i + 1] == 1), "{n} rows, {threads} threads");
            }
        }
    }

    #[test]
    fn a_reduction_has_the_same_bits_for_any_number_of_threads() {
        let x: Vec<f32> = (0..200_000).map(|i| ((i * 7919) % 1009) as f32 * 0.37 - 180.0).collect();
        let sum = |threads| {
            in_pool(threads, || reduce(x.len(), 8, |r| x[r].iter().sum::<f32>(), |a, b| a + b).unwrap().to_bits())
        };
        let one = sum(1);
        assert!([2, 3, 5].iter().all(|&t| sum(t) == one));
        assert!(reduce(0, 1, |_| 1.0, |a: f64, b| a + b).is_none());
    }

    #[test]
    fn partial_results_are_folded_in_order() {
        let order = in_pool(3, || {
            reduce(
                50,
                PIECE,
                |r| vec![r.start],
                |mut a, b| {
                    a.extend(b);
                    a
                },
            )
        });
        assert_eq!(order.unwrap(), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn small_work_stays_on_the_caller() {
        let caller = std::thread::current().id();
        rows(100, 500, (), |_, ()| assert_eq!(std::thread::current().id(), caller));
        each(PIECE, vec![1, 2, 3], |_| assert_eq!(std::thread::current().id(), caller));
    }
}
