r"""The naive average as copy protection, where every density is known: what it certifies, measured.

  python -m benchmarks.copy_protection --out=results     (two minutes)

The geometric mean p = prod_i q_i^(1/n) / Z of n models bears each source's mark no more than the
others allow: of the divergences from its sources (Vyas et al., 2023, near access-freeness)

    (1/n) sum_i KL(p || q_i) = -log Z,   Z = int prod_i q_i^(1/n)

A sampler of the averaged noise predictions follows the noised geometric mean at no level but the
last, so that it certifies nothing: here its samples are counted in bins. Sources are Gaussians on a
line, of deviation 1 and a distance apart; one of them has besides a memorised point, a narrow peak
with a tenth of its mass. `held` is how much of that peak is left: the share of samples that come to
lie in it because of the point, over the same in its own source. The same models without the point,
from the same noise, say what lies there anyhow.
"""

import argparse
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks import pages
from jaxunlearn.cdm import compose
from jaxunlearn.cdm.compose import Compartments, Mode
from jaxunlearn.diffusion import Diffusion, sampling

PROCESS = Diffusion()
OPTIONS = sampling.Options(clip_sample=False)
SAMPLES, STEPS, SCALE = 20_000, 250, 0.25  # a unit of the line in the units of the process
PEAK, PEAK_STD, PEAK_SHARE = 1.5, 0.1, 0.1
MODES = {"naive": Mode("naive"), "soft": Mode("soft"), "top-1": Mode("topk", k=1, block=64)}


class Sources(NamedTuple):
  """Of each source two Gaussians: [n, 2] means, deviations and shares; units of the line."""

  mean: np.ndarray
  std: np.ndarray
  share: np.ndarray


def sources(n: int, apart: float, peak: float = PEAK_SHARE) -> Sources:
  centre = apart * (np.arange(n) - (n - 1) / 2)
  mean = np.stack([centre, centre + PEAK], axis=1)
  std = np.tile([1.0, PEAK_STD], (n, 1))
  share = np.tile([1.0, 0.0], (n, 1))
  share[0] = 1 - peak, peak
  return Sources(mean, std, share)


def density(s: Sources, x: np.ndarray) -> np.ndarray:
  """[n, G]"""
  of = stats.norm.pdf(x[None, None], s.mean[..., None], s.std[..., None])
  return np.einsum("nk,nkg->ng", s.share, of)


def geometric(q: np.ndarray, dx: float) -> tuple[np.ndarray, float]:
  """p on the grid, and -log Z."""
  p = np.exp(np.log(np.maximum(q, 1e-300)).mean(axis=0))
  z = p.sum() * dx
  return p / z, -float(np.log(z))


def divergences(p: np.ndarray, q: np.ndarray, dx: float) -> np.ndarray:
  """KL(p || q_i), [n], in nats."""
  there = p > 0
  return np.sum(p[there] * np.log(p[there] / np.maximum(q[:, there], 1e-300)), axis=1) * dx


def eps_of(params: Any, x_t: jax.Array, t: jax.Array, c: Any = None) -> jax.Array:
  """The exact noise of one source: params are its rows of `Sources`, in the process' units."""
  del c
  gamma, sigma = PROCESS.gamma(t), PROCESS.sigma(t)
  v = (gamma * params["std"]) ** 2 + sigma**2
  apart = x_t - gamma * params["mean"]
  w = jax.nn.softmax(jnp.log(params["share"]) - apart**2 / (2 * v) - jnp.log(v) / 2, axis=-1)
  return sigma * jnp.sum(w * apart / v, axis=-1, keepdims=True)


class Exact(NamedTuple):
  """The router that knows the densities."""

  @staticmethod
  def logits(parts: Any, process: Diffusion, x_t: jax.Array, t: jax.Array) -> jax.Array:
    gamma, sigma = process.gamma(t)[..., 0], process.sigma(t)[..., 0]  # [B, 1, 1]
    v = (gamma * parts["std"]) ** 2 + sigma**2  # [B, n, 2]
    apart = x_t[..., 0] - gamma * parts["mean"]
    log_n = -(apart**2) / (2 * v) - jnp.log(v) / 2
    return jax.nn.logsumexp(jnp.log(parts["share"]) + log_n, axis=-1)


def drawn(s: Sources, mode: Mode, samples: int, steps: int) -> np.ndarray:
  """Samples of a composition, in units of the line."""
  scale = {"mean": SCALE, "std": SCALE, "share": 1.0}
  params = {k: jnp.asarray(scale[k] * v, jnp.float32) for k, v in s._asdict().items()}
  n = len(s.mean)
  model = Compartments(tuple(map(str, range(n))), (1,) * n, params, params)
  eps_fn = compose.compose(jax.tree_util.Partial(eps_of), model, Exact(), PROCESS, mode)
  x = jax.random.normal(jax.random.key(0), (samples, 1, 1, 1))
  made = sampling.sample(
    eps_fn, PROCESS, jax.random.key(1), x, sampler="ddim", steps=steps, options=OPTIONS
  )
  return np.asarray(made).ravel() / SCALE


def within_peak(x: np.ndarray, s: Sources) -> np.ndarray:
  return np.abs(x - s.mean[0, 1]) < 2 * PEAK_STD


def held(gained: float, s: Sources) -> float:
  """The share there that the memorised point brings, over what it brings in its own source."""
  edges = s.mean[0, 1] + 2 * PEAK_STD * np.array([-1, 1]) - s.mean[0, 0]
  around, peak = np.diff(stats.norm.cdf(edges)), np.diff(stats.norm.cdf([-2, 2]))
  return gained / float(PEAK_SHARE * (peak - around)[0])


def rows(n: int, apart: float, samples: int, steps: int) -> list[dict[str, Any]]:
  s, unmarked = sources(n, apart), sources(n, apart, peak=0.0)
  edges = np.linspace(s.mean.min() - 6, s.mean.max() + 6, 401)
  x, dx = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
  q = density(s, x)
  p, bound = geometric(q, dx)
  inside = within_peak(x, s)
  gained = (p - geometric(density(unmarked, x), dx)[0])[inside].sum() * dx
  out = [row(n, apart, "geometric mean", bound, divergences(p, q, dx), held(gained, s))]
  for name, mode in MODES.items():
    made, twin = (drawn(one, mode, samples, steps) for one in (s, unmarked))
    counted = np.histogram(made, edges)[0] / len(made) / dx
    gained = float(within_peak(made, s).mean() - within_peak(twin, s).mean())
    out.append(row(n, apart, name, bound, divergences(counted, q, dx), held(gained, s)))
  return out


def row(
  n: int, apart: float, name: str, bound: float, kl: np.ndarray, left: float
) -> dict[str, Any]:
  return {
    "sources": n,
    "apart": apart,
    "name": name,
    "bound": bound,
    "mean_kl": float(kl.mean()),
    "largest_kl": float(kl.max()),
    "held": left,
  }


def markdown(table: list[dict[str, Any]]) -> str:
  lines = [
    "| sources | apart | | -log Z | mean KL from the sources | largest | of the peak is left |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for r in table:
    numbers = (f"{r[key]:.2f}" for key in ("bound", "mean_kl", "largest_kl", "held"))
    lines.append(f"| {r['sources']} | {r['apart']:g} | {r['name']} | {' | '.join(numbers)} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--out", type=pathlib.Path, help="the folder of the results; else printed")
  parser.add_argument("--quick", action="store_true", help="few samples and steps")
  args = parser.parse_args()
  samples, steps = (500, 10) if args.quick else (SAMPLES, STEPS)
  cases = ((2, 1.0),) if args.quick else ((2, 0.0), (2, 1.0), (2, 2.0), (4, 1.0))
  table = [one for n, apart in cases for one in rows(n, apart, samples, steps)]
  print(markdown(table))
  content = {"samples": samples, "steps": steps, "rows": table}
  pages.write(args.out, "cdm_copy_protection", content, markdown(table))


if __name__ == "__main__":
  main()
