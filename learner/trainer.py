"""One learner step, without Ray::

    rows ▶ leave out what cannot teach ▶ sweep: old, reference, values ▶ mismatch to the engines ▶ advantages
         ▶ per minibatch: micro-batches ▶ loss ▶ gradient ▶ optimiser

Every rank calls every method with the same arguments and plans the whole batch alike; it computes its own micro-batches. Flat
arrays (`_t`) are filled by the rank that has a token and summed over ranks, so afterwards each rank has all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from learner.advantages import informative_episodes, token_advantages
from learner.algorithms import resolve
from learner.batch import EpisodeBatch, finite_groups, refuse_foreign
from learner.config import LearnerConfig
from learner.losses import kl_estimate, value_loss
from learner.mismatch import measure_mismatch, refuse_mismatch
from learner.model import Critic, Policy, score
from learner.objective import TOTALS_PER_TOKEN, TOTALS_SUMMED, TokenBatch, objective
from learner.optimizer import apply_gradient, make_adamw
from learner.packing import MicroBatch, flatten, plan_micro_batches, split_groups
from learner.placement import local_rows
from learner.weighting import token_weights
from trajectories.schema import WeightVersion

TOTALS = (*TOTALS_SUMMED, *TOTALS_PER_TOKEN, "value_loss")


class TrainingDiverged(Exception):
    """Too many updates in a row had to be left out: going on would only waste the machines."""


@dataclass(frozen=True, slots=True)
class FlatTensors:
    """What the loss needs per token, on the device, indexed like the batch's flat arrays."""

    behaviour_t: Tensor
    advantages_t: Tensor
    old_t: Tensor | None  # None: the policy before this step is the policy that the one minibatch meets
    reference_t: Tensor | None
    values_t: Tensor | None
    returns_t: Tensor | None


class PolicyTrainer:
    """The policy with its optimiser, and beside it the reference and the critic where the algorithm has them."""

    def __init__(
        self,
        policy: Policy,
        config: LearnerConfig,
        *,
        reference: Policy | None = None,
        critic: Critic | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.recipe = resolve(config)
        if config.kl_coefficient > 0 and reference is None:
            raise ValueError(f"learner.kl_coefficient is {config.kl_coefficient}, which needs a reference policy")
        if self.recipe.needs_critic and critic is None:
            raise ValueError(f"learner.algorithm is {config.algorithm}, which needs a critic")
        self.policy, self.reference, self.critic, self.config = policy, reference, critic, config
        self.device = torch.device(device)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.skipped_in_a_row = 0
        self.reference_moved = False  # while it is the model that the run started from, no checkpoint needs to hold it
        self.reset_optimizer()

    @property
    def trained(self) -> dict[str, tuple[nn.Module, AdamW]]:
        """Everything that a step changes, with what changes it."""
        return {name: (module, self._optimizers[name]) for name, module in self._modules().items()}

    def _modules(self) -> dict[str, nn.Module]:
        return {"policy": self.policy} | ({} if self.critic is None else {"critic": self.critic})

    def reset_optimizer(self) -> None:
        """Forgets all moments."""
        self._optimizers = {name: make_adamw(module, self.config) for name, module in self._modules().items()}

    @torch.no_grad()
    def refresh_reference(self) -> None:
        """From now on the policy is held close to what it is at this moment; without a reference there is nothing to do."""
        if self.reference is None:
            return
        for held, now in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
            local_rows(held).copy_(local_rows(now))
        self.reference_moved = True

    def step(self, batch: EpisodeBatch, *, step: int, current: WeightVersion, learning_rate: float) -> dict[str, float]:
        """Trains on whole groups, `current` being the version of the weights before this step; returns what was measured."""
        started = time.perf_counter()
        refuse_foreign(batch, self.policy.causal_lm.config)
        finite = batch.select(np.flatnonzero(finite_groups(batch)))
        informative_e = informative_episodes(finite, self.config)
        taught = finite.select(np.flatnonzero(informative_e)) if self.config.zero_advantage == "drop" else finite
        groups = len(np.unique(batch.group_e))
        metrics = {
            "episodes": float(len(batch)),
            "episodes_trained": float(len(taught)),
            "groups": float(groups),
            "groups_uninformative": float(len(np.unique(finite.group_e[~informative_e]))),
            "groups_not_finite": float(groups - len(np.unique(finite.group_e))),
            "tokens": float(len(batch.token_ids_t)),
            "model_tokens": float(batch.loss_mask_t.sum()),
            "reward_mean": float(finite.reward_e.mean()) if len(finite) else 0.0,
            "learning_rate": learning_rate,
        }
        metrics |= self._train(taught, step, current, learning_rate)
        self._count_skips(metrics)
        metrics["seconds_step"] = time.perf_counter() - started
        metrics["tokens_per_second"] = metrics["tokens"] / metrics["seconds_step"]
        return metrics

    def _train(self, batch: EpisodeBatch, step: int, current: WeightVersion, learning_rate: float) -> dict[str, float]:
        started, metrics = time.perf_counter(), dict.fromkeys(("grad_norm", "optimizer_steps", "skipped_updates"), 0.0)
        parts = split_groups(batch.group_e, np.arange(len(batch)), self.config.minibatches, seed=step)
        if not parts:
            return metrics
        flat, found = self.prepare(batch, ahead=len(parts) > 1)
        metrics |= found
        if flat.old_t is not None:
            metrics |= self._check(batch, flat.old_t, current)
        metrics["seconds_old"] = time.perf_counter() - started
        totals = torch.zeros(len(TOTALS), dtype=torch.float64, device=self.device)
        for part in parts:
            scored_t = self.accumulate(batch, part, flat, totals)
            if flat.old_t is None:
                metrics |= self._check(batch, scored_t, current)
            for name, (_, optimizer) in self.trained.items():
                rate = learning_rate if name == "policy" else self.config.critic.learning_rate
                norm = apply_gradient(optimizer, rate, self.config.gradient_clip)
                label = "grad_norm" if name == "policy" else f"{name}_grad_norm"
                metrics[label] = max(metrics.get(label, 0.0), norm or 0.0)
                metrics["optimizer_steps" if norm is not None else "skipped_updates"] += name == "policy" or norm is None
        tokens = max(1, int(batch.loss_mask_t.sum()))
        summed = dict(zip(TOTALS, self._sum_over_ranks(totals).tolist(), strict=True))
        metrics |= {name: value if name in TOTALS_SUMMED else value / tokens for name, value in summed.items()}
        metrics["loss"] /= len(parts)  # each minibatch has a loss of its own: their mean is of the size of one
        return metrics

    def prepare(self, batch: EpisodeBatch, *, ahead: bool) -> tuple[FlatTensors, dict[str, float]]:
        """What is known before the first update: scores of the frozen models, advantages; `ahead` scores the policy as well."""
        config, recipe = self.config, self.recipe
        reference_t = values_t = penalty_t = None
        penalised = self.reference is not None and recipe.kl_in == "reward"
        old_t = self._sweep(batch, self.policy) if ahead or penalised else None
        if self.reference is not None:
            reference_t = self._sweep(batch, self.reference)
            if penalised and old_t is not None:
                penalty_t = (config.kl_coefficient * kl_estimate(recipe.kl_estimator, old_t, reference_t)).cpu().numpy()
        if self.critic is not None:
            values_t = self._sweep(batch, self.critic)
        values = None if values_t is None else values_t.cpu().numpy()
        found = token_advantages(batch, config, values_t=values, penalty_t=penalty_t)
        metrics = {"advantage_abs_mean": float(np.abs(found.advantages_t[batch.loss_mask_t]).mean()) if len(batch) else 0.0}
        if values is not None and found.returns_t is not None:
            metrics["value_explained"] = _explained(values[batch.loss_mask_t], found.returns_t[batch.loss_mask_t])
        returns_t = None if found.returns_t is None else self._tensor(found.returns_t)
        flat = FlatTensors(
            self._tensor(batch.behaviour_t), self._tensor(found.advantages_t), old_t, reference_t, values_t, returns_t
        )
        return flat, metrics

    def accumulate(self, batch: EpisodeBatch, rows: NDArray[np.int64], flat: FlatTensors, totals: Tensor) -> Tensor:
        """Gradients of one minibatch; adds to `totals`, returns the log-probabilities that it saw, of all ranks."""
        weights_t = self._tensor(token_weights(batch, rows, self.recipe.aggregation, self.config.max_loss_tokens))
        mean_t = self._tensor(token_weights(batch, rows, "token_mean", None))
        scored_t = torch.zeros(len(batch.token_ids_t), device=self.device)
        for micro in self._micro_batches(batch, rows):
            at = micro.flat_n
            logprobs_n, entropy_n = self.policy(micro)
            seen_n = logprobs_n.detach()
            tokens = TokenBatch(
                logprobs_n=logprobs_n, entropy_n=entropy_n, old_n=seen_n if flat.old_t is None else flat.old_t[at],
                behaviour_n=flat.behaviour_t[at], advantages_n=flat.advantages_t[at], weights_n=weights_t[at],
                episode_n=micro.episode_n, episodes=micro.episodes,
                reference_n=None if flat.reference_t is None else flat.reference_t[at],
            )  # fmt: skip
            loss, counts = objective(tokens, self.config)
            (loss * micro.weight).backward()
            value_sum = self._learn_values(micro, flat, mean_t)
            if micro.weight:
                scored_t[at] = seen_n
                totals += torch.cat([counts, value_sum])
        return self._sum_over_ranks(scored_t)

    def _learn_values(self, micro: MicroBatch, flat: FlatTensors, mean_t: Tensor) -> Tensor:
        """The critic's gradient; its loss summed over the micro-batch's tokens."""
        if self.critic is None:
            return torch.zeros(1, dtype=torch.float64, device=self.device)
        assert flat.values_t is not None and flat.returns_t is not None, "an algorithm with a critic has returns"
        at = micro.flat_n
        loss_n = value_loss(self.critic(micro), flat.values_t[at], flat.returns_t[at], self.config.critic.value_clip)
        ((loss_n * mean_t[at]).sum() * micro.weight).backward()
        return loss_n.detach().sum().double()[None]

    def _check(self, batch: EpisodeBatch, learner_t: Tensor, current: WeightVersion) -> dict[str, float]:
        """How far engines and learner are apart, before the first update; raises above the limit."""
        if not self.recipe.on_policy_data:
            return {}
        found = measure_mismatch(batch, learner_t.cpu().numpy(), current, self.config.importance_cap)
        return found | refuse_mismatch(found, self.config)

    def _count_skips(self, metrics: dict[str, float]) -> None:
        """Ends the run when nothing could be learned for several steps: a gradient or the rewards were not finite."""
        failed = metrics["skipped_updates"] > 0 or metrics["groups_not_finite"] > 0
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if failed else 0
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise TrainingDiverged(
                f"{self.skipped_in_a_row} steps in a row had gradients or rewards that are not finite (last:"
                f" {metrics['skipped_updates']:.0f} updates and {metrics['groups_not_finite']:.0f} groups): lower the learning rate"
                " or look at the rewards, then go on from the last checkpoint"
            )

    def _micro_batches(self, batch: EpisodeBatch, rows: NDArray[np.int64]) -> Iterator[MicroBatch]:
        """One at a time on the device."""
        plan = plan_micro_batches(batch.lengths, rows, self.ranks, self.config.microbatch_tokens)
        return (flatten(batch, packed, self.device) for packed in plan[self.rank])

    def _sweep(self, batch: EpisodeBatch, module: Policy | Critic) -> Tensor:
        """One number for each trained token of the whole batch, without gradient; 0 elsewhere."""
        swept_t = torch.zeros(len(batch.token_ids_t), device=self.device)
        for micro in self._micro_batches(batch, np.arange(len(batch))):
            scored_n = score(module, micro)
            if micro.weight:
                swept_t[micro.flat_n] = scored_n
        return self._sum_over_ranks(swept_t)

    def _tensor(self, values: NDArray) -> Tensor:
        return torch.from_numpy(np.array(values)).to(self.device)  # copied: Arrow's memory is read-only and torch's is not

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.ranks > 1:
            dist.all_reduce(values)
        return values


def _explained(values_n: NDArray[np.float32], returns_n: NDArray[np.float32]) -> float:
    """The share of the returns' variance that the critic foresaw."""
    variance = float(returns_n.var())
    return 1 - float((returns_n - values_n).var()) / variance if variance > 0 else 0.0
