"""Cuts against brute force, and what crosses them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff_core.algorithm.stages import Link, Stage, links_between, units_of
from asyncdiff_core.errors import PlanError
from asyncdiff_core.planning.cuts import FOLD_TOLERANCE, cut, cut_within, fold, partition, slowest
from asyncdiff_core.wire.requests import Ready
from asyncdiff_core.workers.assignment import relative_speeds
from harness.cuts import all_chains, all_folds, chain, stage_of


def slowest_of(stages, costs, speeds):
    pairs = zip(stages, speeds, strict=True)
    return max(sum(costs[unit] for unit in units_of(stage)) / speed for stage, speed in pairs)


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
    stages = chain(*ranges)
    others = set(all_chains(len(costs), len(speeds)))
    assert stages in others  # contiguous, none empty
    best = min(slowest_of(other, costs, speeds) for other in others)
    assert slowest(stages, costs, speeds) == slowest_of(stages, costs, speeds) == best
    assert partition(list(costs), tuple(speeds)) == ranges
    assert cut(costs, speeds) == stages


@given(
    costs=st.lists(st.floats(0, 1e6), min_size=4, max_size=9),
    speeds=st.lists(st.floats(0.01, 10), min_size=1, max_size=4),
)
def test_the_same_with_any_floats(costs, speeds):
    stages = chain(*partition(costs, speeds))
    others = all_chains(len(costs), len(speeds))
    best = min(slowest_of(other, costs, speeds) for other in others)
    assert slowest(stages, costs, speeds) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_a_slow_device_gets_less() -> None:
    assert partition([1.0] * 9, [1.0, 0.5]) == ((0, 6), (6, 9))
    assert partition([1.0] * 9, [0.5, 1.0]) == ((0, 3), (3, 9))


def test_ties_take_the_earliest_cut() -> None:
    assert partition([1.0] * 5, [1.0, 1.0]) == ((0, 2), (2, 5))
    assert partition([0.0] * 4, [1.0, 1.0]) == ((0, 1), (1, 4))


def test_more_stages_than_units() -> None:
    with pytest.raises(PlanError, match=r"4 stages need at least 4 units, but .* has 3.*at most 3"):
        partition([1.0, 1.0, 1.0], [1.0] * 4)


@pytest.mark.parametrize(
    ("costs", "speeds"), [([1.0, -1.0], [1.0]), ([1.0, 1.0], [1.0, 0.0]), ([1.0, 1.0], [-1.0, 1.0])]
)
def test_impossible_numbers_are_refused(costs, speeds) -> None:
    with pytest.raises(ValueError, match="speeds must be positive"):
        partition(costs, speeds)


# Folds ---------------------------------------------------------------------------------------


@st.composite
def unets(draw):
    """Costs and skips that lie within each other, and speeds."""
    depth = draw(st.integers(2, 4))
    widths = st.integers(1, 3)
    downs = [draw(widths) for _ in range(depth)]
    middle = draw(st.integers(0, 2))
    ups = [draw(widths) for _ in range(depth)]
    ends = list(itertools.accumulate(downs))
    starts = list(itertools.accumulate([ends[-1] + middle, *ups]))
    skips = [(end - 1, start) for end, start in zip(ends, reversed(starts[:-1]), strict=True)]
    costs = [float(draw(st.integers(0, 100))) for _ in range(starts[-1])]
    speeds = st.sampled_from([0.25, 0.5, 1.0, 2.0])
    return costs, draw(st.lists(speeds, min_size=1, max_size=3)), draw(st.permutations(skips))


@given(unet=unets())
def test_no_other_fold_has_a_faster_slowest_stage(unet):
    costs, speeds, skips = unet
    others = set(all_folds(len(costs), len(speeds), skips))
    stages = fold(costs, speeds, skips)
    if not others:
        assert stages is None
        assert cut(costs, speeds, skips) == chain(*partition(costs, speeds))
        return
    assert stages in others
    best = min(slowest_of(other, costs, speeds) for other in others)
    assert slowest_of(stages, costs, speeds) == best
    contiguous = chain(*partition(costs, speeds))
    is_close = best <= FOLD_TOLERANCE * slowest_of(contiguous, costs, speeds)
    assert cut(costs, speeds, skips) == (stages if is_close else contiguous)


@given(unet=unets())
def test_with_drafts_the_outer_of_two_stages_runs_its_way_in_twice(unet):
    costs, speeds, skips = unet
    speeds = speeds[:2]
    stages = cut(costs, speeds, skips, predicts=True)
    plain = cut(costs, speeds, skips)
    if len(speeds) < 2 or len(plain[-1]) < 2:
        assert stages == plain
        return

    def slowest_with_drafts(fold: tuple[Stage, ...]) -> float:
        (within,), (way_in, way_out) = fold
        outer = 2 * sum(costs[slice(*way_in)]) + sum(costs[slice(*way_out)])
        return max(sum(costs[slice(*within)]) / speeds[0], outer / speeds[1])

    best = min(map(slowest_with_drafts, all_folds(len(costs), 2, skips)))
    assert slowest_with_drafts(stages) == slowest(stages, costs, speeds, predicts=True) == best


@given(unet=unets())
def test_into_a_fold_and_out_of_it_goes_the_trunk_state_alone(unet):
    costs, speeds, skips = unet
    stages = fold(costs, speeds, skips)
    if stages is None:
        return
    found = links_between(stages, skips)
    assert len(found) == 2 * (len(stages) - 1)
    for link in found:
        inner, outer = sorted((link.source, link.target))
        assert outer == inner + 1
        (start, _), (_, stop) = stages[inner][0], stages[inner][-1]
        assert link.is_fresh == (link.source == outer)
        assert link.units == ((start - 1,) if link.is_fresh else (stop - 1,))


@pytest.mark.parametrize(
    "skips",
    [
        (),
        ((0, 5),),  # a single path makes no U
        ((1, 2), (1, 3), (1, 4)),  # one source for many
        ((0, 2), (1, 4), (2, 5)),  # a stream beside the trunk
        ((0, 3), (1, 5)),  # crossing each other
        ((0, 4), (4, 5)),  # one after the other
    ],
)
def test_a_trunk_that_is_no_u_is_not_folded(skips) -> None:
    assert fold([1.0] * 6, [1.0, 1.0], skips) is None
    assert cut([1.0] * 6, [1.0, 1.0], skips) == chain((0, 3), (3, 6))


def test_a_fold_that_is_far_from_balanced_is_not_taken() -> None:
    skips = [(0, 5), (1, 4)]
    # All skips bind the two heavy units to one stage.
    costs = [1.0, 100.0, 1.0, 1.0, 100.0, 1.0]
    assert cut(costs, [1.0, 1.0], skips) == chain((0, 3), (3, 6))
    assert cut([1.0] * 6, [1.0, 0.5], skips) == (((1, 5),), ((0, 1), (5, 6)))


# Within what stages have room for -----------------------------------------------------------


@st.composite
def limits_for(draw, num_units, num_stages):
    sizes = draw(st.lists(st.integers(0, 20), min_size=num_units, max_size=num_units))
    limits = draw(st.lists(st.integers(0, 60), min_size=num_stages, max_size=num_stages))
    return sizes, limits


def within(stages, sizes, limits):
    held = [sum(sizes[unit] for unit in units_of(stage)) for stage in stages]
    return all(own <= limit for own, limit in zip(held, limits, strict=True))


@given(data=st.data(), problem=problems())
def test_no_other_cut_that_fits_has_a_faster_slowest_stage(data, problem):
    costs, speeds = problem
    sizes, limits = data.draw(limits_for(len(costs), len(speeds)))
    stages = cut_within(costs, speeds, sizes=sizes, limits=limits)
    fitting = [c for c in all_chains(len(costs), len(speeds)) if within(c, sizes, limits)]
    if not fitting:
        assert stages is None
        return
    assert stages in fitting
    best = min(slowest_of(other, costs, speeds) for other in fitting)
    assert slowest_of(stages, costs, speeds) == best


@given(data=st.data(), unet=unets(), predicts=st.booleans())
def test_no_other_fold_that_fits_has_a_faster_slowest_stage(data, unet, predicts):
    costs, speeds, skips = unet
    sizes, limits = data.draw(limits_for(len(costs), len(speeds)))
    how = {"predicts": predicts, "sizes": sizes, "limits": limits}
    stages = fold(costs, speeds, skips, **how)
    fitting = [f for f in all_folds(len(costs), len(speeds), skips) if within(f, sizes, limits)]
    if fitting:
        assert stages in fitting
        best = min(slowest(other, costs, speeds, predicts=predicts) for other in fitting)
        assert slowest(stages, costs, speeds, predicts=predicts) == best
    else:
        assert stages is None
    # A fold where there is room for one; else contiguous stages; else nothing.
    chains = [c for c in all_chains(len(costs), len(speeds)) if within(c, sizes, limits)]
    found = cut_within(costs, speeds, skips, **how)
    assert (found is None) == (not fitting and not chains)
    assert found is None or within(found, sizes, limits)


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
    stages = chain(*ranges)
    found = links_between(stages, skips)

    needed = {(k, k + 1, ranges[k][1] - 1) for k in range(len(ranges) - 1)}  # the trunk state
    ways = {(stage_of(stages, s), stage_of(stages, c), s) for s, c in skips}
    needed |= {way for way in ways if way[0] != way[1]}
    carried = [(link.source, link.target, unit) for link in found for unit in link.units]
    assert sorted(carried) == sorted(needed)  # as lists: nothing twice either
    assert len({(link.source, link.target) for link in found}) == len(found)
    assert all(link.source < link.target and not link.is_fresh for link in found)


def test_links_of_a_small_unet() -> None:
    # Units 0 1 2 | 3 4 | 5 6 7 with skips 0-7, 1-6, 2-5, 3-4.
    found = links_between(chain((0, 3), (3, 5), (5, 8)), [(0, 7), (1, 6), (2, 5), (3, 4)])
    assert found == (
        Link(0, 1, (2,)),
        Link(0, 2, (0, 1, 2)),  # straight to the consumer, not by way of stage 1
        Link(1, 2, (4,)),
    )


def test_one_stage_has_no_links() -> None:
    assert links_between(chain((0, 4)), [(0, 3), (1, 2)]) == ()


# Speeds --------------------------------------------------------------------------------------


def ready(name, speed):
    return Ready(pid=1, device_name=name, speed=speed, memory_bytes=0)


def test_devices_of_one_name_are_equally_fast_whatever_was_measured() -> None:
    assert relative_speeds([ready("a", 5.0), ready("a", 4.0), ready("a", 7.0)]) == [1.0, 1.0, 1.0]


def test_other_devices_count_in_eighths() -> None:
    found = relative_speeds([ready("fast", 100.0), ready("half", 52.0), ready("slow", 0.1)])
    assert found == [1.0, 0.5, 0.125]
