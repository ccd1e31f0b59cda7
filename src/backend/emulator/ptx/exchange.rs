//! Data between the lanes of a warp: shuffles, votes, matches, reductions.

use super::cluster::{Cluster, Run, trouble, trouble_at};
use super::exec::Flow;
use super::integer::int2;
use super::op::{I2, Op, Row, Shuffle, Vote};
use super::warp::{Lanes32, Warp, lanes};

impl Cluster<'_> {
    /// Executes an instruction that all lanes of its member mask must execute together.
    pub(super) fn exchange(&mut self, w: &mut Warp, g: usize, pc: u32, op: &Op, m: u32) -> Run<Flow> {
        let code = self.code;
        let member = match *op {
            Op::Shuffle { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Elect { mask, .. }
            | Op::Redux { mask, .. }
            | Op::WarpSync { mask } => *w.r(code, mask),
            Op::ActiveMask { d } => {
                w.set(d, m, &[m; 32]);
                return Ok(Flow::Next);
            }
            _ => return trouble("not an exchange between lanes"),
        };
        if m == 0 {
            return Ok(Flow::Next);
        }
        let mut needed = 0;
        for l in lanes(m) {
            needed |= member[l];
            if member[l] >> l & 1 == 0 {
                return trouble_at(l, format!("the lane is not in its member mask {:#010x}", member[l]));
            }
        }
        if !self.gathered(w, g, pc, needed, false) {
            return Ok(Flow::Regroup);
        }
        // Lanes of the group whose predicate is false stand here but take no part.
        let absent = needed & w.live & !m;
        if absent != 0 {
            let lane = absent.trailing_zeros();
            return trouble(format!("divergent: lane {lane} of the member mask {needed:#010x} does not take part"));
        }
        match *op {
            Op::Shuffle { f, d, p, a, b, c, .. } => return self.shuffle(w, f, [d, p, a, b, c], m),
            Op::Vote { f, d, a, .. } => self.vote(w, f, d, w.p(a), &member, m),
            Op::Match { is_all, is_long, d, p, a, .. } => {
                let value = |l: usize| if is_long { w.d(code, a)[l] } else { u64::from(w.r(code, a)[l]) };
                let mut out: Lanes32 = [0; 32];
                for l in lanes(m) {
                    out[l] = lanes(member[l] & m).fold(0, |bits, k| bits | u32::from(value(k) == value(l)) << k);
                }
                let same = lanes(m).fold(0, |bits, l| bits | u32::from(out[l] == member[l] & m) << l);
                if is_all {
                    for l in lanes(m & !same) {
                        out[l] = 0;
                    }
                    w.set_p(p, m, same);
                }
                w.set(d, m, &out);
            }
            Op::Elect { d, p, .. } => {
                let mut out: Lanes32 = [0; 32];
                let mut leads = 0;
                for l in lanes(m) {
                    out[l] = (member[l] & m).trailing_zeros();
                    leads |= u32::from(out[l] == l as u32) << l;
                }
                w.set(d, m, &out);
                w.set_p(p, m, leads);
            }
            Op::Redux { f, d, a, .. } => {
                let a = *w.r(code, a);
                let mut out: Lanes32 = [0; 32];
                for l in lanes(m) {
                    out[l] = reduce(f, &a, member[l] & m);
                }
                w.set(d, m, &out);
            }
            _ => {}
        }
        Ok(Flow::Next)
    }

    fn shuffle(&mut self, w: &mut Warp, f: Shuffle, [d, p, a, b, c]: [Row; 5], m: u32) -> Run<Flow> {
        let (value, by, limits) = (*w.r(self.code, a), *w.r(self.code, b), *w.r(self.code, c));
        let (mut out, mut inside): (Lanes32, u32) = ([0; 32], 0);
        for l in lanes(m) {
            let lane = l as u32;
            // Bits 8 to 12 of `c` cut the warp into segments, bits 0 to 4 clamp.
            let (segment, clamp, by) = (limits[l] >> 8 & 31, limits[l] & 31, by[l] & 31);
            let most = (lane & segment) | (clamp & !segment);
            let least = lane & segment;
            let (from, is_inside) = match f {
                Shuffle::Up => (lane as i32 - by as i32, lane as i32 - by as i32 >= most as i32),
                Shuffle::Down => ((lane + by) as i32, lane + by <= most),
                Shuffle::Butterfly => ((lane ^ by) as i32, lane ^ by <= most),
                Shuffle::Index => {
                    let from = least | (by & !segment);
                    (from as i32, from <= most)
                }
            };
            let from = if is_inside { from as usize } else { l };
            if m >> from & 1 == 0 {
                return trouble_at(l, format!("divergent: the lane reads lane {from}, which does not take part"));
            }
            out[l] = value[from];
            inside |= u32::from(is_inside) << l;
        }
        w.set(d, m, &out);
        w.set_p(p, m, inside);
        Ok(Flow::Next)
    }

    fn vote(&mut self, w: &mut Warp, f: Vote, d: Row, votes: u32, member: &Lanes32, m: u32) {
        let mut out: Lanes32 = [0; 32];
        let mut bits = 0;
        for l in lanes(m) {
            let all = member[l] & m;
            let yes = votes & all;
            out[l] = yes;
            let holds = match f {
                Vote::All => yes == all,
                Vote::Any => yes != 0,
                Vote::Uniform => yes == all || yes == 0,
                Vote::Ballot => false,
            };
            bits |= u32::from(holds) << l;
        }
        if f == Vote::Ballot { w.set(d, m, &out) } else { w.set_p(d, m, bits) }
    }
}

fn reduce(f: I2, a: &Lanes32, mask: u32) -> u32 {
    let mut found = lanes(mask).map(|l| a[l]);
    let first = found.next().unwrap_or(0);
    found.fold(first, |x, y| int2(f, &[x; 32], &[y; 32])[0])
}
