//! What the room is tested and timed on.

use std::sync::Arc;

use super::{Attention, Causal, ProbabilityDropout, Sequences, SlidingWindow, Windows};
use crate::ops::contract::{BadCase, Case, Fill, Input};
use crate::rng::Stream;
use crate::tensor::{Dtype, Spec};

/// Sizes `[B, Nq, Nk, H, Hkv, D]` of a case with q, k and v apart. Scores of a few units, so that softmax has a shape.
fn separate(op: Attention, [b, n, m, h, kv, d]: [usize; 6], has_bias: bool) -> Case {
    let fill = Fill::Uniform(-2.0, 2.0);
    let mut x = vec![
        Input::new("q", [b, n, h, d]).fill(fill.clone()),
        Input::new("k", [b, m, kv, d]).fill(fill.clone()),
        Input::new("v", [b, m, kv, d]).fill(fill.clone()),
    ];
    if has_bias {
        x.push(Input::new("bias", [h, n, m]).fill(fill).always_f32());
    }
    Case::new(Attention { heads: h, ..op }, x)
}

fn packed(op: Attention, [b, n, h, d]: [usize; 4], has_bias: bool) -> Case {
    let mut x = vec![Input::new("qkv", [b, n, 3, h, d]).fill(Fill::Uniform(-2.0, 2.0))];
    if has_bias {
        x.push(Input::new("bias", [h, n, n]).always_f32());
    }
    Case::new(Attention { heads: h, ..op }, x)
}

fn lengths(n: &[usize]) -> Option<Arc<[usize]>> {
    Some(n.into())
}

pub(super) fn cases() -> Vec<Case> {
    let full = || Attention::full(1);
    let causal = |causal| Attention { causal, ..full() };
    let drop = |p| Some(ProbabilityDropout { p, stream: Stream::new(3, 5) });
    let (top, bottom) = (Causal::TopLeft, Causal::BottomRight);
    vec![
        separate(full(), [1, 1, 1, 1, 1, 1], false),
        separate(full(), [1, 1, 1, 1, 1, 16], true),
        // One query over many keys: few numbers, so hardly any room for error.
        separate(full(), [1, 1, 129, 2, 1, 4], false),
        separate(full(), [1, 1, 131, 1, 1, 3], true),
        separate(full(), [1, 129, 1, 2, 2, 4], false),
        separate(full(), [2, 5, 17, 2, 2, 7], false),
        separate(full(), [1, 33, 15, 2, 1, 8], true),
        packed(full(), [1, 31, 1, 12], false),
        packed(full(), [2, 32, 2, 5], true),
        packed(causal(top), [1, 33, 1, 16], false),
        separate(causal(top), [1, 7, 19, 3, 3, 5], false),
        separate(causal(top), [1, 19, 7, 2, 1, 6], true),
        separate(causal(bottom), [1, 7, 19, 4, 2, 5], false),
        // Sixteen queries that see no key.
        separate(causal(bottom), [1, 24, 8, 2, 2, 4], true),
        separate(causal(bottom), [1, 65, 65, 3, 1, 4], false),
        separate(Attention { key_lengths: lengths(&[9, 3, 0]), ..full() }, [3, 6, 9, 2, 1, 6], true),
        separate(Attention { key_lengths: lengths(&[8, 5]), ..causal(bottom) }, [2, 10, 8, 1, 1, 5], false),
        separate(Attention { scale: Some(0.3), ..full() }, [1, 13, 14, 1, 1, 9], false),
        separate(Attention { scale: Some(-1.0), ..full() }, [1, 4, 40, 1, 1, 2], false),
        separate(Attention { dropout: drop(0.1), ..full() }, [2, 9, 13, 2, 1, 4], true),
        packed(Attention { dropout: drop(0.5), ..causal(top) }, [1, 34, 2, 4], false),
        // Each of the sizes that kernels round up to.
        separate(full(), [1, 3, 5, 1, 1, 100], true),
        separate(full(), [1, 3, 5, 1, 1, 160], false),
        separate(full(), [1, 2, 3, 1, 1, 512], false),
        // Several tiles of keys; several tasks for one head, with a ragged last.
        separate(causal(bottom), [1, 3, 401, 1, 1, 4], true),
        separate(full(), [1, 527, 5, 1, 1, 3], false),
        joined(),
        joined_packed(),
    ]
    .into_iter()
    .chain(short())
    .chain(windows())
    .chain(long())
    .chain(sliding())
    .chain(sequences())
    .collect()
}

/// Windows, of which some have one token, some padding, some several regions.
fn windows() -> Vec<Case> {
    let of = |windows: Windows| Attention { windows: Some(windows), ..Attention::full(1) };
    // Samples, heads and head size of a packed input, and the same with tokens apart.
    let case = |w: Windows, [b, h, d]: [usize; 3], has_bias: bool| {
        let (n, places) = (w.grid.iter().product(), w.tokens());
        let mut x = vec![Input::new("qkv", [b, n, 3, h, d]).fill(Fill::Uniform(-2.0, 2.0))];
        if has_bias {
            x.push(Input::new("bias", [h, places, places]).always_f32());
        }
        Case::new(Attention { heads: h, ..of(w) }, x)
    };
    let apart = |w: Windows, sizes: [usize; 6]| separate(of(w), sizes, false);
    let image = |grid: [usize; 2], size: [usize; 2], is_shifted| {
        Windows::of([1, grid[0], grid[1]], [1, size[0], size[1]], is_shifted)
    };
    vec![
        case(image([1, 1], [1, 1], false), [1, 1, 8], false),
        case(image([4, 6], [2, 3], false), [2, 2, 8], true),
        case(image([6, 8], [3, 4], true), [2, 1, 16], true),
        // Not whole windows: padding on both sides, and regions that end inside a window.
        case(image([5, 7], [3, 4], true), [1, 2, 5], true),
        case(Windows::of([4, 5, 7], [2, 2, 3], true).closed(2), [1, 2, 24], false),
        case(Windows::of([2, 3, 5], [2, 6, 2], false), [2, 1, 8], false),
        // The same with a gradient of the bias: planes, padding, a shift, an axis whose ends meet.
        case(Windows::of([3, 5, 7], [2, 2, 3], true).closed(2), [2, 2, 16], true),
        apart(image([8, 6], [4, 3], true), [1, 48, 48, 4, 2, 8]),
        // Aurora's windows.
        case(Windows::of([2, 9, 12], [2, 6, 12], true).closed(2), [1, 1, 16], false),
        // Of these some lie in one piece, planes of others begin again.
        case(Windows::of([4, 12, 12], [2, 6, 12], true), [2, 1, 16], false),
    ]
}

/// Head sizes of whole pieces of 16 bytes and few tokens: around every tile of theirs, and several heads a block with a ragged last.
fn short() -> Vec<Case> {
    let full = || Attention::full(1);
    let some = |n: &[usize]| Attention { key_lengths: lengths(n), ..full() };
    vec![
        separate(full(), [1, 1, 15, 2, 2, 8], false),
        separate(full(), [1, 15, 16, 5, 5, 8], true),
        separate(full(), [1, 16, 17, 4, 2, 24], true),
        separate(full(), [3, 17, 63, 1, 1, 32], true),
        separate(full(), [1, 143, 65, 1, 1, 48], false),
        packed(full(), [1, 144, 1, 64], false),
        packed(full(), [1, 49, 2, 40], true),
        separate(full(), [1, 20, 145, 1, 1, 96], true),
        separate(full(), [1, 255, 33, 1, 1, 16], false),
        separate(full(), [1, 10, 256, 1, 1, 128], false),
        separate(some(&[16, 0, 1, 33]), [4, 16, 33, 1, 1, 16], true),
        separate(some(&[2, 47]), [2, 50, 48, 2, 1, 8], false),
    ]
}

/// What kernels for long sequences take although it is small: around their tiles of 64 queries and 128 keys, each kind of mask, groups
/// of heads, a second panel of columns.
fn long() -> Vec<Case> {
    let full = || Attention::full(1);
    let causal = |causal| Attention { causal, ..full() };
    let (top, bottom) = (Causal::TopLeft, Causal::BottomRight);
    let some = |n: &[usize], causal| Attention { key_lengths: lengths(n), causal, ..full() };
    let dropping = |op, p| Attention { dropout: Some(ProbabilityDropout { p, stream: Stream::new(3, 5) }), ..op };
    vec![
        separate(full(), [1, 63, 129, 2, 1, 16], false),
        separate(full(), [1, 65, 257, 1, 1, 48], false),
        separate(full(), [1, 1, 300, 2, 1, 64], false),
        // Scores that grow by more than 2^15 from one block of keys to the next, full and behind a mask.
        separate(Attention { scale: Some(6.0), ..full() }, [1, 64, 300, 2, 1, 16], false).that_takes_tiles_again(),
        separate(Attention { scale: Some(6.0), ..causal(bottom) }, [1, 64, 300, 1, 1, 48], false)
            .that_takes_tiles_again(),
        // A second tile of the largest that there is.
        separate(full(), [1, 257, 40, 1, 1, 72], false),
        separate(full(), [1, 64, 127, 2, 1, 80], true),
        separate(causal(top), [1, 129, 129, 1, 1, 64], false),
        separate(causal(top), [1, 70, 140, 1, 1, 24], true),
        separate(causal(bottom), [1, 66, 140, 1, 1, 96], false),
        separate(causal(bottom), [1, 140, 30, 1, 1, 128], false),
        separate(some(&[130, 0, 1], Causal::None), [3, 20, 260, 1, 1, 72], false),
        separate(some(&[100, 129], top), [2, 65, 129, 1, 1, 32], false),
        // Heads of three and four panels, the last of them not whole; a second block of keys, a second tile of queries.
        separate(causal(top), [1, 65, 66, 2, 1, 136], false),
        separate(dropping(full(), 0.25), [1, 65, 66, 1, 1, 256], false),
        separate(full(), [1, 70, 65, 1, 1, 512], false),
        packed(causal(top), [1, 66, 1, 40], false),
        // Dropped: keys that are no whole number of fours, a second block of keys, masks, a bias.
        separate(dropping(full(), 0.1), [1, 65, 131, 2, 1, 64], false),
        separate(dropping(causal(top), 0.5), [1, 129, 129, 1, 1, 128], false),
        separate(dropping(some(&[33, 66], bottom), 0.25), [2, 70, 66, 1, 1, 80], true),
    ]
}

/// Windows that slide: narrower and wider than a tile, on one side, of one key, past the end, before the beginning, and with every
/// other mask.
fn sliding() -> Vec<Case> {
    let of = |left, right| Attention { sliding: Some(SlidingWindow { left, right }), ..Attention::full(1) };
    let (top, bottom) = (Causal::TopLeft, Causal::BottomRight);
    let some = |n: &[usize], op| Attention { key_lengths: lengths(n), ..op };
    let dropped = Some(ProbabilityDropout { p: 0.25, stream: Stream::new(3, 5) });
    vec![
        separate(of(1, 2), [1, 9, 11, 2, 1, 5], true),
        separate(of(0, 0), [2, 19, 17, 1, 1, 8], false),
        separate(of(3, usize::MAX), [1, 33, 40, 2, 2, 4], false),
        // Queries behind the last key see none, and keys behind the last query are seen by none.
        separate(of(2, 1), [1, 50, 20, 1, 1, 6], false),
        separate(of(40, 30), [1, 140, 150, 1, 1, 16], false),
        separate(of(5, 0), [1, 150, 150, 1, 1, 128], false),
        separate(Attention { causal: top, ..of(70, 5) }, [1, 140, 140, 2, 1, 24], true),
        separate(Attention { causal: bottom, ..of(100, 9) }, [1, 66, 200, 1, 1, 16], false),
        separate(Attention { causal: bottom, ..of(3, 0) }, [1, 40, 9, 1, 1, 4], false),
        packed(of(20, 20), [1, 150, 1, 96], false),
        separate(some(&[133, 33], of(20, 20)), [2, 70, 140, 1, 1, 32], false),
        separate(Attention { dropout: dropped, ..of(30, 3) }, [1, 140, 140, 1, 1, 16], false),
        separate(of(30, 1), [1, 66, 100, 1, 1, 256], true),
    ]
}

/// Packed sequences: of a token, of none, across tiles; different numbers of queries and keys; in each every other mask.
fn sequences() -> Vec<Case> {
    let of = |lengths: &[usize]| Attention { sequences: Some(Sequences::of(lengths)), ..Attention::full(1) };
    let across = |q: &[usize], k: &[usize]| {
        let sequences = Sequences { queries: q.into(), keys: k.into() };
        Attention { sequences: Some(sequences), ..Attention::full(1) }
    };
    let (top, bottom) = (Causal::TopLeft, Causal::BottomRight);
    let sliding = Some(SlidingWindow { left: 9, right: 4 });
    let dropped = Some(ProbabilityDropout { p: 0.25, stream: Stream::new(3, 5) });
    vec![
        separate(of(&[1]), [1, 1, 1, 1, 1, 8], false),
        separate(of(&[3, 0, 5, 1]), [1, 9, 9, 2, 1, 5], true),
        packed(of(&[64, 64, 37]), [1, 165, 1, 64], false),
        packed(Attention { causal: top, ..of(&[7, 100, 1, 53]) }, [1, 161, 1, 24], false),
        separate(across(&[0, 5, 5, 70], &[0, 130, 140, 150]), [1, 70, 150, 1, 1, 16], true),
        separate(Attention { causal: bottom, ..across(&[0, 20, 66], &[0, 60, 130]) }, [1, 66, 130, 1, 1, 72], false),
        // A sequence without keys, whose queries see nothing.
        separate(Attention { causal: top, ..across(&[0, 30, 61], &[0, 0, 40]) }, [1, 61, 40, 1, 1, 8], false),
        separate(Attention { sliding, ..of(&[70, 20, 60]) }, [1, 150, 150, 1, 1, 48], false),
        separate(Attention { causal: top, dropout: dropped, ..of(&[81, 50]) }, [1, 131, 131, 1, 1, 32], false),
    ]
}

/// Heads and head size as one axis, as a linear layer gives them.
fn joined() -> Case {
    let x = [Input::new("q", [2, 5, 12]), Input::new("k", [2, 7, 6]), Input::new("v", [2, 7, 6])];
    Case::new(Attention::full(4), x)
}

fn joined_packed() -> Case {
    Case::new(Attention { causal: Causal::TopLeft, ..Attention::full(2) }, [Input::new("qkv", [1, 9, 18])])
}

pub(super) fn bad_cases() -> Vec<BadCase> {
    let op = Attention::full(4);
    let (q, k) = ([2, 5, 4, 8], [2, 7, 2, 8]);
    let with = |lengths: &[usize]| Attention { key_lengths: Some(lengths.into()), ..op.clone() };
    let drop = |p| Attention { dropout: Some(ProbabilityDropout { p, stream: Stream::new(0, 0) }), ..op.clone() };
    let windows = |w: Windows| Attention { windows: Some(w), ..op.clone() };
    let in_sequences = |s: Sequences| Attention { sequences: Some(s), ..op.clone() };
    let one = [1, 5, 4, 8];
    let f32 = |shape: &[usize]| Spec::f32(shape).unwrap_or_else(|e| unreachable!("case shapes are small: {e}"));
    vec![
        BadCase::new(Attention::full(0), &[&[2, 5, 12]], "heads: expected 1 or more, found 0"),
        BadCase::new(op.clone(), &[&q, &k, &k, &[4, 5, 7], &[1]], "[q, k, v, bias], found 5 inputs"),
        BadCase::new(
            op.clone(),
            &[&[2, 5, 3, 2, 8]],
            "qkv: expected [B, N, 3, H=4, D] or [B, N, 3·H·D], found [2, 5, 3, 2, 8]",
        ),
        BadCase::new(op.clone(), &[&[2, 5, 16]], "qkv: expected [B, N, 3, H=4, D]"),
        BadCase::new(
            op.clone(),
            &[&[2, 5, 3, 8], &k, &k],
            "q: expected [B, N, H=4, D] or [B, N, H·D], found [2, 5, 3, 8]",
        ),
        BadCase::new(op.clone(), &[&q, &[2, 7, 3, 8], &[2, 7, 3, 8]], "with Hkv a divisor of H=4, found [2, 7, 3, 8]"),
        BadCase::new(op.clone(), &[&q, &[1, 7, 2, 8], &k], "k: expected [B=2, Nk, Hkv, D=8]"),
        BadCase::new(op.clone(), &[&q, &[2, 7, 2, 9], &k], "k: expected [B=2, Nk, Hkv, D=8]"),
        BadCase::new(op.clone(), &[&q, &k, &[2, 6, 2, 8]], "v: expected [2, 7, 2, 8] like k, found [2, 6, 2, 8]"),
        BadCase::new(op.clone(), &[&q, &k, &k, &[4, 7, 5]], "bias: expected [H=4, Nq=5, Nk=7], found [4, 7, 5]"),
        BadCase::new(op.clone(), &[&[1, 2, 3, 4, 513]], "head size: expected 1 to 512, found 513"),
        BadCase::new(op.clone(), &[&[1, 2, 3, 4, 0]], "head size: expected 1 to 512, found 0"),
        BadCase::new(
            Attention { scale: Some(f32::NAN), ..op.clone() },
            &[&q, &k, &k],
            "scale: expected a finite number",
        ),
        BadCase::new(
            drop(1.0),
            &[&q, &k, &k],
            "dropout: p: expected a probability of 0 or more and less than 1, found 1",
        ),
        BadCase::new(
            drop(f32::NAN),
            &[&q, &k, &k],
            "dropout: p: expected a probability of 0 or more and less than 1, found NaN",
        ),
        BadCase::new(with(&[1]), &[&q, &k, &k], "key_lengths: expected B=2 lengths of at most Nk=7, found [1]"),
        BadCase::new(with(&[1, 8]), &[&q, &k, &k], "key_lengths: expected B=2 lengths of at most Nk=7, found [1, 8]"),
        BadCase::new(
            windows(Windows::of([1, 2, 3], [1, 2, 3], false)),
            &[&q, &q, &q],
            "windows: grid: expected a product of N=5 tokens, found [1, 2, 3]",
        ),
        BadCase::new(
            windows(Windows { size: [1, 1, 6], ..Windows::of([1, 1, 5], [1, 1, 5], false) }),
            &[&q, &q, &q],
            "windows: size: expected 1 to [1, 1, 5] along each axis, found [1, 1, 6]",
        ),
        BadCase::new(
            windows(Windows { shift: [0, 0, 5], ..Windows::of([1, 1, 5], [1, 1, 5], false) }),
            &[&q, &q, &q],
            "windows: shift: expected less than size [1, 1, 5] along each axis, found [0, 0, 5]",
        ),
        BadCase::new(
            Attention { causal: Causal::TopLeft, ..windows(Windows::of([1, 1, 5], [1, 1, 5], false)) },
            &[&q, &q, &q],
            "windows: expected Nk = Nq=5, no causal mask",
        ),
        BadCase::new(
            in_sequences(Sequences::of(&[5])),
            &[&q, &q, &q],
            "sequences: expected a single sample (B=1) and no key lengths, found B=2",
        ),
        BadCase::new(
            in_sequences(Sequences::of(&[3, 1])),
            &[&one, &one, &one],
            "sequences: queries: expected 0 to Nq=5, ascending, found [0, 3, 4]",
        ),
        BadCase::new(
            in_sequences(Sequences { queries: [0, 5].into(), keys: [0, 4, 3, 5].into() }),
            &[&one, &one, &one],
            "sequences: expected as many places of keys as of queries, found 2 of queries, 4 of keys",
        ),
        BadCase::of_specs(op.clone(), vec![f32(&q), f32(&k).with_dtype(Dtype::F16), f32(&k)], "k: expected f32"),
        BadCase::of_specs(
            op,
            vec![f32(&[2, 5, 12]).with_dtype(Dtype::Bf16), f32(&[4, 5, 5]).with_dtype(Dtype::Bf16)],
            "bias: expected f32",
        ),
    ]
}

pub(super) fn bench_cases() -> Vec<Case> {
    let in_windows = |w: Windows| Attention { windows: Some(w), ..Attention::full(1) };
    vec![
        packed(Attention::full(8), [4, 128, 8, 48], false),
        packed(Attention::full(4), [4, 128, 4, 32], false),
        packed(Attention::full(8), [2048, 144, 8, 64], false),
        // A shifted block of Aurora's first stage at 0.25 degrees, and of Swin's at 896 x 896.
        packed(in_windows(Windows::of([4, 180, 360], [2, 6, 12], true).closed(2)), [1, 259_200, 8, 64], false),
        packed(in_windows(Windows::of([1, 224, 224], [1, 7, 7], true)), [8, 50_176, 4, 32], false),
        packed(Attention::full(8), [1, 4050, 8, 48], false),
        packed(Attention { causal: Causal::TopLeft, ..Attention::full(8) }, [1, 1024, 8, 64], false),
        packed(
            Attention {
                causal: Causal::TopLeft,
                sliding: Some(SlidingWindow { left: 511, right: 0 }),
                ..Attention::full(4)
            },
            [1, 4096, 4, 128],
            false,
        ),
        packed(
            Attention { sequences: Some(Sequences::of(&[1000, 97, 512, 1500, 987])), ..Attention::full(8) },
            [1, 4096, 8, 64],
            false,
        ),
        // Small enough for an emulator, and as many tiles as show what a step costs: `benches/targets`.
        separate(Attention::full(2), [1, 512, 512, 2, 2, 64], false).timed_in(Dtype::Bf16),
        separate(Attention::full(2), [1, 512, 512, 2, 2, 128], false).timed_in(Dtype::Bf16),
    ]
    .into_iter()
    .chain(compared())
    .collect()
}

/// Where attention is set beside other libraries (`benches/beside`): 16,384 tokens of 2,048 numbers cut into heads of 64 and of 128 and
/// into sequences of 512 to 16,384 tokens, full and causal; then shapes of the weather transformers, and of climate tokens that
/// read a text.
fn compared() -> Vec<Case> {
    let case = |causal, sizes| {
        let mut case = separate(Attention { causal, ..Attention::full(1) }, sizes, false);
        case.x.iter_mut().for_each(|x| x.fill = Fill::Normal);
        case.timed_in(Dtype::Bf16)
    };
    let mut all = Vec::new();
    for (d, h) in [(64, 32), (128, 16)] {
        for n in [512, 2048, 8192, 16_384] {
            all.extend([Causal::None, Causal::TopLeft].map(|causal| case(causal, [16_384 / n, n, n, h, h, d])));
        }
    }
    let models = [
        [32, 2048, 2048, 8, 8, 48],
        [32, 512, 512, 16, 16, 48],
        [2048, 144, 144, 8, 8, 64],
        [4, 512, 2048, 32, 32, 128],
        [8, 4050, 4050, 16, 16, 96],
    ];
    all.extend(models.map(|sizes| case(Causal::None, sizes)));
    all
}
