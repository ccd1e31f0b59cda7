"""Loads an autoencoder's `.pt` with PyTorch, as a user would, and compares it with the checkpoint beside it, number by number.

    perfrun train sherlock-tiny --synth --data film --precision fp16 --set save_pt=true --set save_every=1
    python check_sherlock.py checkpoints/checkpoint_epoch_20 checkpoints/best_checkpoint checkpoints/final_checkpoint
"""

import json
import pathlib
import struct
import sys

import torch

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
KEYS = ["epoch", "global_step", "model_state_dict", "optimizer_state_dict", "config", "best_val_loss", "train_history"]
KEYS += ["val_history", "val_loss", "scheduler_state_dict", "scaler_state_dict"]


def stored(path):
    """The tensors of a safetensors file by name."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + place for place in entry["data_offsets"])
            numbers = torch.frombuffer(bytearray(data[start:end]), dtype=TYPES[entry["dtype"]])
            tensors[name] = numbers.reshape(entry["shape"])
    return tensors


def check(folder):
    loaded = torch.load(folder.with_suffix(".pt"), weights_only=True)
    assert set(KEYS) <= set(loaded), sorted(set(KEYS) - set(loaded))
    state = json.loads((folder / "state.json").read_text())
    weights, moments = stored(folder / "model.safetensors"), stored(folder / "optimizer.safetensors")
    model = loaded["model_state_dict"]
    assert list(model) == state["entries"] and len(model) == 166, len(model)
    for name, tensor in model.items():
        assert tensor.dtype == weights[name].dtype and torch.equal(tensor, weights[name]), name
    names = [name for name in model if name not in state["buffers"]]
    assert len(names) == 100
    parameters = [torch.nn.Parameter(model[name].clone()) for name in names]
    optimizer = torch.optim.AdamW(parameters, lr=1.0)
    optimizer.load_state_dict(loaded["optimizer_state_dict"])
    for name, parameter in zip(names, parameters):
        found = optimizer.state[parameter]
        assert found["step"] == state["progress"]["updates"], name
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(found[moment], moments[f"{name}.{moment}"].float()), f"{name}.{moment}"
    training = state["config"]["training"]
    group = optimizer.param_groups[0]
    assert group["initial_lr"] == training["learning_rate"] and group["weight_decay"] == training["weight_decay"]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1)
    scheduler.load_state_dict(loaded["scheduler_state_dict"])
    planned = state["position"]["planned"]
    warmup = training["warmup_epochs"] * planned["steps_per_epoch"]
    assert scheduler.T_max == planned["total_steps"] - warmup and scheduler.eta_min == training["min_lr"]
    assert scheduler.last_epoch == max(0, state["progress"]["step"] - warmup)
    # Behind the warm-up PyTorch's own formula gives the rate that the checkpoint says.
    closed = scheduler._get_closed_form_lr()[0]
    assert scheduler.last_epoch == 0 or abs(closed - scheduler.get_last_lr()[0]) < 1e-12, closed
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(loaded["scaler_state_dict"])
    assert scaler.get_scale() == state["loss_scale"]["scale"]
    history = state["position"]["history"]
    assert loaded["train_history"] == [epoch["train"] for epoch in history] and loaded["epoch"] == len(history)
    assert loaded["val_loss"] == history[-1]["val"]["loss"] >= loaded["best_val_loss"] - 1e-4
    tensors = len(model) + 3 * len(names)
    print(f"{folder.name}.pt: epoch {loaded['epoch']}, {tensors} tensors equal, PyTorch {torch.__version__}")


for argument in sys.argv[1:]:
    check(pathlib.Path(argument))
