"""Makes the .pt files of this folder with PyTorch (2.15.0 on the CPU made those that are here), and what is in them.

    python make_pt.py
"""

import collections
import json
import pathlib

import torch

HERE = pathlib.Path(__file__).parent
torch.manual_seed(0)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(3, 2)
        self.norm = torch.nn.LayerNorm(2)

    def forward(self, x):
        return self.norm(self.proj(x)) * torch.tensor([1.0, 2.0])


def described(tensors):
    return {
        name: {
            "dtype": str(t.dtype).removeprefix("torch."),
            "shape": list(t.shape),
            "values": t.reshape(-1).to(torch.float64).tolist(),
        }
        for name, t in tensors.items()
    }


def kinds():
    """Number types, views, strides and shared storages."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return collections.OrderedDict(
        f32=base,
        transposed=base.t(),
        row=base[2],
        stepped=base[::2, 1::2],
        expanded=torch.tensor([3.0]).expand(4),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        f64=torch.tensor([0.1], dtype=torch.float64),
        f16=torch.tensor([0.25, -1.5], dtype=torch.float16),
        bf16=torch.tensor([0.25, -1.5], dtype=torch.bfloat16),
        i64=torch.tensor([-1, 2**40]),
        i32=torch.tensor([7], dtype=torch.int32),
        i16=torch.tensor([-7], dtype=torch.int16),
        i8=torch.tensor([-7], dtype=torch.int8),
        u8=torch.tensor([200], dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    )


def main():
    files = {}
    torch.save(kinds(), HERE / "kinds.pt")
    torch.save(kinds(), HERE / "legacy.pt", _use_new_zipfile_serialization=False)
    files["kinds.pt"] = files["legacy.pt"] = described(kinds())

    model = Block()
    for named in (True, False):
        parameters = model.named_parameters() if named else model.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
        checkpoint = {
            "epoch": 3,
            "global_step": 2,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "config": {"training": {"learning_rate": 1e-3, "devices": [0, 1]}, "name": "base", "best": float("inf")},
        }
        name = "named.pt" if named else "counted.pt"
        torch.save(checkpoint, HERE / name)
        tensors = {f"model_state_dict.{n}": t for n, t in model.state_dict().items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer_state_dict.state.{i}.{k}": t for k, t in state.items()}
        files[name] = described(tensors)

    # Steps with every parameter only: as tensors, as older versions wrote them, and not all the same.
    del checkpoint["global_step"]
    states = checkpoint["optimizer_state_dict"]["state"]
    states[0]["step"] = 2
    torch.save(checkpoint, HERE / "stepless.pt")
    states[1]["step"] = torch.tensor(3.0)
    torch.save(checkpoint, HERE / "uneven.pt")

    wrapped = {"state_dict": {f"module.{n}": t for n, t in model.state_dict().items()}}
    torch.save(wrapped, HERE / "wrapped.pt")
    files["wrapped.pt"] = described({f"state_dict.{n}": t for n, t in wrapped["state_dict"].items()})
    (HERE / "expected.json").write_text(json.dumps(files, indent=1) + "\n")


main()
