"""Rewards of a user's own: they plug in, they keep a contract, and what they do wrong costs their sample and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.config import EpisodeBudget
from actors.messages import DroppedSample, GroupRequest, GroupSummary, GroupVoided
from actors.scoring import Scored, Scorer
from rewards.composition import score
from rewards.config import JudgeConfig, RewardRecipe, RewardTerm
from rewards.contract import check_reward
from rewards.earned import Earned
from rewards.findings import NO_FINDINGS, Findings, Triple
from rewards.isolation import RewardFailed, RewardProcess, as_json
from rewards.recipes import load_recipe
from tasks.questions import Question
from trajectories.schema import Episode, Search, WeightVersion

OWN = "tests.own_rewards"
ROOT = Path(__file__).parents[2]
QUESTION = Question.model_validate({"id": "q", "text": "Which gene?", "kind": "text", "gold": "rusin", "source": "mine"})


def term(name: str, **settings: object) -> RewardTerm:
    return RewardTerm.model_validate({"name": f"{OWN}:{name}", **settings})


def recipe(*terms: dict[str, object]) -> RewardRecipe:
    return RewardRecipe.model_validate({"terms": terms})


def episode(answer: str, index: int = 0, *searches: Search) -> Episode:
    text = f"<think> so </think> <answer> {answer} </answer>"
    return Episode(
        "r", "g", f"g.0.{index}", "q", 0, "p", "mine", "text", [], [], [], [], [], list(searches), answer=answer, finish="answer",
        text=text,
    )  # fmt: skip


@pytest.fixture
def process() -> Iterator[RewardProcess]:
    one = RewardProcess()
    yield one
    one.kill()


def ask(process: RewardProcess, wanted: RewardTerm, of: Episode, findings: Findings = NO_FINDINGS) -> Earned:
    return process.ask(wanted, as_json(QUESTION, of, findings))


def test_a_users_reward_sees_the_same_and_its_value_turns_and_reason_come_back(process: RewardProcess) -> None:
    assert ask(process, term("brevity", arguments={"longest": 2}), episode("four")) == Earned(0.5, {}, "4 characters")
    found = Search(3, "q\u202e\x00", ["d"], ["</think> ☃"], [float("nan")], [1], "h", float("inf"))
    assert ask(process, term("first_search"), episode("x", 0, found)) == Earned(1.0, {3: 1.0}, "")
    findings = Findings(relevance={3: 0.5}, graph=(Triple("a", "b", "c"), Triple("a", "b", "d", 1)))
    assert ask(process, term("sees_findings"), episode("x"), findings).value == 2.5


def test_a_verl_style_function_plugs_in_unchanged(process: RewardProcess) -> None:
    verl = term("compute_score", style="verl")
    assert [ask(process, verl, episode(answer)).value for answer in ("rusin", "bovex")] == [1.0, 0.0]


def test_one_process_is_used_again_and_replaced_when_it_hangs_or_dies(process: RewardProcess) -> None:
    bad = term("hangs_on_bad_answers", deadline_s=0.5)
    assert ask(process, bad, episode("fine")).value == 1.0
    first = process.pid
    with pytest.raises(RewardFailed, match=r"failed: RuntimeError: on two lines$"):
        ask(process, bad, episode("raise"))
    assert ask(process, term("pid"), episode("x")).value == first, "an exception costs no process"
    started = time.monotonic()
    with pytest.raises(RewardFailed, match=r"took over 0.5 s and was killed"):
        ask(process, bad, episode("hang"))
    assert time.monotonic() - started < 5
    assert first is not None and not _lives(first), "what hangs is killed, not left behind"
    with pytest.raises(RewardFailed, match="ended its process"):
        ask(process, bad, episode("exit"))
    assert ask(process, bad, episode("fine")).value == 1.0, "the next sample finds a new process"


def _lives(pid: int) -> bool:
    """Zombies are dead: who should reap them may be gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PARENT = """
import sys
from rewards.config import RewardTerm
from rewards.isolation import RewardProcess
process, hanging = RewardProcess(), RewardTerm(name="tests.own_rewards:hangs_on_bad_answers", deadline_s=1)
process.load(hanging)
print(process.pid, flush=True)
process.ask(hanging, sys.argv[1]) if len(sys.argv) > 1 else sys.stdin.read()
"""


@pytest.mark.parametrize("sample", [[], [as_json(QUESTION, episode("hang"), NO_FINDINGS)]], ids=["idle", "hanging"])
def test_no_reward_process_outlives_a_parent_that_was_killed(sample: list[str]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *sample], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)  # by now it hangs, if it is to
    assert _lives(child)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while _lives(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _lives(child)


def test_nothing_that_a_reward_started_outlives_a_parent_that_was_killed(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    code = PARENT.replace("hangs_on_bad_answers", "outlives_its_alarm")
    sample = as_json(QUESTION, episode(str(noted)), NO_FINDINGS)
    parent = subprocess.Popen([sys.executable, "-c", code, sample], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline())]
    while not (noted.exists() and noted.read_text()):
        time.sleep(0.02)
    parent.kill()  # before the deadline of 1 s, at which it would kill them itself
    parent.communicate()
    pids.append(int(noted.read_text()))
    end = time.monotonic() + 10
    while any(map(_lives, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [pid for pid in pids if _lives(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize(
    ("wanted", "answer", "words"),
    [
        (term("not_a_number"), "nan", "no finite number"),
        (term("words"), "x", "gave str instead of a number"),
        (term("brevity", range=[2, 3]), "x", r"gave 1, outside its range \[2.0, 3.0\]"),
        (term("brevity", arguments={"shortest": 1}), "x", "unexpected keyword argument 'shortest'"),
        (term("gone"), "x", "has no function 'gone'"),
        (RewardTerm(name="no_such_package.rewards:mine"), "x", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_no_usable_number_is_a_failure_in_one_line(
    process: RewardProcess, wanted: RewardTerm, answer: str, words: str
) -> None:
    with pytest.raises(RewardFailed, match=words) as failure:
        ask(process, wanted, episode(answer))
    assert "\n" not in str(failure.value)


def request(recipe: RewardRecipe, n: int) -> GroupRequest:
    return GroupRequest("r", "g", 0, "p", QUESTION, n, 1.0, 0, EpisodeBudget(), recipe)


def scored(recipe: RewardRecipe, answers: list[str], judge: JudgeConfig | None = None) -> Scored:
    async def run() -> Scored:
        scorer = Scorer(judge)
        try:
            episodes = [episode(answer, index) for index, answer in enumerate(answers)]
            return await scorer.score(request(recipe, len(answers)), recipe, episodes)
        finally:
            await scorer.close()

    return asyncio.run(run())


BAD = {"name": f"{OWN}:hangs_on_bad_answers", "label": "mine", "weight": 2.0, "deadline_s": 0.5}


def test_a_failing_reward_drops_its_samples_and_the_rest_of_the_group_is_scored() -> None:
    found = scored(recipe({"name": "correct"}, BAD), ["rusin", "hang", "bovex", "exit", "raise"])
    assert [kept.answer for kept in found.episodes] == ["rusin", "bovex"]
    assert [kept.reward for kept in found.episodes] == [3.0, 2.0]
    assert [(part.name, part.value) for part in found.episodes[0].rewards] == [("correct", 1.0), ("mine", 1.0)]
    assert [(sample.episode_id, sample.cause) for sample in found.dropped] == [(f"g.0.{i}", "own_reward") for i in (1, 3, 4)]
    reasons = " | ".join(sample.reason for sample in found.dropped)
    assert all(words in reasons for words in ("took over 0.5 s", "ended its process", "RuntimeError"))


def test_a_group_of_fewer_than_two_samples_is_voided_with_the_reason() -> None:
    with pytest.raises(GroupVoided, match=r"2 of 3 samples could not be scored, the first because: .* ended its process"):
        scored(recipe(BAD), ["exit", "fine", "raise"])
    assert len(scored(recipe(BAD), ["fine"]).scores) == 1, "a group that was meant to be of one is whole"


def test_a_judge_that_cannot_be_reached_drops_only_the_samples_that_need_it() -> None:
    nobody = JudgeConfig(url="http://127.0.0.1:9/v1", model="none", attempts=1, deadline_s=5)
    found = scored(recipe({"name": "outcome"}), ["rusin", "bovex", "Rusin"], nobody)
    assert [kept.answer for kept in found.episodes] == ["rusin", "Rusin"]
    assert [(sample.episode_id, sample.cause) for sample in found.dropped] == [("g.0.1", "judge")]


def test_a_recipe_that_needs_a_judge_without_one_voids_its_groups_in_one_line() -> None:
    with pytest.raises(GroupVoided, match="needs a judge") as refusal:
        scored(recipe({"name": "outcome"}), ["rusin", "bovex"])
    assert "\n" not in str(refusal.value)


def test_a_recipe_file_may_number_its_phases(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("1: {terms: [{name: correct}]}\n2: {terms: [{name: format}]}\n")
    assert [term.name for term in load_recipe("mine/2", tmp_path).terms] == ["format"]


def test_dropped_samples_are_counted_by_cause() -> None:
    from medr3.run.journal import FinishedGroup, group_metrics

    version = WeightVersion(1, 1)
    dropped = [DroppedSample("g.0.1", "judge", "busy"), DroppedSample("g.0.2", "own_reward", "hung")]
    groups = [
        FinishedGroup(
            GroupSummary("g", 0, "e", version, version, [1.0, 0.0], [True, False], dropped_samples=lost), "s", None, None
        )
        for lost in (dropped, dropped[:1], [])
    ]
    metrics = group_metrics(groups, "p")
    assert metrics["reward/dropped_samples"] == 3
    assert (metrics["reward/dropped_samples/judge"], metrics["reward/dropped_samples/own_reward"]) == (2, 1)


def test_scoring_without_the_users_values_is_refused() -> None:
    with pytest.raises(ValueError, match="was not run before scoring"):
        score(QUESTION, episode("x"), recipe(BAD))


@pytest.mark.parametrize(("name", "style"), [("brevity", "medr3"), ("first_search", "medr3"), ("compute_score", "verl")])
def test_the_contract_passes_good_rewards(name: str, style: str) -> None:
    verdict = check_reward(f"{OWN}:{name}", style=style, low=0.0, high=1.0, seconds=2.0)  # type: ignore[arg-type]
    assert verdict.ok, verdict
    assert "keeps the contract" in str(verdict)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("noisy", "in another process and order"),
        ("counts_its_calls", "in another process and order"),
        ("not_a_number", "NaN as answer: .*no finite number"),
        ("words", "instead of a number"),
        ("torn", "add up to 0.25, the value is 1"),
        ("gone", "has no function 'gone'"),
    ],
)
def test_the_contract_names_what_is_wrong(name: str, words: str) -> None:
    verdict = check_reward(f"{OWN}:{name}", seconds=2.0)
    assert not verdict.ok
    assert any(re.search(words, line) for line in verdict.wrong), verdict


def test_the_contract_holds_a_reward_to_its_range_and_takes_the_function_itself() -> None:
    from tests.own_rewards import brevity

    verdict = check_reward(brevity, arguments={"longest": 2}, low=0.5, seconds=2.0)
    assert not verdict.ok and "outside 0.5 … ∞" in " ".join(verdict.wrong)


def test_the_contract_asks_for_a_function_that_another_process_can_find() -> None:
    assert check_reward(lambda question, episode, findings: 1.0).wrong == (
        "is no function at the top level of a module: write package.module:function",
    )
