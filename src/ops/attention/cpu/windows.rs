//! Windows on the CPU: tokens that see each other are gathered, and every such group is attention of its own.

use super::{backward, forward};
use crate::ops::attention::Attention;
use crate::ops::attention::geometry::{Geometry, Place};
use crate::ops::attention::windows::Windows;
use crate::ops::operator::{RefBackward, RefInput};
use crate::tensor::Spec;

/// Tokens and places of a group.
type Group = [(usize, usize)];

/// A group's application: all samples, q, k, v, bias side by side.
fn geometry(g: &Geometry, group: &Group) -> Geometry {
    let n = group.len();
    let place = |input: usize, heads: usize| Place { input, offset: 0, row: heads * g.d };
    Geometry {
        nq: n,
        nk: n,
        q: place(0, g.heads),
        k: place(1, g.kv_heads),
        v: place(2, g.kv_heads),
        bias: g.bias.map(|_| 3),
        y: vec![g.batch, n, g.heads, g.d],
        windows: None,
        ..g.clone()
    }
}

/// Calls `f(token of all samples, its number in the group of all samples)`.
fn each_token(g: &Geometry, group: &Group, mut f: impl FnMut(usize, usize)) {
    for b in 0..g.batch {
        for (i, &(token, _)) in group.iter().enumerate() {
            f(b * g.nq + token, b * group.len() + i);
        }
    }
}

/// `width` numbers of every token of the group, from rows of `place`.
fn gather(g: &Geometry, group: &Group, x: &[f32], place: Place, width: usize) -> Vec<f32> {
    let mut to = vec![0.0; g.batch * group.len() * width];
    each_token(g, group, |token, i| {
        to[i * width..][..width].copy_from_slice(&x[place.offset + token * place.row..][..width]);
    });
    to
}

/// Calls `f` with where a number of a `[B, H, N]` tensor lies, and where that of the group's.
fn each_row(g: &Geometry, group: &Group, mut f: impl FnMut(usize, usize)) {
    for row in 0..g.batch * g.heads {
        for (i, &(token, _)) in group.iter().enumerate() {
            f(row * g.nq + token, row * group.len() + i);
        }
    }
}

/// The same of the bias.
fn each_pair(g: &Geometry, group: &Group, n: usize, mut f: impl FnMut(usize, usize)) {
    let mut at = 0;
    for h in 0..g.heads {
        for &(_, i) in group {
            for &(_, j) in group {
                f((h * n + i) * n + j, at);
                at += 1;
            }
        }
    }
}

/// Inputs of a group: q, k, v, and the bias if there is one.
fn inputs(g: &Geometry, windows: &Windows, group: &Group, x: &[RefInput<'_, f32>]) -> Vec<Vec<f32>> {
    let widths = [g.heads, g.kv_heads, g.kv_heads].map(|h| h * g.d);
    let places = [g.q, g.k, g.v];
    let mut all: Vec<Vec<f32>> =
        places.iter().zip(widths).map(|(&place, width)| gather(g, group, &x[place.input], place, width)).collect();
    if let Some(at) = g.bias {
        let mut bias = vec![0.0; g.heads * group.len() * group.len()];
        each_pair(g, group, windows.tokens(), |from, to| bias[to] = x[at][from]);
        all.push(bias);
    }
    all
}

fn views<'a>(spec: &'a Spec, x: &'a [Vec<f32>]) -> Vec<RefInput<'a, f32>> {
    x.iter().map(|v| RefInput { spec, v, ints: &[] }).collect()
}

/// Where the tokens of a contiguous `[B, N, H, D]` tensor lie.
fn rows(g: &Geometry) -> Place {
    Place { input: 0, offset: 0, row: g.heads * g.d }
}

pub(in super::super) fn forward_windows(
    op: &Attention,
    g: &Geometry,
    windows: &Windows,
    x: &[RefInput<'_, f32>],
    (y, lse): (&mut [f32], &mut [f32]),
) {
    let (Some(first), width) = (x.first(), g.heads * g.d) else { return };
    for group in windows.groups() {
        let own = geometry(g, &group);
        let there = inputs(g, windows, &group, x);
        let mut part = vec![0.0; g.batch * group.len() * width];
        let mut logs = vec![0.0; g.batch * g.heads * group.len()];
        forward(op, &own, &views(first.spec, &there), &mut part, &mut logs);
        each_token(g, &group, |token, i| y[token * width..][..width].copy_from_slice(&part[i * width..][..width]));
        each_row(g, &group, |to, from| lse[to] = logs[from]);
    }
}

pub(in super::super) fn backward_windows(op: &Attention, g: &Geometry, windows: &Windows, io: RefBackward<'_, f32>) {
    let ([y], [lse], [dy], Some(first)) = (io.y, io.saved, io.dy, io.x.first()) else { return };
    for group in windows.groups() {
        let own = geometry(g, &group);
        let there = inputs(g, windows, &group, io.x);
        let [y, dy] = [y, dy].map(|x| gather(g, &group, x, rows(g), g.heads * g.d));
        let mut logs = vec![0.0; g.batch * g.heads * group.len()];
        each_row(g, &group, |from, to| logs[to] = lse[from]);
        let mut parts: Vec<Vec<f32>> = there.iter().map(|x| vec![0.0; x.len()]).collect();
        let places = [(0, g.q), (1, g.k), (2, g.v)];
        {
            let wanted = |i: usize| match places.get(i) {
                Some((_, place)) => io.dx[place.input].is_some(),
                None => g.bias.is_some_and(|at| io.dx[at].is_some()),
            };
            let mut dx: Vec<Option<&mut [f32]>> =
                parts.iter_mut().enumerate().map(|(i, d)| wanted(i).then_some(&mut d[..])).collect();
            let x = views(first.spec, &there);
            backward(op, &own, RefBackward { x: &x, y: &[&y], saved: &[&logs], dy: &[&dy], dx: &mut dx });
        }
        for (part, place) in places {
            let width = parts[part].len() / (g.batch * group.len()).max(1);
            let Some(to) = io.dx[place.input].as_deref_mut() else { continue };
            each_token(g, &group, |token, i| {
                let to = &mut to[place.offset + token * place.row..][..width];
                to.iter_mut().zip(&parts[part][i * width..]).for_each(|(to, d)| *to += d);
            });
        }
        if let Some(to) = g.bias.and_then(|at| io.dx[at].as_deref_mut()) {
            each_pair(g, &group, windows.tokens(), |at, from| to[at] += parts[3][from]);
        }
    }
}
