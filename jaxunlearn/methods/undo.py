"""UNDO: an unlearned model taught to a damaged copy of itself (Lee et al., 2025).

    theta_0 = (1 - alpha) theta_u + alpha beta N                what training begins with
    L = E ||eps_u(x_t, t, c) - eps_theta(x_t, t, c)||^2 + lam E ||eps_u(alt_t, t, c_u) - ...||^2

theta_u are the parameters of init_from: a model that another method has unlearned, which goes on to
say what it says, the condition to forget included. What it still knows and does not say is not
taught: alpha = 0 keeps all of it, alpha = 1 trains a new network. N is normal, of the deviation of
each kernel's own entries; biases and scales stay as they are. D_x is what is kept, alt other
pictures under the condition to forget (`c = "forget"`), which may be the same. Pixel sums, both.

`null` says what is taught where the condition of a row of D_x is dropped: what the teacher says, or
`noise`, eps itself, as in any training. Asked for nothing an unlearned model may still draw the
concept, and would teach it.

`onto` names an ancestor, a model from before the training that showed it what is to be forgotten,
like the public model that was fine-tuned. Its parameters then stand for beta N, and alpha = 1, its
best value there, teaches the ancestor itself what the unlearned model says.

Deviations:
  - The paper's N is Xavier's for a new network; here its deviation is that of the trained kernel.
  - The paper distils a language model's outputs; here they are predicted noises.
  - `onto` and `null` are not of the paper.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp

from jaxunlearn import errors, methods
from jaxunlearn.diffusion import NULL
from jaxunlearn.inputs import ranges


@dataclasses.dataclass(frozen=True)
class Method(methods.TwoSets):
  alpha: ranges.Share = 0.5
  beta: ranges.AtLeast0 = 1.0
  lam: ranges.AtLeast0 = 1.0
  onto: str = ""  # assets:NAME, a run or a folder; "": noise
  null: str = "teacher"  # or noise

  streams = ("x", "alt")
  terms = ("x", "alt")
  needs = ("c", "concept")
  forwards = 4

  def __post_init__(self) -> None:
    super().__post_init__()
    errors.check_choice("null", self.null, ("teacher", "noise"))

  def ancestor(self):
    return self.onto

  def prepare(self, apply, params, process, data, rng):
    return {"teacher": jax.tree.map(jnp.asarray, params)}

  def start(self, params, data, rng, onto=None):
    if onto is not None:
      return jax.tree.map(lambda u, o: (1 - self.alpha) * u + self.alpha * o, params, onto)
    return jax.tree.map_with_path(functools.partial(self._damaged, rng), params)

  def _damaged(self, rng, path, leaf):
    """Each kernel has noise of its own by its name, whatever else is trained."""
    if jnp.ndim(leaf) < 2:
      return leaf
    key = jax.random.fold_in(rng, zlib.crc32(jax.tree_util.keystr(path).encode()))
    noise = jnp.std(leaf) * jax.random.normal(key, jnp.shape(leaf), jnp.float32)
    return (1 - self.alpha) * leaf + self.alpha * self.beta * noise

  def losses(self, eps_fn, process, draws, extras):
    found = []
    for names in (("x", "t", "c_x", "eps"), ("a", "t_a", "c_a", "eps_a")):
      x, t, c, eps = (draws[name] for name in names)
      x_t = process.q_sample(x, t, eps)
      taught = extras["teacher"](x_t, t, c)
      if self.null == "noise":
        dropped = jnp.all(c.reshape(len(c), -1) == NULL, axis=1)
        taught = jnp.where(dropped[:, None, None, None], eps, taught)
      found.append(jnp.mean(methods.squared_error(taught, eps_fn(x_t, t, c))))
    return tuple(found), {}

  def combine(self, grads, extras):
    return methods.weighted(grads, (1.0, self.lam)), {}
