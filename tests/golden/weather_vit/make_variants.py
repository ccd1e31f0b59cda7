#!/usr/bin/env python3
"""Prints what the weather transformer gives in each variant that tests/models.rs holds: the numbers of its `Golden`s.

    pip install torch==2.15.0
    python make_variants.py [VARIANT ...]

The model is written here from its description (patch embedding, learned positions, L blocks of attention and MLP, norm, head), in
float64, with PyTorch's own layer_norm, group_norm, instance_norm, gelu, relu, silu, selu and mish, and PyTorch's gradients. Weights and
data are filled by the rule of tests/models.rs. Numbers of the variants `unpatchify`, `group` and `post_norm` are known from the original
implementation (alexk101/sci-scaling@7955f59); the script fails if it does not find them again.
"""

import math
import sys

import torch
import torch.nn.functional as F

B, CIN, COUT, H, W, P, D, HEADS, L = 2, 3, 2, 8, 12, 4, 16, 4, 2
N, HIDDEN = (H // P) * (W // P), 4 * D
MASK = (1 << 64) - 1


def number(name, i):
    """Element i of the tensor `name`, in [-1, 1)."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    z = (h + (i + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return 2.0 * (((z ^ z >> 31) >> 40) / 2.0**24) - 1.0


def filled(name, *shape):
    x = torch.tensor([number(name, i) for i in range(math.prod(shape))], dtype=torch.float64)
    return x.reshape(shape)


def weights(norm):
    """Names and values of all parameters."""
    shapes = {"pos_embed": (1, N, D), "patch_embed.proj.weight": (D, CIN, P, P), "patch_embed.proj.bias": (D,)}
    norms = []
    for i in range(L):
        b = f"blocks.{i}."
        norms += [b + "norm1.norm", b + "norm2.norm"]
        for layer, out, into in [("attn.qkv", 3 * D, D), ("attn.proj", D, D), ("mlp.0", HIDDEN, D), ("mlp.3", D, HIDDEN)]:
            shapes[f"{b}{layer}.weight"] = (out, into)
            shapes[f"{b}{layer}.bias"] = (out,)
    for n in norms + ["norm.norm"]:
        if norm != "instance":
            shapes[n + ".weight"] = shapes[n + ".bias"] = (D,)
    shapes["head.weight"] = (COUT * P * P, D)
    p = {}
    for name, shape in shapes.items():
        x = filled(name, *shape)
        if len(shape) > 1:
            x = x / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        p[name] = x.requires_grad_()
    return p


def normalise(p, kind, name, x):
    if kind == "instance":
        return F.instance_norm(x.transpose(1, 2), eps=1e-5).transpose(1, 2)
    w, b = p[name + ".weight"], p[name + ".bias"]
    if kind == "group":
        return F.group_norm(x.transpose(1, 2), 8, w, b, eps=1e-5).transpose(1, 2)
    return F.layer_norm(x, (D,), w, b, eps=1e-5)


ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "selu": F.selu, "mish": F.mish}


def forward(p, x, act="gelu", norm="layer", pre=True):
    def linear(name, x):
        return F.linear(x, p[name + ".weight"], p[name + ".bias"])

    def attention(b, x):
        q, k, v = linear(b + "attn.qkv", x).reshape(B, N, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(D // HEADS), -1) @ v
        return linear(b + "attn.proj", a.transpose(1, 2).reshape(B, N, D))

    def mlp(b, x):
        return linear(b + "mlp.3", ACTIVATIONS[act](linear(b + "mlp.0", x)))

    x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=P).flatten(2).transpose(1, 2)
    x = x + p["pos_embed"]
    for i in range(L):
        b = f"blocks.{i}."
        for part, name in [(attention, b + "norm1.norm"), (mlp, b + "norm2.norm")]:
            if pre:
                x = x + part(b, normalise(p, norm, name, x))
            else:
                x = normalise(p, norm, name, x + part(b, x))
    y = F.linear(normalise(p, norm, "norm.norm", x), p["head.weight"])
    y = y.reshape(B, H // P, W // P, P, P, COUT).permute(0, 5, 1, 3, 2, 4)
    return y.reshape(B, COUT, H, W)


VARIANTS = {
    "unpatchify": {},
    "group": {"norm": "group"},
    "post_norm": {"pre": False},
    "selu": {"act": "selu"},
    "mish": {"act": "mish"},
    "instance": {"norm": "instance"},
    "instance_post_norm": {"norm": "instance", "pre": False},
}

# Sum, loss and gradient norm of the original implementation.
KNOWN = {
    "unpatchify": (-6.997358620943249, 1.4331889402458775, 1.1475070270991372),
    "group": (-25.92488731121619, 1.4185966735550557, 1.1600017346492217),
    "post_norm": (-12.840933307356316, 1.4395500449621195, 0.871499371006578),
}


def main():
    for name in sys.argv[1:] or VARIANTS:
        options = VARIANTS[name]
        p = weights(options.get("norm", "layer"))
        y, target = forward(p, filled("in.x", B, CIN, H, W), **options), filled("in.y", B, COUT, H, W)
        loss = ((y - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)).mean()
        loss.backward()
        gradient = math.sqrt(sum(float((x.grad**2).sum()) for x in p.values()))
        flat = y.detach().flatten()
        found = (float(flat.sum()), float(loss.detach()), gradient)
        if name in KNOWN and max(abs(a - b) for a, b in zip(found, KNOWN[name])) > 1e-12:
            sys.exit(f"{name}: found {found}, known {KNOWN[name]}")
        print(f"{name}:")
        print(f"    params: {sum(x.numel() for x in p.values())},")
        print(f"    first: {flat[:4].tolist()},")
        print(f"    last: {flat[-4:].tolist()},")
        print(f"    sum: {found[0]!r},\n    norm: {float(flat.norm())!r},")
        print(f"    loss: {found[1]!r},\n    grad_norm: {gradient!r},")


if __name__ == "__main__":
    main()
