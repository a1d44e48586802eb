"""One real vLLM engine: what it samples, how it takes new weights, and which weights it refuses."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import pytest
import torch

from actors.config import EngineConfig
from actors.engine import Completion, PolicyEngine
from actors.failures import EngineFenced, EngineLost
from actors.tokens import TagStrings
from tests.e2e.actors_tiny_model import build_byte_tokenizer, build_model, logprobs_of, publish, save_model
from trajectories.publication import Publication

pytestmark = pytest.mark.e2e

T = TypeVar("T")
PROMPT = [12, 13, 14]
EXACT = 1e-4


def new_model(number: int) -> Any:
    return build_model(number, build_byte_tokenizer())


class Setup(NamedTuple):
    engine: PolicyEngine
    folder: Path
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def publish(self, number: int) -> Publication:
        return publish(new_model(number), self.folder, number)

    async def sample(self, name: str, tokens: int = 24, temperature: float = 1.0) -> Completion:
        return await self.engine.generate(
            name, PROMPT, max_tokens=tokens, temperature=temperature, seed=hash(name) % 1000, stop_token_ids=[]
        )


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("engine")
    model_dir = save_model(folder / "model", tokenizer=build_byte_tokenizer())
    environment = dict(os.environ)
    engine = PolicyEngine("engine-0", EngineConfig(cpu_threads=1, kv_cache_mib=64, max_model_len=256), canary_tolerance=1e-3)
    with asyncio.Runner() as runner:
        runner.run(engine.start(model_dir, needs_text=True))
        yield Setup(engine, folder, runner)
        engine.stop()
    os.environ.clear()
    os.environ.update(environment)


def differences(completion: Completion) -> list[float]:
    """Per token: the engine's log-probability minus transformers', under the weights that the spans name."""
    found: list[float] = []
    for span in completion.version_spans:
        exact = logprobs_of(new_model(span.number), PROMPT + completion.token_ids)[len(PROMPT) - 1 :]
        found += [a - b for a, b in zip(completion.logprobs[span.start : span.end], exact[span.start : span.end], strict=True)]
    return found


def test_an_engine_without_verified_weights_refuses_work(setup: Setup) -> None:
    with pytest.raises(EngineFenced, match="has not verified any weights yet"):
        setup.run(setup.sample("too-early"))


def test_new_weights_arrive_exactly(setup: Setup) -> None:
    for number in (1, 2):
        ack = setup.run(setup.engine.update(setup.publish(number)))
        assert ack.ok and ack.canary_difference < EXACT, ack
        completion = setup.run(setup.sample(f"exact-{number}"))
        assert [(s.number, s.start, s.end) for s in completion.version_spans] == [(number, 0, 24)]
        assert max(map(abs, differences(completion))) < EXACT


def test_a_seed_samples_again_what_it_sampled(setup: Setup) -> None:
    setup.run(setup.engine.update(setup.publish(3)))
    first, second = setup.run(setup.sample("same")), setup.run(setup.sample("same"))
    assert first.token_ids == second.token_ids != setup.run(setup.sample("other")).token_ids


def test_requests_in_flight_go_on_under_the_new_weights(setup: Setup) -> None:
    """Kept requests recompute their cache: every log-probability is exact under the version that its span names."""
    setup.run(setup.engine.update(setup.publish(4)))

    async def across() -> list[Completion]:
        tasks = [asyncio.create_task(setup.sample(f"kept-{i}", tokens=200)) for i in range(32)]
        await asyncio.sleep(0.15)
        ack = await setup.engine.update(setup.publish(5))
        assert ack.ok, ack
        return await asyncio.gather(*tasks)

    completions = setup.run(across())
    assert any(len(completion.version_spans) == 2 for completion in completions)
    for completion in completions[:4]:
        assert max(map(abs, differences(completion))) < EXACT


def test_a_stop_string_ends_a_turn_with_the_whole_token_that_completes_it(setup: Setup) -> None:
    assert setup.run(setup.engine.update(setup.publish(5))).ok
    tags = TagStrings.from_tokenizer(build_byte_tokenizer())
    free = setup.run(setup.sample("free", tokens=40, temperature=0.0))
    plain = [i for i, token in enumerate(free.token_ids) if tags.text([token]).isascii()]
    end = next(i for i in plain if i > 3 and free.token_ids[i] not in free.token_ids[:i])
    stopped = setup.run(
        setup.engine.generate(
            "stopped",
            PROMPT,
            max_tokens=40,
            temperature=0.0,
            seed=0,
            stop_token_ids=tags.stop_token_ids,
            stop_strings=[tags.text([free.token_ids[end]])[:1]],
        )
    )
    assert 0 < len(stopped.token_ids) <= end + 1
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.logprobs) == len(stopped.token_ids) == stopped.version_spans[-1].end


def test_a_corrupted_file_is_refused_and_the_engine_fenced_until_a_good_one(setup: Setup) -> None:
    good = setup.publish(6)
    bad = Path(shutil.copy(good.path, setup.folder / "corrupted.safetensors"))
    with bad.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x7f")
    ack = setup.run(setup.engine.update(Publication(good.version, str(bad), good.checksum, good.nbytes, good.canary)))
    assert not ack.ok
    assert "checksum" in ack.reason
    assert good.checksum in ack.reason
    with pytest.raises(EngineFenced, match="checksum"):
        setup.run(setup.sample("fenced"))
    assert setup.run(setup.engine.update(good)).ok
    assert max(map(abs, differences(setup.run(setup.sample("mended"))))) < EXACT


def test_a_file_of_wrong_shapes_is_refused_and_leaves_a_whole_engine(setup: Setup) -> None:
    model = new_model(7)
    good = publish(model, setup.folder, 7)
    model.model.norm.weight = torch.nn.Parameter(torch.ones(63))
    wrong = publish_without_canary(model, setup.folder, good)
    ack = setup.run(setup.engine.update(wrong))
    assert not ack.ok
    assert ack.reason
    assert setup.run(setup.engine.update(good)).ok
    assert max(map(abs, differences(setup.run(setup.sample("whole"))))) < EXACT


def test_a_stale_packed_output_layer_is_noticed_by_the_canary_alone(setup: Setup) -> None:
    assert setup.run(setup.engine.update(setup.publish(8))).ok
    setup.engine.mend_tied_output = False
    try:
        ack = setup.run(setup.engine.update(setup.publish(9)))
    finally:
        setup.engine.mend_tied_output = True
    assert not ack.ok
    assert "canary" in ack.reason
    assert ack.checksum == setup.publish(9).checksum
    assert setup.run(setup.engine.update(setup.publish(9))).ok


def test_nothing_sampled_under_doubtful_weights_leaves_the_engine(setup: Setup) -> None:
    assert setup.run(setup.engine.update(setup.publish(10))).ok
    other_canary = setup.publish(12).canary
    doubtful = setup.publish(11)

    async def across() -> list[Any]:
        tasks = [asyncio.create_task(setup.sample(f"doubtful-{i}", tokens=4 + 6 * i)) for i in range(32)]
        await asyncio.sleep(0.05)
        ack = await setup.engine.update(
            Publication(doubtful.version, doubtful.path, doubtful.checksum, doubtful.nbytes, other_canary)
        )
        assert not ack.ok
        assert "canary differs" in ack.reason
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = setup.run(across())
    assert any(isinstance(outcome, EngineFenced) for outcome in outcomes)
    for outcome in outcomes:
        if isinstance(outcome, Completion):
            assert {span.number for span in outcome.version_spans} == {10}
    assert setup.run(setup.engine.update(doubtful)).ok  # with its own canary the same file is fine


def test_a_dead_engine_process_is_a_lost_engine(setup: Setup) -> None:
    """The last test of this module: it ends the engine."""

    async def killed() -> list[Any]:
        tasks = [asyncio.create_task(setup.sample(f"lost-{i}", tokens=200)) for i in range(4)]
        await asyncio.sleep(0.05)
        for child in psutil.Process().children(recursive=True):
            if "EngineCore" in " ".join(child.cmdline()):
                child.kill()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = setup.run(killed())
    assert all(isinstance(outcome, EngineLost) for outcome in outcomes), outcomes
    with pytest.raises(EngineLost, match="its vLLM process died"):
        setup.engine.raise_if_lost()


def publish_without_canary(model: Any, folder: Path, like: Publication) -> Publication:
    """A whole, correctly announced file whose tensors do not fit the model."""
    from safetensors.torch import save_file

    from trajectories.checksum import weights_checksum

    path = str(folder / "wrong.safetensors")
    save_file({name: t.detach().contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}, path)
    return Publication(like.version, path, weights_checksum(path), like.nbytes, like.canary)
