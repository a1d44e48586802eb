"""Every metric: name, unit, meaning, labels, kind, and the panel that shows it. A name that is not here cannot be logged.

One name is one curve in metrics.jsonl, W&B and TensorBoard: `reward/joint/world/joint/evidence`. Prometheus gets the same figure
as one series of a family with labels: `ray_medr3_reward_by_source{run, phase, source="world/joint", component="evidence"}`.
Dashboards, alert tests and docs/metrics.md are made from this file (`medr3 dashboard export`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

from medr3.errors import did_you_mean

RUN_LABELS = ("run", "phase")  # of every series: the run's name, and the phase that is on
PREFIX = "ray_"  # Ray puts it before the name of everything that it exports
_MARK = re.compile(r"\{(\w+)\}")


class Kind(StrEnum):
    """How a figure behaves."""

    GAUGE = "gauge"
    COUNTER = "counter"  # logged as the run's total so far
    HISTOGRAM = "histogram"  # observations; what a person reads of them is logged as gauges beside it


@dataclass(frozen=True)
class Metric:
    """One metric, or a family of metrics where the name has labels in braces.

    Example:
        >>> metric = Metric("finish/{reason}", "share", "how episodes ended", "rollouts: Endings")
        >>> metric.labels, metric.series
        (('reason',), 'medr3_finish')
    """

    name: str
    unit: str
    help: str  # in ASCII: Ray takes no other
    panel: str  # "dashboard: title" of the panel that draws it; "-: reason" where none does
    kind: Kind = Kind.GAUGE
    series: str = ""  # its name in Prometheus, without Ray's prefix; made of `name` if left out
    buckets: tuple[float, ...] = ()  # upper bounds, of a histogram
    lasting: bool = False  # the last figure holds until there is another, as a probe's score does
    rare: str = ""  # when it is logged at all, where not every run does
    query: str = ""  # what its panel draws where that is not the figure itself; {} stands for it
    labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(_MARK.findall(self.name)))
        if not self.series:
            fixed = [word for word in re.split(r"\W+", _MARK.sub("", self.name)) if word]
            object.__setattr__(self, "series", "_".join(["medr3", *fixed]).rstrip("_"))

    @property
    def exported(self) -> str:
        """What a query calls it. A histogram is three series, of which a query wants the buckets."""
        suffix = {Kind.COUNTER: "_total", Kind.HISTOGRAM: "_bucket", Kind.GAUGE: ""}[self.kind]
        return f"{PREFIX}{self.series}{suffix}"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A data source has slashes in its name; no other label has."""
        escaped = re.escape(self.name).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(_MARK.sub(lambda mark: f"(?P<{mark[1]}>{'.+' if mark[1] == 'source' else '[^/*]+'})", escaped))


_C, _H = Kind.COUNTER, Kind.HISTOGRAM
# From a cached answer within the machine to a search that is about to miss its deadline of 10 s.
_LATENCY_MS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0)
_AGES = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5)  # between whole versions; more than 8 are rare in the field

_METRICS = (
    # Rewards and held-out scores.
    Metric("reward/mean", "reward", "mean total reward of the step's episodes", "overview: Reward"),
    Metric("reward/std", "reward", "spread of the total reward within groups, averaged", "overview: Reward within groups"),
    Metric("reward/correct", "share", "share of the step's episodes with the right answer",
           "overview: Right answers in training"),
    Metric("reward/dropped_samples", "episodes", "episodes of the step that could not be scored",
           "reliability: Samples without a score"),
    Metric("reward/dropped_samples/{cause}", "episodes", "those by cause: judge, or a reward of the user's own",
           "reliability: Samples without a score", series="medr3_reward_dropped_by_cause", rare="a judge or a reward that failed"),
    Metric("reward/{component}", "reward", "mean of one reward component",
           "overview: Reward components", series="medr3_reward_component"),
    Metric("reward/{phase}/{source}/{component}", "reward", "mean of one component over one data source; component `mean` is the total",
           "overview: Reward by data source", series="medr3_reward_by_source"),
    Metric("heldout/accuracy", "share", "share of right answers of the greedy probe on held-out questions of the phase",
           "overview: Held-out accuracy", lasting=True),
    Metric("heldout/earlier/{questions}", "share", "the probe on an earlier phase's questions, where it is watched for forgetting",
           "overview: Held-out accuracy of earlier phases", lasting=True, rare="a phase that watches earlier ones"),
    Metric("heldout/report/{questions}", "share", "held-out accuracy of the last report, by the phase whose questions they are",
           "overview: Held-out reports", lasting=True),
    Metric("heldout/closed_book/{questions}", "share", "the same without retrieval",
           "overview: Held-out reports", lasting=True),

    # What a run is, at this moment.
    Metric("run/training", "yes = 1", "whether the loop runs; 0 once the run has ended", "reliability: Training"),
    Metric("run/step", "step", "learner steps made", "overview: Step"),
    Metric("run/step_time", "unix s", "when the last learner step ended, or the loop began",
           "reliability: Seconds since the last step", query="time() - {}"),
    Metric("run/checkpoint_step", "step", "the step of the newest complete checkpoint; -1: there is none",
           "reliability: Newest checkpoint"),
    Metric("run/disk_free", "share", "free share of the disk that holds the run folder", "reliability: Free disk"),
    Metric("run/model_tokens", "tokens", "model tokens trained on so far", "overview: Model tokens"),

    # The curriculum.
    Metric("curriculum/phase_index", "position", "position of the phase in the plan, from 0", "overview: Phase"),
    Metric("curriculum/steps_in_phase", "steps", "learner steps since the phase was entered", "overview: Steps in the phase"),
    Metric("curriculum/questions_{band}", "questions", "questions in play by how hard they are for the policy",
           "overview: Questions by difficulty", rare="a phase that chooses questions by difficulty"),
    Metric("curriculum/health", "0 to 2", "what the collapse detector says: 0 healthy, 1 warning, 2 collapsed",
           "reliability: Health of the policy"),
    Metric("curriculum/rollbacks", "times", "times that the run went back after a collapse", "reliability: Roll-backs"),

    # Rollouts.
    Metric("rollout/tokens_per_s", "tokens/s", "model tokens of trained groups per second of wall time",
           "rollouts: Model tokens"),
    Metric("rollout/tokens_per_s/{engine}", "tokens/s", "the same of one engine's place in the pool",
           "rollouts: Model tokens by engine", series="medr3_engine_tokens_per_s"),
    Metric("rollout/kv_use", "share", "mean use of the healthy engines' KV cache, as their last groups saw it",
           "rollouts: KV cache"),
    Metric("rollout/kv_use/{engine}", "share", "the fullest that one engine's KV cache was in the step",
           "rollouts: KV cache by engine", series="medr3_engine_kv_use"),
    Metric("rollout/preemptions/{engine}", "requests", "requests that gave up their memory to others since the engine started",
           "rollouts: Preemptions", _C, series="medr3_engine_preemptions"),
    Metric("rollout/episodes_per_s", "episodes/s", "trained episodes per second of wall time", "rollouts: Episodes"),
    Metric("rollout/response_tokens", "tokens", "mean model tokens of an episode", "rollouts: Length of an episode"),
    Metric("rollout/document_tokens", "tokens", "mean document tokens of an episode", "rollouts: Length of an episode"),
    Metric("rollout/searches", "searches", "mean searches of an episode", "rollouts: Searches of an episode"),
    Metric("rollout/generate_s", "s", "mean seconds that an episode spent generating", "rollouts: Seconds of an episode"),
    Metric("rollout/search_s", "s", "mean seconds that an episode spent searching", "rollouts: Seconds of an episode"),
    Metric("rollout/engines", "engines", "engines that take work", "rollouts: Engines"),
    Metric("finish/{reason}", "share", "share of episodes that ended for this reason", "rollouts: Why episodes ended"),
    Metric("evidence/{level}", "share", "share of cited documents of this evidence level, level 1 the best",
           "rollouts: Evidence level of cited documents"),
    Metric("age/groups", "versions", "age of a trained group, in weight versions",
           "rollouts: Age of trained groups", _H, buckets=_AGES),

    # The pool of engines, and the groups that it works on.
    Metric("pool/engines/{state}", "engines", "engines by state", "reliability: Engines by state"),
    Metric("pool/restarts", "engines", "engines that replaced one that failed", "reliability: Engines replaced", _C),
    Metric("pool/groups_running", "groups", "groups that engines work on", "rollouts: Groups in the pool"),
    Metric("pool/groups_waiting", "groups", "groups that wait for an engine with room", "rollouts: Groups in the pool"),
    Metric("pool/room", "groups", "groups that healthy engines may still take", "rollouts: Groups in the pool"),
    Metric("groups/open/{state}", "groups", "groups without an outcome by state; `finished` is the depth of the buffer",
           "rollouts: Buffer"),
    Metric("groups/admitted", "groups", "groups admitted so far", "reliability: Groups", _C),
    Metric("groups/trained", "groups", "groups trained so far", "reliability: Groups", _C),
    Metric("groups/voided", "groups", "groups given up after all their attempts failed", "reliability: Groups", _C),
    Metric("groups/requeued", "groups", "attempts that failed and were made again", "reliability: Groups", _C),
    Metric("groups/dropped/{reason}", "groups", "groups that ended untrained: too old, uniform, surplus, or of an old phase",
           "reliability: Groups dropped", _C),
    Metric("groups/failed/{cause}", "groups", "attempts that failed by cause", "reliability: Failed attempts by cause", _C),

    # Retrieval, as the engines' episodes saw it.
    Metric("retrieval/p50_ms", "ms", "median latency of the step's searches", "retrieval: Latency"),
    Metric("retrieval/p99_ms", "ms", "99th percentile of the latency of the step's searches", "retrieval: Latency"),
    Metric("retrieval/latency_ms", "ms", "latency of a search", "retrieval: Latency by Prometheus", _H, buckets=_LATENCY_MS),
    Metric("retrieval/hit_rate", "share", "share of the step's searches that the cache answered",
           "retrieval: Answered from the cache"),
    Metric("retrieval/degraded", "share", "share of the step's searches that one half of the hybrid did not answer",
           "retrieval: Degraded answers"),
    Metric("retrieval/empty", "share", "share of the step's searches that found nothing", "retrieval: Empty answers"),
    Metric("retrieval/searches_per_s", "searches/s", "searches of trained groups per second of wall time",
           "retrieval: Searches"),

    # Where the time of a step goes.
    Metric("time/step", "s", "wall time of the step", "learner: Where the time goes"),
    Metric("time/rollout", "s", "seconds of the step in which the learner waited for a batch", "learner: Where the time goes"),
    Metric("time/rollout_for_slow", "s", "that part of it in which only slow groups were missing",
           "learner: Where the time goes"),
    Metric("time/learn", "s", "seconds of the step in which the learner trained", "learner: Where the time goes"),
    Metric("time/sync", "s", "seconds of the step in which engines took the new weights", "learner: Where the time goes"),
    Metric("time/engines_idle", "s", "seconds of the step in which the engines had no group: they waited for the policy",
           "learner: Where the time goes"),

    # New weights.
    Metric("weights/sync_s", "s", "seconds from pause to open of the slowest engine", "learner: Weights to the engines"),
    Metric("weights/pause_s", "s", "seconds until the slowest engine had paused", "learner: Weights to the engines"),
    Metric("weights/canary_difference", "nats", "largest |difference of log p| of an engine's canary", "reliability: Canary"),
    Metric("weights/acks", "acks", "publications that an engine proved to hold", "reliability: Acknowledgements", _C),
    Metric("weights/refused", "acks", "publications that an engine refused", "reliability: Acknowledgements", _C),

    # The learner: how the policy moves.
    Metric("learner/loss", "nats", "loss that was minimised, mean of the step's minibatches", "learner: Loss"),
    Metric("learner/surrogate", "nats", "the policy's part of the loss, per trained token", "learner: Loss"),
    Metric("learner/value_loss", "reward²", "the critic's loss per trained token", "learner: Critic"),
    Metric("learner/value_explained", "share", "share of the returns' variance that the critic foresaw",
           "-: only of algorithms with a critic"),
    Metric("learner/critic_grad_norm", "norm", "the critic's largest gradient norm", "learner: Gradient norm",
           rare="an algorithm with a critic"),
    Metric("learner/entropy", "nats", "mean entropy of the learner's next-token distribution over trained tokens",
           "learner: Entropy"),
    Metric("learner/kl_reference", "nats", "estimate of KL to the reference policy per trained token; 0 without one",
           "learner: KL"),
    Metric("learner/kl_engine_learner", "nats", "k3 estimate of KL between the engines' and the learner's policy",
           "learner: KL"),
    Metric("learner/clip_low", "share", "share of trained tokens whose ratio was clipped from below",
           "learner: Clipped tokens"),
    Metric("learner/clip_high", "share", "share of trained tokens whose ratio was clipped from above",
           "learner: Clipped tokens"),
    Metric("learner/clip_dual", "share", "share of trained tokens at the dual clip", "learner: Clipped tokens"),
    Metric("learner/grad_norm", "norm", "largest gradient norm of the step's minibatches, before clipping",
           "learner: Gradient norm"),
    Metric("learner/learning_rate", "1/step", "learning rate of the step", "learner: Learning rate"),
    Metric("learner/advantage_abs_mean", "reward", "mean |advantage| of trained tokens", "learner: Advantages"),
    Metric("learner/reward_mean", "reward", "mean reward as the learner read it from the rows",
           "-: the same as reward/mean, kept to compare"),
    # The learner: whether engines and learner agree, and how old the tokens are.
    Metric("learner/mismatch_mean", "nats", "mean |log p learner - log p engine| on tokens of the learner's own version",
           "learner: Mismatch"),
    Metric("learner/mismatch_p99", "nats", "99th percentile of the same", "learner: Mismatch"),
    Metric("learner/mismatch_max", "nats", "largest |log p learner - log p engine| on tokens of the learner's own version",
           "learner: Mismatch"),
    Metric("learner/mismatch_tokens", "tokens", "tokens that this was measured on", "-: says how much the mismatch rests on"),
    Metric("learner/mismatch_warned", "yes = 1", "whether the mean is above learner.mismatch_warn",
           "reliability: Mismatch is too large"),
    Metric("learner/drift_mean", "nats", "mean |change of log p| since older tokens were sampled: policy drift, no mismatch",
           "learner: Mismatch"),
    Metric("learner/importance_mean", "ratio", "mean importance weight of trained tokens", "learner: Importance weights"),
    Metric("learner/importance_capped", "share", "share of trained tokens whose importance weight was cut",
           "learner: Importance weights"),
    Metric("learner/effective_samples", "share", "effective share of samples under the importance weights",
           "learner: Importance weights"),
    Metric("learner/age_mean", "versions", "mean age of trained tokens in weight versions", "rollouts: Age of trained tokens"),
    Metric("learner/age_max", "versions", "age of the oldest trained token in weight versions",
           "rollouts: Age of trained tokens"),
    Metric("learner/tokens_of_age_{age}", "tokens", "trained tokens of this age in weight versions",
           "rollouts: Trained tokens by age"),
    # The learner: what it did, and how fast.
    Metric("learner/tokens_per_second", "tokens/s", "tokens per second of learner time, prompts and documents included",
           "learner: Speed"),
    Metric("learner/seconds_step", "s", "seconds of training", "learner: Seconds of the learner"),
    Metric("learner/seconds_read", "s", "seconds until the batch was read", "learner: Seconds of the learner"),
    Metric("learner/seconds_old", "s", "seconds of scoring before the first update", "learner: Seconds of the learner"),
    Metric("learner/seconds_publish", "s", "seconds in which the new weights were written", "learner: Weights to the engines"),
    Metric("learner/gpu_memory_peak", "share", "the most GPU memory that the first rank held, as a share of the GPU",
           "learner: GPU memory of the learner", rare="a learner on GPUs"),
    Metric("learner/episodes", "episodes", "episodes of the batch", "learner: Episodes of a step"),
    Metric("learner/episodes_trained", "episodes", "those that carried an advantage, or all, by learner.zero_advantage",
           "learner: Episodes of a step"),
    Metric("learner/groups", "groups", "groups of the batch", "learner: Groups of a step"),
    Metric("learner/groups_uninformative", "groups", "those whose episodes all earned the same", "learner: Groups of a step"),
    Metric("learner/groups_not_finite", "groups", "those left out because a reward was not finite",
           "reliability: Left out of training"),
    Metric("learner/skipped_updates", "updates", "updates left out because their gradient was not finite",
           "reliability: Left out of training"),
    Metric("learner/masked_episodes", "episodes", "episodes that the importance correction left out",
           "reliability: Left out of training"),
    Metric("learner/masked_tokens", "share", "share of trained tokens that the importance correction left out",
           "learner: Importance weights"),
    Metric("learner/optimizer_steps", "updates", "updates of the step", "-: fixed by learner.minibatches"),
    Metric("learner/tokens", "tokens", "tokens of the batch, prompts and documents included", "learner: Tokens of a step"),
    Metric("learner/model_tokens", "tokens", "trained tokens of the batch", "learner: Tokens of a step"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
_FAMILIES = tuple(metric for metric in _METRICS if metric.labels)


class UnknownMetric(ValueError):
    """A name that the registry does not hold."""


class Found(NamedTuple):
    """A registered metric, and what a name says of its labels."""

    metric: Metric
    labels: dict[str, str]


@lru_cache(maxsize=4096)  # a run logs the same few hundred names with every step
def lookup(name: str) -> Found:
    """The registered metric of a name: its own entry, else its family's.

    Example:
        >>> lookup("reward/joint/world/joint/evidence").labels
        {'phase': 'joint', 'source': 'world/joint', 'component': 'evidence'}
        >>> lookup("learner/age_max").metric.unit
        'versions'
    """
    if "{" not in name:
        if (metric := METRICS.get(name)) is not None:
            return Found(metric, {})
        for family in _FAMILIES:
            if match := family.pattern.fullmatch(name):
                return Found(family, match.groupdict())
    raise UnknownMetric(f"metric {name!r} is not registered in medr3/observe/registry.py{did_you_mean(name, METRICS)}")
