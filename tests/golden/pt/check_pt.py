"""Loads what perfrun exports with PyTorch, as a user would: the restricted unpickler, then model and optimizer.

    PERFRUN_TEST_EXPORTS=/tmp/exports cargo test -- --ignored --exact checkpoint::convert::exports_for_torch
    python check_pt.py /tmp/exports
"""

import copy
import pathlib
import sys

import torch

folder = pathlib.Path(sys.argv[1])
weights = torch.load(folder / "weights.pt", weights_only=True)
mapped = torch.load(folder / "weights.pt", weights_only=True, mmap=True)
everything = torch.load(folder / "everything.pt", weights_only=True)
assert type(weights).__name__ == "OrderedDict", type(weights)
assert list(weights) == ["pos_embed", "blocks.0.attn.qkv.weight", "norm.norm.bias", "scale"]
for name, tensor in weights.items():
    number = list(weights).index(name)
    expected = 6.0 * (number + 0.25) + torch.arange(tensor.numel(), dtype=torch.float32)
    assert torch.equal(tensor.reshape(-1), expected), name
    assert torch.equal(tensor, mapped[name]) and torch.equal(tensor, everything["model_state_dict"][name])
    assert mapped[name].data_ptr() % 64 == 0, "storages are aligned"
assert everything["global_step"] == 5 and everything["epoch"] == 0
assert everything["config"]["training"]["betas"] == [0.9, 0.999]

parameters = [(n, torch.nn.Parameter(t.clone())) for n, t in weights.items()]
for named in (parameters, [p for _, p in parameters]):
    optimizer = torch.optim.AdamW(named, lr=1.0)
    # A deep copy: PyTorch keeps the very tensors, and the step below changes them.
    optimizer.load_state_dict(copy.deepcopy(everything["optimizer_state_dict"]))
    assert optimizer.param_groups[0]["lr"] == 1e-4 and optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    for name, parameter in parameters:
        state = optimizer.state[parameter]
        assert state["step"] == 5 and torch.equal(state["exp_avg"], weights[name]), name
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

kinds = torch.load(folder / "kinds.pt", weights_only=True)
assert kinds["none"] is None and kinds["yes"] is True and kinds["large"] == 2**40 and kinds["nan"] != kinds["nan"]
assert kinds["tuple"] == (1, "a", [-2.5]) and kinds["counted"] == {0: "zero", 300: "many", -1: "less"}
assert {n: (str(t.dtype), t.tolist()) for n, t in kinds["tensors"].items()} == {
    "F64": ("torch.float64", [0.0]),
    "F32": ("torch.float32", [0.0]),
    "F16": ("torch.float16", [0.0]),
    "BF16": ("torch.bfloat16", [0.0]),
    "I64": ("torch.int64", [0]),
    "I32": ("torch.int32", [0]),
    "I16": ("torch.int16", [0]),
    "I8": ("torch.int8", [0]),
    "U8": ("torch.uint8", [0]),
    "BOOL": ("torch.bool", [False]),
}
print("PyTorch", torch.__version__, "reads all of it")
