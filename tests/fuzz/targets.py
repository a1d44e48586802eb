"""All targets, by room."""

from __future__ import annotations

from functools import cache

from tests.fuzz import targets_config, targets_files, targets_run, targets_service, targets_text
from tests.fuzz.target import Target


@cache
def all_targets() -> list[Target]:
    modules = (targets_text, targets_files, targets_run, targets_service, targets_config)
    return [target for module in modules for target in module.targets()]
