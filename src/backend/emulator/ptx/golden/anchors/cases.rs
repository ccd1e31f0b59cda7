//! What each anchor runs, and what its outputs are.

use super::super::*;

pub(super) use super::super::{ANCHOR_80 as SM_80, ANCHOR_90 as SM_90};

/// What an output holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Words,
    F32,
    F64,
    F16,
    Bf16,
    /// Bfloats, some of which are what elements outside the tensor read as.
    Filled,
}

impl Kind {
    pub(super) fn width(self) -> usize {
        match self {
            Kind::Words | Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 | Kind::Filled => 2,
            Kind::F64 => 8,
        }
    }

    pub(super) fn has_loose_nan(self) -> bool {
        matches!(self, Kind::F64 | Kind::Filled)
    }

    pub(super) fn bits(self, bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    pub(super) fn number(self, bytes: &[u8]) -> f64 {
        match (self, bytes) {
            (Kind::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f64(),
            (Kind::Bf16 | Kind::Filled, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f64(),
            (Kind::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
            (Kind::F64, bytes) => f64::from_bits(self.bits(bytes)),
            (_, bytes) => self.bits(bytes) as f64,
        }
    }
}

type Run = fn(&Bench<'_>) -> Result<Vec<u8>>;

/// A kernel with its inputs.
pub(super) struct Anchor {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    pub(super) kind: Kind,
    /// Output words of an element: each is an instruction's.
    pub(super) words: usize,
    /// How much the largest difference may be.
    pub(super) allowed: f64,
    pub(super) run: Run,
}

const fn exact(name: &'static str, text: &'static str, kind: Kind, run: Run) -> Anchor {
    Anchor { name, text, kind, words: 0, allowed: 0.0, run }
}

const fn by_words(name: &'static str, text: &'static str, (kind, words): (Kind, usize), run: Run) -> Anchor {
    Anchor { words, ..exact(name, text, kind, run) }
}

const PAIRS: usize = 4096;

/// Every bit pattern is as likely; one pair in four has special numbers, one in four small whole numbers.
fn patterns(seed: u64, pairs: usize) -> Vec<u32> {
    const SPECIAL: [u32; 16] = [
        0,
        0x8000_0000,
        1,
        0x8000_0001,
        0x007f_ffff,
        0x0080_0000,
        0x3f80_0000,
        0xbf80_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x4f00_0000,
        0xcf00_0000,
        0x7fff_ffff,
        0xffff_ffff,
    ];
    let mut sequence = Sequence(seed);
    let mut word = |kind| match kind {
        0 => SPECIAL[sequence.below(16) as usize],
        1 => (sequence.below(600) as u32).wrapping_sub(300),
        // Of nearly one size, so that sums cancel.
        2 => 0x3f00_0000 | sequence.next() as u32 & 0x81ff_ffff,
        _ => sequence.next() as u32,
    };
    (0..2 * pairs).map(|i| word(if i / 2 % 4 == 0 { i % 3 } else { i / 2 % 4 })).collect()
}

/// Bits of floats of many sizes, none infinite: `mantissa` bits and an exponent within `spread` of one; some zeros.
fn floats(seed: u64, count: usize, mantissa: u32, bias: u64, spread: u64) -> Vec<u32> {
    let mut sequence = Sequence(seed);
    let mut number = || match sequence.below(16) {
        0 => 0,
        _ => {
            let exponent = bias - spread + sequence.below(2 * spread + 1);
            let sign = sequence.below(2) << if mantissa == 23 { 31 } else { 15 };
            (sign | exponent << mantissa | sequence.below(1 << mantissa)) as u32
        }
    };
    (0..count).map(|_| number()).collect()
}

fn halves(seed: u64, words: usize) -> Vec<u32> {
    pairs(&floats(seed, 2 * words, 10, 15, 6))
}

fn bfloats(seed: u64, words: usize) -> Vec<u32> {
    pairs(&floats(seed, 2 * words, 7, 127, 6))
}

fn singles(seed: u64, words: usize) -> Vec<u32> {
    floats(seed, words, 23, 127, 6)
}

fn pairs(x: &[u32]) -> Vec<u32> {
    x.chunks(2).map(|pair| pair[0] | pair[1] << 16).collect()
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Two words in and `words` out for each of the pairs.
fn each(bench: &Bench<'_>, entry: &str, x: &[u32], words: usize) -> Result<Vec<u8>> {
    let n = x.len() / 2;
    let (from, to) = (bench.upload(&bytes_of(x))?, bench.upload(&vec![0; 4 * n * words])?);
    bench.launch(entry, Launch::linear(n.div_ceil(128) as u32, 128), &[word(to), word(from), int(n)])?;
    bench.download(to, 4 * n * words)
}

/// One block of `threads` that turns `x` into `words`.
fn block(bench: &Bench<'_>, entry: &str, threads: u32, x: &[u32], words: usize) -> Result<Vec<u8>> {
    let (from, to) = (bench.upload(&bytes_of(x))?, bench.upload(&vec![0; 4 * words])?);
    bench.launch(entry, Launch::linear(1, threads).with_shared(8192), &[word(to), word(from)])?;
    bench.download(to, 4 * words)
}

type Draw = fn(u64, usize) -> Vec<u32>;

/// Sixteen products of a warp with `words` of a, b and c a lane, and the accumulator's numbers.
fn products(bench: &Bench<'_>, entry: &str, [a, b, c]: [usize; 3], draw: Draw, sums: Draw) -> Result<Vec<u8>> {
    const LANES: usize = 16 * 32;
    let [a, b] = [(1, a), (2, b)].map(|(seed, words)| bench.upload(&bytes_of(&draw(seed, LANES * words))));
    let d = bench.upload(&vec![0; 4 * LANES * c])?;
    let c_at = bench.upload(&bytes_of(&sums(3, LANES * c)))?;
    bench.launch(entry, Launch::linear(16, 32), &[word(d), word(a?), word(b?), word(c_at)])?;
    bench.download(d, 4 * LANES * c)
}

/// A descriptor but for its address: leading and stride in bytes, and the code of the swizzle.
const fn form(leading: u64, stride: u64, swizzle: u64) -> u64 {
    ((leading / 16) << 16) | ((stride / 16) << 32) | (swizzle << 62)
}

const B128: u64 = form(16, 1024, 1);

/// A product of four warps, 64 by `n`, of raw shared memory.
fn group(bench: &Bench<'_>, entry: &str, n: usize, draw: Draw, [form_a, form_b]: [u64; 2]) -> Result<Vec<u8>> {
    let upload = |words: &[u32]| bench.upload(&bytes_of(words));
    let (a, b, c) = (upload(&draw(4, 2048))?, upload(&draw(5, 32 * n))?, upload(&singles(6, 64 * n))?);
    let d = bench.upload(&vec![0; 256 * n])?;
    let params = [word(d), word(c), word(a), word(b), word(form_a), word(form_b)];
    let shared = 1024 + 8192 + 128 * n as u32;
    bench.launch(entry, Launch::linear(1, 128).with_shared(shared), &params)?;
    bench.download(d, 256 * n)
}

/// A tensor and its box, and places where the box is taken or put: inside, over each border, and outside.
struct Boxed {
    dtype: MapType,
    dims: &'static [u64],
    /// Bytes of a row, padded.
    pitch: u64,
    box_dims: &'static [u32],
    swizzle: Swizzle,
    is_nan_filled: bool,
    at: &'static [&'static [i32]],
}

impl Boxed {
    fn width(&self) -> u64 {
        match self.dtype {
            MapType::F32 | MapType::I32 => 4,
            MapType::Bf16 | MapType::F16 => 2,
            MapType::U8 => 1,
        }
    }

    fn bytes(&self) -> usize {
        (self.pitch * self.dims[1..].iter().product::<u64>()) as usize
    }

    fn map(&self, bench: &Bench<'_>, address: u64) -> Result<Param> {
        let mut strides = Vec::new();
        let mut stride = self.pitch;
        for dim in &self.dims[1..] {
            strides.push(stride);
            stride *= dim;
        }
        let spec = TensorMapSpec {
            dtype: self.dtype,
            address,
            dims: self.dims.to_vec(),
            strides,
            box_dims: self.box_dims.to_vec(),
            swizzle: self.swizzle,
            is_nan_filled: self.is_nan_filled,
        };
        Ok(Param::new(bench.driver.tensor_map(&spec)?))
    }

    /// Words of shared memory that are looked at: rows of at least 128 bytes, so that a pitch that is not the emulator's shows.
    fn words(&self) -> usize {
        let row = (u64::from(self.box_dims[0]) * self.width()).max(128) as usize;
        row * self.box_dims[1..].iter().product::<u32>() as usize / 4
    }

    /// Raw shared memory after each load.
    fn load(&self, bench: &Bench<'_>) -> Result<Vec<u8>> {
        let mut sequence = Sequence(7);
        let tensor: Vec<u8> = (0..self.bytes()).map(|_| sequence.next() as u8).collect();
        let map = self.map(bench, bench.upload(&tensor)?)?;
        let words = self.words();
        let box_bytes = u64::from(self.box_dims.iter().product::<u32>()) * self.width();
        let raw = bench.upload(&vec![0; 4 * words])?;
        let mut out = Vec::new();
        for at in self.at {
            let mut params = vec![word(raw), map.clone(), int(words), int(box_bytes as usize)];
            params.extend(at.iter().map(|x| signed(*x)));
            let launch = Launch::linear(1, 128).with_shared(1024 + 4 * words as u32);
            bench.launch(&format!("box_in_{}", self.dims.len()), launch, &params)?;
            out.extend(bench.download(raw, 4 * words)?);
        }
        Ok(out)
    }

    /// Only places that begin inside the tensor may be written.
    fn written(&self) -> impl Iterator<Item = &&[i32]> {
        self.at.iter().filter(|at| at.iter().all(|x| *x >= 0))
    }

    /// The tensor after the box was put at each place in turn by the kernel `entry`, from the numbers of `raw`.
    fn store(&self, bench: &Bench<'_>, entry: &str, tensor: &[u32], raw: &[u32]) -> Result<Vec<u8>> {
        let to = bench.upload(&bytes_of(&tensor[..self.bytes() / 4]))?;
        let map = self.map(bench, to)?;
        let words = self.words();
        let from = bench.upload(&bytes_of(&raw[..words]))?;
        for at in self.written() {
            let mut params = vec![map.clone(), word(from), int(words)];
            params.extend(at.iter().map(|x| signed(*x)));
            bench.launch(entry, Launch::linear(1, 128).with_shared(1024 + 4 * words as u32), &params)?;
        }
        bench.download(to, self.bytes())
    }
}

const PLACES: &[&[i32]] = &[&[0, 0], &[16, 3], &[-8, -3], &[80, 40], &[96, 2], &[-64, 5], &[8, -16], &[1 << 20, 0]];

const fn bf16_box(box_dims: &'static [u32], swizzle: Swizzle) -> Boxed {
    Boxed { dtype: MapType::Bf16, dims: &[100, 45], pitch: 208, box_dims, swizzle, is_nan_filled: false, at: PLACES }
}

/// Axes of every number that the kernels take.
fn boxes_of_axes(bench: &Bench<'_>) -> Result<Vec<u8>> {
    let of = |dims, pitch, box_dims, at| Boxed { dims, pitch, box_dims, at, ..bf16_box(&[], Swizzle::None) };
    let cases = [
        of(&[100], 208, &[64], &[&[0], &[-8], &[56]]),
        of(&[40, 10, 3], 80, &[32, 8, 2], &[&[24, -3, 1], &[0, 0, 0], &[8, 4, 2], &[0, 0, 5]]),
        of(&[24, 3, 4, 2, 3], 64, &[8, 2, 3, 1, 2], &[&[0, 0, 0, 0, 0], &[16, 2, -1, 1, 2], &[-8, 1, 2, 0, -1]]),
    ];
    Ok(cases.iter().map(|case| case.load(bench)).collect::<Result<Vec<_>>>()?.concat())
}

fn boxes_out(bench: &Bench<'_>) -> Result<Vec<u8>> {
    let (tensor, raw) = (patterns(8, 4096), patterns(9, 4096));
    let mut out = Vec::new();
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        let wide = match swizzle {
            Swizzle::B32 => &[16, 12],
            Swizzle::B64 => &[32, 12],
            _ => &[64, 12],
        };
        out.extend(bf16_box(wide, swizzle).store(bench, "box_out_2", &tensor, &raw)?);
    }
    let three =
        Boxed { dims: &[40, 10, 3], pitch: 80, at: &[&[24, 3, 1], &[0, 7, 2]], ..bf16_box(&[32, 8, 2], Swizzle::None) };
    out.extend(three.store(bench, "box_out_3", &tensor, &raw)?);
    Ok(out)
}

fn boxes_added(bench: &Bench<'_>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut add = |dtype, entry: &str, draw: Draw| -> Result<()> {
        let width = if matches!(dtype, MapType::Bf16 | MapType::F16) { 2 } else { 4 };
        let case = Boxed {
            dtype,
            dims: &[40, 20],
            pitch: 40 * width,
            at: &[&[0, 0], &[8, 3], &[24, 15], &[8, 4]],
            ..bf16_box(&[16, 9], Swizzle::None)
        };
        out.extend(case.store(bench, entry, &draw(10, 4096), &draw(11, 4096))?);
        Ok(())
    };
    add(MapType::Bf16, "box_add", bfloats)?;
    add(MapType::F16, "box_add", halves)?;
    add(MapType::F32, "box_add", singles)?;
    add(MapType::I32, "box_add", |seed, n| patterns(seed, n / 2))?;
    add(MapType::F16, "box_min", halves)?;
    add(MapType::I32, "box_xor", |seed, n| patterns(seed, n / 2))?;
    Ok(out)
}

fn golden(case: &Case, bench: &Bench<'_>) -> Result<Vec<u8>> {
    Ok(f32_bytes(&(case.run)(bench)?))
}

const fn loads(name: &'static str, kind: Kind, run: Run) -> Anchor {
    exact(name, SM_90, kind, run)
}

use Kind::{Bf16, F16, F32, F64, Filled, Words};

/// Every anchor, in the order of the table.
pub(super) const ANCHORS: [Anchor; 57] = [
    by_words("floats", SM_80, (F32, 24), |b| each(b, "floats", &patterns(1, PAIRS), 24)),
    Anchor {
        allowed: 1e-5,
        ..by_words("approximations", SM_80, (F32, 8), |b| {
            each(b, "approximations", &floats(2, 2 * PAIRS, 23, 126, 5), 8)
        })
    },
    by_words("words", SM_80, (Words, 30), |b| each(b, "words", &patterns(3, PAIRS), 30)),
    by_words("long_words", SM_80, (Words, 24), |b| each(b, "long_words", &patterns(4, PAIRS), 24)),
    by_words("from_floats", SM_80, (Words, 22), |b| each(b, "from_floats", &patterns(5, PAIRS), 22)),
    by_words("to_floats", SM_80, (F32, 12), |b| each(b, "to_floats", &patterns(6, PAIRS), 12)),
    by_words("doubles", SM_80, (F64, 16), |b| each(b, "doubles", &patterns(7, PAIRS), 16)),
    by_words("halves", SM_80, (F16, 12), |b| each(b, "halves", &patterns(8, PAIRS), 12)),
    by_words("comparisons", SM_80, (Words, 2), |b| each(b, "comparisons", &patterns(9, PAIRS), 2)),
    by_words("bfloats", SM_90, (Bf16, 8), |b| each(b, "bfloats", &patterns(10, PAIRS), 8)),
    by_words("exchanges", SM_80, (Words, 12), |b| block(b, "exchanges", 32, &patterns(11, 32), 384)),
    exact("load_matrices", SM_80, Words, |b| block(b, "load_matrices", 32, &patterns(12, 64), 448)),
    exact("store_rows", SM_90, Words, |b| block(b, "store_rows", 128, &patterns(13, 256), 1024)),
    exact("copies", SM_80, Words, |b| block(b, "copies", 128, &patterns(14, 256), 896)),
    exact("mma_bf16_16", SM_80, F32, |b| products(b, "mma_bf16_16", [4, 2, 4], bfloats, singles)),
    exact("mma_f16_16", SM_80, F32, |b| products(b, "mma_f16_16", [4, 2, 4], halves, singles)),
    exact("mma_tf32_8", SM_80, F32, |b| products(b, "mma_tf32_8", [4, 2, 4], singles, singles)),
    exact("mma_bf16_8", SM_80, F32, |b| products(b, "mma_bf16_8", [2, 1, 4], bfloats, singles)),
    exact("mma_f16_8", SM_80, F32, |b| products(b, "mma_f16_8", [2, 1, 4], halves, singles)),
    exact("mma_tf32_4", SM_80, F32, |b| products(b, "mma_tf32_4", [2, 1, 4], singles, singles)),
    exact("mma_half_16", SM_80, F16, |b| products(b, "mma_half_16", [4, 2, 2], halves, halves)),
    exact("mma_s8_32", SM_80, Words, |b| {
        let draw: Draw = |seed, n| patterns(seed, n / 2);
        products(b, "mma_s8_32", [4, 2, 4], draw, draw)
    }),
    exact("wgmma_bf16_8", SM_90, F32, |b| group(b, "wgmma_bf16_8", 8, bfloats, [B128; 2])),
    exact("wgmma_bf16_24", SM_90, F32, |b| group(b, "wgmma_bf16_24", 24, bfloats, [B128; 2])),
    exact("wgmma_bf16_64", SM_90, F32, |b| group(b, "wgmma_bf16_64", 64, bfloats, [B128; 2])),
    exact("wgmma_bf16_64_mk", SM_90, F32, |b| group(b, "wgmma_bf16_64_mk", 64, bfloats, [form(4096, 1024, 1), B128])),
    exact("wgmma_bf16_64_kn", SM_90, F32, |b| group(b, "wgmma_bf16_64_kn", 64, bfloats, [B128, form(4096, 1024, 1)])),
    exact("wgmma_bf16_64_mn", SM_90, F32, |b| group(b, "wgmma_bf16_64_mn", 64, bfloats, [form(4096, 1024, 1); 2])),
    exact("wgmma_bf16_128", SM_90, F32, |b| group(b, "wgmma_bf16_128", 128, bfloats, [B128; 2])),
    exact("wgmma_bf16_256", SM_90, F32, |b| group(b, "wgmma_bf16_256", 256, bfloats, [B128; 2])),
    exact("wgmma_f16_16", SM_90, F32, |b| group(b, "wgmma_f16_16", 16, halves, [B128; 2])),
    exact("wgmma_f16_96", SM_90, F32, |b| group(b, "wgmma_f16_96", 96, halves, [B128; 2])),
    exact("wgmma_f16_192", SM_90, F32, |b| group(b, "wgmma_f16_192", 192, halves, [B128; 2])),
    exact("wgmma_registers", SM_90, F32, |b| group(b, "wgmma_registers", 32, halves, [B128; 2])),
    exact("wgmma_plain", SM_90, F32, |b| group(b, "wgmma_bf16_64", 64, bfloats, [form(128, 256, 0); 2])),
    exact("wgmma_b32", SM_90, F32, |b| group(b, "wgmma_bf16_64", 64, bfloats, [form(16, 256, 3); 2])),
    exact("wgmma_b64", SM_90, F32, |b| group(b, "wgmma_bf16_64", 64, bfloats, [form(16, 512, 2); 2])),
    loads("boxes_plain", Bf16, |b| bf16_box(&[64, 20], Swizzle::None).load(b)),
    loads("boxes_b32", Bf16, |b| bf16_box(&[16, 20], Swizzle::B32).load(b)),
    loads("boxes_b64", Bf16, |b| bf16_box(&[32, 20], Swizzle::B64).load(b)),
    loads("boxes_b128", Bf16, |b| bf16_box(&[64, 20], Swizzle::B128).load(b)),
    loads("boxes_narrow", Bf16, |b| {
        let narrow = [
            (&[8, 20], Swizzle::B32),
            (&[16, 20], Swizzle::B64),
            (&[8, 20], Swizzle::B128),
            (&[40, 20], Swizzle::B128),
        ];
        let each = narrow.map(|(box_dims, swizzle)| bf16_box(box_dims, swizzle).load(b));
        Ok(each.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }),
    loads("boxes_of_words", Words, |b| {
        Boxed { dtype: MapType::F32, pitch: 400, ..bf16_box(&[32, 20], Swizzle::B128) }.load(b)
    }),
    loads("boxes_of_bytes", Words, |b| {
        let at: &[&[i32]] = &[&[0, 0], &[16, 3], &[-16, -3], &[80, 40]];
        Boxed { dtype: MapType::U8, pitch: 112, at, ..bf16_box(&[128, 20], Swizzle::B128) }.load(b)
    }),
    loads("boxes_with_nan", Filled, |b| {
        let nan =
            |dtype, pitch| Boxed { dtype, pitch, is_nan_filled: true, ..bf16_box(&[32, 20], Swizzle::B128) }.load(b);
        Ok([nan(MapType::Bf16, 208)?, nan(MapType::F16, 208)?, nan(MapType::F32, 400)?].concat())
    }),
    loads("boxes_of_1_3_and_5_axes", Bf16, boxes_of_axes),
    loads("boxes_out", Bf16, boxes_out),
    loads("boxes_added", Words, boxes_added),
    exact("gemm_nt", GEMM_90, F32, |b| golden(&roles_nt(), b)),
    exact("gemm_nn", GEMM_90, F32, |b| golden(&roles_nn(), b)),
    exact("gemm_multicast", CLUSTER_90, F32, |b| golden(&multicast(), b)),
    exact("cluster_sum", CLUSTER_90, F32, |b| golden(&cluster_sum(), b)),
    exact("mirror", ROLES_90, F32, |b| golden(&mirror(), b)),
    exact("double_and_add", BULK_90, F32, |b| golden(&bulk(), b)),
    exact("move_boxes", BULK_90, F32, |b| golden(&boxes(), b)),
    exact("chain", CHAIN_90, F32, |b| golden(&chain(), b)),
    exact("gemm", GEMM_80, F32, |b| golden(&gemm_80(), b)),
];
