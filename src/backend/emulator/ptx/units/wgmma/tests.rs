use super::super::formats::{Rounding, narrow, widen};
use super::super::samples::Sequence;
use super::super::tensor_map::{TensorMap, encode};
use super::*;
use crate::backend::gpu::driver::{MapType, Swizzle, TensorMapSpec};

fn bits(x: f32, format: Format) -> u32 {
    narrow(f64::from(x), format, Rounding::Nearest, false, false)
}

/// A matrix of small integers, `rows` by `columns`.
fn integers(rows: usize, columns: usize, numbers: &mut Sequence) -> Vec<Vec<f32>> {
    (0..rows).map(|_| (0..columns).map(|_| numbers.small(3)).collect()).collect()
}

/// Its bytes, row by row.
fn bytes(matrix: &[Vec<f32>], format: Format) -> Vec<u8> {
    let element = |x: &f32| bits(*x, format).to_le_bytes()[..format.bits() / 8].to_vec();
    matrix.iter().flatten().flat_map(element).collect()
}

/// Copies the matrix to shared memory by a tensor map, in panels as wide as the swizzle's span; the panels follow one another.
#[allow(clippy::ptr_arg, reason = "the tile is placed in memory that has a size")]
fn copy(matrix: &[Vec<f32>], format: Format, swizzle: Swizzle, at: u32, shared: &mut Vec<u8>) -> u64 {
    let (rows, columns, width) = (matrix.len(), matrix[0].len(), format.bits() / 8);
    let span = super::super::swizzle::span(swizzle) as usize;
    let spec = TensorMapSpec {
        dtype: match width {
            1 => MapType::U8,
            2 => MapType::Bf16,
            _ => MapType::F32,
        },
        address: 0,
        dims: vec![columns as u64, rows as u64],
        strides: vec![(columns * width) as u64],
        box_dims: vec![(span / width) as u32, rows as u32],
        swizzle,
        is_nan_filled: false,
    };
    let map = TensorMap::decode(&encode(&spec).unwrap()).unwrap();
    let mut global = bytes(matrix, format);
    for panel in 0..columns * width / span {
        let tile = map.fetch(&[(panel * span / width) as i32, 0], &mut global).unwrap();
        map.place(&tile, at + (panel * rows * span) as u32, shared).unwrap();
    }
    (rows * span) as u64
}

/// D of the four warps as a matrix.
fn unpack(d: &[Vec<Lanes>], format: Format, n: usize) -> Vec<Vec<f32>> {
    let mut matrix = vec![vec![f32::NAN; n]; 64];
    for (warp, registers) in d.iter().enumerate() {
        for (register, lanes) in registers.iter().enumerate() {
            for (lane, value) in lanes.iter().enumerate() {
                // By the manual's figure, not by the formula under test.
                let row = 16 * warp + lane / 4;
                if format == Format::F32 {
                    let (low, high) = (register % 4 / 2, register % 2);
                    matrix[row + 8 * low][register / 4 * 8 + lane % 4 * 2 + high] = f32::from_bits(*value as u32);
                } else {
                    for part in 0..2 {
                        let column = register / 2 * 8 + lane % 4 * 2 + part;
                        matrix[row + register % 2 * 8][column] =
                            widen((value >> (16 * part)) as u16 as u32, Format::F16);
                    }
                }
            }
        }
    }
    matrix
}

/// A of 64 by K and B of K by N, each along K (`false`) or along M and N (`true`), through every swizzle, must give A B.
fn check(form: &str, swizzle: Swizzle, is_a_mn_major: bool, is_b_mn_major: bool, numbers: &mut Sequence) {
    let modifiers: Vec<&str> = form.split('.').collect();
    let wgmma = Wgmma::parse(&modifiers).unwrap();
    let (n, k) = (wgmma.n, wgmma.k);
    let a = integers(64, k, numbers);
    let b = integers(k, n, numbers);
    let mut shared = vec![0xff; 65536];
    let transposed =
        |m: &[Vec<f32>]| -> Vec<Vec<f32>> { (0..m[0].len()).map(|j| m.iter().map(|row| row[j]).collect()).collect() };
    let span = super::super::swizzle::span(swizzle);
    // K rows past the step's K, so that panels are as high as in a real tile.
    let pad = |m: Vec<Vec<f32>>, rows: usize| -> Vec<Vec<f32>> {
        let width = m[0].len();
        m.into_iter().chain(std::iter::repeat(vec![f32::NAN; width])).take(rows).collect()
    };
    let widened = |m: Vec<Vec<f32>>, width: usize| transposed(&pad(transposed(&m), width));
    let mut operand = |m: Vec<Vec<f32>>, format: Format, is_mn_major: bool, at: u32| {
        let per_span = span as usize / (format.bits() / 8);
        if is_mn_major {
            // Rows along K, 32 high of which the instruction takes 16; MN as wide as whole spans.
            let width = m[0].len().next_multiple_of(per_span);
            let panel = copy(&widened(pad(m, 32), width), format, swizzle, at, &mut shared);
            match swizzle {
                Swizzle::None => Descriptor { start: at.into(), leading: 128, stride: panel, base_offset: 0, swizzle },
                _ => Descriptor { start: at.into(), leading: panel, stride: 8 * span, base_offset: 0, swizzle },
            }
        } else {
            let m = transposed(&m);
            let width = m[0].len().next_multiple_of(per_span);
            let panel = copy(&widened(m, width), format, swizzle, at, &mut shared);
            match swizzle {
                Swizzle::None => Descriptor { start: at.into(), leading: panel, stride: 128, base_offset: 0, swizzle },
                _ => Descriptor { start: at.into(), leading: 16, stride: 8 * span, base_offset: 0, swizzle },
            }
        }
    };
    let first = operand(transposed(&a), wgmma.a, is_a_mn_major, 1024).encode();
    let second = operand(b.clone(), wgmma.b, is_b_mn_major, 32768).encode();
    let c = integers(64, n, numbers);
    let per = per_register(wgmma.d.bits());
    let load = |warp: usize| -> Vec<Lanes> {
        let element = |lane, register, part| {
            let (row, column) = place_in_d(per, lane, register, part);
            u64::from(bits(c[16 * warp + row][column], wgmma.d)) << (16 * part)
        };
        (0..wgmma.accumulators())
            .map(|r| std::array::from_fn(|lane| (0..per).map(|p| element(lane, r, p)).sum()))
            .collect()
    };
    let is_accumulating = numbers.below(2) == 0;
    let options = Options { is_accumulating, is_a_mn_major, is_b_mn_major, is_b_negated: true, ..Options::PLAIN };
    let mut d: Vec<Vec<Lanes>> = (0..4).map(load).collect();
    for (warp, d) in d.iter_mut().enumerate() {
        wgmma.execute(warp, Source::Shared(first), second, options, d, &mut shared).unwrap();
    }
    let d = unpack(&d, wgmma.d, n);
    for i in 0..64 {
        for j in 0..n {
            let product: f32 = (0..k).map(|x| a[i][x] * b[x][j]).sum();
            let expected = if is_accumulating { c[i][j] - product } else { -product };
            assert_eq!(d[i][j], expected, "{form} {swizzle:?} {is_a_mn_major} {is_b_mn_major} ({i}, {j})");
        }
    }
}

const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

#[test]
fn tiles_written_by_tensor_maps_multiply_to_the_plain_product_along_either_axis() {
    let mut numbers = Sequence(9);
    for swizzle in ALL {
        for (n, a, b) in [(64, false, false), (72, true, false), (144, false, true), (128, true, true), (8, true, true)]
        {
            check(&format!("mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16"), swizzle, a, b, &mut numbers);
        }
        check("mma_async.sync.aligned.m64n256k16.f32.f16.f16", swizzle, false, true, &mut numbers);
        check("mma_async.sync.aligned.m64n80k16.f16.f16.f16", swizzle, true, false, &mut numbers);
        check("mma_async.sync.aligned.m64n96k8.f32.tf32.tf32", swizzle, false, false, &mut numbers);
        check("mma_async.sync.aligned.m64n24k32.f32.e4m3.e5m2", swizzle, false, false, &mut numbers);
        check("mma_async.sync.aligned.m64n16k32.f16.e5m2.e5m2", swizzle, false, false, &mut numbers);
    }
}

#[test]
fn every_width_from_8_to_256_has_a_form() {
    let widths = (1..=33).map(|i| 8 * i);
    for n in widths {
        let form = format!("m64n{n}k16");
        let parsed = Wgmma::parse(&["mma_async", "sync", "aligned", &form, "f32", "bf16", "bf16"]);
        assert_eq!(parsed.map(|w| w.accumulators()).ok(), (n <= 256).then_some(n / 2), "{n}");
    }
}

#[test]
fn an_accumulator_packed_in_pairs_is_the_a_of_the_next_product() {
    let mut numbers = Sequence(10);
    let wgmma = Wgmma::parse(&["mma_async", "sync", "aligned", "m64n32k16", "f32", "bf16", "bf16"]).unwrap();
    let a = integers(64, 16, &mut numbers);
    let b = integers(16, 32, &mut numbers);
    let mut shared = vec![0; 8192];
    let columns: Vec<Vec<f32>> = (0..32).map(|j| b.iter().map(|row| row[j]).collect()).collect();
    copy(&columns, Format::Bf16, Swizzle::B32, 0, &mut shared);
    let word = Descriptor { start: 0, leading: 16, stride: 256, base_offset: 0, swizzle: Swizzle::B32 }.encode();
    for warp in 0..4 {
        // Two neighbouring registers of D, each a pair of columns: register `r` of A is D's `2r` and `2r + 1`.
        let d: [Lanes; 8] = std::array::from_fn(|r| {
            std::array::from_fn(|lane| {
                let (row, column) = place_in_d(1, lane, r, 0);
                u64::from(a[16 * warp + row][column].to_bits())
            })
        });
        let half = |x: u64| u64::from(bits(f32::from_bits(x as u32), Format::Bf16));
        let packed: [Lanes; 4] =
            std::array::from_fn(|r| std::array::from_fn(|lane| half(d[2 * r][lane]) | half(d[2 * r + 1][lane]) << 16));
        let mut out = vec![[u64::MAX; WARP]; 16];
        let options = Options { is_accumulating: false, is_a_negated: true, ..Options::PLAIN };
        wgmma.execute(warp, Source::Registers(&packed), word, options, &mut out, &mut shared).unwrap();
        for (register, lanes) in out.iter().enumerate() {
            for (lane, value) in lanes.iter().enumerate() {
                let (row, column) = place_in_d(1, lane, register, 0);
                let expected: f32 = (0..16).map(|k| a[16 * warp + row][k] * b[k][column]).sum();
                assert_eq!(f32::from_bits(*value as u32), -expected);
                assert_eq!(value >> 32, 0);
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_form_is_told() {
    let parse = |size, d, a, b| Wgmma::parse(&["mma_async", "sync", "aligned", size, d, a, b]);
    for wrong in [
        parse("m64n12k16", "f32", "bf16", "bf16"),
        parse("m64n264k16", "f32", "bf16", "bf16"),
        parse("m64n64k32", "f32", "bf16", "bf16"),
        parse("m64n64k16", "f16", "bf16", "bf16"),
        parse("m64n64k32", "s32", "s8", "s8"),
        parse("m32n64k16", "f32", "f16", "f16"),
    ] {
        assert!(wrong.unwrap_err().words().contains("is not known to the emulator"));
    }
    let tf32 = parse("m64n8k8", "f32", "tf32", "tf32").unwrap();
    let mut shared = vec![0; 4096];
    let mut d = vec![[0; WARP]; 4];
    let turned = Options { is_b_mn_major: true, ..Options::PLAIN };
    let words = tf32.execute(0, Source::Shared(0), 0, turned, &mut d, &mut shared).unwrap_err();
    assert!(words.words().contains("tf32 must lie along K"), "{words}");
    let words =
        tf32.execute(0, Source::Registers(&d.clone()[..2]), 0, Options::PLAIN, &mut d, &mut shared).unwrap_err();
    assert!(words.words().contains("4 registers"), "{words}");
    assert!(tf32.execute(0, Source::Shared(0), 0, Options::PLAIN, &mut d[..2], &mut shared).is_err());
    // An operand past the end of shared memory.
    let far = Descriptor { start: 4096, leading: 16, stride: 256, base_offset: 0, swizzle: Swizzle::B32 }.encode();
    assert!(tf32.execute(0, Source::Shared(0), far, Options::PLAIN, &mut d, &mut shared).is_err());
}
