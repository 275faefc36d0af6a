"""Convolutions of stride 1 and products: derivatives are XLA's own; other devices keep theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.models import convolution, product

KINDS = {  # kernel, padding
  "3 x 3": ((3, 3), ((1, 1), (1, 1))),
  "2 x 2, one side": ((2, 2), ((1, 0), (0, 1))),
  "1 x 3, none": ((1, 3), ((0, 0), (0, 0))),
}
PRODUCT = "a product"


def _case(kind, side=9):
  module, size, how = product, (), {}
  if kind != PRODUCT:
    module, (size, padding) = convolution, KINDS[kind]
    how = {"padding": padding}
  x = jax.random.normal(jax.random.key(0), (3, side, side + 2, 4))
  kernel = jax.random.normal(jax.random.key(1), (*size, 4, 5))
  value = lambda f, x, w: jnp.sum(jnp.sin(f(x, w, **how)))
  own = module.multiply if module is product else module.convolve
  ours, plain = (functools.partial(value, f) for f in (own, module.plain))
  return ours, plain, x, kernel


def _both_ways(f):
  return jax.grad(f, (0, 1))


def _twice(f):
  return jax.grad(lambda x, w: jnp.sum(jax.grad(f, 1)(x, w) ** 2), (0, 1))


def _forward(f):
  return lambda x, w: jax.jvp(f, (x, w), (jnp.cos(x), jnp.cos(w)))


def _linearised(f):
  return lambda x, w: jax.linearize(lambda x: f(x, w), x)[1](jnp.cos(x))


def _side_by_side(f):
  return lambda x, w: jax.vmap(jax.grad(f, 1), (None, 0))(x, jnp.stack([w, 2 * w]))


@pytest.mark.parametrize("kind", [*KINDS, PRODUCT])
@pytest.mark.parametrize("of", [_both_ways, _twice, _forward, _linearised, _side_by_side])
def test_derivatives_equal_xlas(kind, of):
  ours, plain, x, kernel = _case(kind)
  for got, want in zip(
    jax.tree.leaves(jax.jit(of(ours))(x, kernel)),
    jax.tree.leaves(jax.jit(of(plain))(x, kernel)),
    strict=True,
  ):
    np.testing.assert_allclose(got, want, atol=2e-6 * float(jnp.max(jnp.abs(want))))


def test_the_gradient_is_folded_on_cpu_from_8_px_and_nowhere_else():
  def windows(side, platform):
    ours, _, x, kernel = _case("3 x 3", side)
    lowered = jax.jit(jax.grad(ours, 1)).trace(x, kernel).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("dim_numbers = [b, 0, f]x[0, i, o]")

  assert [windows(*case) for case in ((9, "cpu"), (7, "cpu"), (9, "cuda"), (9, "tpu"))] == [
    3,
    0,
    0,
    0,
  ]


def test_the_factors_of_a_product_are_made_first_on_cpu_and_nowhere_else():
  def barriers(platform):
    ours, _, x, kernel = _case(PRODUCT)
    lowered = jax.jit(jax.grad(ours, 1)).trace(x, kernel).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("optimization_barrier")

  assert [barriers(platform) for platform in ("cpu", "cuda", "tpu")] == [1, 0, 0]


def test_a_layer_of_flax_takes_the_product_and_no_other_dimensions():
  x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
  np.testing.assert_array_equal(
    product.dot_general(x, kernel, (((2,), (0,)), ((), ()))), x @ kernel
  )
  with pytest.raises(ValueError, match="use x's last with the kernel's first"):
    product.dot_general(x, kernel, (((1,), (0,)), ((), ())))
