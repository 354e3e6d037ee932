"""Who waits for whom."""

from __future__ import annotations

import random

import pytest

from sagectl.core.dependencies import cycle, cycles, members, missing, order, pulled_in, waiting_for
from sagectl.core.engine import EngineSpec


def specs(text: str) -> list[EngineSpec]:
    """`a:b,c b c` → specs with dependencies."""
    pairs = [word.partition(":") for word in text.split()]
    return [
        EngineSpec(name, "exec", depends_on=tuple(needs.split(",")) if needs else ())
        for name, _, needs in pairs
    ]


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("", ""),
        ("a b c", "a b c"),
        ("a:b b:c c", "c b a"),
        ("a:c b c", "c a b"),
        ("a:b,c b:d c:d d", "d b c a"),
        ("web:chat chat@1 chat@2", "chat@1 chat@2 web"),
        ("web:chat@2 chat@1 chat@2", "chat@2 web chat@1"),
        ("a:nobody b", "a b"),
        ("a:a b", "a b"),
        ("a:b b:a", "b a"),
    ],
)
def test_starts_are_ordered_after_what_they_depend_on(graph: str, expected: str) -> None:
    assert order(specs(graph)) == tuple(expected.split())


def test_a_long_chain_is_ordered_without_recursion() -> None:
    chain = [EngineSpec(f"e{n}", "exec", depends_on=(f"e{n + 1}",)) for n in range(5000)]
    assert order([*chain, EngineSpec("e5000", "exec")])[0] == "e5000"


def test_any_graph_without_cycles_is_ordered_and_any_back_edge_is_found() -> None:
    rng = random.Random(1)
    for _ in range(200):
        names = [f"e{n}" for n in range(rng.randint(1, 12))]
        needs = {n: tuple(m for m in names[:i] if rng.random() < 0.3) for i, n in enumerate(names)}
        graph = [EngineSpec(n, "exec", depends_on=needs[n]) for n in rng.sample(names, len(names))]
        ordered = order(graph)
        assert sorted(ordered) == sorted(names)
        assert all(ordered.index(need) < ordered.index(name) for name in names for need in needs[name])
        assert cycle(graph) is None
        first, last = ordered[0], ordered[-1]
        if first in {need for need in _reach(needs, last)}:
            looped = [
                EngineSpec(s.name, "exec", depends_on=(*needs[s.name], *((last,) * (s.name == first))))
                for s in graph
            ]
            assert cycle(looped) is not None


def _reach(needs: dict[str, tuple[str, ...]], name: str) -> set[str]:
    return {name}.union(*(_reach(needs, need) for need in needs[name]))


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("a b:a", None),
        ("a:a", ("a", "a")),
        ("x:a a:b b:c c:a", ("a", "b", "c", "a")),
        ("a:b b:chat chat@1:a chat@2", ("a", "b", "chat@1", "a")),
        ("a:b,c b:d c:d d", None),
    ],
)
def test_a_cycle_is_shown_as_the_way_round_it(graph: str, expected: tuple[str, ...] | None) -> None:
    assert cycle(specs(graph)) == expected


def test_separate_cycles_are_all_found() -> None:
    found = cycles({"a": ["b"], "b": ["a"], "c": ["d"], "d": ["c"], "e": ["a"]})
    assert found == (("a", "b", "a"), ("c", "d", "c"))


def test_dependencies_on_nothing_are_named() -> None:
    assert missing(specs("a:b,nobody b chat@1 c:chat,chat@9")) == (("a", "nobody"), ("c", "chat@9"))


def test_a_group_means_all_of_its_replicas_and_a_name_itself() -> None:
    names = ("chat@1", "chat@2", "chatter", "chat2@1")
    assert members("chat", names) == ("chat@1", "chat@2")
    assert members("chat@2", names) == ("chat@2",)
    assert members("nobody", names) == ()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"embed": True, "chat@1": True, "chat@2": True}, ()),
        ({"embed": False, "chat@1": True, "chat@2": True}, ("embed",)),
        ({"embed": True, "chat@1": False, "chat@2": False}, ("chat@1", "chat@2")),
        ({"chat@1": True}, ("embed",)),
        ({"embed": True}, ("chat",)),
    ],
)
def test_an_engine_waits_for_what_is_not_up(states: dict[str, bool], expected: tuple[str, ...]) -> None:
    spec = EngineSpec("web", "exec", depends_on=("embed", "chat"))
    assert waiting_for(spec, states) == expected


def test_a_start_pulls_in_all_that_it_needs_in_order() -> None:
    graph = {spec.name: spec for spec in specs("web:chat,gone chat@1:db chat@2:db db other:web")}
    assert pulled_in("web", graph) == ("db", "chat@1", "chat@2")
    assert pulled_in("db", graph) == ()
    assert pulled_in("nobody", graph) == ()
