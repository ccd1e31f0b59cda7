"""The twin of benches/models.rs in PyTorch: the same model, the same step, one JSON line.

    python torch_models.py --case local --mode eager|compiled --steps 20
"""

import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

CASES = {"local": (128, 4, 4), "base384": (384, 12, 8)}


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class WeatherVit(nn.Module):
    def __init__(self, dim, layers, heads, grid=(64, 128), patch=8, channels=20):
        super().__init__()
        self.grid, self.tokens = grid, (grid[0] // patch, grid[1] // patch)
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.position = nn.Parameter(torch.randn(1, self.tokens[0] * self.tokens[1], dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, channels)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.head(self.norm(x)).transpose(1, 2).unflatten(2, self.tokens)
        return F.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--case", choices=CASES, required=True)
    args.add_argument("--mode", choices=("eager", "compiled"), required=True)
    args.add_argument("--steps", type=int, default=20)
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = WeatherVit(*CASES[args.case])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    batches = [(torch.randn(4, 20, 64, 128), torch.randn(4, 20, 64, 128)) for _ in range(4)]

    def loss_of(x, y):
        error = (model(x) - y).flatten(1).norm(dim=1)
        return (error / y.flatten(1).norm(dim=1)).mean()

    run = torch.compile(loss_of) if args.mode == "compiled" else loss_of

    def step(i):
        optimizer.zero_grad(set_to_none=True)
        loss = run(*batches[i % len(batches)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    for i in range(3):
        step(i)
    times = []
    for i in range(args.steps):
        start = time.perf_counter()
        step(i)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"who": f"torch {torch.__version__} {args.mode}", "case": args.case, "steps": args.steps,
                      "median_seconds": statistics.median(times), "least_seconds": min(times), "peak_bytes": peak}))


if __name__ == "__main__":
    main()
