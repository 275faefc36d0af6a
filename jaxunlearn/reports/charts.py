"""Curves over steps, laid out for SVG: what the pages of templates/ draw; and bars."""

import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

Ticks = tuple[tuple[float, str], ...]  # (place, label)
COLOURS = ("#b4581c", "#14708a", "#6b3fa0", "#3b7a2a", "#a0286b", "#555b66")  # .p0 .. of style.css


@dataclasses.dataclass(frozen=True)
class Chart:
  """One curve, in the units of its SVG."""

  width: ClassVar[int] = 280
  height: ClassVar[int] = 150
  left: ClassVar[int] = 46  # the frame within it
  right: ClassVar[int] = 270
  top: ClassVar[int] = 10
  bottom: ClassVar[int] = 128

  name: str
  last: str
  log: bool
  path: str  # the finite values, joined
  dots: tuple[tuple[float, float], ...]  # on the path, where values are few
  bad: str  # marks at NaN and infinity
  bad_steps: tuple[int, ...]  # where those are
  x_ticks: Ticks
  y_ticks: Ticks


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """name -> [N, 2] steps and values: losses first, then norms, the others, the probes."""
  names = {name for line in metrics for name in line if name != "step"}
  order = lambda n: (n.startswith("probe_"), "loss" not in n, "norm" not in n, n)
  return {
    name: np.array([(line["step"], float(line[name])) for line in metrics if name in line])
    for name in sorted(names, key=order)
  }


def chart(name: str, points: np.ndarray) -> Chart:
  """The chart of [N, 2] steps and values; log where positive values span over two decades."""
  finite = np.isfinite(points[:, 1])
  step, value = thin(points[finite]).T
  log = bool(len(value) and value.min() > 0 and value.max() > 100 * value.min())
  height = np.log10(value) if log else value
  x_low, x_high = min(0.0, points[0, 0]), max(points[-1, 0], 1.0)
  y_low, y_high = span(height)
  x = scale(x_low, x_high, Chart.left, Chart.right)
  y = scale(y_low, y_high, Chart.bottom, Chart.top)
  joined = tuple(zip(x(step).round(1).tolist(), y(height).round(1).tolist(), strict=True))
  bad = points[~finite, 0]
  return Chart(
    name=name,
    last=number(points[-1, 1]),
    log=log,
    path=path(joined),
    dots=joined if len(joined) <= 30 else (),
    bad=" ".join(f"M{a:g} {Chart.top} V{Chart.bottom}" for a in np.unique(x(bad).round())),
    bad_steps=tuple(bad.astype(int).tolist()),
    x_ticks=tuple((round(x(t), 1), f"{t:g}") for t in ticks(x_low, x_high)),
    y_ticks=tuple(
      (round(y(t), 1), number(10**t if log else t)) for t in ticks(y_low, y_high, whole=log)
    ),
  )


def scale(low: float, high: float, first: int, last: int) -> Callable[[Any], Any]:
  """The line that takes low to `first` and high to `last`."""
  return lambda value: first + (last - first) * (value - low) / (high - low)


def path(points: Iterable[tuple[float, float]]) -> str:
  """The `d` of an SVG path that joins the points; "" of none."""
  joined = " L".join(f"{x} {y}" for x, y in points)
  return f"M{joined}" if joined else ""


def number(value: float | int | str) -> str:
  """Four digits, or 12,345; `value` may be one of the strings nan, inf and -inf."""
  value = float(value)
  return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def span(values: np.ndarray) -> tuple[float, float]:
  """The lowest and the highest, set apart where they are equal; 0 and 1 of no values."""
  if not len(values):
    return 0.0, 1.0
  low, high = float(values.min()), float(values.max())
  if high - low > 1e-9 * max(abs(low), abs(high)):
    return low, high
  return (low - 0.1 * abs(low), high + 0.1 * abs(high)) if low else (0.0, 0.1)


def thin(points: np.ndarray, limit: int = 400) -> np.ndarray:
  """At most `limit` of the [N, 2] points: the lowest and the highest of each run of steps."""
  if len(points) <= limit:
    return points
  keep: set[int] = set()
  for part in np.array_split(np.arange(len(points)), limit // 2):
    keep |= {int(part[points[part, 1].argmin()]), int(part[points[part, 1].argmax()])}
  return points[sorted(keep)]


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
  """Two to `most` + 1 round numbers within [low, high]: multiples of 1, 2 or 5 times 10^k."""
  power = 10.0 ** math.floor(math.log10((high - low) / most))
  step = next(m * power for m in (1, 2, 5, 10) if high - low <= most * m * power * (1 + 1e-9))
  if whole:
    step = max(1, round(step))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def bars(
  title: str,
  names: Sequence[str],
  series: Mapping[str, np.ndarray],
  errors: Mapping[str, np.ndarray] | None = None,
) -> str:
  """A whole SVG: below each name a bar of each series, from 0, and its value at the right.

  A line over a bar of a series in `errors` reaches from the value less its error to the value and
  its error. The axis holds 0..1 and every value; one that is not finite has no bar. In a page that
  has style.css its colours are the page's.
  """
  none = np.full(len(names), np.nan)
  spread = np.stack([(errors or {}).get(key, none) for key in series], axis=1).astype(float)
  values = np.stack(list(series.values()), axis=1).astype(float)  # [names, series]
  finite = values[np.isfinite(values)]
  x = scale(min([0.0, *finite]), max([1.0, *finite]), 0, Chart.width - 45)
  top, height = 34, 19 + 11 * len(series)
  bottom = top + height * len(names)
  column = lambda i: i * Chart.width / len(series)
  out = [_text(0, 11, title)]
  out += [_bar(i, column(i), 19, 9) for i in range(len(series))]
  out += [_text(column(i) + 14, 27, key) for i, key in enumerate(series)]
  said = []
  for i, (name, row, error) in enumerate(zip(names, values.tolist(), spread.tolist(), strict=True)):
    out.append(_group(name, row, error, x, top + i * height))
    within = [f" ± {number(e)}" if math.isfinite(e) else "" for e in error]
    shown = (f"{key} {number(v)}{e}" for key, v, e in zip(series, row, within, strict=True))
    said.append(f"{name}: {', '.join(shown)}")
  label = f"{title}. {'; '.join(said)}"
  out.append(f'<path class="axis" stroke="#5c6068" d="M{x(0):.1f} {top} V{bottom}"/>')
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {Chart.width} {bottom}" role="img"'
    f' font-family="system-ui, sans-serif" font-size="10.5"'
    f' aria-label="{html.escape(label)}">{"".join(out)}</svg>'
  )


def _group(
  name: str,
  values: Sequence[float],
  errors: Sequence[float],
  x: Callable[[Any], Any],
  top: float | int,
) -> str:
  out = [_text(0, top + 11, name)]
  for i, (value, error) in enumerate(zip(values, errors, strict=True)):
    y = top + 15 + 11 * i
    if math.isfinite(value):
      out.append(_bar(i, min(x(0), x(value)), y, abs(x(value) - x(0))))
    if math.isfinite(error):
      first, last = (min(max(x(value + side * error), 0), Chart.width) for side in (-1, 1))
      line = f"M{first:.1f} {y + 4.5} H{last:.1f}"
      out.append(f'<path class="axis" stroke="#5c6068" stroke-width="2" d="{line}"/>')
    out.append(_text(Chart.width, y + 8.5, number(value), "end"))
  return "".join(out)


def _bar(series: int, x: float | int, y: float | int, width: float | int) -> str:
  i = series % len(COLOURS)
  shape = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="9" rx="2"'
  return f'<g class="p{i}"><rect class="bar" fill="{COLOURS[i]}" {shape}/></g>'


def _text(x: float | int, y: float | int, text: str, anchor: str = "start") -> str:
  place = f'x="{x:g}" y="{y}" text-anchor="{anchor}"'
  return f'<text fill="#5c6068" {place}>{html.escape(text)}</text>'
