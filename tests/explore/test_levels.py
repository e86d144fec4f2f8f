"""The breadth-first search: over graphs made up for it, and against the depth-first one."""

from collections.abc import Iterator, Sequence

import pytest

from dynftrace_emu.explore.findings import Finding, FindingClass
from dynftrace_emu.explore.levels import (
    Edge,
    Expansion,
    LevelSearch,
    Node,
    expand,
    fingerprint,
)
from dynftrace_emu.explore.model import Bounds, Model, Text
from dynftrace_emu.explore.protocols import PROTOCOLS
from dynftrace_emu.explore.search import Outcome, exhaustive
from dynftrace_emu.explore.setup import Setup, SiteSpec, build
from dynftrace_emu.explore.state import Action, State

BUG = Finding(FindingClass.TORN_FETCH, "the bug")


def state(name: str) -> State:
    return State(name.encode(), (), (), (), (), 0, False, (), 0, 0)


def search(graph: dict[str, Sequence], *, row: int = 2, most=1000, most_open=1000, **bounds):
    """Search a graph: of each state, the states that follow; ``+x`` costs a preemption.

    ``.`` is an end, ``!`` the bug.
    """

    def row_of(nodes: Sequence[Node], spare: int | None) -> Expansion:
        result = Expansion()
        for number, node in enumerate(nodes):
            edges: list[Edge] = []
            result.edges.append(edges)
            for to in graph[node.state.data.decode()]:
                cost = int(to[0] == "+" and spare is not None)
                if cost and not spare:
                    result.cut.add(number)
                    continue
                name = to.lstrip("+")
                action = Action(name, 0)
                if name == "!":
                    result.found = BUG, action
                    return result
                key = b"" if name == "." else fingerprint(state(name))
                edges.append(Edge(action, cost, key))
                if key:
                    result.nodes[key] = Node(state(name), None)
        return result

    def expander(nodes: Sequence[Node], spare: int | None) -> Iterator[Expansion]:
        for at in range(0, len(nodes), row):
            yield row_of(nodes[at : at + row], spare)

    return LevelSearch(state("a"), Bounds(**bounds), expander, most, most_open).run()


def way(outcome: Outcome) -> str:
    assert outcome.found is not None
    return "".join(action.kind for action in outcome.found[1])


DIAMOND = {"a": "bc", "b": "d", "c": "d", "d": "e", "e": "."}


@pytest.mark.parametrize("row", [1, 2, 100])
def test_states_are_joined_and_everything_is_counted(row) -> None:
    outcome = search(DIAMOND, row=row)
    assert (outcome.states, outcome.actions, outcome.joined, outcome.schedules) == (5, 6, 1, 1)
    assert outcome.truncated == 0
    assert outcome.found is None


def test_the_shortest_way_is_found_and_of_those_the_first() -> None:
    assert way(search({"a": "bcd", "b": "e", "e": "!", "c": "!", "d": "!"})) == "c!"


def test_fewer_preemptions_come_before_a_shorter_way() -> None:
    graph = {"a": ["+b", "c"], "b": "!", "c": "d", "d": "e", "e": "!"}
    assert way(search(graph, preemptions=1)) == "cde!"
    assert way(search(graph)) == "b!"


def test_what_costs_too_many_preemptions_is_left_out() -> None:
    graph = {"a": ["+b", "."], "b": ["+c"], "c": "!"}
    assert search(graph, preemptions=1).found is None
    assert search(graph, preemptions=1).truncated == 0
    assert way(search(graph, preemptions=2)) == "bc!"


def test_a_state_that_is_met_with_fewer_preemptions_later_goes_with_those() -> None:
    """x is seen first behind a preemption; the way around is what leaves one for the bug."""
    graph = {"a": ["+x", "b"], "b": "c", "c": "x", "x": ["+y", "."], "y": "!"}
    assert way(search(graph, preemptions=1)) == "bcxy!"


def test_a_search_cut_off_says_so() -> None:
    chain = {"a": "b", "b": "c", "c": "d", "d": "."}
    assert search(chain).truncated == 0
    assert search(chain, most=3).truncated == 1
    assert search(chain, steps=2).truncated == 1
    wide = {"a": "bcd", "b": ".", "c": ".", "d": "."}
    assert search(wide, most_open=2).truncated == 1
    assert search(wide, most_open=2).schedules == 2


def test_a_circle_that_nobody_leaves_is_a_deadlock() -> None:
    outcome = search({"a": "bc", "b": ".", "c": "d", "d": "c"})
    assert outcome.found[0].kind is FindingClass.DEADLOCK
    assert way(outcome) == "c"


def test_a_circle_with_a_way_out_is_none() -> None:
    assert search({"a": "b", "b": "ca", "c": "b."}).found is None


def test_what_lies_beyond_the_bound_may_end() -> None:
    assert search({"a": "b", "b": ["a", "+c"], "c": "."}, preemptions=0).found is None


def test_being_told_to_stop_it_counts_what_is_left() -> None:
    def expander(nodes: Sequence[Node], _spare: int | None) -> Iterator[Expansion]:
        for node in nodes:
            keys = [(name, fingerprint(state(name))) for name in DIAMOND[node.state.data.decode()]]
            edges = [Edge(Action(name, 0), 0, key) for name, key in keys]
            yield Expansion([edges], set(), {k: Node(state(n), None) for n, k in keys})

    asked = iter([True, False])
    outcome = LevelSearch(state("a"), Bounds(), expander, 1000, 1000, lambda _: next(asked)).run()
    assert outcome.interrupted
    assert outcome.truncated == 2  # c and d


def test_fingerprints_differ_where_states_do() -> None:
    base = state("a")
    others = [
        base._replace(data=b"b"),
        base._replace(done=1),
        base._replace(read=(0,)),
        base._replace(nmis=1),
        base._replace(freed=((1, 2),)),
        base._replace(text=(b"x",)),
    ]
    assert len({fingerprint(s) for s in (base, *others)}) == 1 + len(others)


# --- the real machine ---


def both(setup: Setup, row: int = 16) -> tuple[Outcome, Outcome]:
    world = build(setup, PROTOCOLS[setup.protocol])
    first = world.save()

    def expander(nodes: Sequence[Node], spare: int | None) -> Iterator[Expansion]:
        for at in range(0, len(nodes), row):
            yield expand(world, nodes[at : at + row], spare)

    breadth = LevelSearch(first, setup.bounds, expander, 10**6, 10**6).run()
    world.load(first)
    return breadth, exhaustive(world, setup.bounds)


@pytest.mark.parametrize("preemptions", [0, 1, None])
@pytest.mark.parametrize("protocol", ["stop_machine", "live", "stop_machine-unsynced"])
def test_breadth_first_and_depth_first_agree(protocol, preemptions) -> None:
    setup = Setup(protocol=protocol, bounds=Bounds(preemptions=preemptions))
    breadth, depth = both(setup)
    kinds = [outcome.found and outcome.found[0].kind for outcome in (breadth, depth)]
    assert kinds[0] is kinds[1]
    if breadth.found is None:
        assert breadth.starts == depth.starts
        assert breadth.states >= depth.states  # that one keeps no state with a single way on
    else:
        assert len(breadth.found[1]) <= len(depth.found[1])


def test_the_outcome_does_not_depend_on_how_levels_are_cut() -> None:
    setup = Setup(
        protocol="live", sites=(SiteSpec(new="nop"),), model=Model(Text.STALE), bounds=Bounds()
    )
    assert both(setup, row=1)[0] == both(setup, row=50)[0]
