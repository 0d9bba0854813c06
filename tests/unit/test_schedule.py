"""The schedule: which evaluations are synchronous, and lanes that count by themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff_core.algorithm.lanes import Lane, Lanes
from asyncdiff_core.algorithm.schedule import AUTO_WARM_UP, HERE, AsyncSchedule, Round
from asyncdiff_core.errors import ScheduleError


def rounds(lane: Lane, *sigmas: float | None) -> list[Round]:
    return [lane.next_round(sigma) for sigma in sigmas]


@pytest.mark.parametrize("warm_up", [1, 2, 3, 50])
def test_the_first_evaluations_are_sync_and_no_others(warm_up: int) -> None:
    lane = Lanes(AsyncSchedule(warm_up)).lane("a")
    found = rounds(lane, *[None] * 60)
    assert [r.mode for r in found] == ["sync"] * warm_up + ["async"] * (60 - warm_up)
    assert [r.index for r in found] == [r.evaluation for r in found] == list(range(60))


@pytest.mark.parametrize("warm_up", [-1, -3, 1.5, "3", None])
def test_a_warm_up_out_of_range_is_refused(warm_up: object) -> None:
    with pytest.raises(
        ScheduleError, match=f"at least 1, or 0 to have it chosen, but is {warm_up!r}"
    ):
        AsyncSchedule(warm_up)  # type: ignore[arg-type]


def test_the_defaults() -> None:
    assert AsyncSchedule() == AsyncSchedule(warm_up=1, time_shift=False)


def test_every_evaluation_is_one_round_on_its_own_inputs() -> None:
    """Without a stride and a time shift, sigmas change nothing as long as they fall."""
    lane = Lanes(AsyncSchedule(warm_up=2)).lane("a")
    for i, sigma in enumerate((9.0, 7.0, 5.0, 3.0)):
        mode = "sync" if i < 2 else "async"
        assert lane.next_round(sigma, (2.0, 1.0)) == Round(0, i, i, mode, (HERE,))


def test_where_sigma_jumps_up_the_lane_is_synchronised_again() -> None:
    lane = Lanes(AsyncSchedule(warm_up=1)).lane("a")
    modes = [r.mode for r in rounds(lane, 9.0, 6.0, 3.0, 5.0, 4.0, 4.0, 8.0, 1.0)]
    assert modes == ["sync", "async", "async", "sync", "async", "async", "sync", "async"]


def test_lanes_are_numbered_in_the_order_in_which_they_appear() -> None:
    lanes = Lanes(AsyncSchedule(warm_up=2))
    keys = ["cond", "uncond", "cond", "cond", ("late", (1, 4, 8, 8)), "uncond", "cond"]
    assert [lanes.lane(key).next_round(None) for key in keys] == [
        Round(0, 0, 0, "sync"),
        Round(1, 0, 0, "sync"),
        Round(0, 1, 1, "sync"),
        Round(0, 2, 2, "async"),
        Round(2, 0, 0, "sync"),  # a lane that appears later has its own warm-up
        Round(1, 1, 1, "sync"),
        Round(0, 3, 3, "async"),
    ]


@given(keys=st.lists(st.sampled_from("abcd"), max_size=40), warm_up=st.integers(1, 8))
def test_no_lane_notices_the_others(keys: list[str], warm_up: int) -> None:
    together = Lanes(AsyncSchedule(warm_up))
    found = [(key, together.lane(key).next_round(None)) for key in keys]
    for key in set(keys):
        alone = Lanes(AsyncSchedule(warm_up)).lane(key)
        mine = [round_ for other, round_ in found if other == key]
        expected = rounds(alone, *[None] * len(mine))
        assert [(r.index, r.mode) for r in mine] == [(r.index, r.mode) for r in expected]
        assert len({r.lane for r in mine}) == 1
    assert len({r.lane for _, r in found}) == len(set(keys))


def test_a_round_that_was_refused_is_given_again() -> None:
    lane = Lanes(AsyncSchedule(warm_up=2)).lane("a")
    rounds(lane, 9.0, 8.0)
    refused = lane.next_round(7.0)
    lane.retract(refused)
    assert lane.next_round(7.0) == refused
    assert lane.next_round(6.0).index == refused.index + 1


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, 1), (4, 1), (8, 1), (9, 2), (16, 2), (17, 3), (50, 3), (1000, 3), (None, 3)],
)
def test_warm_up_by_the_number_of_steps(steps: int | None, expected: int) -> None:
    schedule = AsyncSchedule(AUTO_WARM_UP, time_shift=True).for_steps(steps)
    assert schedule == AsyncSchedule(expected, time_shift=True)
    assert AsyncSchedule(5).for_steps(steps) == AsyncSchedule(5)
