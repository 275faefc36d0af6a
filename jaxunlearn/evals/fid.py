"""FID (Heusel et al., 2017): frechet.py between Inception's features of samples and references.

Both are read as image files would be, as uint8 pixels, a batch at a time: only the moments of the
2048 features are kept. The moments of a reference set are kept on disk, beside the weights. How an
image comes to 299 x 299 changes the value, so config.eval.fid_resize stands in its identity:

bilinear      as pytorch-fid does: four neighbours, no antialiasing; x / 127.5 - 1
clean         as clean-fid does (Parmar et al., 2022): antialiased bicubic, in float;
              (x - 128) / 128
torchmetrics  as torchmetrics does: four neighbours from the upper left, as in TensorFlow 1;
              (x - 128) / 128. Pixels of samples are cut to whole numbers, not rounded

The value falls with the number of samples, by a bias of the order of 1 / n: compare equal n only.
Under 2048 samples the covariance is singular as well; that is a number still, and far from the
limit.
"""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from tqdm import tqdm

from jaxunlearn import data, errors, evals, weights
from jaxunlearn.diffusion import EpsFn
from jaxunlearn.evals import frechet
from jaxunlearn.mesh import sharding
from jaxunlearn.models import inception
from jaxunlearn.weights import extractors


def evaluate(eps_fn: EpsFn, task: evals.Task) -> dict[str, evals.Value]:
  """`fid` of the samples that are no target.

  It has no interval: a bootstrap would keep all features and take a root of a 2048 x 2048 matrix
  for each resample.
  """
  del eps_fn
  extractor = load(task.options)
  fingerprint = pixels_fingerprint(task.reference)
  reference = reference_moments(task.reference, fingerprint, extractor)
  identity = evals.identity(
    extractor=extractor.identity,
    resize=extractor.resize,
    pixels="uint8" if cut_of(extractor.resize) is data.to_pixels else "uint8-truncated",
    removed="target",
    reference=f"{task.options.reference}:{len(task.reference)}:{fingerprint}",
  )
  samples = kept_pixels(task, extractor.batch, cut_of(extractor.resize))
  distance = frechet.distance(reference, extractor.moments(samples))
  return {"fid": evals.Value(distance, None, f"{identity} {task.samples_identity}")}


def pixels_fingerprint(records: data.Records) -> str:
  """Which pixels these are: the records' fingerprint, and how their files become pixels."""
  how = getattr(records.image, "decoding", "")
  return f"{records.fingerprint()}-{how}" if how else records.fingerprint()


def check(options: Any) -> None:
  """Raises ValueError where the weights are not there or not readable, or an option is wrong."""
  errors.check_choice("FID resize", options.fid_resize, RESIZES)
  if options.fid_batch < 1:
    raise ValueError(f"fid_batch is {options.fid_batch}; use at least 1")
  load(options)


@dataclasses.dataclass(frozen=True)
class Extractor:
  """Inception with its weights; images are uint8 [N, H, W, C], C 1 or 3, of any size."""

  params: Any
  identity: str  # name and the first digits of the sha256 of the weights' file
  resize: str
  batch: int

  def moments(self, parts: Iterable[UInt8[np.ndarray, "N H W C"]]) -> frechet.Moments:
    """Of the features of all parts together; each has at most `batch` images."""
    features = (self.features(part) for part in tqdm(parts, desc="fid", delay=5))
    return frechet.stream(features, inception.FEATURES)

  def features(self, pixels: UInt8[np.ndarray, "N H W C"]) -> Float32[np.ndarray, "N D"]:
    """A short batch is filled up with black, so that one compiled network serves all."""
    padded = np.zeros((self.batch, *pixels.shape[1:]), np.uint8)
    padded[: len(pixels)] = pixels
    images = prepare(sharding.beside(self.params, padded), self.resize)
    return np.asarray(inception.features(self.params, images))[: len(pixels)]


def load(options: Any) -> Extractor:
  """The extractor that the options name; raises ValueError as `weights.Published.find` does."""
  params, identity = _read(extractors.INCEPTION.find(options.inception_weights))
  return Extractor(params, identity, options.fid_resize, options.fid_batch)


@functools.lru_cache(maxsize=1)
def _read(path: pathlib.Path) -> tuple[Any, str]:
  params = sharding.everywhere(extractors.inception(weights.read(path)))
  return params, weights.identity(path)


def cut_of(resize: str) -> Callable[[np.ndarray], np.ndarray]:
  """How samples in [-1, 1] become uint8 pixels."""
  return truncated if resize == "torchmetrics" else data.to_pixels


def truncated(image: np.ndarray) -> np.ndarray:
  """[-1, 1] -> uint8 pixels, each cut to a whole number."""
  unit = np.clip(np.nan_to_num(image.astype(np.float32), nan=-1) / 2 + np.float32(0.5), 0, 1)
  return (unit * np.float32(255)).astype(np.uint8)


def kept_pixels(
  task: evals.Task, size: int, cut: Callable[[np.ndarray], np.ndarray]
) -> Iterable[np.ndarray]:
  """The samples that quality is measured on, as uint8 pixels read `size` at a time."""
  kept = np.flatnonzero(task.is_kept)
  for start in range(0, len(kept), size):
    yield cut(task.samples[kept[start : start + size]])


def reference_moments(
  records: data.Records, fingerprint: str, extractor: Extractor
) -> frechet.Moments:
  """The moments of the records' features, computed once per machine."""
  digest = extractor.identity.rsplit(":", 1)[-1]
  folder = extractors.INCEPTION.cached.parent / "fid"
  path = folder / f"{fingerprint}-{extractor.resize}-{digest}.npz"
  if path.is_file():
    with np.load(path) as stored:
      return frechet.Moments(int(stored["n"]), stored["mean"], stored["m2"])
  folder.mkdir(parents=True, exist_ok=True)
  moments = extractor.moments(records.chunks(extractor.batch))
  with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
    np.savez(file, **moments._asdict())
  pathlib.Path(file.name).replace(path)
  return moments


@functools.partial(jax.jit, static_argnames="resize")
def prepare(pixels: UInt8[Array, "N H W C"], resize: str) -> Float[Array, "N 299 299 3"]:
  """Pixels as the network takes them; one channel is repeated to three.

  Raises:
    ValueError: neither one channel nor three.
  """
  n, _, _, channels = pixels.shape
  if channels not in (1, 3):
    raise ValueError(f"images of {channels} channels have no FID; its Inception takes 1 or 3")
  shape = (n, inception.SIZE, inception.SIZE, channels)
  x = RESIZES[resize](pixels.astype(jnp.float32), shape)
  return jnp.broadcast_to(x, (*shape[:3], 3))


def _bilinear(x: Array, shape: tuple[int, ...]) -> Array:
  return jax.image.resize(x, shape, "linear", antialias=False) / 127.5 - 1


def _clean(x: Array, shape: tuple[int, ...]) -> Array:
  return (jnp.clip(jax.image.resize(x, shape, "cubic"), 0, 255) - 128) / 128


def _tensorflow_1(x: Array, shape: tuple[int, ...]) -> Array:
  """Pixel i of n lies at i m / n among m: corners are not moved by half a pixel."""
  for axis in (1, 2):
    count = x.shape[axis]
    place = np.arange(shape[axis]) * (count / shape[axis])
    low = np.floor(place).astype(int)
    part = jnp.asarray(place - low, jnp.float32).reshape(-1, *[1] * (x.ndim - 1 - axis))
    take = lambda i, x=x, axis=axis: jnp.take(x, i, axis=axis)
    x = take(low) * (1 - part) + take(np.minimum(low + 1, count - 1)) * part
  return (x - 128) / 128


RESIZES = {"bilinear": _bilinear, "clean": _clean, "torchmetrics": _tensorflow_1}
