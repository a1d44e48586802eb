"""When a person should be woken: Prometheus alert rules. docs/operations.md has a section of each alert's name: what to do.

Every expression keeps the label `run`, or `instance` where a machine is meant, so that an alert names what it speaks of. Rules
take `max by (run)` of gauges: a run's figures come from its one driver, under labels of Ray that change when it is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

RUNBOOK = "docs/operations.md"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `expr` is true where something is wrong; `lasting` is how long it must be before anybody is told."""

    name: str
    severity: Literal["critical", "warning"]  # critical: the run makes no progress, or soon will not
    expr: str
    lasting: str
    summary: str

    @property
    def runbook(self) -> str:
        return f"{RUNBOOK}#{self.name.lower()}"


ALERTS = (
    Alert(
        # Ten times a usual step, and never less than held-out reports of a whole plan may take between two steps.
        "Medr3NoProgress", "critical",
        "time() - max by (run) (ray_medr3_run_step_time) > clamp_min(10 * max by (run) (ray_medr3_time_step), 1800)",
        "0m", "no learner step for ten times as long as steps take",
    ),
    Alert(
        # A resume, or a roll-back, starts engines and learner anew, which takes large models minutes. The least of the last words: a
        # phase that was left has said 1 last, and a run that ended as it was meant to says 0 in its last phase.
        "Medr3DriverGone", "critical",
        "min by (run) (last_over_time(ray_medr3_run_training[1h])) == 1 unless on (run) max by (run) (ray_medr3_run_training)",
        "10m", "the driver was training and no longer says anything: it died, or its node did",
    ),
    Alert(
        "Medr3NoEngine", "critical",
        'max by (run) (ray_medr3_pool_engines{state="healthy"}) == 0',
        "5m", "no engine is HEALTHY, so nothing is rolled out",
    ),
    Alert(
        "Medr3StaleEngine", "warning",
        'max by (run, state) (ray_medr3_pool_engines{state=~"stale|suspect"}) > 0',
        "10m", "an engine has not proved the newest weights, or does not answer",
    ),
    Alert(
        "Medr3EngineRestarts", "warning",
        "sum by (run) (increase(ray_medr3_pool_restarts_total[30m])) >= 3",
        "0m", "engines die again and again",
    ),
    Alert(
        "Medr3WeightsRefused", "warning",
        "sum by (run) (increase(ray_medr3_weights_refused_total[30m])) > 0",
        "0m", "an engine refused new weights: checksum or canary did not agree",
    ),
    Alert(
        "Medr3Mismatch", "warning",
        "max by (run) (max_over_time(ray_medr3_learner_mismatch_warned[15m])) > 0",
        "0m", "engine and learner disagree about tokens of the same weights by more than learner.mismatch_warn",
    ),
    Alert(
        # Five of a hundred: retries hide less than that, and a service that fails as often slows every step.
        "Medr3RetrievalFailing", "warning",
        'sum by (run) (increase(ray_medr3_groups_failed_total{cause=~"retrieval.*"}[15m]))'
        " > 0.05 * sum by (run) (increase(ray_medr3_groups_admitted_total[15m]))",
        "5m", "more than 5 % of the groups fail because searches do",
    ),
    Alert(
        # Half of retrieval.deadline_s as it is by default: beyond it searches are about to fail.
        "Medr3RetrievalSlow", "warning",
        "histogram_quantile(0.99, sum by (run, le) (rate(ray_medr3_retrieval_latency_ms_bucket[15m]))) > 5000",
        "10m", "one search of a hundred takes more than 5 s",
    ),
    Alert(
        "Medr3GroupsFailing", "warning",
        "sum by (run) (increase(ray_medr3_groups_failed_total[30m])) > 0.1 * sum by (run) (increase(ray_medr3_groups_admitted_total[30m]))",
        "5m", "more than a tenth of the attempts fail",
    ),
    Alert(
        "Medr3GroupsTooOld", "warning",
        'sum by (run) (increase(ray_medr3_groups_dropped_total{reason="stale"}[30m]))'
        " > 0.2 * sum by (run) (increase(ray_medr3_groups_trained_total[30m]))",
        "5m", "more than a fifth of the work of the engines is thrown away because it is too old",
    ),
    Alert(
        "Medr3CollapseThreatens", "warning",
        "max by (run) (ray_medr3_curriculum_health) >= 1",
        "5m", "the controller warns of a collapse: reward, length, entropy or another signal is off",
    ),
    Alert(
        "Medr3RolledBack", "critical",
        "max by (run) (max_over_time(ray_medr3_curriculum_rollbacks[1h]))"
        " > min by (run) (min_over_time(ray_medr3_curriculum_rollbacks[1h]))",
        "0m", "the policy collapsed and the run went back to an earlier checkpoint",
    ),
    Alert(
        "Medr3UpdatesSkipped", "warning",
        "max by (run) (max_over_time(ray_medr3_learner_skipped_updates[15m])) > 0",
        "0m", "updates were left out because their gradient was not finite",
    ),
    Alert(
        # A tenth of the disk, or full within four hours at the pace of the last one: time to get up and to make room.
        "Medr3DiskFilling", "warning",
        "min by (run) (ray_medr3_run_disk_free) < 0.1"
        " or (min by (run) (ray_medr3_run_disk_free) < 0.5 and min by (run) (predict_linear(ray_medr3_run_disk_free[1h], 4 * 3600)) < 0)",
        "5m", "the disk of the run folder is nearly full",
    ),
    Alert(
        # Ray begins to end workers at 95 %.
        "Medr3NodeMemory", "warning",
        "max by (instance) (ray_node_mem_used) / max by (instance) (ray_node_mem_total) > 0.92",
        "5m", "a node's memory is nearly full; Ray ends workers at 95 %",
    ),
)  # fmt: skip


def rules() -> dict[str, Any]:
    """The rule file's content, as `promtool check rules` takes it."""
    written = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": f"{{{{ or $labels.run $labels.instance }}}}: {alert.summary}",
                "runbook": alert.runbook,
            },
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "medr3", "rules": written}]}
