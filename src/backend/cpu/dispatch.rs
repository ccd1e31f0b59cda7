//! What this CPU can do, and code compiled once for each answer.
//!
//! A body written as plain Rust loops is compiled for AVX-512, for AVX2 with FMA and for the target's baseline; [`run`]
//! picks one when the program runs. The macro `wide!` writes the wrapper:
//!
//! ```text
//! wide! {
//!     /// y = a x + y.
//!     pub fn axpy<F>(a: f32, x: &[f32], y: &mut [f32]) {
//!         for (y, &x) in y.iter_mut().zip(x) {
//!             *y = F::fma(a, x, *y);
//!         }
//!     }
//! }
//! ```
//!
//! Write loops, not closures: what is not inlined into the body is compiled for the baseline, and a fused multiply-add there
//! is a call of the C library. Functions that a body calls must be `#[inline(always)]`.
//!
//! Inside, `F:` [`Arith`] gives the fused multiply-add that the instruction set has. Results do not depend on the
//! instruction set as long as `F` is used with values whose emulation is exact enough; they never depend on threads.
#![allow(unsafe_code, reason = "a function compiled for an instruction set may only be called where the CPU has it")]

use std::sync::OnceLock;

/// An instruction set that bodies are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 with fused multiply-add and half-precision conversion.
    Avx2,
    /// AVX-512 F, BW, DQ, VL beside all of [`Level::Avx2`].
    Avx512,
}

/// The best instruction set of this CPU.
pub fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = forced::level() {
        return level;
    }
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// Multiply-add of an instruction set.
pub trait Arith {
    /// `a·b + c`, rounded once ([`Fused`]) or, in [`Emulated`], through f64, which differs from it in rare half-way cases.
    fn fma(a: f32, b: f32, c: f32) -> f32;

    /// `a·b + c` as the register tile of matrix products computes it: for a sum that must cancel with one of theirs.
    #[inline(always)]
    fn mac(a: f32, b: f32, c: f32) -> f32 {
        Self::fma(a, b, c)
    }
}

/// The hardware's fused multiply-add.
#[derive(Debug, Clone, Copy)]
pub struct Fused;

/// Multiply-add through f64 where there is no fused one.
#[derive(Debug, Clone, Copy)]
pub struct Emulated;

impl Arith for Fused {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Arith for Emulated {
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        (f64::from(a) * f64::from(b) + f64::from(c)) as f32
    }

    #[inline(always)]
    fn mac(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// A body to compile for each instruction set. `call` must be `#[inline(always)]`, else it is compiled for the baseline only.
pub trait Body<A> {
    /// What it returns.
    type Out;
    /// The loops.
    fn call<F: Arith>(args: A) -> Self::Out;
}

/// Calls `B` as compiled for this CPU.
#[inline]
pub fn run<B: Body<A>, A>(args: A) -> B::Out {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: `level` says Avx512 only after it has found every feature that `avx512` is compiled for.
        Level::Avx512 => return unsafe { avx512::<B, A>(args) },
        // SAFETY: `level` says Avx2 only after it has found every feature that `avx2` is compiled for.
        Level::Avx2 => return unsafe { avx2::<B, A>(args) },
        Level::Portable => {}
    }
    portable::<B, A>(args)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn avx512<B: Body<A>, A>(args: A) -> B::Out {
    B::call::<Fused>(args)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<B: Body<A>, A>(args: A) -> B::Out {
    B::call::<Fused>(args)
}

fn portable<B: Body<A>, A>(args: A) -> B::Out {
    if cfg!(target_arch = "aarch64") { B::call::<Fused>(args) } else { B::call::<Emulated>(args) }
}

/// Writes a function whose body is compiled for each instruction set; see the module.
macro_rules! wide {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident<$F:ident>($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)+) => {$(
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            struct Tag;
            impl $crate::backend::cpu::dispatch::Body<($($type,)*)> for Tag {
                type Out = wide!(@out $($out)?);
                #[inline(always)]
                fn call<$F: $crate::backend::cpu::dispatch::Arith>(($($arg,)*): ($($type,)*)) -> Self::Out $body
            }
            $crate::backend::cpu::dispatch::run::<Tag, _>(($($arg,)*))
        }
    )+};
    (@out) => { () };
    (@out $out:ty) => { $out };
}
pub(crate) use wide;

/// A lower instruction set for the tests of the current thread.
#[cfg(test)]
pub(super) mod forced {
    use super::Level;
    use std::cell::Cell;

    thread_local! {
        static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    pub(super) fn level() -> Option<Level> {
        FORCED.get()
    }

    /// Runs `f` at each level that this CPU has, on the calling thread.
    pub(in crate::backend::cpu) fn each_level(mut f: impl FnMut(Level)) {
        for level in [Level::Portable, Level::Avx2, Level::Avx512] {
            if level <= super::detect() {
                FORCED.set(Some(level));
                f(level);
                FORCED.set(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    wide! {
        fn axpy<F>(a: f32, x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = F::fma(a, x, *y);
            }
        }
    }

    #[test]
    fn a_body_gives_the_same_at_every_level() {
        let x: Vec<f32> = (0..77).map(|i| i as f32 * 0.3 - 9.0).collect();
        forced::each_level(|level| {
            let mut y: Vec<f32> = x.iter().rev().copied().collect();
            axpy(1.25, &x, &mut y);
            for (i, y) in y.iter().enumerate() {
                assert_eq!(*y, 1.25f32.mul_add(x[i], x[76 - i]), "{level:?}");
            }
        });
    }
}
