//! Dropout and stochastic depth: masks are functions of seed, pass, place and element, so nothing is stored.

use crate::error::Result;
use crate::nn::{Pass, Scope, Site};
use crate::ops::drop_path::DropPath as DropPathOp;
use crate::ops::dropout::Dropout as DropoutOp;
use crate::tape::{Tape, Var};

/// Drops numbers with probability `p` in training, scales the others by `1/(1 − p)`.
///
/// # Shapes
/// Any; unchanged.
///
/// # Parameters
/// None.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    p: f32,
    site: Site,
}

impl Dropout {
    /// Dropout with probability `p` of dropping.
    pub fn new(scope: &mut Scope<'_>, p: f64) -> Dropout {
        Dropout { p: p as f32, site: scope.site() }
    }

    /// Probability of dropping in this pass.
    pub fn p(&self, pass: &Pass) -> f32 {
        if pass.train { self.p } else { 0.0 }
    }

    /// Where the random numbers come from.
    pub fn site(&self) -> Site {
        self.site
    }

    /// Drops.
    ///
    /// # Errors
    /// As [`DropoutOp`].
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        if self.p(pass) == 0.0 {
            return Ok(x);
        }
        tape.apply(DropoutOp { p: self.p, stream: pass.stream(self.site) }, [x])
    }
}

/// Drops whole samples of a residual branch with probability `p` in training, scales the others by `1/(1 − p)`.
///
/// # Shapes
/// `[B, ..]`; unchanged.
///
/// # Parameters
/// None.
///
/// # Source
/// Huang et al. 2016, "Deep networks with stochastic depth".
#[derive(Clone, Copy, Debug)]
pub struct DropPath {
    p: f32,
    site: Site,
}

impl DropPath {
    /// Stochastic depth with probability `p` of dropping.
    pub fn new(scope: &mut Scope<'_>, p: f64) -> DropPath {
        DropPath { p: p as f32, site: scope.site() }
    }

    /// Drops.
    ///
    /// # Errors
    /// As [`DropPathOp`].
    pub fn forward(&self, tape: &mut Tape<'_>, x: Var, pass: &Pass) -> Result<Var> {
        if !pass.train || self.p == 0.0 {
            return Ok(x);
        }
        tape.apply(DropPathOp { p: self.p, stream: pass.stream(self.site) }, [x])
    }
}
