//! In which order warps run and when asynchronous work lands: the freedom that hardware has and a kernel may not feel.
//!
//! A kernel that is right gives the same bits under every schedule. One that lacks a barrier or a wait differs under at
//! least one of them, or is caught by the race detector.

/// How an emulated device orders what the programming model leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Schedule {
    /// Which warp of a block, and which block of a grid, goes first.
    pub order: Order,
    /// When asynchronous work is done.
    pub asynchrony: Asynchrony,
}

/// Which of the warps that can run goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Order {
    /// By rising index, each as far as it gets.
    #[default]
    Forward,
    /// By falling index, each as far as it gets.
    Reverse,
    /// Drawn anew at every turn, for a drawn number of instructions: the seed decides.
    Shuffled(u64),
}

/// When work that an instruction only starts (copies, matrix products, loads of a wave) is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Asynchrony {
    /// At once: finds a buffer that is overwritten while it is still read.
    #[default]
    Early,
    /// As late as the waits allow: finds a missing wait.
    Late,
}

impl Schedule {
    /// One of each order, early and late, enough to make a missing barrier or wait visible.
    pub const ALL: [Schedule; 4] = [
        Schedule { order: Order::Forward, asynchrony: Asynchrony::Early },
        Schedule { order: Order::Reverse, asynchrony: Asynchrony::Late },
        Schedule { order: Order::Shuffled(1), asynchrony: Asynchrony::Early },
        Schedule { order: Order::Shuffled(2), asynchrony: Asynchrony::Late },
    ];
}

impl Order {
    /// The choices for one block (or cluster, or grid) with number `index`, the same in every run.
    pub fn turns(self, index: u64) -> Turns {
        let seed = if let Order::Shuffled(seed) = self { seed } else { 0 };
        Turns { order: self, state: mix(seed ^ mix(index)) }
    }
}

/// A stream of scheduling choices. It depends on the schedule and on the block alone, never on threads.
#[derive(Clone, Debug)]
pub struct Turns {
    order: Order,
    state: u64,
}

impl Turns {
    /// Which of `n` warps that can run goes next; `n` is at least 1.
    pub fn pick(&mut self, n: usize) -> usize {
        match self.order {
            Order::Forward => 0,
            Order::Reverse => n.saturating_sub(1),
            Order::Shuffled(_) => (self.draw() % n.max(1) as u64) as usize,
        }
    }

    /// For how many instructions it goes on, unless it has to wait before.
    pub fn slice(&mut self) -> u32 {
        match self.order {
            Order::Forward | Order::Reverse => u32::MAX,
            // Short enough to interleave inside a loop body, long enough to be cheap.
            Order::Shuffled(_) => 1 + (self.draw() % 96) as u32,
        }
    }

    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit of `x`.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_differ_and_repeat() {
        let draw = |order: Order, index| {
            let mut turns = order.turns(index);
            (0..20).map(|_| turns.pick(8)).collect::<Vec<_>>()
        };
        assert_eq!(draw(Order::Forward, 0), [0; 20]);
        assert_eq!(draw(Order::Reverse, 0), [7; 20]);
        assert_eq!(draw(Order::Shuffled(1), 5), draw(Order::Shuffled(1), 5));
        assert_ne!(draw(Order::Shuffled(1), 5), draw(Order::Shuffled(1), 6));
        assert_ne!(draw(Order::Shuffled(1), 5), draw(Order::Shuffled(2), 5));
    }
}
