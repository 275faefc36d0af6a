"""ESD, erased stable diffusion, in its class-conditional form (Gandikota et al., ICCV 2023).

    target = eps_0(a_t, null) - eta [eps_0(a_t, c_u) - eps_0(a_t, null)]      of the frozen model
    L = E ||target - eps_theta(a_t, t, c_u)||^2

`only` is what may move: a part of the parameters' names, like class_embedding (as ESD-x trains the
cross-attention alone); "" all. A pixel sum.

Deviations: a_t are noised images to forget; the paper denoises samples of the model part of the
way.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  eta: ranges.AtLeast0 = 1.0
  only: str = ""

  streams = ("a",)
  terms = ("a",)
  needs = ("c", "concept")
  forwards = 3
  backwards = 1

  def prepare(self, apply, params, process, data, rng):
    """The frozen model, and which parameters may move.

    Raises:
      ValueError: no parameter has `only` in its name.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    names = [name(path) for path, _ in jax.tree.leaves_with_path(params)]
    found = any(self.only in name for name in names)
    methods.check("only", self.only, found, f"a part of a parameter's name, like {names[0]}")
    mask = jax.tree.map_with_path(lambda path, _: np.asarray(self.only in name(path)), params)
    return {"mask": mask, "teacher": jax.tree.map(jnp.asarray, params)}

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_one(process, batch["a"], rng)

  def losses(self, eps_fn, process, draws, extras):
    t, c = draws["t"], draws["c"]
    a_t = process.q_sample(draws["a"], t, draws["eps"])
    null = None if c is None else jnp.full_like(c, NULL)
    eps_c, eps_null = extras["teacher"](a_t, t, c), extras["teacher"](a_t, t, null)
    target = eps_null - self.eta * (eps_c - eps_null)
    return (jnp.mean(methods.squared_error(target, eps_fn(a_t, t, c))),), {}

  def combine(self, grads, extras):
    return methods.masked(grads[0], extras["mask"]), {}
