"""A picture of what every worker did during one run, and the figures that go with it.

Works on a report as plain data, the form in which `report.RunReport.as_dict` and the server's
`GET /asyncdiff/report` give it. Pillow is imported only to draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Report = dict[str, Any]

SYNC, ASYNC = "#d98e32", "#2f7fbf"
BACKGROUND, LINE, TEXT, FAINT_TEXT = "#ffffff", "#d8dce1", "#22272e", "#68717d"
WAIT, WAIT_HATCH = "#f1f2f4", "#c3c8cf"

MARGIN, LABEL_WIDTH = 20, 190
TITLE_SIZE, TEXT_SIZE, NUMBER_SIZE = 18, 13, 11
HEADER_HEIGHT, ROW_HEIGHT, BAR_HEIGHT, AXIS_HEIGHT = 98, 46, 32, 44


# Figures


def step_seconds_after_warm_up(report: Report) -> float | None:
    """Median seconds per asynchronous step of the sampler; None where there are too few.

    Measured at the sampler, between the ends of evaluations of one lane: whatever else the step
    waits for is in it. With a stride the evaluations of a round end together, so it is the time
    of a round, shared by its evaluations.
    """
    stride = _stride(report)
    steps = [
        (after["end"] - before["end"]) / stride
        for lane in _by_lane(report["evaluations"])
        for before, after in zip(lane, lane[stride:], strict=False)
        if before["mode"] == after["mode"] == "async"
    ]
    return median(steps) if steps else None


def slowest_stage_busy_seconds(report: Report) -> float | None:
    """Median seconds that the busiest worker computes per asynchronous step; None without one.

    No step can be shorter, so the distance to `step_seconds_after_warm_up` is what communication,
    the sampler and waiting cost. Where a step has several lanes, a worker computes all of them.
    """
    busy = []
    for worker in report["workers"]:
        per_step: dict[int, float] = defaultdict(float)
        for span in worker["spans"]:
            if span["mode"] == "async":
                per_step[span["index"]] += span["compute"]
        if per_step:
            busy.append(median(per_step.values()) / _stride(report))
    return max(busy, default=None)


def _stride(report: Report) -> int:
    """The evaluations of a full round."""
    stride: int = 1 if report.get("refused_stride") else report["plan"]["stride"]
    return stride


def _by_lane(evaluations: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The evaluations of each lane, in their order."""
    lanes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for evaluation in sorted(evaluations, key=lambda e: e["index"]):
        lanes[evaluation["lane"]].append(evaluation)
    return list(lanes.values())


# Picture


def draw_timeline(report: Report, width: int = 1200) -> Image.Image:
    """Draw one run: a row per worker, a bar per evaluation, seconds from its first to the right.

    A bar is hatched while the worker waits for a message, and coloured while it computes: one
    colour for the warm-up, where stages take turns, one for the asynchronous part, where all work
    at once. The numbers are those of the evaluations, with a letter for the lane if there are
    several.
    """
    from PIL import Image, ImageDraw

    workers = report["workers"]
    height = HEADER_HEIGHT + ROW_HEIGHT * len(workers) + AXIS_HEIGHT
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _draw_header(image, report)

    left, right = MARGIN + LABEL_WIDTH, width - MARGIN
    spans = [span for worker in workers for span in worker["spans"]]
    # What goes before the first evaluation, starting and loading, would leave no room for the rest.
    origin = min((span["start"] for span in spans), default=0.0)
    seconds = max([report["seconds"], *(span["end"] for span in spans)]) - origin or 1.0
    scale = (right - left) / seconds

    bottom = HEADER_HEIGHT + ROW_HEIGHT * len(workers)
    _draw_axis(draw, seconds, left, scale, bottom)

    several_lanes = len({e["lane"] for e in report["evaluations"]}) > 1
    hatch = _hatch(image.size)
    for row, worker in enumerate(workers):
        top = HEADER_HEIGHT + ROW_HEIGHT * row
        _draw_label(draw, worker, several_replicas=report["plan"]["replicas"] > 1, top=top)
        bar_top = top + (ROW_HEIGHT - BAR_HEIGHT) // 2
        for span in worker["spans"]:
            computes = span["start"] + span["wait"]
            begin, ready, finish = (
                left + round((clock - origin) * scale)
                for clock in (span["start"], computes, computes + span["compute"])
            )
            if ready > begin:
                box = (begin, bar_top, ready, bar_top + BAR_HEIGHT)
                image.paste(hatch.crop(box), box)
            # A pixel stays free, so that bars without a pause between them can be told apart.
            finish = max(finish - 1, ready + 1)
            colour = ASYNC if span["mode"] == "async" else SYNC
            image.paste(colour, (ready, bar_top, finish, bar_top + BAR_HEIGHT))
            number = str(span["index"]) + (_letter(span["lane"]) if several_lanes else "")
            _draw_number(draw, number, ready, finish, bar_top + BAR_HEIGHT / 2)
    return image


def _draw_header(image: Image.Image, report: Report) -> None:
    """The run in words, and the legend."""
    from PIL import Image, ImageDraw

    draw = ImageDraw.Draw(image)
    plan, schedule = report["plan"], report["schedule"]
    title = f"{report['model']}: {_count(plan['stages'], 'stage')}"
    if plan["replicas"] > 1:
        title += f" x {_count(plan['replicas'], 'replica')}"
    if plan["stride"] > 1:
        title += f", stride {plan['stride']}"
    title += f" on {', '.join(plan['devices'])}; warm-up {schedule['warm_up']}"
    title += ", predicted latents" if schedule["prediction"] else ""
    title += ", time shift" if schedule["time_shift"] else ""
    title += f", cool-down {schedule['cool_down']}" if schedule["cool_down"] else ""
    title += f", tolerance {schedule['tolerance']:g}" if schedule["tolerance"] else ""
    draw.text((MARGIN, 14), title, fill=TEXT, font=_font(TITLE_SIZE))

    draw.text((MARGIN, 40), "; ".join(_figures(report)), fill=FAINT_TEXT, font=_font(TEXT_SIZE))

    x, font = MARGIN, _font(TEXT_SIZE)
    for name, swatch in (
        ("computing, warm-up", Image.new("RGB", (12, 12), SYNC)),
        ("computing, asynchronous", Image.new("RGB", (12, 12), ASYNC)),
        ("waiting for a message", _hatch((12, 12))),
    ):
        image.paste(swatch, (x, 67))
        draw.text((x + 18, 65), name, fill=TEXT, font=font)
        x += 18 + round(draw.textlength(name, font=font)) + 24


def _figures(report: Report) -> Iterator[str]:
    """The run's speed in words."""
    yield f"{report['seconds']:.2f} s in all"
    if report["seconds_to_first_step"] is not None:
        state = "cold" if report["cold"] else "warm"
        yield f"first step after {report['seconds_to_first_step']:.2f} s ({state})"
    errors = [e["error"] for e in report["evaluations"] if e["mode"] == "async" and e["error"]]
    if errors:
        yield f"error at most {max(errors):.2%}"
    step = step_seconds_after_warm_up(report)
    busy = slowest_stage_busy_seconds(report)
    if step and busy:
        yield (
            f"{step:.3f} s per step after warm-up, of which the slowest stage computes "
            f"{busy:.3f} s ({busy / step:.0%})"
        )


def _draw_label(
    draw: ImageDraw.ImageDraw, worker: dict[str, Any], *, several_replicas: bool, top: int
) -> None:
    name = f"stage {worker['stage']} on {worker['device']}"
    if several_replicas:
        name = f"replica {worker['replica']}, {name}"
    num_units = sum(stop - start for start, stop in worker["units"])
    share = f"{num_units} of {_count(worker['num_units'], 'unit')}"
    holds = f"{share}, {worker['weight_bytes'] / 2**20:.0f} MiB"
    draw.text((MARGIN, top + 7), name, fill=TEXT, font=_font(TEXT_SIZE))
    draw.text((MARGIN, top + 24), holds, fill=FAINT_TEXT, font=_font(NUMBER_SIZE))


def _draw_axis(
    draw: ImageDraw.ImageDraw, seconds: float, left: int, scale: float, bottom: int
) -> None:
    font = _font(NUMBER_SIZE)
    interval = tick_interval(seconds)
    for tick in range(int(seconds / interval + 1e-9) + 1):
        x = left + tick * interval * scale
        draw.line((x, HEADER_HEIGHT, x, bottom + 4), fill=LINE)
        text = f"{tick * interval:g} s"
        draw.text((x, bottom + 7), text, fill=FAINT_TEXT, font=font, anchor="ma")
    draw.line((left, bottom, left + seconds * scale, bottom), fill=LINE)


def tick_interval(seconds: float, most: int = 12) -> float:
    """The smallest of .., 0.1, 0.2, 0.5, 1, 2, 5, .. that divides `seconds` into at most `most`."""
    power = 1e-6
    while True:
        for step in (1, 2, 5):
            if seconds / (step * power) <= most:
                return step * power
        power *= 10


def _draw_number(
    draw: ImageDraw.ImageDraw, number: str, begin: float, end: float, middle: float
) -> None:
    font = _font(NUMBER_SIZE)
    if draw.textlength(number, font=font) + 4 <= end - begin:
        draw.text(((begin + end) / 2, middle), number, fill=BACKGROUND, font=font, anchor="mm")


def _hatch(size: tuple[int, int]) -> Image.Image:
    """Light diagonal stripes; cut from one picture, they are continuous across all bars."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, WAIT)
    draw = ImageDraw.Draw(image)
    width, height = size
    for x in range(-height, width, 6):
        draw.line((x, height, x + height, 0), fill=WAIT_HATCH)
    return image


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _letter(lane: int) -> str:
    return chr(ord("a") + lane % 26)
