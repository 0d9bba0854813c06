"""Cuts against brute force, and what crosses them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff_core.errors import PlanError
from asyncdiff_core.group import relative_speeds
from asyncdiff_core.messages import Ready
from asyncdiff_core.partition import Link, links, partition


def all_partitions(num_units, num_stages):
    """Every way to cut, by trying each set of cut positions."""
    for cuts in itertools.combinations(range(1, num_units), num_stages - 1):
        yield tuple(itertools.pairwise((0, *cuts, num_units)))


def slowest(ranges, costs, speeds):
    return max(
        sum(costs[start:stop]) / speed for (start, stop), speed in zip(ranges, speeds, strict=True)
    )


@st.composite
def problems(draw):
    # Whole costs and speeds that are powers of two: all sums and quotients are exact.
    costs = draw(st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=10))
    speeds = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0])
    return costs, draw(st.lists(speeds, min_size=1, max_size=len(costs)))


@given(problem=problems())
def test_no_other_cut_has_a_faster_slowest_stage(problem):
    costs, speeds = problem
    ranges = partition(costs, speeds)
    assert ranges in set(all_partitions(len(costs), len(speeds)))  # contiguous, none empty
    assert slowest(ranges, costs, speeds) == min(
        slowest(other, costs, speeds) for other in all_partitions(len(costs), len(speeds))
    )
    assert partition(list(costs), tuple(speeds)) == ranges


@given(
    costs=st.lists(st.floats(0, 1e6), min_size=4, max_size=9),
    speeds=st.lists(st.floats(0.01, 10), min_size=1, max_size=4),
)
def test_the_same_with_any_floats(costs, speeds):
    ranges = partition(costs, speeds)
    best = min(slowest(other, costs, speeds) for other in all_partitions(len(costs), len(speeds)))
    assert slowest(ranges, costs, speeds) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_a_slow_device_gets_less() -> None:
    assert partition([1.0] * 9, [1.0, 0.5]) == ((0, 6), (6, 9))
    assert partition([1.0] * 9, [0.5, 1.0]) == ((0, 3), (3, 9))


def test_ties_take_the_earliest_cut() -> None:
    assert partition([1.0] * 5, [1.0, 1.0]) == ((0, 2), (2, 5))
    assert partition([0.0] * 4, [1.0, 1.0]) == ((0, 1), (1, 4))


def test_more_stages_than_units() -> None:
    with pytest.raises(PlanError, match="4 stages need at least 4 units, but .* has 3.*at most 3"):
        partition([1.0, 1.0, 1.0], [1.0] * 4)


@pytest.mark.parametrize(
    "costs, speeds", [([1.0, -1.0], [1.0]), ([1.0, 1.0], [1.0, 0.0]), ([1.0, 1.0], [-1.0, 1.0])]
)
def test_impossible_numbers_are_refused(costs, speeds) -> None:
    with pytest.raises(ValueError, match="speeds must be positive"):
        partition(costs, speeds)


# Links ---------------------------------------------------------------------------------------


@st.composite
def cut_trunks(draw):
    num_units = draw(st.integers(1, 14))
    num_stages = draw(st.integers(1, min(5, num_units)))
    cuts = draw(
        st.lists(
            st.integers(1, num_units - 1),
            min_size=num_stages - 1,
            max_size=num_stages - 1,
            unique=True,
        )
        if num_stages > 1
        else st.just([])
    )
    ranges = tuple(itertools.pairwise((0, *sorted(cuts), num_units)))
    pairs = [(a, b) for a in range(num_units) for b in range(a + 1, num_units)]
    skips = draw(st.lists(st.sampled_from(pairs), max_size=8)) if pairs else []
    return ranges, skips


@given(trunk=cut_trunks())
def test_links_carry_what_is_consumed_and_nothing_else(trunk):
    ranges, skips = trunk
    stage_of = {u: k for k, (start, stop) in enumerate(ranges) for u in range(start, stop)}
    found = links(ranges, skips)

    needed = {(k, k + 1, ranges[k][1] - 1) for k in range(len(ranges) - 1)}  # the trunk state
    needed |= {(stage_of[s], stage_of[c], s) for s, c in skips if stage_of[s] != stage_of[c]}
    carried = [(link.source, link.target, unit) for link in found for unit in link.units]
    assert sorted(carried) == sorted(needed)  # as lists: nothing twice either
    assert len({(link.source, link.target) for link in found}) == len(found)
    assert all(link.source < link.target for link in found)


def test_links_of_a_small_unet() -> None:
    # Units 0 1 2 | 3 4 | 5 6 7 with skips 0-7, 1-6, 2-5, 3-4.
    found = links([(0, 3), (3, 5), (5, 8)], [(0, 7), (1, 6), (2, 5), (3, 4)])
    assert found == (
        Link(0, 1, (2,)),
        Link(0, 2, (0, 1, 2)),  # straight to the consumer, not by way of stage 1
        Link(1, 2, (4,)),
    )


def test_one_stage_has_no_links() -> None:
    assert links([(0, 4)], [(0, 3), (1, 2)]) == ()


# Speeds --------------------------------------------------------------------------------------


def ready(name, speed):
    return Ready(pid=1, device_name=name, speed=speed, memory_bytes=0)


def test_devices_of_one_name_are_equally_fast_whatever_was_measured() -> None:
    assert relative_speeds([ready("a", 5.0), ready("a", 4.0), ready("a", 7.0)]) == [1.0, 1.0, 1.0]


def test_other_devices_count_in_eighths() -> None:
    found = relative_speeds([ready("fast", 100.0), ready("half", 52.0), ready("slow", 0.1)])
    assert found == [1.0, 0.5, 0.125]
