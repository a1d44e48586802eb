"""The mailbox between the driver and the learner's workers, and what starting those costs the driver."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from learner.exchange import Mailbox, Reply
from learner.messages import NewPhase, Stop


def test_mailbox_gives_each_rank_each_order_once_and_answers_when_all_are_through():
    async def scenario():
        mailbox = Mailbox(ranks=2)
        number = await mailbox.put(NewPhase(True, False))
        assert await mailbox.next_order(0, 1) == (1, NewPhase(True, False))
        assert await mailbox.next_order(0, 0.01) is None
        await mailbox.post(0, number, None)
        with pytest.raises(RuntimeError, match="still open"):
            await mailbox.put(Stop())
        assert "from ranks [1]" in (await mailbox.reply(number, 0.01)).failure
        assert await mailbox.next_order(1, 1) == (1, NewPhase(True, False))
        await mailbox.post(1, number, None)
        assert await mailbox.reply(number, 1) == Reply()
        waiting = asyncio.ensure_future(mailbox.reply(await mailbox.put(Stop()), 5))
        await mailbox.fail(1, "ValueError: first")
        await mailbox.fail(0, "ConnectionError: consequence")
        assert (await waiting).failure == "learner worker 1 of 2: ValueError: first"
        with pytest.raises(RuntimeError, match="worker 1 of 2: ValueError: first"):
            await mailbox.put(NewPhase(True, False))

    asyncio.run(scenario())


def test_neither_the_driver_nor_ray_train_s_controller_imports_what_only_workers_need():
    """Both import this module: the controller gets the entry point by its name."""
    code = "import learner.launch, medr3.run.course, sys; print(*{'transformers', 'learner.worker', 'vllm'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert done.stdout.split() == []
