"""Charts that stand alone, and the curves that the page chooses."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from medr3.observe.charts import HEIGHT, WIDTH, Chart, Series, standalone, ticks
from medr3.observe.curves import charts_of
from medr3.observe.record import RunRecord

SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(0, 1e9), st.floats(-1e9, 0), st.integers(2, 10))
def test_ticks_cover_the_axis_with_few_round_numbers(top: float, bottom: float, wanted: int) -> None:
    found = ticks(top, bottom, wanted)
    slack = (top - bottom) * 1e-6 + 1e-12
    assert found[0] <= bottom + slack
    assert found[-1] >= top - slack
    assert 0.0 in found
    assert 2 <= len(found) <= wanted + 2
    assert found == sorted(set(found))


POINT = st.tuples(st.integers(0, 10_000), st.floats(-10, 1e7))


@settings(max_examples=50)
@given(st.lists(POINT, min_size=1, max_size=30, unique_by=lambda point: point[0]))
def test_a_chart_draws_any_points_inside_its_frame(points: list[tuple[float, float]]) -> None:
    svg = ET.fromstring(standalone(Chart("a < b", "unit", [Series('"x"', sorted(points), dots=True)])))
    dots = svg.findall(f"{SVG}circle")
    assert len(dots) == len(points)
    assert all(0 <= float(dot.attrib["cx"]) <= WIDTH and 0 <= float(dot.attrib["cy"]) <= HEIGHT for dot in dots)
    assert svg.attrib["aria-label"].startswith("a < b, unit, from step")


def test_nothing_to_draw_is_nothing() -> None:
    assert standalone(Chart("t", "u", [Series("x", [])])) == ""


def chosen(*rows: dict[str, object]) -> dict[str, list[str]]:
    metrics = [{"step": i, "phase": "joint", "time": 0.0, **row} for i, row in enumerate(rows, start=1)]
    charts, _ = charts_of(RunRecord("r", metrics, [], [], {}, None, {}))  # type: ignore[arg-type]
    return {chart["title"]: [each["name"] for each in chart["series"]] for chart in charts}


def test_a_chart_is_drawn_where_its_metrics_tell_something() -> None:
    assert chosen() == {}
    shown = chosen(
        {"reward/mean": 1.0, "reward/format": 1.0, "reward/joint/world/format": 1.0, "reward/dropped_samples": 0.0},
        {"learner/kl_reference": 0.0, "learner/clip_low": 0.1, "finish/answer": 1.0, "finish/loop": 0.0},
        {"evidence/1": 0.5, "evidence/6": 0.0, "learner/tokens_of_age_0": 9.0, "learner/grad_norm": None},
    )
    assert shown == {"Reward components": ["format"], "Evidence that was cited": ["level I"], "Clipped tokens": ["from below"]}
    older = chosen({"learner/tokens_of_age_0": 9.0}, {"learner/tokens_of_age_1": 3.0})
    assert older == {"Trained tokens by age": ["0", "1"]}


def test_what_a_step_did_not_log_is_a_gap_or_what_its_chart_says() -> None:
    rows = [{"step": 1, "finish/loop": 0.1, "reward/std": 0.5}, {"step": 2}]
    _, columns = charts_of(RunRecord("r", rows, [], [], {}, None, {}))  # type: ignore[arg-type]
    assert columns == {"step": [1, 2], "finish/loop": [0.1, 0.0], "reward/std": [0.5, None]}
