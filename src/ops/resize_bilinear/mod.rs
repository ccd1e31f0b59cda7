//! `resize_bilinear`: images on another grid, each number between its four neighbours.

pub(super) mod launch;
mod planes;

use crate::backend::Exec;
use crate::cost::Flops;
use crate::error::{Error, Result};
use crate::ops::blocks::{Floats, In, Out, TOUCH, map, no_gradient, wrong_operands};
use crate::ops::contract::{BadCase, Case, Input, Room};
use crate::ops::operator::{
    Arity, Backward, Differentiable, Forward, Keeps, Mask, OpFlops, Operator, Outputs, RefBackward, RefForward,
    Reference, ReferenceGrad, expect_inputs,
};
use crate::scalar::Scalar;
use crate::tensor::{Dtype, Spec, expect_dtype, expect_rank};

pub(in crate::ops) use planes::Planes;

/// Bilinear interpolation to a larger or smaller grid, without filtering.
///
/// Along each axis output `o` lies at `s(o)` between the inputs `⌊s⌋` and `⌊s⌋ + 1`, with `n` inputs and `m` outputs:
///
/// ```text
/// corners aligned   s(o) = o · (n − 1) / (m − 1)           first and last numbers stay; 0 where m is 1
/// else              s(o) = max((o + ½) · n / m − ½, 0)     pixels are areas, the outermost numbers continue outwards
/// y[i, j] = Σ_a Σ_b rows[i, a] · columns[j, b] · x[a, b]
/// ```
///
/// First along columns, then along rows; the weights are exact to f64. The gradient gathers in a fixed order.
///
/// # Shapes
/// `x [B, C, h, w]` → `y [B, C, H, W]` with `size = [H, W]`.
///
/// # Units
/// `y` has the unit of `x`.
///
/// # Cost
/// forward `3·B·C·W·(h + H)` vector, backward `4·B·C·W·(h + H)` vector.
///
/// # Errors
/// [`Error::Shape`] unless `x` has four axes and neither `h` nor `w` is 0; [`Error::Argument`] if `size` has a 0;
/// [`Error::Dtype`] unless f32, bf16 or f16.
///
/// # Source
/// PyTorch's `interpolate(mode="bilinear", antialias=False)`, as its documentation defines `align_corners`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeBilinear {
    /// Rows `H` and columns `W` of the result.
    pub size: [usize; 2],
    /// Whether the outermost numbers stay at the outermost places.
    pub align_corners: bool,
}

impl ResizeBilinear {
    /// Planes, then rows and columns before, for an input that `infer` accepts.
    fn sizes(x: &Spec) -> (usize, usize, usize) {
        let [b, c, h, w] = *x.shape() else { unreachable!("infer has seen four axes") };
        (b * c, h, w)
    }

    pub(in crate::ops) fn planes(&self, from: [usize; 2]) -> Planes {
        Planes::new(from, self.size, self.align_corners)
    }
}

impl Arity<1> for ResizeBilinear {}

impl Operator for ResizeBilinear {
    fn name(&self) -> &'static str {
        "resize_bilinear"
    }

    fn infer(&self, x: &[&Spec]) -> Result<Outputs> {
        let [x] = expect_inputs("resize_bilinear", x)?;
        expect_dtype("resize_bilinear", "x", x, &Dtype::FLOATS)?;
        let &[b, c, h, w] = expect_rank("resize_bilinear", "x", x, ["B", "C", "h", "w"])?;
        let [to_h, to_w] = self.size;
        if h == 0 || w == 0 {
            return Err(Error::shape(format!(
                "resize_bilinear: x: expected h and w of 1 or more, found {:?}",
                x.shape()
            )));
        }
        if to_h == 0 || to_w == 0 {
            return Err(Error::argument(format!(
                "resize_bilinear: size: expected [H, W] of 1 or more, found {:?}",
                self.size
            )));
        }
        let y = x.with_shape([b, c, to_h, to_w]);
        Ok(Outputs::one(y.map_err(|_| Error::too_large("resize_bilinear", "size", format!("{:?}", self.size)))?))
    }

    fn flops(&self, x: &[&Spec], wanted: Mask) -> OpFlops {
        let (planes, h, _) = ResizeBilinear::sizes(x[0]);
        let [to_h, to_w] = self.size;
        let lines = planes as u128 * to_w as u128 * (h as u128 + to_h as u128);
        OpFlops {
            forward: Flops::vector(3 * lines),
            backward: Flops::vector(if wanted.has(0) { 4 * lines } else { 0 }),
            recomputed: Flops::ZERO,
        }
    }

    fn forward(&self, exec: &Exec, io: Forward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::forward(self, gpu, io);
        }
        let ([x], [y]) = (io.x, io.y) else { return Err(wrong_operands("resize_bilinear")) };
        let (planes, h, w) = ResizeBilinear::sizes(x.spec());
        let (planes_of, [to_h, to_w]) = (self.planes([h, w]), self.size);
        let (x, y) = (In::new(Floats::of(x)?, h * w), Out::of(y, to_h * to_w)?);
        map(planes, TOUCH * to_h * to_w, [x], [y], |_, [x], [y]| planes_of.forward(x, y));
        Ok(())
    }
}

impl Differentiable for ResizeBilinear {
    fn keeps(&self, _: Mask) -> Keeps {
        Keeps::default()
    }

    fn backward(&self, exec: &Exec, io: Backward<'_>) -> Result<()> {
        if let Some(gpu) = exec.gpu() {
            return launch::backward(self, gpu, io);
        }
        let ([x], [dy], [dx]) = (io.specs, io.dy, &mut *io.dx) else { return Err(wrong_operands("resize_bilinear")) };
        let Some(dy) = dy else { return no_gradient(io.dx) };
        let (planes, h, w) = ResizeBilinear::sizes(x);
        let Some(dx) = Out::slot(dx, h * w)? else { return Ok(()) };
        let (sent, [to_h, to_w]) = (self.planes([h, w]).sent(), self.size);
        let dy = In::new(Floats::of(dy)?, to_h * to_w);
        map(planes, 2 * TOUCH * to_h * to_w, [dy], [dx], |_, [dy], [dx]| sent.backward(dy, dx));
        Ok(())
    }
}

impl Reference for ResizeBilinear {
    fn forward_ref<S: Scalar>(&self, io: RefForward<'_, S>) {
        let ([x], [y]) = (io.x, io.y) else { return };
        let (_, h, w) = ResizeBilinear::sizes(x.spec);
        let (planes, [to_h, to_w]) = (self.planes([h, w]), self.size);
        for (x, y) in x.chunks_exact(h * w).zip(y.chunks_exact_mut(to_h * to_w)) {
            planes.forward_ref(x, y);
        }
    }
}

impl ReferenceGrad for ResizeBilinear {
    fn backward_ref<S: Scalar>(&self, io: RefBackward<'_, S>) {
        let ([x], [dy], [Some(dx)]) = (io.x, io.dy, io.dx) else { return };
        let (_, h, w) = ResizeBilinear::sizes(x.spec);
        let (planes, [to_h, to_w]) = (self.planes([h, w]), self.size);
        for (dy, dx) in dy.chunks_exact(to_h * to_w).zip(dx.chunks_exact_mut(h * w)) {
            planes.backward_ref(dy, dx);
        }
    }
}

/// The room.
pub static ROOM: Room = Room {
    name: "resize_bilinear",
    about: "images on another grid, each number between its four neighbours",
    dtypes: &Dtype::FLOATS,
    kernels: launch::KERNELS,
    cases,
    bad_cases,
    bench_cases,
};

fn case(x: [usize; 4], size: [usize; 2], align_corners: bool) -> Case {
    Case::new(ResizeBilinear { size, align_corners }, [Input::new("x", x)])
}

fn cases() -> Vec<Case> {
    let shapes = [
        ([1, 1, 1, 1], [1, 1]),
        ([1, 1, 1, 1], [3, 5]),
        ([2, 3, 5, 7], [1, 1]),
        ([2, 3, 5, 7], [5, 7]),
        ([1, 2, 4, 3], [13, 17]),
        ([1, 2, 17, 13], [5, 6]),
        ([1, 2, 3, 11], [9, 4]),
        ([3, 1, 2, 4], [16, 32]),
        ([1, 1, 8, 16], [64, 128]),
        ([0, 3, 2, 2], [4, 4]),
        // Several tiles and chunks, and one input that goes to more columns than a tile has.
        ([1, 1, 9, 70], [36, 560]),
        ([1, 2, 33, 600], [16, 301]),
        ([1, 1, 20, 66], [3, 264]),
        ([1, 1, 2, 2], [3, 1301]),
        // Columns that grow 2 and 4 times and shrink to half, in one tile and in several; rows of any number.
        ([1, 2, 5, 12], [9, 24]),
        ([2, 1, 7, 264], [13, 528]),
        ([1, 1, 17, 140], [11, 560]),
        ([1, 1, 4, 16], [9, 8]),
        ([1, 2, 21, 1040], [9, 520]),
        // Both axes grow twice: one row, parts of a chunk, several tiles.
        ([2, 1, 1, 4], [2, 8]),
        ([1, 2, 5, 12], [10, 24]),
        ([1, 1, 6, 264], [12, 528]),
        // And four times.
        ([1, 2, 5, 6], [20, 24]),
        ([1, 1, 3, 132], [12, 528]),
    ];
    shapes.iter().flat_map(|&(x, size)| [case(x, size, false), case(x, size, true)]).collect()
}

fn bad_cases() -> Vec<BadCase> {
    let op = |size| ResizeBilinear { size, align_corners: false };
    let i32s = || Spec::new(Dtype::I32, [1, 2, 3, 4]).into_iter().collect::<Vec<_>>();
    vec![
        BadCase::new(op([4, 4]), &[&[20, 8, 16]], "x: expected 4 axes [B, C, h, w], found [20, 8, 16]"),
        BadCase::new(op([4, 4]), &[&[1, 20, 0, 16]], "x: expected h and w of 1 or more, found [1, 20, 0, 16]"),
        BadCase::new(op([0, 4]), &[&[1, 20, 8, 16]], "size: expected [H, W] of 1 or more, found [0, 4]"),
        BadCase::new(op([usize::MAX, 2]), &[&[1, 1, 1, 1]], "size: length"),
        BadCase::new(op([4, 4]), &[], "expected 1 inputs, found 0"),
        BadCase::of_specs(op([4, 4]), i32s(), "x: expected f32 or bf16 or f16"),
    ]
}

fn bench_cases() -> Vec<Case> {
    let models = [case([4, 20, 8, 16], [64, 128], false), case([1, 20, 45, 90], [360, 720], false)];
    let large = [
        case([4, 20, 180, 360], [720, 1440], false),
        case([16, 73, 64, 128], [128, 256], false),
        case([2, 64, 90, 180], [720, 1440], false),
        case([4, 20, 721, 1440], [360, 720], false),
    ];
    models.into_iter().chain(large).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::operator::RefInput;
    use crate::ops::trial::{backward, forward};

    crate::room_tests!(ROOM);

    fn line(x: &[f32], m: usize, align_corners: bool) -> Vec<f32> {
        forward(&ResizeBilinear { size: [1, m], align_corners }, &[(&[1, 1, 1, x.len()], x)])
    }

    #[test]
    fn pixels_are_areas_unless_corners_are_aligned() {
        // Values that PyTorch's interpolate gives for the same calls.
        assert_eq!(line(&[0.0, 4.0], 4, false), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(line(&[0.0, 3.0], 4, true), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(line(&[0.0, 1.0, 2.0, 3.0], 2, false), [0.5, 2.5]);
        assert_eq!(line(&[0.0, 1.0, 2.0, 3.0], 2, true), [0.0, 3.0]);
        assert_eq!(line(&[5.0, 1.0, 2.0], 1, true), [5.0]);
        assert_eq!(line(&[5.0, 1.0, 2.0], 1, false), [1.0]);
    }

    #[test]
    fn a_grid_of_the_same_size_stays() {
        let x = [1.0, -2.0, 3.5, 0.25];
        assert_eq!(line(&x, 4, false), x);
        assert_eq!(line(&x, 4, true), x);
    }

    #[test]
    fn many_planes_on_many_threads_are_resized_as_the_text_says() {
        let (planes, op) = (24, ResizeBilinear { size: [32, 40], align_corners: false });
        let x: Vec<f32> = (0..planes * 4 * 5).map(|i| (i % 37) as f32).collect();
        let spec = Spec::f32([1, planes, 4, 5]).unwrap();
        let input = RefInput { spec: &spec, v: &x, ints: &[] };
        let mut want = vec![0.0; planes * 1280];
        op.forward_ref(RefForward { x: &[input], y: &mut [&mut want], saved: &mut [] });
        assert_eq!(forward(&op, &[(spec.shape(), &x)]), want);
        let mut dwant = vec![0.0; x.len()];
        op.backward_ref(RefBackward { x: &[input], y: &[], saved: &[], dy: &[&want], dx: &mut [Some(&mut dwant)] });
        let got = backward(&op, &[(spec.shape(), &x)], Some(&want)).remove(0);
        assert!(got.iter().zip(&dwant).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs()));
        assert_eq!(backward(&op, &[(spec.shape(), &x)], None), [vec![0.0; x.len()]]);
    }
}
