"""Medians over rounds of a record of benches/compare-cpu, as the README of that record."""

import json
import os
import platform
import statistics
import sys


def processor():
    with open("/proc/cpuinfo") as info:
        return next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())


def main():
    folder, command, revision = sys.argv[1:4]
    with open(os.path.join(folder, "raw.jsonl")) as raw:
        rows = [json.loads(line) for line in raw]
    table = {}
    for row in rows:
        table.setdefault(row["case"], {}).setdefault(row["who"], []).append(row)
    lines = [
        "# Training steps on a CPU, beside PyTorch",
        "",
        f"Machine: {processor()}, {os.cpu_count()} cores. Revision: {revision}. Command: `{command}`.",
        "One step is forward, loss, backward, clip and AdamW; batch 4, 64×128, f32, drops off; processes in turn, each",
        "its median over the steps, below the median over the rounds. Memory is the largest resident size of the process,",
        "libraries included. Ratio: the faster PyTorch over perfrun; above 1 perfrun is faster.",
        "",
        "| case | who | ms a step | least | MiB |",
        "|---|---|--:|--:|--:|",
    ]
    ratios = []
    for case, who in table.items():
        medians = {}
        for name, runs in who.items():
            medians[name] = statistics.median(r["median_seconds"] for r in runs)
            least = min(r["least_seconds"] for r in runs)
            peak = max(r["peak_bytes"] for r in runs) / 2**20
            lines.append(f"| {case} | {name} | {1e3 * medians[name]:.1f} | {1e3 * least:.1f} | {peak:.0f} |")
        best = min(v for n, v in medians.items() if n != "perfrun")
        ratios.append(f"{case}: {best / medians['perfrun']:.2f}")
    lines += ["", "Ratio: " + ", ".join(ratios) + "."]
    with open(os.path.join(folder, "README.md"), "w") as out:
        out.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
