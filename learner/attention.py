"""Causal attention within the episodes of one flat row, registered with transformers under a name of its own.

In 16 bits on a GPU torch's variable-length flash attention takes the row as it is. Elsewhere the fused kernel wants rectangles, so
episodes of like length share one: a block-diagonal mask over the whole row would cost time quadratic in the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "medr3_packed"
# Episodes share a rectangle while this share of it at most is padding; more rectangles are more kernel calls.
MAX_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Neighbouring episodes of like length: tokens [start, end) of the row, as `[B, L]`."""

    start: int
    end: int
    rows: int
    columns: int
    gather_bl: Tensor | None  # index into the tokens [start, end), padding repeats a token; None: the lengths are equal
    real_t: Tensor | None  # where the real tokens lie in the flattened rectangle


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the episodes of a flat row begin and end, in the forms that kernels take; computed once for all layers."""

    lengths: list[int]
    boundaries: Tensor  # int32 [E + 1], on the device
    rectangles: tuple[Rectangle, ...]

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: str | torch.device = "cpu") -> Layout:
        """The layout of episodes that lie in this order; rectangles are good where neighbours are of like length.

        Example:
            >>> [(r.rows, r.columns) for r in Layout.of(np.array([20, 19, 7, 7])).rectangles]
            [(2, 20), (2, 7)]
        """
        ends = np.cumsum(lengths)
        boundaries = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device)
        return cls(lengths.tolist(), boundaries, tuple(_rectangles(lengths, device)))


def _rectangles(lengths: NDArray[np.int64], device: str | torch.device) -> list[Rectangle]:
    found, first = [], 0
    while first < len(lengths):
        last = first + 1
        while last < len(lengths):
            part = lengths[first : last + 1]
            if part.sum() < (1 - MAX_PADDING) * len(part) * part.max():
                break
            last += 1
        found.append(_rectangle(int(lengths[:first].sum()), lengths[first:last], device))
        first = last
    return found


def _rectangle(start: int, lengths: NDArray[np.int64], device: str | torch.device) -> Rectangle:
    rows, columns, tokens = len(lengths), int(lengths.max()), int(lengths.sum())
    if (lengths == columns).all():
        return Rectangle(start, start + tokens, rows, columns, None, None)
    inside_bl = np.arange(columns) < lengths[:, None]
    gather_bl = np.zeros((rows, columns), np.int64)
    gather_bl[inside_bl] = np.arange(tokens)
    real_t = torch.from_numpy(np.flatnonzero(inside_bl)).to(device)
    return Rectangle(start, start + tokens, rows, columns, torch.from_numpy(gather_bl).to(device), real_t)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`[1, H, T, D]` in, `[1, T, H, D]` out, as transformers wants it."""
    if layout is None:
        raise ValueError("packed attention needs the layout of its row: call the model through learner.model.Policy")
    if sliding_window is not None and max(layout.lengths) > sliding_window:
        raise ValueError(
            f"an episode of {max(layout.lengths)} tokens passes the model's sliding window of {sliding_window}, which packed"
            " attention does not have: shorten budget.max_response_tokens, or take a model without one"
        )
    attend = _varlen if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) else _in_rectangles
    return attend(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), layout, scaling)[None], None


def _varlen(query_thd: Tensor, key_thd: Tensor, value_thd: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest, heads = max(layout.lengths), query_thd.shape[1] // key_thd.shape[1]
    out_thd = varlen_attn(
        query_thd.contiguous(), key_thd.contiguous(), value_thd.contiguous(), layout.boundaries, layout.boundaries,
        longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=heads > 1,
    )  # fmt: skip
    return cast(Tensor, out_thd)


def _in_rectangles(query_thd: Tensor, key_thd: Tensor, value_thd: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    gqa = query_thd.shape[1] != key_thd.shape[1]
    parts = []
    for rectangle in layout.rectangles:
        query, key, value = (
            _fold(part[rectangle.start : rectangle.end], rectangle) for part in (query_thd, key_thd, value_thd)
        )
        if gqa and query.is_cuda:  # no fused kernel of 32 bits there shares keys among heads: it would hold all L × L scores
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
        shared = gqa and not query.is_cuda
        out_bhld = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)
        out_thd = out_bhld.transpose(1, 2).flatten(0, 1)
        parts.append(out_thd if rectangle.real_t is None else out_thd.index_select(0, rectangle.real_t))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _fold(part_thd: Tensor, rectangle: Rectangle) -> Tensor:
    """`[t, H, D]` to `[B, H, L, D]`. Padding stands to the right of its episode: under a causal mask no real token sees it."""
    if rectangle.gather_bl is not None:
        part_thd = part_thd.index_select(0, rectangle.gather_bl.flatten())
    return part_thd.unflatten(0, (rectangle.rows, rectangle.columns)).transpose(1, 2)


def _no_mask(*_: Any, **__: Any) -> None:
    """Causality and the episodes' borders are the kernel's own."""


# A compiler would make a kernel for every layout that comes along; it compiles what stands on both sides.
AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
AttentionMaskInterface.register(NAME, _no_mask)
