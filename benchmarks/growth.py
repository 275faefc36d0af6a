"""How time and memory grow with batch, picture, network, sources and devices.

  python -m benchmarks.growth --out=results     (about 15 minutes on 2 idle cores)
  python -m benchmarks.growth --quick           (a smoke test: two points an axis, tiny networks)

One thing changes at a time, the rest is a SISS step of BASE at a batch of 16, or one evaluation of
composed U-ViTs for 64 pictures. Seconds are the median of some steps on this machine; memory is
what XLA says that the largest program of a step holds, the state included; FLOPs are counted from
what JAX traces. Devices are virtual ones of this CPU, the state split over all of them (ZeRO-3):
memory and bytes sent are of one of them, as compiled, and no time is taken. An exponent p means
that a quantity grows as x^p: over the whole axis, and from its last point but one to the last.
Writes growth.{md,json} and growth.svg.
"""

import argparse
import dataclasses
import math
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import pages
from benchmarks.siss_step import environment

BASE = {
  "sample_size": 32,
  "in_channels": 3,
  "out_channels": 3,
  "block_out_channels": (32, 64, 64),
  "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
}
COMPOSED = {"sample_size": 28, "in_channels": 1, "patch_size": 4, "width": 64, "depth": 4}
TINY = {**BASE, "sample_size": 8, "block_out_channels": (8, 8, 8), "norm_num_groups": 4}
BATCH, PICTURES, STEPS = 16, 64, 5
COLUMNS, WIDE, HIGH = 3, 320, 250  # of the plots, in pixels
QUANTITIES = {
  "seconds": "seconds",
  "tflop": "TFLOP",
  "memory": "memory, MiB",
  "sent": "sent by a device, MiB",
}


@dataclasses.dataclass(frozen=True)
class Axis:
  """What changes: its values, and what each of them costs."""

  title: str
  values: tuple[int, ...]
  # (BASE or TINY, value) -> quantities; with "x", where that is not the value
  measure: Callable[[Mapping[str, Any], int], dict[str, float]]


def step_of(
  base: Mapping[str, Any], batch: int = BATCH, width: int = 1, devices: int = 1, size: int = 0
) -> dict[str, Any]:
  """The costs of a SISS step; of several devices no seconds."""
  import jax

  from configs import common
  from jaxunlearn import build, methods, models, step
  from jaxunlearn.compiled import topology
  from jaxunlearn.diffusion import Diffusion
  from jaxunlearn.mesh import sharding

  fields = {**base, "sample_size": size or base["sample_size"]}
  fields["block_out_channels"] = tuple(width * c for c in fields["block_out_channels"])
  config = common.get_config()
  config.train.update(batch=batch, micro_batches=1)
  setup = build.without_data(
    config=config,
    mesh=sharding.make_mesh(1, devices, jax.devices()[:devices]),
    process=Diffusion(),
    net=models.make("unet", **fields),
    method=methods.make("siss"),
  )
  image = jax.ShapeDtypeStruct((batch, *setup.net.image_shape), np.float32)
  shape = methods.Rows(image, None, jax.ShapeDtypeStruct((batch,), np.int32))
  split = sharding.batch_sharding(setup.mesh)
  shapes = sharding.shaped(setup.mesh, {"x": shape, "a": shape}, split)
  costs = dict(topology.step_costs(setup, shapes))
  out = {
    "memory": max(one.memory for one in costs.values()) / 2**20,
    "tflop": step.flops(setup, topology.state_of(setup), shapes) / 1e12,
    "parameters": sum(math.prod(s.shape) for s in jax.tree.leaves(_shapes(setup.net))),
  }
  if devices > 1:
    return {**out, "sent": sum(one.moved for one in costs.values()) / 2**20}
  rng = np.random.default_rng(0)
  draw = lambda s: rng.standard_normal(s.shape).astype(np.float32) / 10
  state = build.make_state(setup, jax.tree.map(draw, _shapes(setup.net)))
  rows = methods.Rows(draw(image), None, np.arange(batch, dtype=np.int32))
  update, given = step.make_update(setup, state), sharding.put({"x": rows, "a": rows}, split)

  def take() -> None:
    nonlocal state
    state = jax.block_until_ready(update(state, given)[0])

  return {**out, "seconds": median(take)}


def _shapes(net: Any) -> Any:
  import jax

  return jax.eval_shape(net.init, jax.random.key(0))


def evaluation_of(base: Mapping[str, Any], sources: int, k: int = 0) -> dict[str, float]:
  """The costs of one evaluation of composed sources: soft weights, or the k best of each row."""
  import jax.numpy as jnp

  from benchmarks import cdm_sampling
  from jaxunlearn import adapters, models
  from jaxunlearn.cdm.compose import Mode

  rng, net = np.random.default_rng(0), models.make("uvit", **COMPOSED)
  backbone = cdm_sampling.random_params(_shapes(net), rng)
  mode = Mode("topk", k=k, block=cdm_sampling.BLOCK) if k else Mode("soft", over="scan")
  eps_fn = cdm_sampling.composed(net, backbone, adapters.Full(), mode, sources, rng)
  x = jnp.asarray(rng.normal(0, 1, (PICTURES, *net.image_shape)), jnp.float32)
  t = jnp.asarray(rng.integers(0, 300, PICTURES), jnp.int32)
  one = cdm_sampling.compiled("", sources, eps_fn, x, t)
  return {"seconds": median(one.call), "memory": (one.arguments + one.temporaries) / 2**20}


def median(call: Callable[[], Any]) -> float:
  """Seconds of a call, of some after the first."""
  call()
  spent = []
  for _ in range(STEPS):
    start = time.perf_counter()
    call()
    spent.append(time.perf_counter() - start)
  return statistics.median(spent)


def wider(base: Mapping[str, Any], width: int) -> dict[str, float]:
  """The costs of a step of a network with so many times the channels, by its parameters."""
  found = step_of(base, width=width)
  return {**found, "x": found["parameters"]}


_best = lambda base, n: evaluation_of(base, n, k=1)
AXES = {
  "batch": Axis("batch, pictures", (4, 8, 16, 32, 64), lambda b, n: step_of(b, n)),
  "picture": Axis("side, pixels", (16, 32, 64, 128), lambda b, n: step_of(b, 4, size=n)),
  "network": Axis("parameters", (1, 2, 3, 4), wider),
  "soft": Axis("sources, composed softly", (1, 2, 4, 8, 16), evaluation_of),
  "top-1": Axis("sources, the best of each row", (1, 2, 4, 8, 16), _best),
  "devices": Axis("devices of one state", (1, 2, 4, 8), lambda b, n: step_of(b, 64, devices=n)),
}


def exponents(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
  """The slopes of log y over log x: least squares over all points, and over the last two."""
  log_x, log_y = np.log(x), np.log(y)
  last = (log_y[-1] - log_y[-2]) / (log_x[-1] - log_x[-2])
  return float(np.polyfit(log_x, log_y, 1)[0]), float(last)


def summary(title: str, points: Sequence[Mapping[str, float]]) -> dict[str, Any]:
  """An axis: its points, and the exponents of each quantity that all of them have."""
  x = [one["x"] for one in points]
  found = {}
  for name in QUANTITIES:
    there = [(a, one[name]) for a, one in zip(x, points, strict=True) if one.get(name)]
    if len(there) > 1:
      found[name] = exponents(*zip(*there, strict=True))
  return {"title": title, "points": list(points), "exponents": found}


def markdown(axes: Mapping[str, Mapping[str, Any]], command: str, where: Mapping[str, Any]) -> str:
  """The page: a table of exponents, and one of points an axis."""
  head = pages.made(command, where)
  lines = ["# How time and memory grow", "", head, "", "![Growth](growth.svg)", ""]
  lines += ["| grows with | quantity | exponent | at the end |", "|---|---|---|---|"]
  for axis in axes.values():
    for name, (whole, end) in axis["exponents"].items():
      lines.append(f"| {axis['title']} | {QUANTITIES[name]} | {whole:.2f} | {end:.2f} |")
  for axis in axes.values():
    there = [name for name in QUANTITIES if name in axis["exponents"]]
    lines += ["", f"| {axis['title']} | {' | '.join(QUANTITIES[name] for name in there)} |"]
    lines.append("|---" * (len(there) + 1) + "|")
    for one in axis["points"]:
      cells = [f"{one[name]:.3g}" if name in one else "-" for name in there]
      lines.append(f"| {one['x']:,} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def svg(axes: Mapping[str, Mapping[str, Any]]) -> str:
  """A panel an axis, both scales logarithmic; every quantity over its first value."""
  width, height = COLUMNS * WIDE, -(-len(axes) // COLUMNS) * HIGH
  style = "text{font:11px sans-serif}.tick{text-anchor:middle}path{fill:none;stroke-width:2}"
  style += ".frame{stroke:#999;stroke-width:1}"
  size = f'width="{width}" height="{height}"'
  parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>']
  for i, axis in enumerate(axes.values()):
    parts += panel(axis, i % COLUMNS * WIDE + 40, i // COLUMNS * HIGH + 24)
  return "\n".join([*parts, "</svg>\n"])


def panel(axis: Mapping[str, Any], left: int, top: int) -> list[str]:
  """The elements of an axis's plot, whose frame begins there."""
  from jaxunlearn.reports import charts

  right, bottom = left + WIDE - 70, top + HIGH - 110
  x = np.log([one["x"] for one in axis["points"]])
  grown = {}
  for name in axis["exponents"]:
    y = np.array([one.get(name, np.nan) for one in axis["points"]], float)
    grown[name] = np.log(y / y[np.isfinite(y)][0])
  values = np.concatenate([np.zeros(1), *grown.values()])
  to_x = charts.scale(x[0], x[-1], left, right)
  to_y = charts.scale(*charts.span(values[np.isfinite(values)]), bottom, top)
  out = [
    f'<path class="frame" d="M{left} {top} V{bottom} H{right}"/>',
    f'<text x="{left}" y="{top - 8}">{axis["title"]}</text>',
  ]
  for one, at in zip(axis["points"], to_x(x), strict=True):
    out.append(f'<text class="tick" x="{at:.0f}" y="{bottom + 14}">{_short(one["x"])}</text>')
  for i, (name, y) in enumerate(grown.items()):
    colour, there = charts.COLOURS[list(QUANTITIES).index(name)], np.isfinite(y)
    points = zip(to_x(x[there]).round(1).tolist(), to_y(y[there]).round(1).tolist(), strict=True)
    out.append(f'<path stroke="{colour}" d="{charts.path(points)}"/>')
    told = f"{QUANTITIES[name]}: x^{axis['exponents'][name][0]:.2f}"
    out.append(f'<text x="{left}" y="{bottom + 32 + 13 * i}" fill="{colour}">{told}</text>')
  return out


def _short(count: float) -> str:
  """As it stands, or in millions."""
  return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count:,}"


def measured(axis: Axis, quick: bool) -> list[dict[str, float]]:
  """Its points, told as they come."""
  points = []
  for value in axis.values[:2] if quick else axis.values:
    points.append({"x": value, **axis.measure(TINY if quick else BASE, value)})
    print(f"{axis.title} {value}: {points[-1]}", file=sys.stderr, flush=True)
  return points


def main() -> None:
  described = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=described)
  parser.add_argument("--out", type=pathlib.Path, help="the folder of the results; else printed")
  parser.add_argument("--quick", action="store_true", help="two points an axis, tiny networks")
  parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="some of them")
  args = parser.parse_args()
  os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8")
  wanted = {name: axis for name, axis in AXES.items() if name in args.axes}
  axes = {name: summary(axis.title, measured(axis, args.quick)) for name, axis in wanted.items()}
  command, where = "python -m benchmarks.growth --out=results", environment()
  page = markdown(axes, command, where)
  pages.write(args.out, "growth", {"command": command, "machine": where, "axes": axes}, page)
  if args.out:
    (args.out / "growth.svg").write_text(svg(axes))
  print(page)


if __name__ == "__main__":
  main()
