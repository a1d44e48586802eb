"""Log-probabilities of chosen tokens without ever holding all logits: a chunk of them at a time, and made again for the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# 64 MiB of fp32 logits at once: large enough for matrix products at full speed, small beside a layer's activations.
CHUNK_LOGITS = 2**24
# 512 MiB where every chunk reads and writes gigabytes of a large vocabulary's output layer much faster than it computes.
CHUNK_LOGITS_ON_GPU = 2**27


def chosen_logprobs(
    hidden_nh: Tensor, output_vh: Tensor, targets_n: Tensor, temperature_n: Tensor, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """log π(target) and the entropy of π for each of n positions, in fp32, with π = softmax(hidden · outputᵀ / temperature).

    Per chunk, two numbers a token are kept: the normaliser and the entropy H. In the backward pass the chunk's logits are made
    again, and with p = π:  ∂log π(y)/∂z = (1[y] − p)/τ  and  ∂H/∂z = −p·(log p + H)/τ.
    """
    return _ChosenLogprobs.apply(hidden_nh, output_vh, targets_n, temperature_n, entropy_gradient)


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_nh: Tensor, output_vh: Tensor, targets_n: Tensor, temperature_n: Tensor, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs, normalisers, entropies = [], [], []
        for hidden, targets, temperature in _chunks(output_vh, hidden_nh, targets_n, temperature_n):
            scores = _scores(hidden, output_vh, temperature)
            normaliser = scores.logsumexp(-1)
            logprobs.append(scores.gather(-1, targets[:, None])[:, 0] - normaliser)
            scores -= normaliser[:, None]
            entropies.append(-torch.einsum("nv,nv->n", scores.exp(), scores))
            normalisers.append(normaliser)
        logprobs_n, normaliser_n, entropy_n = (torch.cat(parts) for parts in (logprobs, normalisers, entropies))
        ctx.save_for_backward(hidden_nh, output_vh, targets_n, temperature_n, normaliser_n, entropy_n)
        ctx.entropy_gradient = entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_n)
        return logprobs_n, entropy_n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        hidden_nh, output_vh, targets_n, temperature_n, normaliser_n, entropy_n = ctx.saved_tensors
        gradient_n, entropy_gradient_n = gradients
        per_token = (hidden_nh, targets_n, temperature_n, normaliser_n, entropy_n, gradient_n, entropy_gradient_n)
        hidden_gradients = []
        output_gradient_vh = torch.zeros_like(output_vh, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for hidden, targets, temperature, normaliser, entropy, gradient, entropy_gradient in _chunks(output_vh, *per_token):
            pull = (gradient, entropy_gradient if ctx.entropy_gradient else None)
            slopes = _slopes(_scores(hidden, output_vh, temperature), targets, temperature, normaliser, entropy, *pull)
            slopes = slopes.to(hidden.dtype)
            hidden_gradients.append(slopes @ output_vh)
            if output_gradient_vh is not None and hidden.dtype == torch.float32:
                output_gradient_vh.addmm_(slopes.T, hidden)
            elif output_gradient_vh is not None:
                output_gradient_vh += slopes.T @ hidden
            del slopes  # or it would stand beside the next chunk's logits
        output_gradient = None if output_gradient_vh is None else output_gradient_vh.to(output_vh.dtype)
        return torch.cat(hidden_gradients), output_gradient, None, None, None


def _slopes(
    scores_nv: Tensor, targets: Tensor, temperature: Tensor, normaliser: Tensor, entropy: Tensor, gradient: Tensor,
    entropy_gradient: Tensor | None,
) -> Tensor:  # fmt: skip
    """∂loss/∂logits of one chunk, in the memory of its scores."""
    scores_nv -= normaliser[:, None]
    if entropy_gradient is None:
        slopes_nv = scores_nv.exp_().mul_(-gradient[:, None])
    else:
        probabilities_nv = scores_nv.exp()
        pull_nv = scores_nv.add_(entropy[:, None]).mul_(entropy_gradient[:, None]).add_(gradient[:, None])
        slopes_nv = pull_nv.mul_(probabilities_nv).neg_()
    slopes_nv.scatter_add_(-1, targets[:, None], gradient[:, None])
    return slopes_nv.div_(temperature[:, None])


def _scores(hidden: Tensor, output_vh: Tensor, temperature: Tensor) -> Tensor:
    return (hidden @ output_vh.T).float().div_(temperature[:, None])


def _chunks(output_vh: Tensor, *per_token: Tensor) -> list[tuple[Tensor, ...]]:
    size = max(1, (CHUNK_LOGITS_ON_GPU if output_vh.is_cuda else CHUNK_LOGITS) // len(output_vh))
    return list(zip(*(values.split(size) for values in per_token), strict=True))
