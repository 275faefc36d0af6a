"""How far the model is from a stationary point of the retain loss (Yuan et al., 2025).

    retain_grad_norm   ||grad_theta L_r||, of the mean over fixed records, times and noise
    retain_loss        L_r there, a pixel sum

An attack that relearns what is kept starts with this gradient: unlearning that ends on a slope, as
ascent does, is the easier to undo. Compare it with the pretrained model's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import data, evals, methods
from jaxunlearn.diffusion import Diffusion, EpsFn, guidance

ROWS, BATCH = 512, 64


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """Both, without an interval: the same rows for every model, and no guidance.

  Raises:
    ValueError: a noise predictor that is a function alone, without its parameters.
  """
  rng, eps_fn = task.key("stationarity"), guidance.unguided(eps_fn)
  if not jax.tree.leaves(eps_fn):
    raise ValueError(
      "stationarity is a gradient by parameters and this eps_fn shows none; make it by "
      "jaxunlearn.eps_fn(apply, params)"
    )
  seed = np.asarray(jax.random.key_data(rng))
  index = np.random.default_rng(seed).permutation(len(task.reference))[:ROWS]
  parts = [index[i : i + BATCH] for i in range(0, len(index), BATCH)]
  loss, total = 0.0, jax.tree.map(jnp.zeros_like, eps_fn)
  for i, part in enumerate(parts):
    records = task.reference.take(part)
    c = records.conditions if task.c is not None else None
    image = task.codec.encode(data.to_model(records.image[np.arange(len(part))]))
    value, grad = _gradient(eps_fn, task.process, image, c, jax.random.fold_in(rng, i))
    share = len(part) / len(index)
    loss += share * float(value)
    total = methods.weighted((total, grad), (1.0, share))
  identity = f"rows={len(index)} reference={task.reference_identity} {task.model_identity}"
  return {
    "retain_grad_norm": evals.Value(float(optax.tree.norm(total)), None, identity),
    "retain_loss": evals.Value(loss, None, identity),
  }


@functools.partial(jax.jit, static_argnames="process")
def _gradient(
  eps_fn: EpsFn, process: Diffusion, image: jax.Array, c: jax.Array | None, rng: jax.Array
):
  noise = methods.draw_noise(process, image.shape, rng)
  loss = lambda eps_fn: methods.denoising_loss(eps_fn, process, image, c, **noise)
  return jax.value_and_grad(loss)(eps_fn)
