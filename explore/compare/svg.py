"""Small plots as SVG: ticks at round numbers, lines and dots. All text is escaped. Colors are CSS values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LETTER = 7.2  # width in pixels of a letter of a label, rather too large than too small
MARGIN = {"left": 56.0, "right": 12.0, "top": 10.0, "bottom": 40.0}


@dataclass(frozen=True)
class Scale:
    """Map from values to pixels: `low` to `start` and `high` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.transform(self.low), self.transform(self.high)
        share = (self.transform(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def transform(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, n: int) -> list[float]:
        """Return about `n` round values inside the range."""
        if not self.log:
            return round_values(self.low, self.high, n)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            inside = [tick for tick in ticks if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(inside) >= 3:
                return inside
        return inside or [self.low, self.high]


def round_values(low: float, high: float, n: int) -> list[float]:
    """Return up to `n` + 1 evenly spaced values whose step is 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / n))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= n)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def widened(values: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """Return the range of the finite values, with a margin of `share` of it at both ends."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def tick_label(value: float) -> str:
    """Return the label of a tick, such as 0.003, 12.5, 20k, 3M or 1e-05."""
    size, sign = abs(value), "−" if value < 0 else ""
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < 1e18 and (unit > 1e3 or size >= 1e4):
            return f"{sign}{size / unit:.4g}{letter}"
    return sign + (f"{size:.4g}" if size >= 1e-4 or value == 0 else f"{size:.0e}".replace("e-0", "e-"))


class Plot:
    """A frame with axes. Methods add marks to it, at coordinates that are values; the frame clips them."""

    def __init__(
        self,
        size: tuple[float, float],
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        labels: tuple[str, str] = ("", ""),
        log_x: bool = False,
        x_ticks: dict[float, str] | None = None,
        left: float | None = None,
        y_ticks: dict[float, str] | None = None,
    ) -> None:
        self.width, self.height = size
        self.left = MARGIN["left"] if left is None else left
        self.right = self.width - MARGIN["right"]
        self.bottom = self.height - (MARGIN["bottom"] if labels[0] else MARGIN["bottom"] / 2)
        self.x = Scale(*x, self.left, self.right, log_x)
        self.y = Scale(*y, self.bottom, MARGIN["top"])
        self.labels = labels
        n_across = max(2, int((self.right - self.left) / 70))
        self.x_ticks = x_ticks or {tick: tick_label(tick) for tick in self.x.ticks(n_across)}
        self.y_ticks = y_ticks or {tick: tick_label(tick) for tick in self.y.ticks(5)}
        self.marks: list[str] = []

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        # The clip of y keeps the numbers in the SVG short.
        return " ".join(f"{self.x(x):.1f},{min(9999.0, max(-9999.0, self.y(y))):.1f}" for x, y in pairs)

    def line(self, xs: Sequence[float], ys: Sequence[float], color: str, kind: str = "line") -> None:
        points = self.points(xs, ys)
        if " " in points:
            self.marks.append(f'<polyline class="{kind}" style="color:{color}" points="{points}"></polyline>')
        elif points:
            x, y = points.split(",")
            self.marks.append(
                f'<circle class="dot" style="color:{color}" cx="{x}" cy="{y}" r="2.5"></circle>'
            )

    def dots(
        self, xs: Sequence[float], ys: Sequence[float], color: str, r: float = 2.0, kind: str = "dot"
    ) -> None:
        circles = (point.split(",") for point in self.points(xs, ys).split())
        shapes = "".join(f'<circle cx="{x}" cy="{y}" r="{r}"/>' for x, y in circles)
        self.marks.append(f'<g class="{kind}" style="color:{color}">{shapes}</g>')

    def rule(self, x: float) -> None:
        self.marks.append(
            f'<line class="rule" x1="{self.x(x):.1f}" x2="{self.x(x):.1f}" y1="{MARGIN["top"]}" y2="{self.bottom}"/>'
        )

    def svg(self, about: str) -> str:
        """Return the SVG. `about` is the description for screen readers."""
        top, left, right, bottom = MARGIN["top"], self.left, self.right, self.bottom
        x, y, width, height = left - 4, top - 4, right - left + 8, bottom - top + 8
        # An inner svg clips the marks. A clipPath would need an id that is unique in a document with several plots.
        frame = f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{x} {y} {width} {height}">'
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}" '
            f'role="img" aria-label="{escape(about)}">{self.axes()}'
            f"{frame}{''.join(self.marks)}</svg></svg>"
        )

    def axes(self) -> str:
        parts = []
        for value, label in self.y_ticks.items():
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{self.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{escape(label)}</text>'
            )
        parts += self.labels_below()
        x_label, y_label = map(escape, self.labels)
        middle = (self.left + self.right) / 2
        parts.append(
            f'<line class="axis" x1="{self.left}" x2="{self.right}" y1="{self.bottom}" y2="{self.bottom}"/>'
        )
        parts.append(
            f'<text class="label" x="{middle:.0f}" y="{self.height - 5:g}" text-anchor="middle">{x_label}</text>'
        )
        at = f'transform="rotate(-90)" x="{-(self.bottom + MARGIN["top"]) / 2:.0f}" y="13"'
        parts.append(f'<text class="label" {at} text-anchor="middle">{y_label}</text>')
        return "".join(parts)

    def labels_below(self) -> list[str]:
        """Return the labels of the x axis, each shortened to the available width."""
        room = (self.right - self.left) / max(1, len(self.x_ticks))
        parts = []
        for value, label in self.x_ticks.items():
            text = short_label(label, max(3, int(room / LETTER)))
            parts.append(
                f'<text class="tick" x="{self.x(value):.1f}" y="{self.bottom + 15:g}" text-anchor="middle">'
                f"{escape(text)}<title>{escape(label)}</title></text>"
            )
        return parts


def short_label(text: str, max_chars: int) -> str:
    """Return `text`, cut to `max_chars` characters with an ellipsis at the end if it is longer."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
