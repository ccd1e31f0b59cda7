//! The libraries' matrix products over tests/golden/fake_blaslt.c, which multiplies on the host.

use std::sync::Arc;

use super::{BlasLt, Number, Operands, Product};
use crate::backend::gpu::driver::{Arch, Stream};
use crate::backend::gpu::dry::Dry;
use crate::backend::gpu::library::{Library, compiled};
use crate::error::{Error, Result};

const PLAIN: Product = Product {
    m: 3,
    n: 4,
    k: 2,
    is_a_transposed: false,
    is_b_transposed: false,
    number: Number::F32,
    is_result_f32: false,
    batch: 1,
    strides: [0; 3],
    has_bias: false,
    accumulates: false,
};

fn open(arch: Arch, definitions: &[&str]) -> (tempfile::TempDir, String, Result<BlasLt>) {
    let vendor: &[&str] = if arch.is_nvidia() { &[] } else { &["-DHIP"] };
    let (dir, library) = compiled("fake_blaslt.c", &[vendor, definitions].concat());
    let opened = BlasLt::open_from(Arc::new(Dry::new(arch).unwrap()), std::slice::from_ref(&library));
    (dir, library, opened)
}

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed) % 11) as f32 - 5.0).collect()
}

fn operands(y: &mut [f32], a: &[f32], b: &[f32], bias: &[f32]) -> Operands {
    let at = |x: &[f32]| x.as_ptr() as u64;
    let bias = if bias.is_empty() { 0 } else { at(bias) };
    Operands { y: y.as_mut_ptr() as u64, a: at(a), b: at(b), bias, workspace: 0, workspace_bytes: 0 }
}

/// The product by its definition.
fn expected(p: &Product, y: &[f32], a: &[f32], b: &[f32], bias: &[f32]) -> Vec<f32> {
    let (m, n, k) = (p.m as usize, p.n as usize, p.k as usize);
    let mut out = y.to_vec();
    for t in 0..p.batch as usize {
        let [sa, sb, sy] = p.strides.map(|s| s as usize * t);
        for i in 0..m {
            for j in 0..n {
                let of_a = |l: usize| a[sa + if p.is_a_transposed { l * m + i } else { i * k + l }];
                let of_b = |l: usize| b[sb + if p.is_b_transposed { j * k + l } else { l * n + j }];
                let at = &mut out[sy + i * n + j];
                let start = if p.accumulates { *at } else { 0.0 };
                let bias = if p.has_bias { bias[j] } else { 0.0 };
                *at = start + bias + (0..k).map(|l| of_a(l) * of_b(l)).sum::<f32>();
            }
        }
    }
    out
}

#[test]
fn row_major_products_come_out_right_in_every_form() {
    for arch in [Arch::SM_90A, Arch::GFX90A] {
        let (_dir, library, blas) = open(arch, &[]);
        let blas = blas.unwrap();
        for bits in 0..32 {
            let is = |bit: usize| bits >> bit & 1 == 1;
            let product = Product {
                is_a_transposed: is(0),
                is_b_transposed: is(1),
                has_bias: is(2),
                accumulates: is(3),
                batch: if is(4) { 3 } else { 1 },
                strides: [6, 8, 12],
                ..PLAIN
            };
            let (a, b, bias) = (numbers(18, 1), numbers(24, 2), numbers(4, 3));
            let mut y = numbers(36, 4);
            let want = expected(&product, &y, &a, &b, &bias);
            let operands = operands(&mut y, &a, &b, &bias);
            assert_eq!(blas.ways(&product, &operands).unwrap(), 2);
            for way in 0..2 {
                y.copy_from_slice(&numbers(36, 4));
                blas.matmul(&product, &operands, way, Stream::DEFAULT).unwrap();
                assert_eq!(y, want, "{arch} {product:?}");
            }
        }
        drop(blas);
        assert_eq!(Library::open("test", &[library]).unwrap().says("fake_alive"), "none");
    }
}

#[test]
fn what_the_library_cannot_compute_has_no_ways_and_no_such_way_is_refused() {
    let (_dir, _, blas) = open(Arch::SM_80, &["-DNONE"]);
    let (blas, mut y) = (blas.unwrap(), [0.0; 12]);
    let operands = operands(&mut y, &[0.0; 6], &[0.0; 8], &[]);
    assert_eq!(blas.ways(&PLAIN, &operands).unwrap(), 0);
    let text = blas.matmul(&PLAIN, &operands, 0, Stream::DEFAULT).unwrap_err().to_string();
    assert!(text.contains(" in 0 ways, found way 0"), "{text}");
    let biased = Product { has_bias: true, ..PLAIN };
    assert!(matches!(blas.matmul(&biased, &operands, 0, Stream::DEFAULT), Err(Error::Argument(_))));
}

#[test]
fn a_call_that_fails_is_named() {
    let (_dir, _, blas) = open(Arch::GFX942, &["-DFAIL"]);
    let mut y = [0.0; 12];
    let operands = operands(&mut y, &[0.0; 6], &[0.0; 8], &[]);
    let error = blas.unwrap().matmul(&PLAIN, &operands, 1, Stream::DEFAULT).unwrap_err();
    assert!(matches!(error, Error::Driver(_)));
    assert!(error.to_string().starts_with("hipblasLtMatmul: status 13"), "{error}");
}

#[test]
fn a_library_that_is_absent_or_of_another_vendor_is_told() {
    let dry = || Arc::new(Dry::new(Arch::SM_80).unwrap());
    let text = BlasLt::open_from(dry(), &["libcublasLt-of-nobody.so".into()]).unwrap_err().to_string();
    assert!(text.starts_with("cublasLt: cannot open: tried libcublasLt-of-nobody.so: no such file"), "{text}");
    let (_dir, library) = compiled("fake_blaslt.c", &["-DHIP"]);
    let text = BlasLt::open_from(dry(), &[library]).unwrap_err().to_string();
    assert!(text.contains("lacks cublasLtCreate, cublasLtDestroy, cublasLtMatmulDescCreate"), "{text}");
}
