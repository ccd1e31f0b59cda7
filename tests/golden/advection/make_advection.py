"""Writes a data set with a known signal: `python make_advection.py OUT`.

Three fields of smooth random waves on a 32 x 64 grid move one cell east a step, so that step t + 1 is step t rolled by one
column: persistence is wrong by a known amount, and a model that learns to shift by one cell is right. Years start from
other waves, so the held-out ones cannot be remembered. 48 steps a year (one has 49, as a leap year would), chunks of one
step with gzip and shuffle; statistics over the training years, of shape [1, C, 1, 1] as ERA5 sets have them.
"""

import pathlib
import sys

import h5py
import numpy as np

C, H, W = 3, 32, 64


def year(seed, steps):
    random = np.random.default_rng(seed)
    lat = np.linspace(90, -90, H)[:, None]
    lon = 2 * np.pi * np.arange(W)[None, :] / W
    first = np.zeros((C, H, W))
    for c in range(C):
        for wave in range(1, 7):
            amplitude = random.normal() / wave
            tilt, phase = random.uniform(-2, 2), random.uniform(0, 2 * np.pi)
            first[c] += amplitude * np.cos(wave * lon + tilt * np.deg2rad(lat) * wave + phase)
        first[c] = first[c] * (10.0, 5.0, 0.5)[c] + (280.0, 0.0, 1.0)[c]
    return np.stack([np.roll(first, t, axis=-1) for t in range(steps)]).astype("<f4")


def main(out):
    splits = {"train": range(2000, 2012), "valid": range(2012, 2014), "test": range(2014, 2016)}
    train = []
    for split, years in splits.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        for y in years:
            fields = year(y, 49 if y % 4 == 0 else 48)
            with h5py.File(out / split / f"{y}.h5", "w") as f:
                f.create_dataset("fields", data=fields, chunks=(1, C, H, W), compression="gzip", shuffle=True)
            if split == "train":
                train.append(fields.astype("f8"))
    every = np.concatenate(train)
    (out / "stats").mkdir(exist_ok=True)
    np.save(out / "stats/global_means.npy", every.mean((0, 2, 3)).astype("<f4").reshape(1, C, 1, 1))
    np.save(out / "stats/global_stds.npy", every.std((0, 2, 3)).astype("<f4").reshape(1, C, 1, 1))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
