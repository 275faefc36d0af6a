"""Small networks with the interface of models/, for tests of the loop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.models import text_unet

TEXT_UNET = text_unet.Net(
  sample_size=4,
  block_out_channels=(8,),
  down_block_types=("CrossAttnDownBlock2D",),
  up_block_types=("CrossAttnUpBlock2D",),
  layers_per_block=1,
  norm_num_groups=4,
  attention_head_dim=2,
  cross_attention_dim=12,
)


@functools.cache
def random_params(net):
  """Random parameters (host arrays) without compiling `init`."""
  rng = np.random.default_rng(0)
  draw = lambda s: rng.normal(0, np.prod(s.shape[:-1]) ** -0.5, s.shape).astype(np.float32)
  return jax.tree.map(draw, jax.eval_shape(net.init, jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class Line:
  """eps = w (x mean) + b for every pixel: a net whose gradients fit on one line."""

  image_shape = (28, 28, 1)
  classes = ()

  def init(self, key):
    del key
    return {"b": jnp.zeros(()), "w": jnp.ones((3,))}

  def apply(self, params, x, t, c=None):
    del c
    mean = x.mean((1, 2, 3)) * params["w"][0] + params["w"][1] * t / 1000 + params["w"][2]
    return jnp.broadcast_to(mean[:, None, None, None] + params["b"], x.shape)


@dataclasses.dataclass(frozen=True)
class Attentive:
  """Convolution, group norm and attention at 7 px: what a UNet has, in a second of compile time."""

  width: int = 32
  classes: tuple[int, ...] = ()  # of none or one condition
  image_shape = (28, 28, 1)

  def init(self, key):
    shapes = {
      "conv_in": (3, 3, 16, self.width),
      "time": (1, self.width),
      "scale": (self.width,),
      "q": (self.width, self.width),
      "k": (self.width, self.width),
      "v": (self.width, self.width),
      "conv_out": (3, 3, self.width, 16),
    }
    keys = jax.random.split(key, len(shapes))
    draw = lambda k, shape: jax.random.normal(k, shape) / np.sqrt(np.prod(shape[:-1]))
    params = {name: draw(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
    if not self.classes:
      return params
    return params | {
      "class_embedding_0": {"embedding": draw(key, (sum(self.classes) + 1, self.width))}
    }

  def apply(self, params, x, t, c=None):
    b = len(x)
    h = x.reshape(b, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4).reshape(b, 7, 7, 16)
    h = _conv(h, params["conv_in"]) + (t[:, None] / 1000.0 * params["time"])[:, None, None]
    if self.classes:
      h = h + params["class_embedding_0"]["embedding"][c][:, None, None]  # NULL, -1, is the last
    groups = h.reshape(b, 49, 4, -1)
    centred = groups - groups.mean((1, 3), keepdims=True)
    h = centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 3), keepdims=True) + 1e-5)
    h = jax.nn.silu(h.reshape(b, 49, -1) * (1 + params["scale"]))
    logits = jnp.einsum("bic,bjc->bij", h @ params["q"], h @ params["k"]) / self.width**0.5
    h = h + jnp.einsum("bij,bjc->bic", jax.nn.softmax(logits), h @ params["v"])
    y = _conv(h.reshape(b, 7, 7, -1), params["conv_out"])
    return y.reshape(b, 7, 7, 4, 4).transpose(0, 1, 3, 2, 4).reshape(b, 28, 28, 1)


def _conv(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
