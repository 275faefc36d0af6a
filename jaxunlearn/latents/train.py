"""Trains an autoencoder of pictures, in whose latents a diffusion model then lives.

A config with the group `autoencoder` is such a run. For a share of the steps it sees crops: the
network is one of convolutions, and a quarter of the pixels costs a quarter.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxunlearn import build, checkpoint, data, fields, streams, train
from jaxunlearn.checkpoint import State
from jaxunlearn.data import roll
from jaxunlearn.evaluation import COMPILING, STOPPED, Stopped
from jaxunlearn.latents.loss import Loss
from jaxunlearn.mesh import processes, sharding
from jaxunlearn.models import vae
from jaxunlearn.reports import pictures
from jaxunlearn.reports.writer import Writer, replace

Tree = Any
BATCH = 64  # pictures encoded at a time
SHOWN = 8  # pictures beside what decodes of them


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains from the newest checkpoint to the last step; returns what results.json says.

  Raises:
    ValueError: bad input, before any work.
    Diverged: a NaN or infinity; the last good checkpoint is kept.
    Stopped: a signal; the state is saved.
  """
  fields.check(config)
  if jax.process_count() > 1:
    raise ValueError("an autoencoder is trained by one process; launch it without a launcher")
  records, heldout = data.load(**config.data)
  net, loss = vae.Autoencoder(**config.autoencoder), Loss(**config.loss)
  _check_sizes(net, loss, records.image.shape[1:])
  train.claim(workdir, config, roll.of(records, np.zeros(len(records), bool), heldout, {}))
  saves = checkpoint.Checkpoints(workdir / "checkpoints", config.train.keep)
  tx = build.make_optimizer(config)
  params = jax.jit(net.init)(jax.random.key(config.seed))
  average = jax.tree.map(jnp.copy, params)  # a donated state holds no buffer twice
  state = State(jnp.zeros((), jnp.int32), params, average, tx.init(params), {})
  state = sharding.put(state, sharding.replicated(sharding.make_mesh(1)))
  state = saves.restore(state) or state
  with (
    processes.stop_signal() as stopped,
    Writer(workdir / "metrics.jsonl", int(state.step)) as log,
  ):
    state = _train(config, net, loss, tx, records, state, saves, log, stopped)
  train.save_finite(saves, state)
  saves.close()
  results = evaluate(net, state.ema, records, heldout, workdir)
  replace(workdir / "results.json", json.dumps(results, indent=2) + "\n")
  return results


def _train(
  config: ConfigDict,
  net: vae.Autoencoder,
  loss: Loss,
  tx: optax.GradientTransformation,
  records: data.Records,
  state: State,
  saves: checkpoint.Checkpoints,
  log: Writer,
  stopped: Callable[[], bool],
) -> State:
  """The loop from the state's step to the last."""
  steps, first = config.train.steps, int(state.step)
  stream = streams.Stream(records, np.arange(len(records)), config.train.batch, (config.seed,))
  update = jax.jit(functools.partial(_update, net, loss, tx, config.ema), donate_argnums=0)
  bar = tqdm(range(first, steps), initial=first, total=steps, desc=COMPILING)
  for step in bar:
    x = stream.at(step).image
    if loss.crop and step < loss.crop_share * steps:
      x = crops(np.asarray(x), loss.crop, np.random.default_rng((config.seed, step)))
    state, metrics = update(state, x, jax.random.fold_in(jax.random.key(config.seed), step))
    bar.set_description("train", refresh=False)
    stop, done = stopped(), step + 1
    if stop or done % config.train.log_every == 0 or done == steps:
      scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
      log.write_scalars(done, scalars)
      bar.set_postfix({name: f"{value:.4g}" for name, value in scalars.items()}, refresh=False)
      if not np.isfinite(scalars["loss"]):
        raise train.Diverged(
          f"loss is {scalars['loss']} at step {done}; lower config.optimizer.learning_rate"
        )
    if stop or done % config.train.checkpoint_every == 0:
      train.save_finite(saves, state)
    if stop:
      saves.wait()
      raise Stopped(STOPPED)
  return state


def _update(
  net: vae.Autoencoder,
  loss: Loss,
  tx: optax.GradientTransformation,
  decay: float,
  state: State,
  x: Array,
  key: Array,
) -> tuple[State, dict[str, Array]]:
  value = functools.partial(loss, net)
  grads, metrics = jax.grad(value, has_aux=True)(state.params, x, key)
  updates, opt = tx.update(grads, state.opt, state.params)
  params = optax.apply_updates(state.params, updates)
  warm = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
  ema = optax.incremental_update(params, state.ema, 1 - warm)
  return State(state.step + 1, params, ema, opt, {}), metrics


def crops(
  images: Float[np.ndarray, "B H W C"], size: int, rng: np.random.Generator
) -> Float[np.ndarray, "B s s C"]:
  """A square of each image, at a place of its own."""
  height, width = images.shape[1:3]
  rows = rng.integers(0, height - size + 1, len(images))
  columns = rng.integers(0, width - size + 1, len(images))
  places = zip(images, rows, columns, strict=True)
  return np.stack([image[i : i + size, j : j + size] for image, i, j in places])


def evaluate(
  net: vae.Autoencoder,
  params: Tree,
  records: data.Records,
  heldout: data.Records,
  workdir: pathlib.Path,
) -> dict[str, Any]:
  """How well pictures come back from the means of their latents, and the scale of the latents.

  Writes held-out pictures over what came back of them.
  """
  decoded = jax.jit(lambda params, x: net.decode(params, net.scaled(net.encode(params, x).mean)))
  back = lambda records: np.concatenate(
    [np.asarray(decoded(params, data.to_model(part))) for part in records.chunks(BATCH)]
  )
  truth = lambda records: data.to_model(records.image[np.arange(len(records))])
  shown = heldout.take(np.linspace(0, len(heldout) - 1, SHOWN).astype(int))
  both = np.concatenate([truth(shown), back(shown)])
  pictures.write_grid(workdir / "reconstructions.png", both, SHOWN)
  return {
    "psnr_heldout": psnr(truth(heldout), back(heldout)),
    "psnr_train": psnr(truth(records), back(records)),
    "scaling_factor": 1 / latent_std(net, params, records),
    "heldout": len(heldout),
    "train": len(records),
  }


def psnr(x: Float[np.ndarray, "N H W C"], y: Float[np.ndarray, "N H W C"]) -> float:
  """The mean over pictures in [-1, 1] of 10 log10(4 / mean squared error), in dB."""
  error = np.mean((x.astype(np.float64) - np.clip(y, -1, 1)) ** 2, axis=(1, 2, 3))
  return float(np.mean(10 * np.log10(4 / np.maximum(error, 1e-10))))


def latent_std(net: vae.Autoencoder, params: Tree, records: data.Records) -> float:
  """The standard deviation of all latents of the records, drawn, before they are scaled."""
  encode = jax.jit(net.encode)
  parts = [encode(params, data.to_model(part)) for part in records.chunks(BATCH)]
  means = np.concatenate([np.asarray(part.mean, np.float64) for part in parts])
  variances = np.concatenate([np.exp(np.asarray(part.log_var, np.float64)) for part in parts])
  return float(np.sqrt(means.var() + variances.mean()))


def _check_sizes(net: vae.Autoencoder, loss: Loss, shape: tuple[int, ...]) -> None:
  """Raises ValueError where the network does not take those pictures, or their crops."""
  if shape != (net.sample_size, net.sample_size, net.in_channels):
    raise ValueError(
      f"images are {shape} and config.autoencoder takes {net.sample_size} px and "
      f"{net.in_channels} channels; set config.autoencoder.sample_size and in_channels to theirs"
    )
  if loss.crop % net.factor or loss.crop > net.sample_size:
    raise ValueError(
      f"config.loss.crop is {loss.crop}; use a multiple of {net.factor} up to {net.sample_size}, "
      "or 0 for whole pictures"
    )
