//! The device path: one product in four orientations, so that no operand is ever transposed in memory.

mod library;

use super::{Activation, Matmul, Size};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::Source;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::{Arg, Kernel, Operand, Unit};
use crate::backend::gpu::products::Way;
use crate::error::{Error, Result};
use crate::ops::launch;
use crate::ops::operator::{Backward, Forward, GradSlot};
use crate::source;
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};

const SOURCE: Source = source!("matmul/matmul.cu");
static PRODUCT: Kernel = Kernel::new(SOURCE, "matmul_fwd");
static BWD_DZ: Kernel = Kernel::new(SOURCE, "matmul_bwd_dz");
static BWD_DBIAS_PARTS: Kernel = Kernel::new(SOURCE, "matmul_bwd_dbias_parts");
static BWD_DBIAS: Kernel = Kernel::new(SOURCE, "matmul_bwd_dbias");

pub(super) const KERNELS: &[Unit] = &[Unit::floats(SOURCE)];

const THREADS: u32 = 256;
/// Rows and columns of the result that a block computes.
const TILE: usize = 128;
/// Columns whose sum a block takes.
const STRIP: usize = 64;
/// Rows that one part of a column sum has at least: more parts than fill the device only make the second stage longer.
const PART_ROWS: usize = 256;
/// Terms of a stage of a product, as the kernel sums them: of f32, and of 16-bit types.
const DEPTHS: [usize; 2] = [16, 32];
/// Elements that a block derives.
const DERIVED: usize = 4 * THREADS as usize;

fn blocks(axis: &str, n: usize, each: usize) -> Result<u32> {
    u32::try_from(n.div_ceil(each)).map_err(|_| Error::too_large("matmul", axis, n))
}

impl Activation {
    /// Its number in the kernel file.
    fn code(self) -> i32 {
        match self {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
            Activation::Relu => 3,
            Activation::Silu => 4,
        }
    }
}

/// A matrix as it lies in memory: `[rows, columns]` row-major, read as it is or transposed.
#[derive(Clone, Copy, Debug)]
struct Matrix<'a> {
    at: &'a dyn Operand,
    columns: usize,
    is_transposed: bool,
}

impl<'a> Matrix<'a> {
    fn new(at: &'a dyn Operand, columns: usize) -> Matrix<'a> {
        Matrix { at, columns, is_transposed: false }
    }

    fn t(self) -> Matrix<'a> {
        Matrix { is_transposed: !self.is_transposed, ..self }
    }

    /// Strides of its rows and columns, as it is read.
    fn strides(&self) -> (i64, i64) {
        let step = self.columns as i64;
        if self.is_transposed { (1, step) } else { (step, 1) }
    }
}

/// What becomes of the sums.
struct Finish<'a> {
    pre: Option<&'a dyn Operand>,
    bias: Option<&'a dyn Operand>,
    activation: Activation,
    add: bool,
}

/// Rows and columns of a product, and what is summed over.
type Shape = (usize, usize, usize);

/// `y [m, n] = a [m, depth] · b [depth, n]`, by whom this device computes it fastest.
fn product(
    gpu: &Gpu,
    y: &mut dyn Operand,
    shape: Shape,
    a: Matrix<'_>,
    b: Matrix<'_>,
    mut finish: Finish<'_>,
) -> Result<()> {
    let way = library::way(gpu, y, shape, a, b, &finish)?;
    product_as(gpu, way, y, shape, a, b, &mut finish)
}

fn product_as(
    gpu: &Gpu,
    way: Way,
    y: &mut dyn Operand,
    shape: Shape,
    a: Matrix<'_>,
    b: Matrix<'_>,
    finish: &mut Finish<'_>,
) -> Result<()> {
    match way {
        Way::Kernel => own_product(gpu, y, shape, a, b, finish),
        Way::Library(way) => library::product(gpu, way, y, shape, a, b, finish),
    }
}

/// The product by this room's kernel.
fn own_product(
    gpu: &Gpu,
    y: &mut dyn Operand,
    (m, n, depth): Shape,
    a: Matrix<'_>,
    b: Matrix<'_>,
    finish: &mut Finish<'_>,
) -> Result<()> {
    let grid = Launch::grid([blocks("N", n, TILE)?, blocks("rows", m, TILE)?, 1], [THREADS, 1, 1]);
    let ((a_row, a_k), (b_k, b_column)) = (a.strides(), b.strides());
    let dtype = a.at.spec().dtype();
    gpu.executes(|| {
        let stage = DEPTHS[usize::from(dtype != Dtype::F32)];
        let tiles = [(m, TILE), (n, TILE), (depth, stage)].map(|(n, of)| n.next_multiple_of(of) as u128);
        if launch::has_matrix_unit(gpu, dtype) { 2 * tiles.iter().product::<u128>() } else { 0 }
    });
    PRODUCT.launch(
        gpu,
        dtype,
        grid,
        &mut [
            Arg::Out(y),
            match &finish.pre {
                Some(pre) => Arg::Out(*pre),
                None => Arg::Null,
            },
            Arg::In(a.at),
            Arg::In(b.at),
            finish.bias.map_or(Arg::Null, Arg::In),
            Arg::I64(m as i64),
            Arg::I64(n as i64),
            Arg::I64(depth as i64),
            Arg::I64(a_row),
            Arg::I64(a_k),
            Arg::I64(b_column),
            Arg::I64(b_k),
            Arg::I32(finish.activation.code()),
            Arg::I32(finish.add.into()),
        ],
    )
}

impl Matmul {
    /// w as a `[K, N]` matrix.
    fn weight_matrix<'a>(&self, s: Size, w: &'a dyn Operand) -> Matrix<'a> {
        if self.transpose_w { Matrix::new(w, s.k).t() } else { Matrix::new(w, s.n) }
    }

    pub(super) fn launch_fwd(&self, gpu: &Gpu, io: Forward<'_>) -> Result<()> {
        let specs: Vec<&Spec> = io.x.iter().map(View::spec).collect();
        let s = self.size(&specs);
        let ([x, w, bias @ ..], [y]) = (io.x, io.y) else { unreachable!("infer fixed the counts") };
        let finish = Finish {
            pre: io.saved.first().map(|pre| pre as &dyn Operand),
            bias: bias.first().map(|b| b as &dyn Operand),
            activation: self.activation,
            add: false,
        };
        product(gpu, y, (s.rows, s.n, s.k), Matrix::new(x, s.k), self.weight_matrix(s, w), finish)
    }

    pub(super) fn launch_bwd(&self, gpu: &Gpu, io: Backward<'_>) -> Result<()> {
        let s = self.size(io.specs);
        let Some(dy) = io.dy.first().and_then(Option::as_ref) else {
            // No gradient came: what is set is zero, what is added stays.
            return io.dx.iter_mut().try_for_each(|slot| if let GradSlot::Set(d) = slot { d.zero() } else { Ok(()) });
        };
        let derived;
        let dz: &dyn Operand = if self.activation == Activation::None {
            dy
        } else {
            derived = self.derive(gpu, s, dy, &io)?;
            &derived
        };
        let g = Matrix::new(dz, s.n);
        for (i, slot) in io.dx.iter_mut().enumerate() {
            let (d, add) = match slot {
                GradSlot::Unwanted => continue,
                GradSlot::Set(d) => (d, false),
                GradSlot::Add(d) => (d, true),
            };
            let finish = Finish { pre: None, bias: None, activation: Activation::None, add };
            match (i, io.x) {
                (0, [_, Some(w), ..]) => {
                    product(gpu, d, (s.rows, s.k, s.n), g, self.weight_matrix(s, w).t(), finish)?;
                }
                (1, [Some(x), ..]) => {
                    let x = Matrix::new(x, s.k);
                    if self.transpose_w {
                        product(gpu, d, (s.n, s.k, s.rows), g.t(), x, finish)?;
                    } else {
                        product(gpu, d, (s.k, s.n, s.rows), x.t(), g, finish)?;
                    }
                }
                (2, _) => column_sums(gpu, dz, s, d, add)?,
                _ => unreachable!("`keeps` names what the gradients read"),
            }
        }
        Ok(())
    }

    /// dz, in the storage type as an unfused product would have it.
    fn derive(&self, gpu: &Gpu, s: Size, dy: &View<'_>, io: &Backward<'_>) -> Result<Tensor> {
        let dtype = dy.spec().dtype();
        let n = s.rows * s.n;
        let dz = gpu.scratch(Spec::new(dtype, [n])?)?;
        let z = io.saved.first().map_or(Arg::Null, |z| Arg::In(z));
        let y = io.y.first().and_then(Option::as_ref).map_or(Arg::Null, |y| Arg::In(y));
        let launch = Launch::linear(blocks("elements", n, DERIVED)?, THREADS);
        let args = &mut [Arg::Scratch(&dz), z, y, Arg::In(dy), Arg::I64(n as i64), Arg::I32(self.activation.code())];
        BWD_DZ.launch(gpu, dtype, launch, args)?;
        Ok(dz)
    }
}

/// `d [n] = Σ_rows dz`, in parts of fixed rows, then the parts in their order.
fn column_sums(gpu: &Gpu, dz: &dyn Operand, s: Size, d: &mut ViewMut<'_>, add: bool) -> Result<()> {
    let dtype: Dtype = dz.spec().dtype();
    let strips = blocks("N", s.n, STRIP)?;
    let wanted = (4 * gpu.driver().info().processors / strips.max(1)).max(1) as usize;
    let length = s.rows.div_ceil(wanted).max(PART_ROWS);
    let parts = s.rows.div_ceil(length).max(1);
    let part = gpu.scratch(Spec::f32([parts, s.n])?)?;
    let launch = Launch::grid([strips, blocks("rows", parts, 1)?, 1], [THREADS, 1, 1]);
    let (rows, n) = (Arg::I64(s.rows as i64), s.n as i64);
    BWD_DBIAS_PARTS.launch(
        gpu,
        dtype,
        launch,
        &mut [Arg::Scratch(&part), Arg::In(dz), rows, Arg::I64(n), Arg::I64(length as i64)],
    )?;
    let launch = Launch::linear(blocks("N", s.n, THREADS as usize)?, THREADS);
    let args = &mut [Arg::Out(d), Arg::Scratch(&part), Arg::I64(parts as i64), Arg::I64(n), Arg::I32(add.into())];
    BWD_DBIAS.launch(gpu, dtype, launch, args)
}
