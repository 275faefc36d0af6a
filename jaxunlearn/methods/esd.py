"""ESD, erased stable diffusion (Gandikota et al., ICCV 2023).

    target = eps_0(a_t, null) - eta [eps_0(a_t, c_u) - eps_0(a_t, null)]      of the frozen model
    L = E ||target - eps_theta(a_t, t, c_u)||^2

a_t is, with `partial` > 0, one of so many samples of the frozen model under c_u, guided by
`partial_guidance` and stopped before one of `partial_steps` DDIM steps, each as likely; they are
made once. With `partial` 0, the cheap form, it is a noised image to forget.

What may move is config.trained.pattern on text-to-image models (attn2 for ESD-x, attn2_kv for
ESD-x-strict, all but attn2 for ESD-u), or `only`, a part of the parameters' names, like
class_embedding; "" all. A pixel sum.

Deviations:
  - The release draws each partial sample when it is needed, by PNDM. The frozen model is the same
    at every step, so that here they are drawn before the first, by DDIM; `partial` of steps x batch
    uses each once.
  - The cheap form takes noised images; the paper never does.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods
from jaxunlearn.diffusion import NULL, guidance, sampling
from jaxunlearn.inputs import ranges

# As Stable Diffusion is sampled: latents are not clipped, and times are offset by one.
OPTIONS = sampling.Options(clip_sample=False, steps_offset=1, set_alpha_to_one=False)


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  eta: ranges.AtLeast0 = 1.0
  only: str = ""
  partial: ranges.From0 = 0  # samples stopped midway; 0: noised images in their place
  partial_steps: ranges.Count = 50
  partial_guidance: ranges.AtLeast0 = 2.0  # w; Stable Diffusion's scale of 3
  partial_batch: ranges.Count = 4  # samples made at a time

  streams = ("a",)
  terms = ("a",)
  needs = ("c", "concept")
  forwards = 3
  backwards = 1

  def prepare(self, apply, params, process, data, rng):
    """The frozen model, which parameters may move, and its samples stopped midway.

    Raises:
      ValueError: no parameter has `only` in its name.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    names = [name(path) for path, _ in jax.tree.leaves_with_path(params)]
    found = any(self.only in name for name in names)
    methods.check("only", self.only, found, f"a part of a parameter's name, like {names[0]}")
    mask = jax.tree.map_with_path(lambda path, _: np.asarray(self.only in name(path)), params)
    extras = {"mask": mask, "teacher": jax.tree.map(jnp.asarray, params)}
    if self.partial:
      extras["made"] = self._midway(jax.tree_util.Partial(apply, params), process, data["a"], rng)
    return extras

  def _midway(self, eps_fn, process, stream, rng):
    """`partial` samples of the model, their times and conditions."""
    seen = jax.tree_util.Partial(_seen, guidance.guided(eps_fn, self.partial_guidance))
    t = jnp.asarray(sampling.times(process, self.partial_steps, OPTIONS))
    rows = stream.pick(self.partial, 0)
    parts = []
    for first in range(0, self.partial, self.partial_batch):
      k_x, k_stop = jax.random.split(jax.random.fold_in(rng, first))
      turn = np.arange(first, first + self.partial_batch) % len(rows.image)
      c = None if rows.c is None else jnp.asarray(rows.c)[turn]
      x_T = jax.random.normal(k_x, (len(turn), *rows.image.shape[1:]))
      _, way = sampling.watched(seen, process, x_T, c, steps=self.partial_steps, options=OPTIONS)
      stop = jax.random.randint(k_stop, (len(turn),), 0, len(t))
      parts.append({"a_t": way[stop, jnp.arange(len(turn))], "t": t[stop], "c": c})
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: self.partial], *parts)

  def draw(self, process, batch, rng, extras, step):
    draws = methods.draw_one(process, batch["a"], rng)
    if not self.partial:
      return draws
    turn = (step * len(draws["t"]) + jnp.arange(len(draws["t"]))) % self.partial
    return {name: value[turn] for name, value in extras["made"].items() if value is not None}

  def losses(self, eps_fn, process, draws, extras):
    t, c = draws["t"], draws["c"]
    noised = "a_t" not in draws
    a_t = process.q_sample(draws["a"], t, draws["eps"]) if noised else draws["a_t"]
    null = None if c is None else jnp.full_like(c, NULL)
    eps_c, eps_null = extras["teacher"](a_t, t, c), extras["teacher"](a_t, t, null)
    target = eps_null - self.eta * (eps_c - eps_null)
    return (jnp.mean(methods.squared_error(target, eps_fn(a_t, t, c))),), {}

  def combine(self, grads, extras):
    return methods.masked(grads[0], extras["mask"]), {}


def _seen(eps_fn, x_t, t, c):
  """The noise, and where the sample stands."""
  return eps_fn(x_t, t, c), x_t
