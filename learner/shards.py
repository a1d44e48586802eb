"""The policy's weights as whoever opens them expects: Hugging Face's names, adapters merged, each rank its own rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.lora import merged_rows, published_name
from learner.model import PREFIX, Policy
from learner.placement import first_row, local_rows


@dataclass(frozen=True, slots=True)
class WeightShard:
    """Rows [first_row, first_row + len(rows)) of one tensor; a rank may hold none of a small one."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor
    first_row: int
    rows: Tensor


@torch.no_grad()
def weight_shards(policy: Policy) -> Iterator[WeightShard]:
    """This rank's part of every weight, in one order on all ranks; a tied output layer is left out, as Hugging Face does."""
    for name, parameter in policy.named_parameters():
        published = published_name(name.removeprefix(PREFIX))
        if published is None:  # an adapter: part of the weight that it adapts
            continue
        rows = merged_rows(policy, name, local_rows(parameter))
        yield WeightShard(published, tuple(parameter.shape), first_row(parameter), rows)
