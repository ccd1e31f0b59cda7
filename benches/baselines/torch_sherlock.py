"""The twin of benches/sherlock.rs in PyTorch: the published Sherlock autoencoder, the same step, one JSON line.

    python torch_sherlock.py --mode eager|compiled --precision bf16|fp16 --batch 64 --steps 20

Compiled, the passes are; with `--whole` clipping and the update, too (then AdamW is not the fused one, which is a kernel by itself). To
compile takes longer than to train: TORCHINDUCTOR_COMPILE_THREADS=16 helps, and every step is told to stderr as it comes.

Master weights, gradients and moments in fp32, products under autocast, fused AdamW: what its users train with.
"""

import argparse
import json
import math
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


def stage(k, n, p):
    return [nn.Linear(k, n), nn.BatchNorm1d(n), nn.ReLU(), nn.Dropout(p)]


class Convolutions(nn.Module):
    def __init__(self, conv, norm, channels, size, features):
        super().__init__()
        layers = []
        for i, o in zip(channels, channels[1:]):
            layers += [conv(i, o, 3, 2, 1), norm(o), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(size, features), nn.Dropout(0.2), nn.ReLU())

    def forward(self, x):
        return self.fc(self.convs(x).flatten(1))


class Sherlock(nn.Module):
    def __init__(self, height=90, width=160, mels=128, text=1024, voxels=85810, d=8000, h=2048):
        super().__init__()
        video = [3, 32, 64, 128, 256]
        self.video = Convolutions(nn.Conv2d, nn.BatchNorm2d, video, 256 * math.ceil(height / 16) * math.ceil(width / 16), 1024)
        self.audio = Convolutions(nn.Conv1d, nn.BatchNorm1d, [1, 32, 64, 128], 128 * math.ceil(mels / 8), 256)
        self.text = nn.Sequential(*stage(text, 512, 0.2), *stage(512, 256, 0.2))
        self.fusion = nn.Sequential(*stage(1536, 1536, 0.2))
        self.to_bottleneck = nn.Sequential(*stage(1536, 4096, 0.3), *stage(4096, d, 0.2))
        self.to_voxels = nn.Sequential(*stage(d, 16384, 0.3), nn.Linear(16384, voxels))
        self.trunk = nn.Sequential(*stage(d, h, 0.3), *stage(h, 2 * h, 0.3), *stage(2 * h, 4 * h, 0.3))
        self.to_video = nn.Sequential(
            *stage(4 * h, 4 * h, 0.3), *stage(4 * h, 2 * h, 0.3), nn.Linear(2 * h, 3 * height * width), nn.Sigmoid()
        )
        self.to_audio = nn.Sequential(*stage(4 * h, h, 0.3), *stage(h, h // 2, 0.3), nn.Linear(h // 2, mels))
        self.to_text = nn.Sequential(*stage(4 * h, h, 0.3), *stage(h, h, 0.3), nn.Linear(h, text))

    def forward(self, video, audio, text):
        x = torch.cat([self.video(video), self.audio(audio[:, None]), self.text(text)], 1)
        b = self.to_bottleneck(self.fusion(x))
        trunk = self.trunk(b)
        return self.to_voxels(b), self.to_video(trunk), self.to_audio(trunk), self.to_text(trunk)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--mode", choices=("eager", "compiled"), required=True)
    args.add_argument("--precision", choices=("bf16", "fp16"), default="bf16")
    args.add_argument("--batch", type=int, default=64)
    args.add_argument("--steps", type=int, default=20)
    args.add_argument("--whole", action="store_true")
    args = args.parse_args()
    began = time.perf_counter()

    def tell(what):
        print(f"{time.perf_counter() - began:6.1f} s {what}", file=sys.stderr, flush=True)

    torch.manual_seed(0)
    device = torch.device("cuda")
    with device:
        model = Sherlock()
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5, fused=not args.whole)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float16
    scaler = torch.amp.GradScaler("cuda", enabled=args.precision == "fp16")
    b = args.batch

    def batch():
        video = torch.rand(b, 3, 90, 160, device=device)
        audio, text = -80 * torch.rand(b, 128, device=device), 0.1 * torch.rand(b, 1024, device=device) - 0.05
        return video, audio, text, torch.randn(b, 85810, device=device)

    batches = [batch() for _ in range(2)]

    def loss_of(video, audio, text, fmri):
        with torch.autocast("cuda", dtype):
            predicted, v, a, t = model(video, audio, text)
        losses = [F.mse_loss(x.float(), y) for x, y in ((predicted, fmri), (v, video.flatten(1)), (a, audio), (t, text))]
        return sum(losses)

    run = torch.compile(loss_of) if args.mode == "compiled" else loss_of

    def clip_and_update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    update = torch.compile(clip_and_update) if args.whole else clip_and_update
    tell(f"{parameters} parameters on the device")

    def step(i):
        optimizer.zero_grad(set_to_none=True)
        loss = run(*batches[i % 2])
        scaler.scale(loss).backward()
        if args.precision == "fp16":
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        else:
            update()
        value = loss.item()
        tell(f"step {i}: loss {value:.4f}")
        return value

    losses, seconds = [step(i) for i in range(4)], []
    for i in range(args.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        losses.append(step(i))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    line = {"who": f"torch {torch.__version__} {args.mode}{' whole' if args.whole else ''}", "case": "sherlock", "precision": args.precision, "batch": b}
    line |= {"parameters": parameters, "steps": args.steps, "median_seconds": statistics.median(seconds)}
    line |= {"least_seconds": min(seconds), "peak_bytes": torch.cuda.max_memory_allocated()}
    line |= {"reserved_bytes": torch.cuda.max_memory_reserved(), "first_loss": losses[0], "last_loss": losses[-1]}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
