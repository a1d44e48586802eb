"""Which rows of a sharded parameter a rank holds."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def local_rows(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter that is sharded along its first dimension, or not at all."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()


def first_row(parameter: Tensor) -> int:
    """Rows are dealt as torch.chunk does it: equal parts, the last ones shorter or empty."""
    if not isinstance(parameter, DTensor):
        return 0
    if parameter.placements != (Shard(0),):
        raise NotImplementedError(f"weights must be sharded along their first dimension alone, not {parameter.placements}")
    ranks, rank = parameter.device_mesh.size(), parameter.device_mesh.get_local_rank()
    per_rank = -(-parameter.shape[0] // ranks)
    return min(rank * per_rank, parameter.shape[0])


def whole_tensor(parameter: Tensor) -> Tensor:
    """All rows, gathered from all ranks: every rank must call it, and it is for small tensors."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()
