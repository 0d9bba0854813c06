"""Drafts against docs/algorithm.md, and the oracle with them, written out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff_core.algorithm.evaluator import Forecast, Inputs
from asyncdiff_core.algorithm.lanes import Lane
from asyncdiff_core.algorithm.oracle import Oracle
from asyncdiff_core.algorithm.prediction import A, B, Latent, Predictor
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Stage
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout
from asyncdiff_core.errors import ScheduleError
from harness.cuts import chain

STEPS = 10
SIGMAS = [1.0 - i / STEPS for i in range(STEPS)]
Way = Callable[[float], torch.Tensor]


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.inference_mode():
        yield


def noise(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))


def line(sigma: float) -> torch.Tensor:
    return noise(1) + sigma * noise(2)


def curve(sigma: float) -> torch.Tensor:
    return line(sigma) + sigma**2 * noise(3)


def unsteady(sigma: float) -> torch.Tensor:
    return noise(round(1000 * sigma))


def after(way: Way, number: int, farthest: int = 3) -> Predictor:
    """What has seen the first `number` latents of a way."""
    predictor = Predictor(farthest)
    for i, sigma in enumerate(SIGMAS[:number]):
        predictor.see(sigma, (way(sigma),), SIGMAS[i + 1 :])
    return predictor


def close(draft: Latent | None, latent: torch.Tensor) -> bool:
    return draft is not None and torch.allclose(draft[0], latent, atol=1e-5)


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_two_latents_make_a_line(ahead: int) -> None:
    assert after(line, 1).draft(SIGMAS[ahead], ahead) is None
    for number in (2, 3, 6):
        sigma = SIGMAS[number - 1 + ahead]
        assert close(after(line, number).draft(sigma, ahead), line(sigma))


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_three_latents_make_half_of_a_curve(ahead: int) -> None:
    """B of the second term, as long as no draft of this kind can be judged in hindsight."""
    s0, s1, s2, s = (*SIGMAS[:3], SIGMAS[2 + ahead])
    x0, x1, x2 = map(curve, (s0, s1, s2))
    first = (x2 - x1) / (s2 - s1)
    second = (first - (x1 - x0) / (s1 - s0)) / (s2 - s0)
    draft = x2 + A * (s - s2) * first + B * (s - s2) * (s - s1) * second
    assert close(after(curve, 3).draft(s, ahead), draft)


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_coefficients_are_learnt(ahead: int) -> None:
    """A curve needs all of the second term, which the steps that were seen show."""
    errors = []
    for at in (2, 2 + ahead):
        target = SIGMAS[at + ahead]
        draft = after(curve, at + 1).draft(target, ahead)
        assert draft is not None
        errors.append(float((draft[0] - curve(target)).norm()))
    assert errors[1] < 0.7 * errors[0]


def test_what_cannot_be_foreseen_is_not_drafted() -> None:
    predictor = after(unsteady, 6)
    judged = predictor.judged(1)
    assert judged is not None and judged.draft >= judged.stale
    assert predictor.draft(SIGMAS[6], 1) is None
    judged = after(curve, 6).judged(1)
    assert judged is not None and judged.draft < 0.3 * judged.stale


def test_drafts_come_back_when_they_are_good_again() -> None:
    def way(sigma: float) -> torch.Tensor:
        return unsteady(sigma) if sigma > 0.65 else curve(sigma)

    found = [after(way, n, 2).draft(SIGMAS[n], 1) is not None for n in range(1, STEPS)]
    assert found[3:5] == [False, False] and found[-1]


@pytest.mark.parametrize(("stages", "num_proofs"), [(1, 1), (2, 1), (3, 4), (4, 7)])
def test_drafts_prove_themselves(stages: int, num_proofs: int) -> None:
    """One bad draft is remembered for three evaluations more with every stage after the second."""
    sigmas = [1.0 - i / 24 for i in range(24)]
    predictor, found = Predictor(stages, stages), []
    for i, sigma in enumerate(sigmas[:-1]):
        jump = noise(9) if i == 5 else 0.0
        predictor.see(sigma, (line(sigma) + jump,), sigmas[i + 1 :])
        found.append(predictor.draft(sigmas[i + 1], 1) is not None)
    # No draft is good for the latent that jumps, nor for the three whose drafts are made of it.
    assert [i for i, good in enumerate(found) if not good] == [0, *range(5, 8 + num_proofs)]


def test_nothing_far_is_drafted_where_nothing_near_can_be() -> None:
    """Not even before the first draft at that distance is judged: a sampler that adds noise."""
    predictor = after(unsteady, 3)
    assert predictor.judged(1) is not None and predictor.judged(2) is None
    assert predictor.draft(SIGMAS[4], 2) is None
    assert after(curve, 3).draft(SIGMAS[4], 2) is not None


@pytest.mark.parametrize("sigma", [SIGMAS[4], SIGMAS[2]])
def test_another_step_begins_anew(sigma: float) -> None:
    """The same sigma again, or one before: nothing goes on from the latents that were seen."""
    predictor = after(curve, 5)
    predictor.see(sigma, (curve(sigma),), SIGMAS[5:])
    assert predictor.draft(SIGMAS[5], 1) is None and predictor.judged(1) is None


def test_another_shape_begins_anew() -> None:
    predictor = after(curve, 3)
    predictor.see(SIGMAS[3], (torch.zeros(1, 2),), SIGMAS[4:])
    assert predictor.draft(SIGMAS[4], 1) is None


def test_several_tensors_and_half_precision() -> None:
    predictor = Predictor(1)
    for i, sigma in enumerate(SIGMAS[:4]):
        latent = (line(sigma), line(sigma)[:, :1].half())
        predictor.see(sigma, latent, SIGMAS[i + 1 :])
    draft = predictor.draft(SIGMAS[4], 1)
    assert draft is not None and torch.allclose(draft[0], line(SIGMAS[4]), atol=1e-2)
    assert draft[1].dtype == torch.float16 and draft[1].shape == (2, 1, 4)


@pytest.mark.parametrize("number", [3, 6])
def test_the_latents_of_a_batch_are_drafted_as_if_alone(number: int) -> None:
    """One goes a straight way, another one is at rest, and one is new noise in every step."""

    def way(row: int, sigma: float) -> torch.Tensor:
        return (curve, line, unsteady)[row](sigma)[:1] * (row != 1 or sigma > 0.9)

    together = after(lambda sigma: torch.cat([way(row, sigma) for row in range(3)]), number)
    for row in range(3):
        alone = after(lambda sigma, row=row: way(row, sigma), number)
        ours, its = (one._drafts[1, SIGMAS[number]][0] for one in (together, alone))
        assert torch.allclose(ours[row : row + 1], its, atol=1e-5)


def test_a_still_picture_is_no_error() -> None:
    """Latents that are all alike, or zero, have no coefficients to learn."""
    for value in (0.0, 1.0):
        predictor = after(lambda sigma, v=value: torch.full((2, 3), v), 6)
        assert predictor.draft(SIGMAS[6], 1) is None  # stale is as good


def test_prediction_excludes_time_shift() -> None:
    with pytest.raises(ScheduleError, match="exclude each other"):
        AsyncSchedule(2, time_shift=True, prediction=True)


# The oracle -------------------------------------------------------------------------------------


class Line(nn.Module):
    """Units that mix state and time; the latent goes into the first one."""

    layout = TrunkLayout(blocks=("units",))

    def __init__(self, num_units: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.units = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(num_units))
        for unit in self.units:
            unit.weight.copy_(torch.randn(4, 4, generator=generator))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = x
        for unit in self.units:
            h = torch.tanh(unit(h)) + t
        return h


def run(num_stages: int, stride: int, warm_up: int, way: Way) -> list[torch.Tensor]:
    model = Line(num_stages + 1)
    stages = chain(*itertools.pairwise([*range(num_stages), num_stages + 1]))
    oracle = Oracle(StagedModel(model, Trunk.of(model, Line.layout)), stages, stride)
    return sampled(oracle, AsyncSchedule(warm_up, prediction=True), way)


def sampled(oracle: Oracle, schedule: AsyncSchedule, way: Way) -> list[torch.Tensor]:
    oracle.begin_run(schedule)
    outputs = []
    for i, sigma in enumerate(SIGMAS):
        x = way(sigma)

        def at(other: float, latent: Latent | None = None, x: torch.Tensor = x) -> Inputs:
            return (x if latent is None else latent[0], torch.tensor(other)), {}

        forecast = Forecast(sigma, tuple(SIGMAS[i + 1 :]), at, (x,))
        outputs.append(oracle.evaluate("lane", *at(sigma), forecast))
    return outputs


@pytest.mark.parametrize("warm_up", [2, 3, 5])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_the_oracle_is_the_whole_model_at_drafts(num_stages: int, warm_up: int) -> None:
    """algorithm.md: eps(j) is the whole model at t(j) and the draft of x(j), which was made in
    evaluation j - (N - 1), or in the last sync one.

    The first stage alone takes the latent, so that it is one draft that counts.
    """
    model = Line(num_stages + 1)
    predictor = Predictor(num_stages)
    made: dict[tuple[int, int], Latent | None] = {}
    expected = []
    for i, sigma in enumerate(SIGMAS):
        predictor.see(sigma, (curve(sigma),), SIGMAS[i + 1 :])
        for j in range(i + 1, min(STEPS, i + num_stages)):
            made[i, j] = predictor.draft(SIGMAS[j], j - i)
        at = max(i - (num_stages - 1), warm_up - 1)
        draft = (curve(sigma),) if i < warm_up else made[at, i]
        assert draft is not None
        expected.append(model(draft[0], torch.tensor(sigma)))
    outputs = run(num_stages, 1, warm_up, curve)
    assert all(map(torch.equal, outputs, expected))
    plain = [model(curve(sigma), torch.tensor(sigma)) for sigma in SIGMAS]
    assert not torch.equal(outputs[-1], plain[-1])


@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_with_drafts(stride: int) -> None:
    """With N = 2 the stage before works for the last evaluation of the next round."""
    model, warm_up = Line(3), 2
    predictor = Predictor(2 * stride)
    firsts = list(range(warm_up, STEPS, stride))
    drafts: dict[tuple[int, int], Latent | None] = {}
    for i, sigma in enumerate(SIGMAS):
        predictor.see(sigma, (curve(sigma),), SIGMAS[i + 1 :])
        for j in range(i + 1, min(STEPS, i + 1 + 2 * stride)):
            drafts[i, j] = predictor.draft(SIGMAS[j], j - i)
    outputs = run(2, stride, warm_up, curve)
    for i in range(warm_up, STEPS):
        first = max(first for first in firsts if first <= i)
        end, before = min(first + stride, STEPS) - 1, first - stride
        before = max(before, warm_up - 1)
        draft = drafts[before, end]
        assert draft is not None
        # What a unit does belongs to its stage, what is between two of them to the one behind.
        h = model.units[0](draft[0])
        for unit in model.units[1:]:
            h = unit(torch.tanh(h) + torch.tensor(SIGMAS[i]))
        assert torch.equal(outputs[i], torch.tanh(h) + torch.tensor(SIGMAS[i])), i


def test_without_latents_it_is_the_published_schedule() -> None:
    """Whoever tells no latent gets no draft, and no round is any different."""
    lanes = [
        Lane(0, AsyncSchedule(2, prediction=prediction), stride=2, num_stages=3)
        for prediction in (False, True)
    ]
    for i in range(0, STEPS, 2):
        coming = SIGMAS[i + 1 : STEPS]
        one, other = (lane.next_round(SIGMAS[i], coming) for lane in lanes)
        assert (one.mode, one.targets) == (other.mode, other.targets)
        works = [(one.work(d), other.work(d)) for d in range(3)]
        assert all(a == b or b is None for a, b in works)  # None: for no round that there is
        for lane, round_ in zip(lanes, (one, other), strict=True):
            assert not list(lane.preparing(round_, coming))
            lane.hold([object()] * (len(round_.targets) - 1), coming)
            for _ in round_.targets[1:]:
                lane.take_held(lane.held[0][0])


class UNet(Line):
    """One unit down, one within, and one up, which reads the first one's output again."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        skip = self.down(x, t)
        return self.up(self.within(skip, t), skip, t)

    def down(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.units[0](x)) + t

    def within(self, h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.units[1](h)) + t

    def up(self, h: torch.Tensor, skip: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.units[2](h + skip)) + t


@pytest.mark.parametrize("warm_up", [2, 3, 5])
def test_a_fold_of_two_stages_works_on_drafts_within(warm_up: int) -> None:
    """algorithm.md: skips are those of the latent, and what lies within is that of its draft."""
    model = UNet(3)
    predictor = Predictor(2)
    drafts: list[Latent | None] = [None] * (STEPS + 1)
    expected = []
    for i, sigma in enumerate(SIGMAS):
        predictor.see(sigma, (curve(sigma),), SIGMAS[i + 1 :])
        x, t = curve(sigma), torch.tensor(sigma)
        draft = (x,) if i < warm_up else drafts[i]
        assert draft is not None
        within = model.within(model.down(draft[0], t), t)
        expected.append(model.up(within, model.down(x, t), t))
        if i + 1 < STEPS:
            drafts[i + 1] = predictor.draft(SIGMAS[i + 1], 1)
    outputs = folded(model, (((1, 2),), ((0, 1), (2, 3))), AsyncSchedule(warm_up, prediction=True))
    assert all(map(torch.equal, outputs, expected))
    plain = [model(curve(sigma), torch.tensor(sigma)) for sigma in SIGMAS]
    assert not torch.equal(outputs[-1], plain[-1])


def test_a_deeper_fold_predicts_nothing() -> None:
    stages = (((2, 3),), ((1, 2), (3, 4)), ((0, 1), (4, 5)))
    schedules = [AsyncSchedule(2, prediction=prediction) for prediction in (False, True)]
    assert all(map(torch.equal, *(folded(Line(5), stages, one) for one in schedules)))


def folded(
    model: nn.Module, stages: tuple[Stage, ...], schedule: AsyncSchedule
) -> list[torch.Tensor]:
    oracle = Oracle(StagedModel(model, Trunk.of(model, model.layout)), stages)
    return sampled(oracle, schedule, curve)
