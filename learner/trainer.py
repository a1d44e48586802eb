"""One learner step: advantages ▶ micro-batches ▶ old log-probabilities ▶ mismatch ▶ loss ▶ optimiser steps. Knows no Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from learner import losses
from learner.advantages import group_advantages
from learner.batch import EpisodeBatch
from learner.config import LearnerConfig
from learner.mismatch import measure_mismatch, refuse_mismatch
from learner.model import Policy, score
from learner.packing import MicroBatch, pad, plan_micro_batches, split_groups
from trajectories.schema import WeightVersion

TOTALS = ("loss", "entropy", "kl_reference", "clip_low", "clip_high", "clip_dual")  # sums over tokens, in this order


@dataclass(frozen=True, slots=True)
class FlatTensors:
    """What the loss needs per token, on the device, indexed like the batch's flat arrays."""

    advantages_t: Tensor
    behaviour_t: Tensor


class PolicyTrainer:
    """The policy with its optimiser. Every rank calls every method with the same arguments; the batch is the whole batch."""

    def __init__(
        self, policy: Policy, config: LearnerConfig, *, reference: Policy | None = None, device: str | torch.device = "cpu"
    ):
        if config.kl_coefficient > 0 and reference is None:
            raise ValueError(f"learner.kl_coefficient is {config.kl_coefficient}, which needs a reference policy")
        self.policy, self.reference, self.config = policy, reference, config
        self.device = torch.device(device)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """AdamW with zero moments, made here and not at its first step, so that a checkpoint always has them."""
        config = self.config
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=0.0, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
        )
        for parameter in self.policy.parameters():
            moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}

    def step(
        self, batch: EpisodeBatch, *, step: int, current: WeightVersion, learning_rate: float, temperature: float
    ) -> dict[str, float]:
        """Trains on whole groups, `current` being the version of the weights before this step; returns what was measured."""
        started, config = time.perf_counter(), self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        advantages_e, informative_e = group_advantages(batch.reward_e, batch.group_e, config.advantage_epsilon)
        trained_e = informative_e if config.zero_advantage == "drop" else np.ones_like(informative_e)
        rows = np.flatnonzero(trained_e)
        metrics = {
            "episodes": float(len(trained_e)),
            "episodes_trained": float(len(rows)),
            "groups": float(len(np.unique(batch.group_e))),
            "groups_uninformative": float(len(np.unique(batch.group_e[~informative_e]))),
            "tokens": float(len(batch.token_ids_t)),
            "model_tokens": float(batch.loss_mask_t.sum()),
            "reward_mean": float(batch.reward_e.mean()),
            "advantage_abs_mean": float(np.abs(advantages_e[rows]).mean()) if len(rows) else 0.0,
            "learning_rate": learning_rate,
        }
        flat = self.flatten(batch, advantages_e)
        minibatches = split_groups(batch.group_e, rows, config.minibatches, seed=step)
        totals, norms, skipped, old_t = torch.zeros(len(TOTALS), dtype=torch.float64, device=self.device), [], 0, None

        def check(learner_t: Tensor) -> None:
            found = measure_mismatch(batch, rows, learner_t.cpu().numpy(), current, temperature, config.importance_cap)
            metrics.update(found)
            refuse_mismatch(found, config.max_mismatch)

        if len(minibatches) > 1:
            old_t = self._old_logprobs(batch, rows, temperature)
            check(old_t)
        metrics["seconds_old"] = time.perf_counter() - started
        for part in minibatches:
            scored_t = self.accumulate(batch, part, flat, old_t, temperature, totals)
            if old_t is None:
                check(scored_t)
            norm = self._apply_gradient()
            skipped += norm is None
            norms.append(norm or 0.0)
        self._sum_over_ranks(totals)
        trained_tokens = max(1, int(batch.loss_mask_t[batch.per_token(trained_e)].sum()))
        metrics.update({name: value / trained_tokens for name, value in zip(TOTALS, totals.tolist(), strict=True)})
        metrics["grad_norm"] = max(norms, default=0.0)
        metrics["optimizer_steps"], metrics["skipped_updates"] = float(len(minibatches) - skipped), float(skipped)
        metrics["seconds_step"] = time.perf_counter() - started
        metrics["tokens_per_second"] = len(batch.token_ids_t) / metrics["seconds_step"]
        return metrics

    def flatten(self, batch: EpisodeBatch, advantages_e: NDArray[np.float32]) -> FlatTensors:
        """The loss's inputs on the device; copied, because Arrow's memory is read-only and torch's is not."""
        advantages_t, behaviour_t = batch.per_token(advantages_e), batch.behaviour_t.copy()
        return FlatTensors(torch.from_numpy(advantages_t).to(self.device), torch.from_numpy(behaviour_t).to(self.device))

    def _micro_batches(self, batch: EpisodeBatch, rows: NDArray[np.int64]) -> list[MicroBatch]:
        plan = plan_micro_batches(batch.lengths, rows, self.ranks, self.config.microbatch_tokens)
        return [pad(batch, part, self.device) for part in plan[self.rank]]

    def _old_logprobs(self, batch: EpisodeBatch, rows: NDArray[np.int64], temperature: float) -> Tensor:
        """Log-probabilities before the first optimiser step: PPO's old policy, and what the engine is compared with."""
        old_t = torch.zeros(len(batch.token_ids_t), device=self.device)
        for micro in self._micro_batches(batch, rows):
            logprobs_n = score(self.policy, micro.token_ids_bl, micro.loss_mask_bl, temperature)
            if micro.weight:
                old_t[micro.flat_n] = logprobs_n
        return self._sum_over_ranks(old_t)

    def accumulate(
        self,
        batch: EpisodeBatch,
        rows: NDArray[np.int64],
        flat: FlatTensors,
        old_t: Tensor | None,
        temperature: float,
        totals: Tensor,
    ) -> Tensor:
        """Gradients of one minibatch; adds to `totals`, returns the log-probabilities that it saw, of all ranks."""
        in_rows_e = np.zeros(len(batch.reward_e), bool)
        in_rows_e[rows] = True
        tokens = max(1, int(batch.loss_mask_t[batch.per_token(in_rows_e)].sum()))
        scored_t = torch.zeros(len(batch.token_ids_t), device=self.device)
        for micro in self._micro_batches(batch, rows):
            logprobs_n, entropy_n = self.policy(micro.token_ids_bl, micro.loss_mask_bl, temperature)
            seen_n = logprobs_n.detach()
            old_n = seen_n if old_t is None else old_t[micro.flat_n]
            loss_n, counts = self._loss(micro, logprobs_n, entropy_n, old_n, flat, temperature)
            (losses.token_mean(loss_n, tokens) * micro.weight).backward()
            if micro.weight:
                scored_t[micro.flat_n] = seen_n
                totals += counts
        return self._sum_over_ranks(scored_t)

    def _loss(
        self, micro: MicroBatch, logprobs_n: Tensor, entropy_n: Tensor, old_n: Tensor, flat: FlatTensors, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """The loss of every chosen token, and the sums that `TOTALS` names."""
        config = self.config
        advantages_n, behaviour_n = flat.advantages_t[micro.flat_n], flat.behaviour_t[micro.flat_n]
        clip = (config.clip_low, config.clip_high, config.dual_clip)
        weight_n = losses.truncated_importance(old_n, behaviour_n, config.importance_cap)
        loss_n = weight_n * losses.clipped_surrogate(logprobs_n, old_n, advantages_n, *clip)
        kl_n = torch.zeros_like(logprobs_n)
        if self.reference is not None:
            kl_n = losses.kl_k3(logprobs_n, score(self.reference, micro.token_ids_bl, micro.loss_mask_bl, temperature))
            loss_n = loss_n + config.kl_coefficient * kl_n
        if config.entropy_coefficient:
            loss_n = loss_n - config.entropy_coefficient * entropy_n
        with torch.no_grad():
            sums = torch.stack([loss_n.sum(), entropy_n.sum(), kl_n.sum()])
            return loss_n, torch.cat([sums, losses.clip_counts(logprobs_n, old_n, advantages_n, *clip)]).double()

    def _apply_gradient(self) -> float | None:
        """One optimiser step; None where the gradient was not finite and the step was left out. Every rank decides alike."""
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.gradient_clip)
        value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        finite = bool(np.isfinite(value))
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value if finite else None

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.ranks > 1:
            dist.all_reduce(values)
        return values
