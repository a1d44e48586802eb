"""Where a run stands, beside what its last step measured: for those who look at it from outside."""

from __future__ import annotations

from typing import Any

from curriculum.config import CurriculumConfig
from medr3.run.state import RunState


def standing(state: RunState, pool_target: int) -> dict[str, Any]:
    """Fields of status.json. `ages` counts the trained groups by how many versions old they were; `eta_s` is a bound."""
    progress, ledger = state.progress, state.ledger
    step_s = progress.rollout_s / progress.step
    left = steps_left(state.config.curriculum, state.controller.phase_index, state.controller.steps_in_phase)
    return {
        "pool_target": pool_target,
        "nodes": state.pool.nodes(),
        "ages": {str(age): count for age, count in sorted(ledger.ages.items())},
        "step_s": round(step_s, 3),
        "eta_s": 0.0 if state.controller.finished else round(left * step_s, 1),
    }


def steps_left(curriculum: CurriculumConfig, phase_index: int, steps_in_phase: int) -> int:
    """Until the last phase has used all of its steps. A plateau ends phases earlier, a return to one before adds its steps."""
    here, *later = curriculum.phases[phase_index:]
    return max(0, here.max_steps - steps_in_phase) + sum(phase.max_steps for phase in later)
