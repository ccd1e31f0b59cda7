//! The same product by the vendor's library, where it is faster. What the library cannot finish exactly as the room defines it, an
//! activation of f32 sums, a kernel does in a pass of its own.

use super::{Arg, Finish, Kernel, Matrix, SOURCE, Shape, THREADS, blocks, product_as};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::driver::Launch;
use crate::backend::gpu::kernel::Operand;
use crate::backend::gpu::products::Way;
use crate::backend::gpu::vendor::{BlasLt, Number, Operands, Product, WORKSPACE_BYTES};
use crate::error::{Error, Result};
use crate::ops::launch;
use crate::ops::matmul::Activation;
use crate::tensor::{Dtype, Spec, Tensor};

static FINISH: Kernel = Kernel::new(SOURCE, "matmul_finish");

/// Numbers that a thread finishes.
const FINISHED: usize = 4;

/// Who computes this product; measured if nobody asked before, on the result itself unless something is there already.
pub(super) fn way(
    gpu: &Gpu,
    y: &mut dyn Operand,
    shape: Shape,
    a: Matrix<'_>,
    b: Matrix<'_>,
    finish: &Finish<'_>,
) -> Result<Way> {
    let products = gpu.products()?;
    let Some(library) = products.library() else { return Ok(Way::Kernel) };
    let (m, n, depth) = shape;
    let Some(number) = number(y.spec().dtype()).filter(|_| m * n * depth > 0) else { return Ok(Way::Kernel) };
    let is_plain = finish.activation == Activation::None && finish.pre.is_none();
    // An activation is finished without adding, which is all that the room asks for.
    if !is_plain && finish.add {
        return Ok(Way::Kernel);
    }
    let adds = finish.add;
    // One choice for a product that is set and for one that is added: they must not differ in the order of their sums.
    let finish = &Finish { add: false, ..*finish };
    let asked = describe(shape, number, a, b, finish);
    let workspace = workspace(gpu)?;
    // The alignment is that of every operand that the product itself would be computed with.
    let addresses = operands(&*y, a, b, finish, &workspace)?;
    let ways = library.ways(&asked, &addresses)?;
    let name = name(shape, y.spec().dtype(), a, b, finish, &addresses);
    products.way(gpu, &name, ways, |way| {
        let mut scratch = if adds { Some(gpu.scratch(y.spec().clone())?) } else { None };
        let to: &mut dyn Operand = scratch.as_mut().map_or(&mut *y, |s| s);
        product_as(gpu, way, to, shape, a, b, &mut Finish { ..*finish })
    })
}

/// What a choice is remembered by: type, lengths, orientations, what else is done, and the alignment that ways depend on.
fn name(shape: Shape, dtype: Dtype, a: Matrix<'_>, b: Matrix<'_>, finish: &Finish<'_>, at: &Operands) -> String {
    let (m, n, depth) = shape;
    let side = |matrix: Matrix<'_>| if matrix.is_transposed { 't' } else { 'n' };
    let alignment = 1u64 << (at.y | at.a | at.b | at.bias | 256).trailing_zeros();
    let mut name = format!("{dtype} {m}x{n}x{depth} {}{} align {alignment}", side(a), side(b));
    for (is, word) in [
        (finish.bias.is_some(), " bias".to_owned()),
        (finish.pre.is_some(), " pre".to_owned()),
        (finish.activation != Activation::None, format!(" {:?}", finish.activation)),
    ] {
        if is {
            name += &word;
        }
    }
    name
}

/// The product by the library in one of its ways.
pub(super) fn product(
    gpu: &Gpu,
    way: usize,
    y: &mut dyn Operand,
    shape: Shape,
    a: Matrix<'_>,
    b: Matrix<'_>,
    finish: &mut Finish<'_>,
) -> Result<()> {
    let (Some(library), Some(number)) = (gpu.products()?.library(), number(y.spec().dtype())) else {
        return Err(Error::argument("matmul: the vendor's library was chosen, and there is none"));
    };
    let asked = describe(shape, number, a, b, finish);
    let workspace = workspace(gpu)?;
    gpu.executes(|| {
        let asked = 2 * u128::from(asked.m) * u128::from(asked.n) * u128::from(asked.k);
        if launch::has_matrix_unit(gpu, y.spec().dtype()) { asked } else { 0 }
    });
    if !asked.is_result_f32 {
        return run(gpu, library, way, &asked, &operands(y, a, b, finish, &workspace)?);
    }
    let (m, n, _) = shape;
    let own;
    let sums: &dyn Operand = match finish.pre {
        Some(pre) => pre,
        None => {
            own = gpu.scratch(Spec::f32([m, n])?)?;
            &own
        }
    };
    let sums_only = Finish { pre: None, bias: None, activation: Activation::None, add: false };
    run(gpu, library, way, &asked, &operands(sums, a, b, &sums_only, &workspace)?)?;
    let launch = Launch::linear(blocks("elements", m * n, FINISHED * THREADS as usize)?, THREADS);
    let args = &mut [
        Arg::Out(y),
        finish.pre.map_or(Arg::Null, Arg::Out),
        Arg::In(sums),
        finish.bias.map_or(Arg::Null, Arg::In),
        Arg::I64((m * n) as i64),
        Arg::I64(n as i64),
        Arg::I32(finish.activation.code()),
    ];
    FINISH.launch(gpu, a.at.spec().dtype(), launch, args)
}

fn run(gpu: &Gpu, library: &BlasLt, way: usize, asked: &Product, operands: &Operands) -> Result<()> {
    library.matmul(asked, operands, way, gpu.stream())
}

/// Memory that the library may use; the stream orders its next use after this one.
fn workspace(gpu: &Gpu) -> Result<Tensor> {
    gpu.scratch(Spec::f32([WORKSPACE_BYTES / 4])?)
}

fn number(dtype: Dtype) -> Option<Number> {
    match dtype {
        Dtype::F32 => Some(Number::F32),
        Dtype::Bf16 => Some(Number::Bf16),
        Dtype::F16 => Some(Number::F16),
        Dtype::I32 => None,
    }
}

fn describe((m, n, depth): Shape, number: Number, a: Matrix<'_>, b: Matrix<'_>, finish: &Finish<'_>) -> Product {
    let is_result_f32 = finish.activation != Activation::None || finish.pre.is_some();
    Product {
        m: m as u64,
        n: n as u64,
        k: depth as u64,
        is_a_transposed: a.is_transposed,
        is_b_transposed: b.is_transposed,
        number,
        is_result_f32,
        batch: 1,
        strides: [0; 3],
        has_bias: finish.bias.is_some() && !is_result_f32,
        accumulates: finish.add,
    }
}

fn operands(
    y: &dyn Operand,
    a: Matrix<'_>,
    b: Matrix<'_>,
    finish: &Finish<'_>,
    workspace: &Tensor,
) -> Result<Operands> {
    let at = |of: &dyn Operand| {
        of.address().ok_or_else(|| Error::argument("matmul: expected operands in the device's memory"))
    };
    Ok(Operands {
        y: at(y)?,
        a: at(a.at)?,
        b: at(b.at)?,
        bias: finish.bias.map_or(Ok(0), at)?,
        workspace: at(workspace)?,
        workspace_bytes: WORKSPACE_BYTES,
    })
}

#[cfg(test)]
mod with_compilers {
    use super::super::{Matrix, own_product};
    use super::*;
    use crate::backend::{Device, Exec};

    /// With a depth of 1 the sums are products of two numbers, which the host rounds as the kernel does.
    #[test]
    #[ignore = "needs NVRTC and clang-19: see ci/install"]
    fn sums_that_another_made_are_finished_bit_for_bit_as_the_kernel_finishes_its_own() {
        for device in ["emu:sm_80", "emu:gfx90a"] {
            let exec = Exec::open(device.parse::<Device>().unwrap()).unwrap();
            // Multiples of a pack, and not; with what is kept and without.
            for (m, n, keeps, has_bias) in
                [(5, 12, true, true), (3, 7, true, false), (2, 130, false, true), (1, 1, false, false)]
            {
                finish_both(&exec, (m, n, 1), keeps, has_bias);
            }
        }
    }

    fn finish_both(exec: &Exec, shape: Shape, keeps: bool, has_bias: bool) {
        let (m, n, _) = shape;
        let gpu = exec.gpu().unwrap();
        let numbers = |count: usize, step: f32| (0..count).map(|i| (i as f32 - 1.5) * step).collect::<Vec<f32>>();
        let (x, w, bias) = (numbers(m, 0.37), numbers(n, 0.11), numbers(n, -0.05));
        let sums: Vec<f32> = x.iter().flat_map(|x| w.iter().map(move |w| x * w)).collect();
        let put = |shape: [usize; 2], v: &[f32]| exec.import(&Tensor::from_f32(shape, v).unwrap()).unwrap();
        let (x, w, bias, sums) = (put([m, 1], &x), put([1, n], &w), put([1, n], &bias), put([m, n], &sums));
        let empty = || put([m, n], &vec![f32::NAN; m * n]);
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu] {
            let (mut y, pre, z, kept) = (empty(), empty(), empty(), empty());
            let bias = has_bias.then_some(&bias as &dyn Operand);
            let pre_of = |t| keeps.then_some(t);
            let mut own = Finish { pre: pre_of(&pre as &dyn Operand), bias, activation, add: false };
            own_product(gpu, &mut y, shape, Matrix::new(&x, 1), Matrix::new(&w, n), &mut own).unwrap();
            let args = &mut [
                Arg::Out(&z),
                if keeps { Arg::Out(&kept) } else { Arg::Null },
                Arg::In(&sums),
                bias.map_or(Arg::Null, Arg::In),
                Arg::I64((m * n) as i64),
                Arg::I64(n as i64),
                Arg::I32(activation.code()),
            ];
            let blocks = blocks("elements", m * n, FINISHED * THREADS as usize).unwrap();
            FINISH.launch(gpu, Dtype::F32, Launch::linear(blocks, THREADS), args).unwrap();
            let bits = |t: &Tensor| t.to_f32().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits(&z), bits(&y), "{activation:?} {shape:?}");
            assert_eq!(bits(&kept), bits(&pre), "{activation:?} {shape:?}: what is kept");
            assert!(z.to_f32().unwrap().iter().all(|v| v.is_finite()), "{activation:?} {shape:?}");
        }
    }
}
