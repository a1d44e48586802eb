"""Runs on a cluster's head, as a job: one command of `medr3` where the run's folder is, its answer as one line of the job's log.

`python -m medr3.ops.relay VERSION COMMAND…` is what `medr3.ops.remote` submits; another version refuses.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from importlib import metadata

from medr3.errors import UserError

ANSWER = "medr3-answer "


def main() -> None:
    wanted, *command = sys.argv[1:]
    print("\n" + ANSWER + json.dumps(answer(wanted, command)), flush=True)


def answer(wanted: str, command: list[str]) -> dict[str, str]:
    """What the command printed, or the line that says why it did not work."""
    if (have := metadata.version("medr3")) != wanted:
        mend = "run the setup_commands of cluster.yaml there, or install that version here"
        return {"error": f"the cluster's head has medr3 {have}, this is {wanted}: {mend}"}
    from medr3.cli import app

    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            app(command, standalone_mode=False)
    except UserError as error:
        return {"error": str(error)}
    return {"printed": printed.getvalue()}


if __name__ == "__main__":
    main()
