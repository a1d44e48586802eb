"""One hash of a training state: of what a checkpoint holds, and of what a learner holds after it has loaded it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from xxhash import xxh3_128


def state_hash(tensors: Mapping[str, Tensor]) -> str:
    """Over names, types, shapes and bytes, in the order of the names: equal exactly where every bit is.

    Example:
        >>> a, b = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([-0.0, 1.0])}
        >>> state_hash(a) == state_hash({"w": a["w"].clone()}), state_hash(a) == state_hash(b)  # 0.0 == -0.0, but not in bits
        (True, False)
    """
    total = xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
