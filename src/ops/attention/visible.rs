//! Which keys a query sees: always a range, and neither of its ends goes back from one query to the next. So what a tile of queries
//! sees, and who sees a block of keys, are ranges too.

use std::ops::Range;
use std::sync::Arc;

use super::geometry::Geometry;
use super::{Attention, Causal};
use crate::error::{Error, Result};

/// A query sees keys near its own alone: from `left` before it to `right` after it. Its own key is the `i`-th of its sequence, or
/// with [`Causal::BottomRight`] the one that ends together with it. `usize::MAX` is no bound; with a causal mask `right` counts as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlidingWindow {
    /// Keys before a query's own that it sees.
    pub left: usize,
    /// Keys after it.
    pub right: usize,
}

/// Several sequences one after the other in a single sample: a query sees keys of its own sequence, and masks count from where
/// that begins or ends.
///
/// ```
/// use perfrun::ops::attention::Sequences;
/// assert_eq!(&*Sequences::of(&[3, 0, 2]).keys, [0, 3, 3, 5]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sequences {
    /// Where the queries of each sequence begin, and where the last ones end: `cu_seqlens_q` of others.
    pub queries: Arc<[usize]>,
    /// The same of the keys.
    pub keys: Arc<[usize]>,
}

impl Sequences {
    /// Sequences of `lengths` tokens, of which each is a query and a key.
    pub fn of(lengths: &[usize]) -> Sequences {
        // Lengths that no tensor has end at the last number, and are refused with the operands.
        let ends = lengths.iter().scan(0_usize, |end, &n| {
            *end = end.saturating_add(n);
            Some(*end)
        });
        let starts: Arc<[usize]> = std::iter::once(0).chain(ends).collect();
        Sequences { queries: starts.clone(), keys: starts }
    }

    pub(super) fn check(&self, g: &Geometry) -> Result<()> {
        if self.queries.len() != self.keys.len() {
            let (q, k) = (self.queries.len(), self.keys.len());
            return Err(Error::argument(format!(
                "attention: sequences: expected as many places of keys as of queries, found {q} of queries, {k} of keys"
            )));
        }
        for (what, starts, n) in
            [("queries: expected 0 to Nq", &self.queries, g.nq), ("keys: expected 0 to Nk", &self.keys, g.nk)]
        {
            if starts.first() != Some(&0) || starts.last() != Some(&n) || !starts.is_sorted() {
                return Err(Error::argument(format!("attention: sequences: {what}={n}, ascending, found {starts:?}")));
            }
        }
        Ok(())
    }

    /// Queries and keys of the sequence that query `i` is of.
    fn around(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let after = self.queries.partition_point(|&start| start <= i);
        let of = |starts: &[usize]| {
            let at = |i: usize| starts.get(i).copied().unwrap_or_default();
            at(after.saturating_sub(1))..at(after)
        };
        (of(&self.queries), of(&self.keys))
    }
}

/// More keys than there are.
const ALL: i64 = 1 << 28;

/// How far queries see, as kernels have it: query `i` sees keys from `i - before` up to and without `i + after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) before: i64,
    pub(super) after: i64,
}

impl Attention {
    /// Whether all queries of a sample see the same keys.
    pub(super) fn is_even(&self) -> bool {
        self.causal == Causal::None && self.sliding.is_none() && self.sequences.is_none()
    }

    /// Whether anything is hidden from anybody.
    pub(super) fn hides(&self) -> bool {
        !self.is_even() || self.key_lengths.is_some()
    }

    /// In a sequence of these queries and keys.
    pub(super) fn reach(&self, queries: &Range<usize>, keys: &Range<usize>) -> Reach {
        let bound = |n: usize| i64::try_from(n).unwrap_or(ALL).min(ALL);
        let (left, right) = self.sliding.map_or((ALL, ALL), |s| (bound(s.left), bound(s.right)));
        let (right, own) = match self.causal {
            Causal::None => (right, keys.start as i64 - queries.start as i64),
            Causal::TopLeft => (0, keys.start as i64 - queries.start as i64),
            Causal::BottomRight => (0, keys.end as i64 - queries.end as i64),
        };
        Reach { before: left - own, after: right + own + 1 }
    }
}

impl Geometry {
    /// The keys that query `i` of sample `b` sees. Without windows.
    pub(super) fn seen(&self, op: &Attention, b: usize, i: usize) -> Range<usize> {
        let (queries, keys) = match &op.sequences {
            Some(sequences) => sequences.around(i),
            None => (0..self.nq, 0..self.nk),
        };
        let reach = op.reach(&queries, &keys);
        let length = op.key_lengths.as_ref().and_then(|l| l.get(b)).copied().unwrap_or(self.nk);
        let (start, end) = (keys.start.min(length), keys.end.min(length));
        let clamp = |at: i64| usize::try_from(at).unwrap_or(0).clamp(start, end);
        clamp(i as i64 - reach.before)..clamp(i as i64 + reach.after)
    }
}
