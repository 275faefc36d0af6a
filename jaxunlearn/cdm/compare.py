r"""Which attribution ranks the sources as dropping each of them does: tables against the oracle.

    oracle    log p(x) - log p_{-i}(x): the likelihood with the source i and without it, along the
              probability-flow ODE. Only compartments have it at no training
    credit    C_i of equation (6): attribution.py
    weight    the trajectory mean of w_i
    elbo      ELBO(x) - ELBO_{-i}(x) of the same two compositions: GUDA (arXiv 2601.22651) whose
              unlearning is exact
    guda      the same of one model and of one that unlearned the group i, where there are such runs

With u = log(sigma_t / gamma_t) the bound of a noise predictor is, up to a constant of x alone,

    ELBO(x) = -int E ||eps - eps_theta(x_t, t)||^2 du

estimated at whole times spread evenly over u, with the same times and noise for both models.
"""

import csv
import dataclasses
import functools
import io
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Shaped
from tqdm import tqdm

from jaxunlearn.cdm import attribution
from jaxunlearn.diffusion import Diffusion, EpsFn, flow
from jaxunlearn.evals import nll, statistics
from jaxunlearn.reports import charts, writer

ORACLE = "oracle"
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a way to attribute says of each image and source."""

  values: Float[np.ndarray, "B n"]
  seconds: float  # of all images, compilation included


@functools.partial(jax.jit, static_argnames=("process", "draws"))
def elbo_gap(
  eps_fn: EpsFn,
  other: EpsFn,
  process: Diffusion,
  x: Float[Array | np.ndarray, "B H W C"],
  rng: Shaped[Array, "..."],
  draws: int = 64,
) -> Float[Array, " B"]:
  """ELBO(x) of eps_fn less that of the other, in nats; `draws` times and noises of each image."""
  x, table = jnp.asarray(x), process.log_noise_to_signal()
  span = table[-1] - table[0]
  time_of = lambda u: jnp.interp(u, jnp.asarray(table), jnp.arange(process.T))

  def one(k: Array) -> Array:
    k_u, k_eps = jax.random.split(jax.random.fold_in(rng, k))
    share = (k + jax.random.uniform(k_u, (len(x),))) / draws
    t = jnp.round(time_of(table[0] + share * span)).astype(int)
    eps = jax.random.normal(k_eps, x.shape)
    x_t = process.q_sample(x, t, eps)
    error = lambda fn: jnp.sum((eps - fn(x_t, t)) ** 2, axis=(1, 2, 3))
    return error(other) - error(eps_fn)

  return span * jnp.mean(jax.lax.map(one, jnp.arange(draws)), axis=0)


def likelihood(
  eps_fn: EpsFn,
  process: Diffusion,
  x: Float[Array | np.ndarray, "B H W C"],
  v: Float[Array, "P B H W C"],
  tolerance: float = 1e-3,
) -> Float[np.ndarray, " B"]:
  """log p(x) in nats along the flow; nan where it overflows."""
  solve = functools.partial(nll.log_density, eps_fn, process, x, v)
  log_p, solver = flow.attempt(solve, tolerance)
  d = x[0].size
  return np.full(len(x), np.nan) if solver == flow.OVERFLOW else d * np.asarray(log_p).mean(1)


def oracle(
  whole: EpsFn, without: Sequence[EpsFn], process: Diffusion, x: Any, v: Any, tolerance: float
) -> Float[np.ndarray, "B n"]:
  """log p(x) - log p_{-i}(x) of each source, under the same probes."""
  models = tqdm([whole, *without], desc="likelihoods")
  full, *others = [likelihood(fn, process, x, v, tolerance) for fn in models]
  return np.stack([full - other for other in others], axis=1)


def gaps(
  whole: EpsFn, without: Sequence[EpsFn], process: Diffusion, x: Any, rng: Any, draws: int
) -> Float[np.ndarray, "B n"]:
  """ELBO(x) - ELBO_{-i}(x) of each source."""
  gap = lambda fn: np.asarray(elbo_gap(whole, fn, process, x, rng, draws))
  return np.stack([gap(fn) for fn in tqdm(without, desc="bounds")], axis=1)


def timed(score: Callable[[], Any]) -> Scores:
  start = time.perf_counter()
  values = np.asarray(score(), np.float64)
  return Scores(values, time.perf_counter() - start)


def of_attribution(found: attribution.Attribution, seconds: float) -> dict[str, Scores]:
  """Credits and trajectory weights, which one flow gives."""
  both = {"credit": found.parts, "weight": found.weights}
  return {name: Scores(np.asarray(value, np.float64), seconds) for name, value in both.items()}


def spearman(a: Float[np.ndarray, "B n"], b: Float[np.ndarray, "B n"]) -> Float[np.ndarray, " B"]:
  """Spearman's correlation over the sources, for each image; nan where one side is constant."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
    return np.array([scipy.stats.spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


def ranked(scores: Mapping[str, Scores], seed: int = 0) -> list[dict[str, Any]]:
  """A row for each way: its mean Spearman with the oracle, how often both name one source first."""
  want, rows = scores[ORACLE].values, []
  for name, score in scores.items():
    each = spearman(score.values, want)
    there = each[np.isfinite(each)]
    rng = np.random.default_rng(seed)
    mean = lambda sample: float(sample.mean())
    interval = statistics.bootstrap(mean, there, rng, RESAMPLES) if len(there) else None
    rows.append(
      {
        "name": name,
        "spearman": mean(there) if len(there) else float("nan"),
        "ci95": interval,
        "first": float(np.mean(score.values.argmax(1) == want.argmax(1))),
        "images": len(there),
        "seconds": score.seconds,
      }
    )
  return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
  lines = [
    "| | Spearman with dropping the source | names the same source first | images | seconds |",
    "| --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    half = f" ± {(row['ci95'][1] - row['ci95'][0]) / 2:.2f}" if row["ci95"] else ""
    lines.append(
      f"| {row['name']} | {row['spearman']:.2f}{half} | {row['first']:.0%} | {row['images']} | "
      f"{row['seconds']:.1f} |"
    )
  return "\n".join(lines) + "\n"


def write(
  out: pathlib.Path, names: Sequence[str], ids: Sequence[str], scores: Mapping[str, Scores]
) -> str:
  """OUT.csv with a line for each image and source, OUT.md, OUT.svg; returns the table."""
  text = io.StringIO()
  lines = csv.writer(text, lineterminator="\n")
  lines.writerow(("id", "source", *scores))
  for i, image in enumerate(ids):
    for j, name in enumerate(names):
      lines.writerow((image, name, *(f"{s.values[i, j]:.9g}" for s in scores.values())))
  rows = ranked(scores)
  others = [row for row in rows if row["name"] != ORACLE]
  halves = [(r["ci95"][1] - r["ci95"][0]) / 2 if r["ci95"] else np.nan for r in others]
  values = np.array([row["spearman"] for row in others])
  title = "Spearman with dropping the source"
  svg = charts.bars(title, [r["name"] for r in others], {title: values}, {title: np.array(halves)})
  out.parent.mkdir(parents=True, exist_ok=True)
  for suffix, content in ((".csv", text.getvalue()), (".md", markdown(rows)), (".svg", svg)):
    writer.replace(out.with_suffix(suffix), content)
  return markdown(rows)
