"""The cases of a record of rooms in PyTorch eager, on the same device: one JSON line a measurement, and the ratio to the record.

    python torch_ops.py RECORD > torch.jsonl

Of every room the case that moves most bytes, as README.md shows it, in every type of the record, forward and backward. Inputs are
random normal and rotate through more memory than the cache holds; a measurement is the median of many, each some launches between
two events. `ratio` is PyTorch's time over the record's: above 1 perfrun is faster.
"""

import argparse
import functools
import json
import pathlib
import re
import statistics

import torch
from torch.nn import functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
ROTATE_BYTES = 256 << 20
LAUNCHES = 10


def heads_apart(qkv):
    """q, k, v [B, H, N, d] of a packed [B, N, 3, H, d]."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def rms_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, 1e-5)


def rotate_halves(x):
    half = x.shape[-1] // 2
    at = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    angles = at[:, None] / 1e6 ** (torch.arange(half, device=x.device, dtype=torch.float32) / half)
    sine, cosine = (f.to(x.dtype)[None, :, None, :] for f in (angles.sin(), angles.cos()))
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cosine - b * sine, a * sine + b * cosine), -1)


def patches(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 8) * (w // 8), c * 64)


def weighted(error):
    def loss(p, y, weight):
        return (error(p, y) * weight[:, None]).mean()

    return loss


def relative_l2(p, y, weight):
    def norm(x):
        return (x.float().square() * weight[:, None].float()).sum((1, 2, 3)).sqrt()

    return (norm(p - y) / norm(y)).mean()


def add_norm(x, residual, gamma, beta=None):
    total = x + residual
    return F.layer_norm(total, gamma.shape, gamma, beta) if beta is not None else rms_norm(total, gamma)


def patch_embed(x, weight, bias, mean, std):
    normal = ((x - mean[:, None, None]) / std[:, None, None]).to(weight.dtype)
    return F.conv2d(normal, weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)


def patch_unembed(x, weight, bias, mean, std, grid, patch):
    y = F.linear(x, weight, bias).view(x.shape[0], *grid, -1, *patch)
    y = y.permute(0, 3, 1, 4, 2, 5).reshape(x.shape[0], -1, grid[0] * patch[0], grid[1] * patch[1])
    return y * std[:, None, None] + mean[:, None, None]


def patch_embed_history(x, bias, *weights):
    # Variables and times are channels; what a weight knows of other times is not read.
    weight = torch.cat([w[:, 0, : x.shape[2]] for w in weights], 1)
    return F.conv2d(x.flatten(1, 2).to(weight.dtype), weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)


def resize_tokens(x, grid, size):
    images = x.float().transpose(1, 2).reshape(x.shape[0], -1, *grid)
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def patch_unembed_error(tokens, mean, std, target, rows, channels, grid, patch):
    y = tokens.view(tokens.shape[0], *grid, *patch, -1).permute(0, 5, 1, 3, 2, 4).reshape(target.shape)
    off = y * std[:, None, None] + mean[:, None, None] - target
    return (off.square() * rows[:, None] * channels[:, None, None]).mean()


# What each room's case is in PyTorch: a function of the inputs, in the order of the record.
ROOMS = {
    "absolute_error": weighted(lambda p, y: (p - y).abs()),
    "add": torch.add,
    "add_norm": add_norm,
    "attention": lambda qkv: F.scaled_dot_product_attention(*heads_apart(qkv)),
    "batch_norm": lambda x, w, b, m, v: F.batch_norm(x, None, None, w, b, True, 0.1, 1e-5),
    "bias_gelu": lambda x, bias: F.gelu(x + bias),
    "cast": lambda x: x.to(torch.bfloat16) if x.dtype != torch.bfloat16 else x.float(),
    "concat": lambda *x: torch.cat(x, 1),
    "conv1d": lambda x, w, b: F.conv1d(x, w, b, padding=1, groups=x.shape[1]),
    "conv2d": F.conv2d,
    "cross_entropy": F.cross_entropy,
    "dropout": lambda x: F.dropout(x, 0.1),
    "gelu": F.gelu,
    "group_norm": lambda x, w, b, groups: F.group_norm(x.transpose(1, 2), groups, w, b),
    "linear_cross_entropy": lambda x, w, labels: F.cross_entropy(F.linear(x, w), labels),
    "layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
    "matmul": F.linear,
    "mish": F.mish,
    "modulate": lambda x, scale, shift: x * (1 + scale[:, None]) + shift[:, None],
    "mul": torch.mul,
    "pad": lambda x: F.pad(x, (4, 4, 4, 4)),
    "patch_embed": patch_embed,
    "patch_embed_history": patch_embed_history,
    "patch_unembed": patch_unembed,
    "patch_unembed_error": patch_unembed_error,
    "patchify": patches,
    "permute": lambda x: x.permute(2, 0, 3, 1, 4).contiguous(),
    "reduce": lambda x: x.mean(1),
    "relative_l2": relative_l2,
    "relu": F.relu,
    "resize_bilinear": lambda x, size: F.interpolate(x, size=size, mode="bilinear", align_corners=False),
    "resize_tokens": resize_tokens,
    "rms_norm": rms_norm,
    "roll": lambda x: x.roll((0, -1, -3, -6, 0), (0, 1, 2, 3, 4)),
    "rope": rotate_halves,
    "scale": lambda x: x * 0.5,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "slice": lambda x: x.narrow(2, 0, 720).contiguous(),
    "softmax": lambda x: x.softmax(-1),
    "squared_error": weighted(lambda p, y: (p - y).square()),
    "swiglu": lambda gate, up: F.silu(gate) * up,
}
# What a function takes besides, as the case has it.
OPTIONS = {
    "group_norm": {"groups": r"groups: (\d+)"},
    "patch_unembed_error": {"grid": r"grid: \[(\d+), (\d+)\]", "patch": r"patch: \[(\d+), (\d+)\]"},
    "patch_unembed": {"grid": r"grid: \[(\d+), (\d+)\]", "patch": r"patch: \[(\d+), (\d+)\]"},
    "resize_bilinear": {"size": r"size: \[(\d+), (\d+)\]"},
    "resize_tokens": {"grid": r"grid: \[(\d+), (\d+)\]", "size": r"size: \[(\d+), (\d+)\]"},
}
# No gradient: weights of rows in losses, statistics of channels. (Labels and running statistics never have one.)
CONSTANT = {("absolute_error", "weight"), ("squared_error", "weight"), ("relative_l2", "weight")} | {
    (room, name) for room in ("patch_embed", "patch_unembed", "patch_unembed_error") for name in ("mean", "std")
}
CONSTANT |= {("patch_unembed_error", name) for name in ("target", "rows", "channels")}
# In f32 whatever the type of the others: images before they are cut, and statistics.
ALWAYS_F32 = {("patch_embed", "x"), ("patch_embed_history", "x")}
ALWAYS_F32 |= {(room, name) for room, name in CONSTANT if name in ("mean", "std") or room == "patch_unembed_error"}


def inputs(room, case, dtype):
    parts = re.findall(r"(\w+) \[([\d, ]*)\]", case.rsplit(": ", 1)[1])
    tensors = []
    for name, shape in parts:
        shape = [int(n) for n in shape.split(",")]
        if name == "labels":
            # One of the classes: the last axis of logits, the first of the weight that makes them.
            classes = tensors[1].shape[0] if room == "linear_cross_entropy" else tensors[0].shape[-1]
            tensors.append(torch.randint(0, classes, shape, device="cuda"))
            continue
        is_running = name.startswith("running")
        is_f32 = is_running or (room, name) in ALWAYS_F32
        x = torch.randn(shape, device="cuda", dtype=torch.float32 if is_f32 else dtype)
        x = x.abs() + 0.5 if name == "std" else x
        tensors.append(x.requires_grad_(not is_running and (room, name) not in CONSTANT))
    return tensors


def function_of(room, case):
    options = {}
    for name, pattern in OPTIONS.get(room, {}).items():
        numbers = tuple(int(n) for n in re.search(pattern, case).groups())
        options[name] = numbers if len(numbers) > 1 else numbers[0]
    return functools.partial(ROOMS[room], **options)


def median_seconds(run, sets):
    for i in range(2 * LAUNCHES):
        run(i % sets)
    times = []
    for r in range(30):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(400_000)
        start.record()
        for i in range(LAUNCHES):
            run((r * LAUNCHES + i) % sets)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / LAUNCHES)
    return statistics.median(times)


def measure(room, case, dtype, passes):
    first = inputs(room, case, dtype)
    size = sum(x.numel() * x.element_size() for x in first)
    sets = [first] + [inputs(room, case, dtype) for _ in range(min(40, ROTATE_BYTES // size))]
    of = function_of(room, case)
    with torch.no_grad():
        yield "forward", median_seconds(lambda i: of(*sets[i]), len(sets))
    if "backward" not in passes:
        return
    wanted = [[x for x in s if x.requires_grad] for s in sets]
    results = [of(*s) for s in sets]
    grads = [torch.randn_like(y) for y in results]
    yield "backward", median_seconds(
        lambda i: torch.autograd.grad(results[i], wanted[i], grads[i], retain_graph=True), len(sets)
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("record", type=pathlib.Path)
    rows = [json.loads(line) for line in (parser.parse_args().record / "raw.jsonl").read_text().splitlines()]
    largest = {}
    for row in rows:
        best = largest.setdefault(row["room"], row)
        if row["pass"] == "forward" and row["cost"]["bytes"] > best["cost"]["bytes"]:
            largest[row["room"]] = row
    for room, big in sorted(largest.items()):
        for name, dtype in DTYPES.items():
            ours = {r["pass"]: r for r in rows if (r["room"], r["case"], r["dtype"]) == (room, big["case"], name)}
            if room not in ROOMS or not ours:
                continue
            for which, seconds in measure(room, big["case"], dtype, ours):
                own = ours[which]["seconds"]["median"]
                line = {"room": room, "case": big["case"], "dtype": name, "pass": which, "who": f"torch {torch.__version__} eager"}
                print(json.dumps(line | {"seconds": seconds, "perfrun_seconds": own, "ratio": seconds / own}), flush=True)


if __name__ == "__main__":
    main()
