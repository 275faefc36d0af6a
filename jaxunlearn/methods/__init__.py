"""Training objectives: one module a paper, each with a frozen dataclass `Method`.

A method says what one optimisation step minimises, in parts of which most need two:

    start      what it does to the parameters before the first step       -> params
    prepare    what the paper computes once, before the first step        -> extras
    draw       every random number of one step, for the whole batch       -> draws
    losses     the K loss terms on (a micro-batch of) those draws         -> losses, metrics
    gradients  how their gradients are taken, where backpropagation is not all of it
    penalty    a term of the parameters alone                             -> loss
    combine    one update direction from the K whole-batch gradients      -> direction, metrics
    settle     what follows the optimiser's update, like taking it back   -> params, extras

In `losses`, extras also has networks without gradient: `current`, with the parameters as they are,
and `teacher`, with those that `prepare` put under that name.

Since all randomness is in `draw`, a step gives the same gradients however it is cut into
micro-batches or laid out over devices, and an independent implementation can be fed the same draws.
To add a method write one file here, or a package of your own (docs/plugins.md);
`tests/methods_test.py` tests it because it exists.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import errors
from jaxunlearn.diffusion import NULL, Diffusion, EpsFn
from jaxunlearn.inputs import plugins, ranges
from jaxunlearn.methods.rows import Rows, Text, Whole

HELPERS = ("embeddings", "importance", "rows")  # modules that are no method
# What a method may need of a run, and how a user gives it; build.py checks it.
NEEDS = {
  "c": "a conditional model; set config.init_from and config.model.classes to one",
  "concept": "a class or style to forget; set config.forget.label or config.forget.style",
  "to": "a stream that maps the condition to forget to another; write streams.a in the config "
  "file as {'take': 'forget', 'to': 'next'}",
  "token": "a new token; set config.trained.pattern to token and config.prompts.token to its name",
  "own": "other images under the condition to forget that keep their own; write streams.alt in the "
  "config file as {'take': 'class:NAME', 'c': 'forget', 'to': 'own'}",
  "text": "a text-to-image model; set config.init_from to one and config.model.name to pretrained",
}

Array = jax.Array
Tree = Any  # a nested dict of arrays: parameters, their gradients
Metrics = dict[str, Array]
Batch = Mapping[str, Rows]  # stream name -> rows; the names are the papers' (x kept, a to unlearn)


@dataclasses.dataclass(frozen=True)
class Objective:
  """The contract; the fields of a subclass are its paper's hyper-parameters."""

  streams: ClassVar[tuple[str, ...]] = ("x",)  # the streams it reads, first the one it keeps
  numbered: ClassVar[bool] = False  # whether it reads the record numbers of the stream a
  terms: ClassVar[tuple[str, ...]] = ("x",)  # the names of the K losses
  # Forward passes over a batch, and backward passes at most, of one step.
  forwards: ClassVar[int] = 1
  backwards: ClassVar[int] = 1
  # False: term k has a forward pass of its own, the k-th call of eps_fn, and is always needed.
  shared_forward: ClassVar[bool] = True
  # The step is a rule on the gradients of the whole batch at once: no micro-batches.
  whole_batch: ClassVar[bool] = False
  # What a run must have besides, or it is refused: words of NEEDS.
  needs: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self) -> None:
    ranges.check(self)

  def ancestor(self) -> str:
    """A second model that `start` reads: assets:NAME, a run or a folder; "": none."""
    return ""

  def start(self, params: Tree, data: Mapping[str, Whole], rng: Array) -> Tree:
    """The parameters of step 0, from those of init_from; `prepare` still gets the latter.

    A method that needs `text` gets a `Text` as well, under that name; one that names an ancestor
    gets what is trained of it, as `onto`.
    """
    del data, rng
    return params

  def prepare(
    self,
    apply: Callable[..., Array],
    params: Tree,
    process: Diffusion,
    data: Mapping[str, Whole],
    rng: Array,
  ) -> Tree:
    """Computed once from the starting parameters and whole streams; kept in every checkpoint."""
    del apply, params, process, data, rng
    return {}

  def draw(
    self, process: Diffusion, batch: Batch, rng: Array, extras: Tree, step: Array | int
  ) -> Any:
    """The random numbers of step 0, 1, ...; every leaf leads with the batch axis."""
    raise NotImplementedError

  def losses(
    self, eps_fn: EpsFn, process: Diffusion, draws: Any, extras: Tree
  ) -> tuple[tuple[Array, ...], Metrics]:
    """The K scalar loss terms, each a mean over its rows of sums over pixels, and what to log."""
    raise NotImplementedError

  def needed(self, process: Diffusion, draws: Any) -> tuple[Array | bool, ...]:
    """Which of the K terms have a gradient on these draws; a term that has none costs nothing."""
    del process, draws
    return (True,) * len(self.terms)

  def gradients(
    self,
    apply: Callable[..., Array],
    params: Tree,
    process: Diffusion,
    draws: Any,
    extras: Tree,
    needed: Sequence[bool] | None = None,
  ) -> tuple[tuple[Tree, ...], Metrics]:
    """The K gradients on (a micro-batch of) the draws, and metrics."""
    return term_grads(self, apply, params, process, draws, extras, needed)

  def penalty(self, params: Tree, extras: Tree) -> Array | float:
    """A term of the parameters alone, whose gradient is added to what `combine` gives."""
    del params, extras
    return 0.0

  def combine(self, grads: tuple[Tree, ...], extras: Tree) -> tuple[Tree, Metrics]:
    """One update direction from the K gradients of the whole batch: their sum by default."""
    del extras
    return jax.tree.map(lambda *g: sum(g), *grads), {}

  def settle(self, params: Tree, extras: Tree, step: Array) -> tuple[Tree, Tree]:
    """What becomes of parameters and extras after the update of step 0, 1, ...: nothing."""
    del step
    return params, extras


@dataclasses.dataclass(frozen=True)
class TwoSets(Objective):
  """The denoising losses of two streams, each row with a time and a noise of its own.

  The condition of the first is dropped for a share of its rows, that of the second never.
  """

  c_dropout: ranges.Share = 0.1

  streams: ClassVar[tuple[str, ...]] = ("x", "a")
  terms = ("x", "a")
  forwards = 2
  backwards = 2
  shared_forward = False

  def draw(
    self, process: Diffusion, batch: Batch, rng: Array, extras: Tree, step: Array | int
  ) -> Any:
    kept, other = (batch[name] for name in self.streams)
    return draw_two(process, kept, other, rng, self.c_dropout)

  def losses(
    self, eps_fn: EpsFn, process: Diffusion, draws: Any, extras: Tree
  ) -> tuple[tuple[Array, ...], Metrics]:
    return two_denoising_losses(eps_fn, process, draws), {}


CHOICES = plugins.Group(__name__, "method", "Method", HELPERS)
names = CHOICES.names


def make(name: str, **hparams: Any) -> Objective:
  """methods/siss.py is named 'siss'; its hparams are the fields of its `Method`."""
  return errors.build(CHOICES.module(name).Method, f"method {name}", hparams)


def begin(
  objective: Objective,
  apply: Callable[..., Array],
  params: Tree,
  process: Diffusion,
  data: Mapping[str, Whole],
  rng: Array,
  text: Text | None = None,
  onto: Tree | None = None,
) -> tuple[Tree, Tree]:
  """The parameters of step 0 and the extras: what a method does before the first step."""
  if (name := objective.ancestor()) and onto is None:
    raise ValueError(f"this method begins with {name!r}; give its parameters as `onto`")
  if "text" in objective.needs and text is None:
    raise ValueError(f"this method needs {NEEDS['text']}")
  given: dict[str, Any] = {"text": text} if "text" in objective.needs else {}
  if name:
    given["onto"] = onto
  extras = objective.prepare(apply, params, process, data, rng)
  return objective.start(params, data, jax.random.fold_in(rng, 1), **given), extras


def direction(
  objective: Objective, params: Tree, grads: tuple[Tree, ...], extras: Tree
) -> tuple[Tree, Metrics]:
  """What an update follows: `combine` of the K whole-batch gradients, and the penalty's slope."""
  total, metrics = objective.combine(grads, extras)
  if type(objective).penalty is not Objective.penalty:
    loss, slope = jax.value_and_grad(objective.penalty)(params, extras)
    total = jax.tree.map(jnp.add, total, slope)
    metrics |= {"loss_penalty": loss}
  return total, metrics


def term_grads(
  objective: Objective,
  apply: Callable[..., Array],
  params: Tree,
  process: Diffusion,
  draws: Any,
  extras: Tree,
  needed: Sequence[bool] | None = None,
) -> tuple[tuple[Tree, ...], Metrics]:
  """The gradient of each loss term on these draws, by as few passes as the method allows.

  Terms that share a forward pass are pulled back through it one by one; a term that is not
  `needed` (None: all are) is not pulled back, and its gradient is zero. Terms with a pass each
  read a copy of the parameters each, so that the one gradient of their sum holds theirs apart.
  The metric `passes` is the cost in forward passes; a backward pass counts as two.
  """
  if not objective.shared_forward:
    copies = (params,) * len(objective.terms)
    return grads_at(objective, apply, copies, process, draws, extras)
  needed = (True,) * len(objective.terms) if needed is None else needed
  extras = bind(extras, apply, params)
  named = functools.partial(_named_losses, objective, process, draws, extras)
  bound = lambda p: functools.partial(apply, p)
  losses, pullback, metrics = jax.vjp(lambda p: named(bound(p)), params, has_aux=True)
  ones = [
    tuple(jnp.asarray(i == k, v.dtype) for i, v in enumerate(losses)) for k in range(len(losses))
  ]
  grads = tuple(
    pullback(one)[0] if need else jax.tree.map(jnp.zeros_like, params)
    for need, one in zip(needed, ones, strict=True)
  )
  return grads, metrics | {"passes": jnp.float32(objective.forwards + 2 * sum(needed))}


def grads_at(
  objective: Objective,
  apply: Callable[..., Array],
  places: Sequence[Tree],
  process: Diffusion,
  draws: Any,
  extras: Tree,
) -> tuple[tuple[Tree, ...], Metrics]:
  """The gradient of each loss term at parameters of its own; metrics are as of `term_grads`.

  The k-th call of eps_fn is at places[k]. The network `current` has those of the first.
  """
  extras = bind(extras, apply, places[0])

  def total(places: tuple[Tree, ...]) -> tuple[Array, Metrics]:
    place = iter(places)
    eps_fn = lambda x_t, t, c=None: apply(next(place), x_t, t, c)
    losses, metrics = _named_losses(objective, process, draws, extras, eps_fn)
    return sum(losses[1:], start=losses[0]), metrics

  grads, metrics = jax.grad(total, has_aux=True)(tuple(places))
  return grads, metrics | {"passes": jnp.float32(objective.forwards + 2 * objective.backwards)}


def _named_losses(
  objective: Objective, process: Diffusion, draws: Any, extras: Tree, eps_fn: EpsFn
) -> tuple[tuple[Array, ...], Metrics]:
  """The K losses; and the metrics, with each loss by its term's name."""
  losses, metrics = objective.losses(eps_fn, process, draws, extras)
  named = {f"loss_{name}": loss for name, loss in zip(objective.terms, losses, strict=True)}
  return losses, metrics | named


def bind(extras: Tree, apply: Callable[..., Array], params: Tree) -> Tree:
  """The extras as `losses` sees them: with the networks that have no gradient."""
  frozen = {"current": jax.lax.stop_gradient(params)}
  if "teacher" in extras:
    frozen["teacher"] = extras["teacher"]
  return extras | {name: functools.partial(apply, p) for name, p in frozen.items()}


def check(name: str, value: Any, ok: bool, rule: str) -> None:
  """Raises ValueError with the field, its value and the rule, unless `ok`."""
  if not ok:
    raise ValueError(f"{name} is {value}; use {rule}")


def draw_noise(process: Diffusion, shape: tuple[int, ...], rng: Array) -> dict[str, Array]:
  """For each row of a shape [B, H, W, C] a time uniform over 0..T-1 and a standard normal noise."""
  k_t, k_eps = jax.random.split(rng)
  return {"t": process.sample_t(k_t, shape[0]), "eps": jax.random.normal(k_eps, shape)}


def drop_conditions(c: Any, share: float, rng: Array) -> Any:
  """The conditions, those of a random share of the rows replaced by NULL; None stays None."""
  if c is None or not share:
    return c
  drop = jax.random.bernoulli(rng, share, (len(c), *[1] * (c.ndim - 1)))
  return jnp.where(drop, NULL, c)


def draw_pairs(process: Diffusion, batch: Batch, rng: Array) -> dict[str, Any]:
  """The rows of streams x and a, paired; a pair shares one time and one noise."""
  x, a = batch["x"], batch["a"]
  pairs = {"x": x.image, "c_x": x.c, "a": a.image, "c_a": a.c}
  return pairs | draw_noise(process, x.image.shape, rng)


def draw_one(process: Diffusion, a: Rows, rng: Array) -> dict[str, Any]:
  """The rows of stream a, with times and noise."""
  return {"a": a.image, "c": a.c} | draw_noise(process, a.image.shape, rng)


def one_denoising_loss(
  eps_fn: EpsFn, process: Diffusion, draws: Mapping[str, Any]
) -> tuple[tuple[Array], Metrics]:
  """The denoising loss of `draw_one`, as `losses` gives it."""
  a, c, t, eps = (draws[name] for name in ("a", "c", "t", "eps"))
  return (denoising_loss(eps_fn, process, a, c, t, eps),), {}


def draw_two(
  process: Diffusion, x: Rows, a: Rows, rng: Array, c_dropout: float, a_dropout: float = 0.0
) -> dict[str, Any]:
  """The rows of two streams, the second as `a`; each row with a time and a noise of its own.

  The conditions of x and of a are dropped for a share of their rows.
  """
  k_x, k_a, k_c = jax.random.split(rng, 3)
  noise_a = draw_noise(process, a.image.shape, k_a)
  return {
    "x": x.image,
    "c_x": drop_conditions(x.c, c_dropout, k_c),
    **draw_noise(process, x.image.shape, k_x),
    "a": a.image,
    # Not 0, 1 or 2: those are the three keys.
    "c_a": drop_conditions(a.c, a_dropout, jax.random.fold_in(rng, 3)),
    "t_a": noise_a["t"],
    "eps_a": noise_a["eps"],
  }


def two_denoising_losses(
  eps_fn: EpsFn, process: Diffusion, draws: Mapping[str, Any]
) -> tuple[Array, Array]:
  """The denoising losses of the two streams of `draw_two`."""
  x, c, t, eps = (draws[name] for name in ("x", "c_x", "t", "eps"))
  a, c_a, t_a, eps_a = (draws[name] for name in ("a", "c_a", "t_a", "eps_a"))
  loss_x = denoising_loss(eps_fn, process, x, c, t, eps)
  return loss_x, denoising_loss(eps_fn, process, a, c_a, t_a, eps_a)


def weighted(grads: Sequence[Tree], weights: Sequence[Array | float]) -> Tree:
  """The weighted sum of trees."""
  return jax.tree.map(lambda *g: sum(w * v for w, v in zip(weights, g, strict=True)), *grads)


def squared_error(eps: Array, eps_hat: Array) -> Array:
  """||eps - eps_hat||^2 per row [B]: a sum over pixels, in float32."""
  return jnp.sum((eps - eps_hat.astype(jnp.float32)) ** 2, axis=(1, 2, 3))


def denoising_loss(
  eps_fn: EpsFn, process: Diffusion, x: Array, c: Array | None, t: Array, eps: Array
) -> Array:
  """L_X = E ||eps - eps_theta(x_t, t)||^2: the mean over rows of sums over pixels."""
  return jnp.mean(squared_error(eps, eps_fn(process.q_sample(x, t, eps), t, c)))


def clipped(grads: Tree, norm: float) -> Tree:
  """The gradients, scaled down to a global norm of at most `norm`."""
  scale = jnp.minimum(1.0, norm / jnp.maximum(optax.tree.norm(grads), jnp.finfo(jnp.float32).tiny))
  return jax.tree.map(lambda g: scale * g, grads)


def masked(grads: Tree, mask: Tree) -> Tree:
  """The gradients where the mask is true, 0 elsewhere."""
  return jax.tree.map(lambda g, m: jnp.where(m, g, 0), grads, mask)


def subtract_scaled(g_x: Tree, g_a: Tree, norm: float | None, ratio: float) -> tuple[Tree, Metrics]:
  """g_x - c g_a, with c such that ||c g_a|| is `norm`, or `ratio` ||g_x|| where norm is None.

  The norm is set at every step, up or down: no clip (Alberti et al., 2025). Where g_a is zero or
  not finite there is no such c: it is left out, and `forget_skipped` is 1.
  """
  norm_x, norm_a = optax.tree.norm(g_x), optax.tree.norm(g_a)
  c = (ratio * norm_x if norm is None else norm) / norm_a
  ok = jnp.isfinite(c) & jnp.isfinite(norm_a)
  direction = jax.tree.map(lambda x, a: jnp.where(ok, x - c * a, x), g_x, g_a)
  metrics = {
    "norm_x": norm_x,
    "norm_a": jnp.where(jnp.isfinite(norm_a), norm_a, 0),
    "forget_scale": jnp.where(ok, c, 0),
    "forget_skipped": 1 - ok.astype(jnp.float32),
  }
  return direction, metrics
