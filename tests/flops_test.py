"""FLOPs as traced: beside PyTorch's own counter, and on what it must see through."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu_cases, siss_step
from jaxunlearn import models
from jaxunlearn.compiled import flops

# Without an upsampling, which this project folds into its convolution: 4 taps in the place of 9.
FIELDS = siss_step.TINY | {"block_out_channels": (16,)}
FIELDS |= {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}


def test_a_pass_has_as_many_as_pytorch_counts_and_the_way_back_twice_that():
  net = models.make("unet", **FIELDS)
  shape = (1, *net.image_shape)
  x, t = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
  params = jax.eval_shape(net.init, jax.random.key(0))
  once = flops.count(net.apply, params, x, t)
  assert once == gpu_cases.flops(gpu_cases.Case("sample", FIELDS, 1, 1, {"steps": 1}))
  loss = lambda params, x, t: net.apply(params, x, t).sum()
  there_and_back = flops.count(jax.grad(loss, argnums=(0, 1)), params, x, t)
  assert there_and_back == pytest.approx(3 * once, rel=0.01)


def test_loops_branches_and_transposed_convolutions():
  x, w = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
  conv = lambda x, stride: jax.lax.conv_general_dilated(
    x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  one = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
  assert flops.count(lambda x: conv(x, 1), x) == one
  assert flops.count(lambda x: conv(x, 2), x) == one / 4
  back = jax.grad(lambda x: conv(x, 2).sum())
  assert flops.count(back, x) == one / 4 + one / 4
  many = lambda x: jax.lax.scan(lambda x, _: (x + conv(x, 1)[..., :3], None), x, None, 7)
  assert flops.count(many, x) == 7 * one
  either = lambda x: jax.lax.cond(
    x.sum() > 0, lambda x: conv(x, 1), lambda x: x[..., :1] * w[0, 0, 0], x
  )
  assert flops.count(either, x) == one
  twice = lambda x: conv(x, 1) + conv(x + 1, 1)
  by_platform = lambda x: jax.lax.platform_dependent(x, cpu=twice, default=lambda x: conv(x, 1))
  assert flops.count(by_platform, x) == one  # on a CPU as well
  product = lambda a, b: jax.vmap(jnp.matmul)(a, b)
  assert flops.count(product, jnp.ones((6, 2, 3)), jnp.ones((6, 3, 4))) == 2 * 6 * 2 * 3 * 4
