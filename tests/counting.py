"""A network that counts the rows of its forward and backward passes as they run."""

import jax


class Model:
  """apply(params, x_t, t, c) as it is, and how many rows it has passed forward and back.

  Counted on the host when they run, not when they are traced: what is compiled away is not.
  """

  def __init__(self, apply):
    self._counts = {"forward": 0, "backward": 0}
    self._passes = jax.custom_vjp(self._without_gradient(apply))
    self._passes.defvjp(self._forward(apply), self._backward)

  def __call__(self, params, x_t, t, c=None):
    return self._passes(params, x_t, t, c)

  def rows(self):
    """(forward, backward) so far."""
    jax.effects_barrier()
    return self._counts["forward"], self._counts["backward"]

  def _count(self, name, rows):
    def add():
      self._counts[name] += rows

    jax.debug.callback(add)

  def _without_gradient(self, apply):
    def primal(params, x_t, t, c):
      self._count("forward", len(x_t))
      return apply(params, x_t, t, c)

    return primal

  def _forward(self, apply):
    def forward(params, x_t, t, c):
      self._count("forward", len(x_t))
      eps_hat, pullback = jax.vjp(lambda p, x: apply(p, x, t, c), params, x_t)
      return eps_hat, pullback

    return forward

  def _backward(self, pullback, g):
    self._count("backward", len(g))
    return *pullback(g), None, None
