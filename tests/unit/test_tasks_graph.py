"""Knowledge graphs: rows that are no triples are named, and whatever is cut out of a graph is really in it."""

from __future__ import annotations

import gzip
import random
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.graph.knowledge import KnowledgeGraph
from tasks.graph.sampling import PURE, SAMPLERS, Bounds, Subgraph, longest_path, neighbourhood
from tasks.graph.triples import BadRow, Triple, TriplesRefused, read_triples

PRIMEKG = "relation,display_relation,x_index,x_id,x_type,x_name,x_source,y_index,y_id,y_type,y_name,y_source\n"


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def built(path: Path) -> tuple[KnowledgeGraph, list[str]]:
    graph, bad = KnowledgeGraph.build(read_triples(path))
    return graph, [str(row).removeprefix(f"{path}, ") for row in bad]


def test_rows_as_primekg_has_them(tmp_path: Path) -> None:
    row = 'disease_protein,associated with,1,9796,gene/protein,PHYHIP,NCBI,2,8992,disease,"neuropathy, hereditary",MONDO\n'
    graph, bad = built(written(tmp_path, "kg.csv", PRIMEKG + row))
    assert (graph.names, graph.types, graph.relations, bad) == (
        ["PHYHIP", "neuropathy, hereditary"], ["gene/protein", "disease"], ["associated with"], [],
    )  # fmt: skip


def test_rows_as_umls_has_them_read_from_the_second_concept_to_the_first(tmp_path: Path) -> None:
    row = "C0000001|A1|AUI|RO|C0000002|A2|AUI|has_finding_site|R1||SNOMEDCT_US|SNOMEDCT_US|||N||\n"
    broad = "C0000003|A1|AUI|RB|C0000004|A2|AUI||R2||MSH|MSH|||N||\n"
    graph, bad = built(written(tmp_path, "MRREL.RRF", row + broad + "C1|A1\n"))
    assert [statement.triple for statement in graph.statements()] == [
        ("C0000002", "has_finding_site", "C0000001"), ("C0000004", "RB", "C0000003"),
    ]  # fmt: skip
    assert bad == ["row 3: has 2 columns, MRREL.RRF has 16"]


def test_every_bad_row_is_named_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    rows = [
        b"subject,relation,object,document",
        b"a,treats,b,d1", b"a,treats,b,d1", b"a,treats,b,d2", b"A,treats,a,d1", b",treats,b,d1", b"a,,b,d1", b"a,treats",
        b"\xffa,treats,b,d1", b"a,isa,b,d1", b"b,isa,c,d1", b"c,isa,a,d1", b"x,cures,y,d3", b"y,cures,x,d3", b"a,dosed at,42,d4",
        b"a,dosed at,42,d4",
    ]  # fmt: skip
    graph, bad = built(written(tmp_path, "graph.csv", b"\n".join(rows)))
    assert bad == [
        "row 3: is a duplicate: a treats b stands before it",
        "row 5: is a self-loop of A",
        "row 6: the subject is blank",
        "row 7: the relation is blank",
        "row 8: has 2 columns where the header has 4",
        "row 9: is no UTF-8 at byte 1",
        "row 12: closes a cycle: a leads to c already",
        "row 16: is a duplicate: a dosed at 42 stands before it",
    ]
    assert len(graph) == 5  # a circle of cures contradicts nothing
    assert [statement.object for statement in graph.attributes[graph.numbers["a"]]] == ["42"]


def test_parquet_and_compressed_files_say_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.table({"head": ["a", None], "predicate": ["r", "r"], "tail": ["b", "c"]}), tmp_path / "g.parquet")
    text = gzip.compress(b"head\tpredicate\ttail\na\tr\tb\n\tr\tc\n")
    plain, compressed = built(tmp_path / "g.parquet"), built(written(tmp_path, "g.tsv.gz", text))
    assert [list(graph.statements()) for graph, _ in (plain, compressed)] == [[s] for s in plain[0].statements()] * 2
    assert (plain[1], compressed[1]) == (["row 2: the subject is blank"], ["row 3: the subject is blank"])
    many = "".join(f"{random.Random(i).random()}x\tr\tb\n" for i in range(3000))
    graph, bad = built(written(tmp_path, "h.tsv.gz", gzip.compress(("head\tpredicate\ttail\n" + many).encode())[:-3000]))
    assert len(graph) > 1000 and "breaks off" in bad[-1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("g.csv", "", "is empty"),
        ("g.csv", "a,b\n1,2\n", "row 1: no column for the subject"),
        ("g.parquet", "x", "no Parquet file"),
    ],
)
def test_files_without_triples_are_refused_in_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(TriplesRefused, match=said) as refused:
        list(read_triples(written(tmp_path, name, content)))
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=400), st.sampled_from(["f.csv", "f.tsv", "f.csv.gz", "F.RRF", "f.parquet"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_rows_bad_rows_or_one_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = written(tmp_path_factory.mktemp("fuzz"), name, b"subject,relation,object\n" + content)
    with suppress(TriplesRefused):
        assert all(isinstance(row, Triple | BadRow) for row in read_triples(path))


def test_rare_entities_are_those_of_few_documents() -> None:
    rows = [Triple("hub", "r", f"leaf {i}", document=f"d{i}") for i in range(5)]
    graph, _ = KnowledgeGraph.build(rows)
    assert [graph.names[node] for node in graph.rare(below=2)] == [f"leaf {i}" for i in range(5)]
    assert graph.rare(2, {graph.numbers["leaf 3"]: 1, graph.numbers["hub"]: 7}) == [graph.numbers["leaf 3"]]


edges = st.lists(st.tuples(st.integers(0, 25), st.sampled_from("rst"), st.integers(0, 25)), min_size=1, max_size=120)


def check_subgraph(graph: KnowledgeGraph, found: Subgraph, bounds: Bounds) -> None:
    assert bounds.min_hops <= found.hops <= bounds.max_hops
    assert len(set(found.chain)) == len(found.chain) == found.hops + 1  # a simple path
    for edge, (a, b) in zip(found.edges, pairwise(found.chain), strict=True):
        assert set(graph.ends(edge)) == {a, b}  # which exists
        assert graph.statement(edge).relation
    for edge in found.extra:  # hangs on the chain and leads off it
        assert len(set(graph.ends(edge)) & set(found.chain)) == 1
    if found.kind == "community_core_path":
        assert len(set(found.communities.values())) == 1
    if found.kind == "dual_core_bridge":
        crossings = [
            edge
            for edge, (a, b) in zip(found.edges, pairwise(found.chain), strict=True)
            if found.communities[a] != found.communities[b]
        ]
        assert crossings == [found.bridge]
        assert len(set(found.communities.values())) == 2


@given(edges, st.sampled_from(sorted(SAMPLERS)), st.integers(0, 99), st.integers(1, 3), st.integers(0, 4))
@settings(max_examples=250, deadline=None)
def test_what_a_sampler_cuts_out_is_in_the_graph(
    drawn: list[tuple[int, str, int]], name: str, seed: int, least: int, more: int
) -> None:
    graph, _ = KnowledgeGraph.build(Triple(f"e{a}", r, f"e{b}") for a, r, b in drawn)
    bounds = Bounds(least, least + more)
    for node in range(min(8, len(graph.names))):
        found = SAMPLERS[name](graph, node, random.Random(seed), bounds)
        assert found == SAMPLERS[name](graph, node, random.Random(seed), bounds)
        if found is not None:
            check_subgraph(graph, found, bounds)
            if name in ("max_chain", "augmented_chain"):
                assert node in found.chain


def test_every_sampler_finds_something_where_there_are_two_communities() -> None:
    rows = [
        Triple(f"{side}{i}", "knows", f"{side}{j}") for side in "ab" for i in range(6) for j in range(i + 1, 6) if (i + j) % 3
    ]
    graph, _ = KnowledgeGraph.build([*rows, Triple("a0", "meets", "b0"), Triple("a5", "owns", "tail")])
    for sampler in PURE:
        found = [sampler(graph, node, random.Random(1), Bounds(2, 5)) for node in range(len(graph.names))]
        assert any(found), sampler
        for each in found:
            if each is not None:
                check_subgraph(graph, each, Bounds(2, 5))


def test_the_longest_path_is_the_longest_where_it_can_be_searched_whole() -> None:
    rng = random.Random(5)
    for _ in range(20):
        rows = [Triple(f"e{rng.randrange(7)}", "r", f"f{rng.randrange(7)}") for _ in range(9)]
        graph, _ = KnowledgeGraph.build(rows)
        near = neighbourhood(graph, 0, random.Random(0), 40)

        def longest(path: list[int], near=near) -> int:  # type: ignore[no-untyped-def]
            return max([len(path), *(longest([*path, b]) for b, _ in near[path[-1]] if b not in path)])

        assert len(longest_path(near, 0, 40)) == longest([0])
