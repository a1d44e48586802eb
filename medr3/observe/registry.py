"""Every metric's name, unit and meaning. A name that is not here cannot be logged, so a typo never makes a second curve."""

from __future__ import annotations

from dataclasses import dataclass

from medr3.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, or a family of metrics where the name ends in `/*`."""

    name: str
    unit: str
    help: str


_METRICS = (
    Metric("reward/mean", "reward", "mean total reward of the step's episodes"),
    Metric("reward/std", "reward", "spread of the total reward within groups, averaged"),
    Metric("reward/correct", "share", "share of the step's episodes with the right answer"),
    Metric("reward/*", "reward", "mean of one component; by component, by phase/component or by phase/source/component"),
    Metric("heldout/accuracy", "share", "share of right answers of the greedy probe on held-out questions"),
    Metric("heldout/*", "share", "held-out accuracy of one slice: phase, data source, answer kind or hops"),
    Metric("curriculum/phase_index", "count", "position of the phase in the plan, from 0"),
    Metric("curriculum/*", "mixed", "what the phase controller saw"),
    Metric("rollout/tokens_per_s", "tokens/s", "model tokens of trained groups per second of wall time"),
    Metric("rollout/episodes_per_s", "episodes/s", "trained episodes per second of wall time"),
    Metric("rollout/response_tokens", "tokens", "mean model tokens of an episode"),
    Metric("rollout/document_tokens", "tokens", "mean document tokens of an episode"),
    Metric("rollout/searches", "searches", "mean searches of an episode"),
    Metric("rollout/generate_s", "s", "mean seconds that an episode spent generating"),
    Metric("rollout/search_s", "s", "mean seconds that an episode spent searching"),
    Metric("rollout/*", "mixed", "what the rollout pool did"),
    Metric("finish/*", "share", "share of episodes that ended for this reason"),
    Metric("evidence/*", "share", "share of cited documents per evidence level, level 1 the best"),
    Metric("retrieval/*", "mixed", "what the retrieval service did"),
    Metric("learner/loss", "nats", "policy loss per trained token"),
    Metric("learner/entropy", "nats", "mean entropy of the learner's next-token distribution over trained tokens"),
    Metric("learner/clip_low", "share", "share of trained tokens whose ratio was clipped from below"),
    Metric("learner/clip_high", "share", "share of trained tokens whose ratio was clipped from above"),
    Metric("learner/grad_norm", "norm", "largest gradient norm of the step's minibatches, before clipping"),
    Metric("learner/learning_rate", "1/step", "learning rate of the step"),
    Metric("learner/tokens_per_second", "tokens/s", "tokens per second of learner time, prompts and documents included"),
    Metric("learner/mismatch_mean", "nats", "mean |log p learner − log p engine| on tokens of the learner's own version"),
    Metric("learner/mismatch_max", "nats", "largest |log p learner − log p engine| on tokens of the learner's own version"),
    Metric("learner/drift_mean", "nats", "mean |Δ log p| since older tokens were sampled: policy drift, no mismatch"),
    Metric("learner/age_mean", "versions", "mean age of trained tokens in weight versions"),
    Metric("learner/age_max", "versions", "age of the oldest trained token in weight versions"),
    Metric("learner/*", "mixed", "whatever else the learner reports of its step, under the learner's own name"),
    Metric("age/*", "share", "share of trained groups of this age in weight versions"),
    Metric("groups/*", "groups", "groups that ended this way so far"),
    Metric("weights/*", "mixed", "publication of weights: seconds, bytes, canary difference"),
    Metric("time/*", "s", "seconds of the step spent in one stage"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}


class UnknownMetric(ValueError):
    """A name that the registry does not hold."""


def lookup(name: str) -> Metric:
    """The registered metric of a name: its own entry, else its family's.

    Example:
        >>> lookup("reward/joint/choice/evidence").name
        'reward/*'
        >>> lookup("learner/age_max").unit
        'versions'
    """
    found = METRICS.get(name) or METRICS.get(f"{name.partition('/')[0]}/*")
    if found is None or name.endswith("/*") or not name.partition("/")[2]:
        raise UnknownMetric(f"metric {name!r} is not registered in medr3/observe/registry.py{did_you_mean(name, METRICS)}")
    return found
