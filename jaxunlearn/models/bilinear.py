"""An operation of an image and a kernel whose gradient for the kernel is another one on CPU.

A primitive of its own, because the rule of a `custom_vjp` excludes forward mode, which the
likelihood needs. On other devices, and under vmap, all gradients are XLA's own.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

Plain = Callable[..., Array]


def primitive(
  name: str, plain: Plain, on_cpu: Callable[..., Callable | None], settings: tuple[str, ...] = ()
) -> Primitive:
  """`bind(x, kernel, **how)` is plain(x, kernel, **how), linear in x and in the kernel.

  Args:
    name: as jaxprs have it.
    plain: the operation, whose gradients are XLA's own.
    on_cpu: (dy, kernel, **how) -> (x, dy) -> the gradient for the kernel on a CPU, by the shapes of
      `dy` and `kernel`; None where XLA's is the faster one.
    settings: the names of `how`, all hashable.
  """

  def by_image(dy: Array, x: Any, kernel: Array, **how: Any) -> Array:
    wanted = jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)  # x is known by its shape alone
    (dx,) = jax.linear_transpose(lambda x: plain(x, kernel, **how), wanted)(dy)
    return dx

  def by_kernel(dy: Array, x: Array, kernel: Any, **how: Any) -> Array:
    wanted = jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype)

    def own(x: Array, dy: Array) -> Array:
      (dkernel,) = jax.linear_transpose(lambda w: plain(x, w, **how), wanted)(dy)
      return dkernel

    fast = on_cpu(dy, wanted, **how)
    return own(x, dy) if fast is None else jax.lax.platform_dependent(x, dy, cpu=fast, default=own)

  def shape(x: Any, kernel: Any, **how: Any) -> Any:
    return x.update(shape=jax.eval_shape(functools.partial(plain, **how), x, kernel).shape)

  def batched(values: Any, axes: Any, **how: Any) -> tuple[Array, int]:
    return jax.vmap(functools.partial(plain, **how), axes)(*values), 0

  made = Primitive(name)
  made.def_impl(jax.jit(plain, static_argnames=settings))
  made.def_abstract_eval(shape)
  ad.defbilinear(made, by_image, by_kernel)
  batching.primitive_batchers[made] = batched
  mlir.register_lowering(made, mlir.lower_fun(plain, multiple_results=False))
  return made
