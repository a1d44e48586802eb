"""One run's whole configuration: every room's own model, composed and checked against each other before anything starts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from actors.config import EpisodeBudget, RolloutConfig
from actors.tools_config import unknown_tools
from curriculum.config import CurriculumConfig, PhaseConfig
from learner.algorithms import resolve
from learner.config import LearnerConfig
from medr3.errors import UserError, did_you_mean
from medr3.including import include_plan, name_plan, read_config
from medr3.observe.config import TrackingConfig
from medr3.phase_checks import check_phases
from retrieval_service.config import RetrievalConfig
from rewards.config import RewardRecipe
from security.yaml_files import read_yaml
from tasks.config import ColdStartConfig, DatasetConfig, WorldConfig
from trajectories.groups import Rules

MIRRORS = ("file", "s3", "gs")  # of those that pyarrow speaks, the ones whose credentials can come from the environment


class RunSettings(BaseModel):
    """The run as such: where it lives, what makes it repeatable, when it is saved and when it is given up."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$")
    folder: Path = Path("runs/run")
    seed: int = Field(default=0, ge=0, lt=2**63, description="what generators of random numbers take")
    checkpoint_every: int = Field(default=10, ge=1, description="learner steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="the newest ones")
    keep_best: int = Field(default=1, ge=0, description="beside the newest, those with the highest held-out score")
    keep_every: int | None = Field(
        default=None, ge=1, description="beside these, those of steps that it divides, for good; null: none"
    )
    on_full_disk: Literal["go_on", "end"] = Field(
        default="go_on",
        description="where a checkpoint finds no room. go_on: with a warning, until the next one is due; end: the run ends, resumable",
    )
    mirror: str = Field(
        default="",
        description="a second place for all that a resume needs: file:///… or s3://bucket/folder; empty: none",
    )
    redact: Literal["none", "phi"] = Field(
        default="none",
        description="phi: dates, record and telephone numbers, mail addresses and names are taken out of stored text; tokens stay",
    )
    token_budget: int | None = Field(
        default=None, ge=1, description="model tokens after which the run ends, whatever its phase"
    )
    stall_timeout_s: float = Field(default=300, gt=0, description="no stage may go without progress for longer")
    placement: Literal["anywhere", "groups"] = Field(
        default="anywhere",
        description="groups: each kind of process on the nodes that cluster.yaml and deploy/ name for it, by the Ray resources"
        " learner, rollout and retrieval",
    )
    ray_address: str = Field(default="", description="empty: the cluster of the surrounding job, else a Ray of this machine")
    ray_cpus: int = Field(default=8, ge=1, description="logical CPUs of a Ray of this machine; threads are bounded elsewhere")

    @field_validator("mirror")
    @classmethod
    def _names_a_place(cls, url: str) -> str:
        """The configuration is written down and told to trackers, so it holds no credentials."""
        parts = urlsplit(url)
        if url and (parts.scheme not in MIRRORS or not (parts.path if parts.scheme == "file" else parts.netloc)):
            raise ValueError("must name a folder, as in file:///backup/run or s3://bucket/run")
        if parts.username or parts.password or "secret" in parts.query.lower():
            raise ValueError(
                "must hold no credentials: give them by the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return url


class ModelConfig(BaseModel):
    """Which model is trained."""

    model_config = ConfigDict(extra="forbid")

    path: Path | None = Field(
        default=None,
        description="Hugging Face folder; its model must know the protocol's tags, which prompts do not explain; null: a tiny"
        " one, cold-started on the spot",
    )


class HardwareConfig(BaseModel):
    """What the memory estimate of `--dry-run` compares with."""

    model_config = ConfigDict(extra="forbid")

    learner_gpu_gib: float = Field(default=80, gt=0)
    engine_gpu_gib: float = Field(default=80, gt=0)


class EvaluationConfig(BaseModel):
    """How many held-out questions decide a plateau, and how many are reported."""

    model_config = ConfigDict(extra="forbid")

    probe_questions: int = Field(default=200, ge=10)
    test_questions: int = Field(default=200, ge=10, description="per phase, after each stage")
    engines: int = Field(
        default=0,
        ge=0,
        description="of their own for reports, which then stop no training; 0: training engines report between steps",
    )


GROUP_SHARE = 0.001  # of the 1 that each node of a group offers: a thousand processes find room, more than any node holds

# What a resumed run may change: another place, other machines, other bounds of time, memory and disk. Results differ by rounding only.
PLACE: dict[str, Any] = {
    "hardware": True,
    "tracking": True,
    "run": {
        "folder", "placement", "ray_address", "ray_cpus", "keep_checkpoints", "keep_best", "keep_every", "on_full_disk", "mirror",
        "redact",
    },
    "rollout": {"num_engines": True, "autoscale": True, "engine": {"resources"}},
    "retrieval": {"replicas", "replica_cpus", "replica_memory_gib", "replica_resources"},
    "evaluation": {"engines"},
    "learner": {
        "workers", "gpus_per_worker", "cpus_per_worker", "worker_resources", "cpu_threads", "microbatch_tokens",
        "activation_checkpointing", "cpu_offload", "weights_folder", "start_timeout_s", "step_timeout_s",
    },
}  # fmt: skip


class RunConfig(BaseModel):
    """The resolved configuration, as `--dry-run` prints it and the run folder keeps it."""

    model_config = ConfigDict(extra="forbid")

    run: RunSettings = RunSettings()
    model: ModelConfig = ModelConfig()
    hardware: HardwareConfig = HardwareConfig()
    world: WorldConfig = WorldConfig()
    datasets: dict[str, DatasetConfig] = Field(default_factory=dict, description="task sources of files, beside the world's")
    cold_start: ColdStartConfig = ColdStartConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    rollout: RolloutConfig = RolloutConfig()
    budget: EpisodeBudget = EpisodeBudget()
    learner: LearnerConfig = LearnerConfig()
    rewards: dict[str, RewardRecipe] = Field(
        default_factory=dict, description="recipes by name; those under configs/rewards/ are known already"
    )
    curriculum: CurriculumConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _place(self) -> Self:
        """A share of a group's resource says where, and leaves how many to CPUs, GPUs and memory."""
        if self.run.placement == "groups":
            for group, asked in (
                ("rollout", self.rollout.engine.resources),
                ("learner", self.learner.worker_resources),
                ("retrieval", self.retrieval.replica_resources),
            ):
                asked.setdefault(group, GROUP_SHARE)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.rollout.group_size < 2 and resolve(self.learner).compares_groups:
            raise ValueError(
                f"rollout.group_size is {self.rollout.group_size}, but {self.learner.algorithm} compares the episodes of one"
                " question: set it to 2 or more"
            )
        if self.rollout.oversample > 1 and self.rollout.max_staleness:
            raise ValueError(
                f"rollout.oversample is {self.rollout.oversample:g} with rollout.max_staleness {self.rollout.max_staleness}: where"
                " slow groups may finish later nothing needs to be thrown away; set one of the two to its default"
            )
        if missing := unknown_tools(self.budget.tools, self.rollout.tools):
            raise ValueError(
                f"budget.tools names {missing[0]!r}{did_you_mean(missing[0], self.rollout.tools)}: rollout.tools has no such tool"
            )
        self._check_rewards()
        check_phases(self)
        if self.rollout.engine.dtype != self.learner.dtype:
            raise ValueError(
                f"rollout.engine.dtype is {self.rollout.engine.dtype} and learner.dtype is {self.learner.dtype}: engine and"
                " learner must compute alike; set both to the same"
            )
        if self.budget.max_response_tokens >= self.rollout.engine.max_model_len:
            raise ValueError(
                f"budget.max_response_tokens ({self.budget.max_response_tokens}) leaves no room for a prompt in"
                f" rollout.engine.max_model_len ({self.rollout.engine.max_model_len})"
            )
        return self

    def _check_rewards(self) -> None:
        """Every recipe is one that can score; a phase may name a shipped one, such as med_r3/reasoning, which joins the others."""
        from rewards.recipes import load_recipe, shipped
        from rewards.registry import check_recipe

        for name, recipe in self.rewards.items():
            try:
                check_recipe(recipe)
            except ValueError as error:
                raise ValueError(f"rewards.{name}: {error}") from None
        for phase in self.curriculum.phases:
            if phase.reward not in self.rewards and phase.reward in shipped():
                self.rewards[phase.reward] = load_recipe(phase.reward)
            if phase.reward not in self.rewards:
                known = [*sorted(self.rewards), *shipped()]
                raise ValueError(
                    f"curriculum: phase {phase.name!r} wants reward recipe {phase.reward!r}{did_you_mean(phase.reward, known)};"
                    f" there are {', '.join(known)}"
                )
        self._check_deadlines()

    def _check_deadlines(self) -> None:
        """A single reward's deadline drops one sample; where the group's runs out first, the whole group is lost."""
        deadlines = {
            f"rewards.{name}: reward {term.key!r}": term.deadline_s
            for name, recipe in self.rewards.items()
            for term in recipe.all_terms
            if term.is_own
        }
        if self.rollout.judge is not None:
            deadlines["rollout.judge"] = self.rollout.judge.deadline_s
        for what, deadline_s in deadlines.items():
            if deadline_s >= self.rollout.reward_timeout_s:
                raise ValueError(
                    f"{what} has a deadline_s of {deadline_s:g}, which must be below rollout.reward_timeout_s"
                    f" ({self.rollout.reward_timeout_s:g})"
                )

    def ledger_rules(self) -> Rules:
        """What the run's ledger keeps to."""
        rollout = self.rollout
        return Rules(
            groups_per_step=rollout.groups_per_step,
            max_staleness=rollout.max_staleness,
            max_attempts=rollout.max_attempts,
            wait_for_slow=rollout.wait_for_slow,
            oversample=rollout.oversample,
            max_uniform=round((rollout.dynamic_sampling - 1) * rollout.groups_per_step),
        )

    def phase_budget(self, phase: PhaseConfig) -> EpisodeBudget:
        """The episode's bounds in a phase: the run's own, and what the phase says in their place."""
        return EpisodeBudget.model_validate(self.budget.model_dump() | phase.bounds)

    def rules(self, phase_name: str, source: str) -> PhaseConfig:
        """The phase whose rules a question obeys: the phase that is on, or, for a replayed question, the one that it comes from."""
        names = [phase.name for phase in self.curriculum.phases]
        known = self.curriculum.phases[: names.index(phase_name) + 1]
        return next((phase for phase in reversed(known) if source in phase.mixture), known[-1])

    def hash(self) -> str:
        """Names what decides the run's course. Where it runs and on how much does not: a run may go on with more or fewer workers."""
        settings = self.model_dump(mode="json", exclude=PLACE)
        if not self.datasets:  # runs from before there were any go on
            del settings["datasets"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


SHOWN = 200  # characters of a value that is none


def load(path: Path, overrides: list[str]) -> RunConfig:
    """Reads a YAML file and applies dotted overrides such as `rollout.num_engines=4`; values are read as YAML.

    An override that names a plan goes first, so that others may change what the plan holds.
    """
    raw = read_config(path)
    name_plan(raw)
    naming = [override for override in overrides if override.partition("=")[0] in ("curriculum", "curriculum.plan")]
    for override in naming:
        _apply(raw, override)
    include_plan(raw)
    for override in overrides:
        if override not in naming:
            _apply(raw, override)
    return RunConfig.model_validate(raw)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r} is not an override: write key=value, such as rollout.num_engines=4")
    *parents, last = key.split(".")
    place: Any = raw
    for parent in parents:
        if isinstance(place, list):
            place = place[_position(key, parent, place)]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise UserError(f"{key}: {parent} holds a value, not settings")
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueErrors: dates that are none, numbers without end
        raise UserError(f"{key}: {text[:SHOWN]!r} is not a valid value") from None
    if isinstance(place, list):
        place[_position(key, last, place)] = value
    else:
        place[last] = value


def _position(key: str, text: str, place: list[Any]) -> int:
    """Where in a list `text` points to: a position from 0, or the name of an item that has one."""
    names = [item.get("name") for item in place if isinstance(item, dict)]
    if text in names:
        return names.index(text)
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) >= len(place):
        known = f", nor one of its names {', '.join(map(str, names))}" if any(names) else ""
        raise UserError(f"{key}: {text} is not a position in a list of {len(place)}, which count from 0{known}")
    return int(text)
