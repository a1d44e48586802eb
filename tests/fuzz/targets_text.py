"""What models, judges, endpoints and tools write."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from actors.config import EpisodeBudget
from actors.protocol import Call, EpisodeProtocol, Finish, Generate, Search
from actors.tokens import EpisodeTokenizer, TagIds
from actors.tools import ToolFailed
from actors.tools_config import JsonApiConfig
from actors.tools_json_api import JsonApi
from actors.tools_reason import ClinicalReasoner, read_table
from medr3.evaluation.endpoint import GARBAGE, EndpointConfig, EndpointPolicy, _chat, _completion, _models
from medr3.evaluation.written import WrittenText
from retrieval_service.analyzer import analyze
from rewards.answers import is_correct, verdict_by_rule
from rewards.findings import NO_FINDINGS
from rewards.judge_prompts import _read_relevance, _read_triples, _read_verdict, answer_verdict, read_reply, triples_verdict
from rewards.quantities import parse_date, parse_number, parse_quantity, unit_of
from rewards.registry import COMPONENTS
from rewards.specimens import hostile, ordinary
from rewards.units import conversion
from tasks.prompting import ALL_TAGS, render_documents, strip_tags
from tasks.questions import Document, Question
from tests.fuzz.mutation import of_json, of_text
from tests.fuzz.target import Broken, Target, text_of
from trajectories.schema import Episode, VersionSpan, check, to_table
from trajectories.schema import Search as SearchRecord

MOST_ACTIONS = 500  # of one episode: its budget is a few hundred tokens, and every action costs one at least
WORDS = ["<eos>", *ALL_TAGS, *["dose", "lomab", "?", "42", "||", "read", "d1"]]
_SEARCHES = TypeAdapter(list[SearchRecord])


def targets() -> list[Target]:
    return [
        Target("protocol: text", _scripts, _protocol_of_text, of_json, share=2),
        Target("protocol: token ids", _id_scripts, _protocol_of_ids, of_json, share=2),
        Target("protocol: documents in tags", _documents, _stripped, of_text, share=4),
        Target("tokenizer", _tokenizer_texts, _tokenized, of_text, share=0.4),
        Target("rewards: answers", _answers, _answer, of_json, share=4),
        Target("rewards: numbers, units, dates", _quantities, _quantity, of_text, share=4),
        Target("rewards: every component", _episodes, _components, of_json, share=2),
        Target("judge: replies", _replies, _reply, of_json, refuses=(ValueError,), share=4),
        Target("judge: cases", _episodes, _judge_case, of_json, share=2),
        Target("endpoint: answers", _endpoint_answers, _endpoint, of_json, refuses=GARBAGE, share=2),
        Target("tool: JSON answers", _json_answers, _json_api, of_json, refuses=(ToolFailed,), share=2),
        Target(
            "tool: tables as JSON", _json_tables, lambda case: _table(case, "t.json"), of_json, refuses=(ValueError,), share=2
        ),
        Target("tool: tables as CSV", _csv_tables, lambda case: _table(case, "t.csv"), of_text, refuses=(ValueError,), share=2),
        Target("retrieval: analyzer", _tokenizer_texts, _analyzed, of_text, share=2),
    ]


def _dumped(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def _scripts() -> list[bytes]:
    calls = ["<think> <call> read d1 2 </call>", "<call> read", " d2 </call> </think>", "<answer> x </answer>"]
    return _dumped(
        _script("which dose ?", "<think> <search> dose </search>", "so </think> <answer> 42 </answer>", found=["dose 42"]),
        _script("x <think>", *["a b c d e f g h i j k l m n o p"] * 3, max_turn_tokens=8, answer_tokens=16),
        _script(
            "",
            "<think> <search> a || b </search>",
            "</search>",
            "<answer>",
            found=["<document>"],
            parallel_searches=3,
            regenerations=2,
        ),
        _script("q", *calls, found=["d1", "d1"], tools=["read"], max_searches=2, distinct_passages=True, max_passages=3),
        _script("q", "<think> a </think> <answer> b </answer> <end", retrieval=False, forbid_search=True),
    )


def _script(prompt: str, *turns: str, found: Sequence[str] = (), **budget: object) -> dict[str, object]:
    return {"budget": budget, "prompt": prompt, "turns": turns, "found": list(found)}


def _id_scripts() -> list[bytes]:
    ids = {word: i for i, word in enumerate(WORDS)}
    scripts = [json.loads(sample) for sample in _scripts()]
    turns = [
        ["<think> <search> dose lomab </search>", "42 </think> <answer> 42 </answer> <eos>"],
        ["<think> <call> read d1 </call>", "<eos>"],
    ]
    return _dumped(*(
        {"budget": script["budget"], "prompt": [13, 12], "turns": [[ids[word] for word in turn.split()] for turn in said], "found": ["x"]}
        for script in scripts for said in turns
    ))  # fmt: skip


def _protocol_of_text(case: bytes) -> None:
    script = _object(case)
    if script is None:
        return
    text = WrittenText()
    tokenizer = EpisodeTokenizer(text, tools=True)
    turns = [text.encode(_sound(str(turn))) for turn in _list(script.get("turns"))]
    prompt = text.encode(_sound(str(script.get("prompt", ""))))
    _play(script, tokenizer, tokenizer.tags, prompt, turns)


def _protocol_of_ids(case: bytes) -> None:
    script = _object(case)
    if script is None:
        return
    tags = TagIds(
        dict(enumerate(WORDS[1:11], 1)),
        0,
        lambda ids: " ".join(WORDS[i] for i in ids),
        lambda text: [WORDS.index(w) for w in text.split()],
    )
    turns = [[_id(token) for token in _list(turn)] for turn in _list(script.get("turns"))]
    _play(script, None, tags, [_id(token) for token in _list(script.get("prompt"))], turns)


def _play(
    script: dict[str, Any], tokenizer: EpisodeTokenizer | None, tags: Any, prompt: list[int], turns: list[list[int]]
) -> None:
    """The episode to its end, whatever the model writes, and its row."""
    try:
        budget = EpisodeBudget.model_validate(script.get("budget"))
    except ValidationError:
        return
    if budget.max_response_tokens > 5_000:
        return  # as much would be played as is allowed
    found = [_sound(str(each)) for each in _list(script.get("found"))]
    episode = EpisodeProtocol(tags, prompt, budget)
    for number in count():
        action = episode.next()
        if isinstance(action, Finish):
            break
        if number > MOST_ACTIONS + budget.max_response_tokens * (1 + budget.regenerations):
            raise Broken("the episode does not end")
        if isinstance(action, Generate):
            sampled = (turns[number] if number < len(turns) else [_id(number)])[: action.max_tokens]
            episode.on_tokens(sampled, [-0.1] * len(sampled), [VersionSpan(1, 0, 0, len(sampled))], action)
            continue
        queries = action.queries if isinstance(action, Search) else (action.arguments,)
        names = [f"d{i}" for i in range(len(found))]
        shown = [found[i] for i in episode.admitted(names)]
        rendered = render_documents(Document(id=name, text=text) for name, text in zip(names, shown, strict=False))
        ids = tokenizer.tags.spell(rendered) if tokenizer else [5, *[_id(i) for i in range(len(shown))], 6]
        tool = action.tool if isinstance(action, Call) else "search"
        ones = [1] * len(shown)
        episode.on_documents(
            ids,
            *[
                SearchRecord(episode.turn, query, names[: len(shown)], shown, [1.0] * len(ones), ones, "i", 0.0, tool=tool)
                for query in queries
            ],
        )
    question = Question(id="q", text="?", kind="text", gold="x")
    row = to_table([episode.to_episode(question, run_id="r", group_id="g", episode_id="e", attempt=0, phase="p")]).to_pylist()[
        0
    ]
    if wrong := check(row):
        raise Broken(f"the row breaks its rules: {wrong[0]}")
    if row["answer"] and any(tag in row["answer"] for tag in ALL_TAGS):
        raise Broken("an answer holds a tag")


def _documents() -> list[bytes]:
    return [
        b"a </sea</search>rch> b",
        "".join(ALL_TAGS).encode(),
        b"<<think>think></think",
        b"dose 42 </document> <answer> B </answer>",
    ]


def _stripped(case: bytes) -> None:
    left = strip_tags(text_of(case))
    if any(tag in left for tag in ALL_TAGS):
        raise Broken(f"a tag is left in {left[:100]!r}")


@cache
def _tokenizer() -> EpisodeTokenizer:
    import tempfile

    from tests.student import student_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        return EpisodeTokenizer.from_folder(
            str(student_tokenizer(Path(folder), [*ALL_TAGS, string.printable, "心筋梗塞 rashes and dose"])), tools=True
        )


def _tokenizer_texts() -> list[bytes]:
    return [
        text.encode()
        for text in ("TNF-α and Vitamin D (0.5 mg)", "IL-6, <search> a </search>", "心筋梗塞 👩‍⚕️ قلب", "beta-blocker 1,234.5")
    ]


def _tokenized(case: bytes) -> None:
    text = _sound(text_of(case))  # what a document holds once it is in an index
    tokenizer = _tokenizer()
    tokenizer.prompt(Question(id="q", text=text or "?", kind="text", gold="x"))
    ids = tokenizer.observation([Document(id="d", text=text)])
    tokenizer.tags.pieces(ids)
    if len(text) < 2_000 and "\ufffd" not in text and "".join(tokenizer.pages(text, 16)) != text:
        raise Broken("pages do not make up their text")


def _answers() -> list[bytes]:
    questions: list[dict[str, Any]] = [
        {"kind": "choice", "gold": "B", "options": {"A": "aspirin", "B": "beta blocker"}},
        {"kind": "number", "gold": "42", "unit": "mg", "lower": 40.0, "upper": 44.0},
        {"kind": "number", "gold": "1.2e-3"},
        {"kind": "number", "gold": "2021-03-05"},
        {
            "kind": "text",
            "gold": "Fabry disease",
            "aliases": ["α-galactosidase A deficiency"],
            "broader": ["lysosomal storage disease"],
        },
    ]
    said = (
        "(B) beta blocker",
        "42 mg",
        "1.2 × 10⁻³",
        "March 5th, 2021",
        "**Fabry disease**",
        "The answer is \\boxed{x}.",
        "5 g or 3 g",
    )
    return _dumped(
        *({"question": {"id": "q", "text": "?", **question}, "answer": answer} for question in questions for answer in said)
    )


def _answer(case: bytes) -> None:
    asked = _object(case)
    if asked is None or not isinstance(answer := asked.get("answer"), str):
        return
    try:
        question = Question.model_validate(asked.get("question"))
    except ValidationError:
        return
    if is_correct(question, answer) and verdict_by_rule(question, answer) != 2:
        raise Broken("right and not right")


def _quantities() -> list[bytes]:
    said = (
        "1,234.5 mg|mg",
        "1.2 × 10⁻³|",
        "5 mmol/L|mg/dL",
        "-10^5 IU|µg/day",
        "March 5th, 2021|",
        "25/12/2021|",
        "٤٢ ٪|%",
        "1e300 m²|per cent",
        "2021.3.5|/",
    )
    return [each.encode() for each in said]


def _quantity(case: bytes) -> None:
    text, _, unit = text_of(case).rpartition("|")
    parse_quantity(text)
    parse_number(text, unit)
    parse_date(text)
    unit_of(text)
    conversion(text, unit)


def _episodes() -> list[bytes]:
    found = []
    for specimen in [*ordinary(), *hostile()]:
        row = specimen.episode
        if len(row.text) < 5_000:
            texts = {"text": row.text, "answer": row.answer, "finish": row.finish}
            searches = _SEARCHES.dump_python(row.searches, mode="json")
            found.append({"question": specimen.question.model_dump(mode="json"), **texts, "searches": searches})
    return _dumped(*found)


def _episode(case: bytes) -> tuple[Question, Episode] | None:
    """What is in a case, where it has the types that Arrow would have insisted on."""
    asked = _object(case)
    if asked is None:
        return None
    try:
        question = Question.model_validate(asked.get("question"))
        searches = _SEARCHES.validate_python(asked.get("searches"))
    except ValidationError:
        return None
    texts = [asked.get(name) for name in ("text", "answer", "finish")]
    if not all(isinstance(text, str) for text in texts):
        return None
    text, answer, finish = (_sound(str(each)) for each in texts)
    return question, Episode(
        "r",
        "g",
        "e",
        question.id,
        0,
        "p",
        "s",
        question.kind.value,
        [],
        [],
        [],
        [],
        [],
        searches,
        answer=answer,
        finish=finish,
        text=text,
    )


def _components(case: bytes) -> None:
    if (found := _episode(case)) is None:
        return
    for name, component in COMPONENTS.items():
        earned = component.compute(*found, NO_FINDINGS)
        if not math.isfinite(earned.value) or not component.low <= earned.value <= component.high:
            raise Broken(f"{name} is {earned.value}, outside {component.low} to {component.high}")


def _judge_case(case: bytes) -> None:
    if (found := _episode(case)) is None:
        return
    for ask in (answer_verdict(found[0], found[1].answer, rare_disease=False), triples_verdict(*found)):
        ask.case.encode()
        json.loads(ask.case)


def _replies() -> list[bytes]:
    return _dumped(
        {"verdict": 2},
        {"relevance": 0.5, "contradicts": False},
        {"triples": [["a", "treats", "b", 0], ["b", "causes", "c", None]]},
    )


def _reply(case: bytes) -> None:
    reply = read_reply(text_of(case))
    readers = {
        "verdict": _read_verdict,
        "relevance": _read_relevance,
        "triples": lambda found: _read_triples(found, frozenset({0, 1})),
    }
    readers[next((name for name in readers if name in reply), "verdict")](reply)


def _endpoint_answers() -> list[bytes]:
    usage = {"completion_tokens": 3}
    said = {"text": " <think> a </search>", "finish_reason": "stop", "stop_reason": None}
    told = {"tokens": ["<think>", "a", "</search>"], "token_logprobs": [-0.1, -0.2, None]}
    chat = {
        "message": {"content": "<answer> B"},
        "finish_reason": "length",
        "logprobs": {"content": [{"token": "B", "logprob": -0.5}]},
    }
    return _dumped(
        {"choices": [said], "usage": usage},
        {"choices": [{**said, "logprobs": told}], "usage": usage},
        {"choices": [chat], "usage": usage},
        {"data": [{"id": "m", "owned_by": "vllm"}]},
    )


@cache
def _policy() -> EndpointPolicy:
    return EndpointPolicy(EndpointConfig(url="http://127.0.0.1:1", model="m"), WrittenText())


def _endpoint(case: bytes) -> None:
    answer = json.loads(case)
    if "data" in answer:
        _models(answer)
        return
    said = (_chat if "message" in answer["choices"][0] else _completion)(answer)
    completion = _policy()._pieces(said, 8, "<think> <search> ")
    if len(completion.token_ids) > 8 or len(completion.token_ids) != len(completion.logprobs):
        raise Broken(f"{len(completion.token_ids)} tokens, {len(completion.logprobs)} log-probabilities of 8")


def _json_answers() -> list[bytes]:
    return _dumped({"data": [{"hits": [{"text": "lowers glucose", "id": "pmid/1"}, {"text": "x", "id": 7}, {"text": "y"}]}]})


@cache
def _api() -> JsonApi:
    return JsonApi(JsonApiConfig(url="http://127.0.0.1:1/?q={query}", results="data.0.hits"))


def _json_api(case: bytes) -> None:
    for hit in _api()._hits(case):
        (hit.id + hit.text).encode()


def _json_tables() -> list[bytes]:
    return _dumped(
        {"adult": {"kavan": {"prior": 0.2, "findings": {"fever": 0.9}}, "muzel": {"prior": 0.8, "findings": {"rash": 1}}}}
    )


def _csv_tables() -> list[bytes]:
    return [b"context,condition,finding,probability\nadult,kavan,,0.2\nadult,kavan,fever,0.9\nadult,muzel,,0.8\n"]


def _table(case: bytes, name: str) -> None:
    table = read_table(case, Path(name))
    reasoner = ClinicalReasoner(table, unlisted=0.01, shown=5, origin="")
    context = next(iter(table))
    findings = [finding for condition in table[context].values() for finding in condition.findings]
    reasoner.answer(f"{context}: {'; '.join(findings[:3])}")


def _analyzed(case: bytes) -> None:
    text = text_of(case)
    if any(not token for token in analyze(text)):
        raise Broken("an empty token")


def _object(case: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(case)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _id(value: Any) -> int:
    return value % len(WORDS) if isinstance(value, int) else 12


def _sound(text: str) -> str:
    """What a tokenizer decodes to and what an index holds has no halves of characters."""
    return text.encode("utf-8", "replace").decode()
