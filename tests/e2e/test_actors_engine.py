"""One real vLLM engine: what it samples, how it takes new weights, which weights it refuses, and how it sleeps."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import pytest
import torch

from actors.config import EngineConfig, EpisodeBudget
from actors.engine import Completion, PolicyEngine
from actors.episodes import EpisodeRunner
from actors.failures import EngineFenced, EngineLost
from actors.messages import GroupRequest
from actors.tokens import EpisodeTokenizer, TagStrings
from retrieval_service.types import SearchResult
from rewards.config import RewardRecipe, RewardTerm
from tasks.questions import Question
from tests.e2e.actors_tiny_model import build_byte_tokenizer, build_model, logprobs_of, publish, save_model
from trajectories.publication import Publication, WeightAck
from trajectories.schema import check

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

    async def sample(self, name: str, tokens: int = 24, temperature: float = 1.0, forbidden: Sequence[int] = ()) -> Completion:
        return await self.engine.generate(
            name, PROMPT, max_tokens=tokens, temperature=temperature, seed=hash(name) % 1000, stop_token_ids=[],
            forbidden_token_ids=forbidden,
        )  # fmt: skip

    def core(self) -> psutil.Process:
        """The process that samples."""
        children = psutil.Process().children(recursive=True)
        return next(child for child in children if "EngineCore" in " ".join(child.cmdline()))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("engine")
    model_dir = save_model(folder / "model", tokenizer=build_byte_tokenizer())
    environment = dict(os.environ)
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # lets a test send the function that damages a weight
    config = EngineConfig(cpu_threads=1, kv_cache_mib=16, max_model_len=256)
    engine = PolicyEngine("engine-0", config, canary_tolerance=1e-3, sleeps=True)
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

    before = setup.engine.load()
    completions = setup.run(across())
    assert any(len(completion.version_spans) == 2 for completion in completions)
    for completion in completions[:4]:
        assert max(map(abs, differences(completion))) < EXACT
    after = setup.engine.load()
    assert after["recomputed"] > before["recomputed"]
    assert after["preemptions"] == before["preemptions"]  # an update is no sign of too little memory


def test_requests_that_keep_their_cache_go_on_wrongly(setup: Setup) -> None:
    """Why an update drops the cache: the same as above without it is off by far, and neither checksum nor canary notices."""
    setup.run(setup.engine.update(setup.publish(4)))

    async def across() -> list[Completion]:
        tasks = [asyncio.create_task(setup.sample(f"stale-{i}", tokens=200)) for i in range(8)]
        await asyncio.sleep(0.15)
        setup.engine.drop_kept_cache = False
        try:
            assert (await setup.engine.update(setup.publish(5))).ok
        finally:
            setup.engine.drop_kept_cache = True
        return await asyncio.gather(*tasks)

    mixed = [completion for completion in setup.run(across()) if len(completion.version_spans) == 2]
    assert mixed
    assert max(abs(difference) for completion in mixed for difference in differences(completion)) > 100 * EXACT
    assert setup.run(setup.engine.update(setup.publish(4))).ok  # drops what is left of it


def test_forbidden_tokens_have_no_probability(setup: Setup) -> None:
    """The others' log-probabilities are those of the distribution that was really sampled from."""
    assert setup.run(setup.engine.update(setup.publish(5))).ok
    free = setup.run(setup.sample("closed", tokens=60))
    forbidden = sorted(set(free.token_ids))[:8]
    for temperature in (1.0, 0.0):
        closed = setup.run(setup.sample("closed", tokens=60, temperature=temperature, forbidden=forbidden))
        assert not set(forbidden) & set(closed.token_ids)
        if temperature:
            exact = logprobs_without(new_model(5), PROMPT + closed.token_ids, forbidden)[len(PROMPT) - 1 :]
            assert max(abs(a - b) for a, b in zip(closed.logprobs, exact, strict=True)) < EXACT
    assert setup.run(setup.sample("closed", tokens=60)).token_ids == free.token_ids  # and only where it was asked for


def test_a_full_cache_is_told_and_so_are_those_who_had_to_leave_it(setup: Setup) -> None:
    assert setup.run(setup.engine.update(setup.publish(5))).ok
    assert setup.run(setup.sample("small")).token_ids
    before = setup.engine.load()
    setup.engine.take_peak()

    async def crowd() -> None:
        await asyncio.gather(*(setup.sample(f"crowd-{i}", tokens=240) for i in range(96)))

    setup.run(crowd())
    assert setup.engine.take_peak() > 0.9
    assert setup.engine.load()["preemptions"] > before["preemptions"]
    assert setup.engine.load()["kv_use"] == setup.engine.take_peak() == 0


def test_a_sleeping_engine_samples_nothing_until_an_update_and_loses_nothing(setup: Setup) -> None:
    assert setup.run(setup.engine.update(setup.publish(4))).ok

    async def night() -> list[Completion]:
        tasks = [asyncio.create_task(setup.sample(f"asleep-{i}", tokens=200)) for i in range(8)]
        await asyncio.sleep(0.15)
        await setup.engine.sleep()
        late = asyncio.create_task(setup.sample("late"))
        done, spent = sum(task.done() for task in tasks), sum(setup.core().cpu_times()[:2])
        await asyncio.sleep(0.5)
        assert sum(setup.core().cpu_times()[:2]) - spent < 0.1  # sampling takes all of it
        await setup.engine.sleep()  # twice is no harm
        await setup.engine.wake()
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in tasks) == done < len(tasks)
        assert not late.done()
        assert (await setup.engine.update(setup.publish(5))).ok
        assert [span.number for span in (await late).version_spans] == [5]
        return await asyncio.gather(*tasks)

    completions = setup.run(night())
    assert any(len(completion.version_spans) == 2 for completion in completions)
    for completion in completions:
        assert len(completion.token_ids) == 200
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


def test_an_answer_is_forced_on_a_model_that_never_ends_its_thinking(setup: Setup) -> None:
    """A random model closes no tag. What the protocol writes for it is never trained, and all the rest keeps its probability."""
    assert setup.run(setup.engine.update(setup.publish(5))).ok
    tokenizer = EpisodeTokenizer(build_byte_tokenizer(), tools=True)
    runner = EpisodeRunner(setup.engine, tokenizer, NoLibrary(), "lexical", 256)
    question = Question(id="q", text="what dose ? <think>", kind="number", gold="7")
    budget = EpisodeBudget(max_turn_tokens=30, max_response_tokens=200, answer_tokens=20)
    recipe = RewardRecipe(terms=[RewardTerm(name="correct")])
    request = GroupRequest("run", "g", 0, "joint", question, 4, 1.0, 5, budget, recipe)
    for episode in setup.run(runner.run(request)):
        assert check(asdict(episode)) == []
        prompt, *others = episode.segments
        assert [(s.source, s.turn, s.end - s.start) for s in others if s.source == "model"] == [
            ("model", 0, 30),
            ("model", 1, 20),
        ]
        [bridge] = [s for s in others if s.source == "prompt"]
        assert tokenizer.tags.text(episode.token_ids[bridge.start : bridge.end]) == "</think> <answer>"
        exact = [0.0, *logprobs_of(new_model(5), episode.token_ids)]
        for i, trained in enumerate(episode.loss_mask):
            assert trained == (prompt.end <= i < bridge.start or i >= bridge.end)
            assert episode.logprobs[i] == (pytest.approx(exact[i], abs=EXACT) if trained else 0.0)
        assert episode.finish == "budget"
    assert not any(runner.activity.values())


class NoLibrary:
    async def search(self, query: object) -> SearchResult:
        raise AssertionError("a random model never searches")


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


@pytest.mark.parametrize(
    ("name", "bit"),
    [("model.norm.weight", 29), ("model.layers.0.input_layernorm.weight", 29), ("layers.0.self_attn.qkv_proj.bias", 30)],
)
def test_one_flipped_bit_after_a_correct_transfer_is_noticed(setup: Setup, name: str, bit: int) -> None:
    """Bits of exponents: 1 becomes 2⁻⁶⁴ and 0 becomes 2. The lowest bits of a weight change nothing that matters."""
    engine = setup.engine

    async def damaged(publication: Publication) -> WeightAck:
        transfer = engine._transfer

        async def then_damage(publication: Publication) -> tuple[str, dict[str, float]]:
            arrived = await transfer(publication)
            assert await engine._engine().collective_rpc(flip_bit, args=(name, bit)) == [1]
            return arrived

        engine._transfer = then_damage  # type: ignore[method-assign]
        try:
            return await engine.update(publication)
        finally:
            del engine._transfer

    good = setup.publish(9)
    ack = setup.run(damaged(good))
    assert not ack.ok
    assert "canary" in ack.reason
    assert ack.checksum == good.checksum
    with pytest.raises(EngineFenced, match="canary"):
        setup.run(setup.sample("damaged"))
    assert setup.run(engine.update(good)).ok


def test_an_engine_that_only_says_that_it_loaded_is_fenced(setup: Setup) -> None:
    engine = setup.engine
    assert setup.run(engine.update(setup.publish(9))).ok

    async def suppressed(publication: Publication) -> WeightAck:
        async def nothing(publication: Publication) -> tuple[str, dict[str, float]]:
            return publication.checksum, {}

        engine._transfer = nothing  # type: ignore[method-assign]
        try:
            return await engine.update(publication)
        finally:
            del engine._transfer

    ack = setup.run(suppressed(setup.publish(10)))
    assert not ack.ok and "canary differs" in ack.reason
    with pytest.raises(EngineFenced, match="canary differs"):
        setup.run(setup.sample("not-even-once"))
    assert setup.run(engine.update(setup.publish(10))).ok


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


def test_a_process_that_dies_within_an_update_is_a_lost_engine_at_once(setup: Setup) -> None:
    """The last test of this module: it ends the engine. vLLM itself never answers a call that its process died under."""
    assert setup.run(setup.engine.update(setup.publish(13))).ok

    async def killed() -> list[Any]:
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(setup.sample(f"lost-{i}", tokens=200)) for i in range(4)]
        await asyncio.sleep(0.05)
        core = setup.core()
        core.suspend()  # so that the update is under way, and not over
        tasks.append(asyncio.create_task(setup.engine.update(setup.publish(14))))
        await asyncio.sleep(0.5)
        core.kill()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)

    outcomes = setup.run(killed())
    assert all(isinstance(outcome, EngineLost) for outcome in outcomes), outcomes
    with pytest.raises(EngineLost, match="its vLLM process died"):
        setup.engine.raise_if_lost()
    with pytest.raises(EngineLost):
        setup.run(asyncio.wait_for(setup.engine.update(setup.publish(15)), 20))


def flip_bit(worker: Any, name: str, bit: int) -> int:
    """Runs in the engine's own process; the number of weights that it damaged."""
    found = [weight for each, weight in worker.model_runner.model.named_parameters() if each.endswith(name)]
    for weight in found[:1]:
        bits = weight.data.view(-1)[:1].view(torch.int32)
        bits ^= 1 << bit
    return len(found[:1])


@torch.no_grad()
def logprobs_without(model: Any, token_ids: list[int], forbidden: Sequence[int]) -> list[float]:
    """As `logprobs_of`, over the tokens that are allowed."""
    logits = model(torch.tensor([token_ids])).logits[0, :-1].float()
    logits[:, list(forbidden)] = float("-inf")
    picked = torch.log_softmax(logits, -1).gather(1, torch.tensor(token_ids[1:])[:, None])
    return [float(value) for value in picked[:, 0]]


def publish_without_canary(model: Any, folder: Path, like: Publication) -> Publication:
    """A whole, correctly announced file whose tensors do not fit the model."""
    from safetensors.torch import save_file

    from trajectories.checksum import weights_checksum

    path = str(folder / "wrong.safetensors")
    save_file({name: t.detach().contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}, path)
    return Publication(like.version, path, weights_checksum(path), like.nbytes, like.canary)
