"""The samplers: closed forms, diffusers' schedulers step by step, exact scores of a mixture."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

from jaxunlearn import library
from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.diffusion.options import SPACINGS, Options, times
from tests import toys
from tests.recorder import Recorder

PROCESS = Diffusion()
SHAPE = (3, 4, 4, 2)
RNG = jax.random.key(7)


def noise(seed, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


def check_each_step(monkeypatch, calls, x_0, rng, scheduler, **options):
  """Each x_t is where diffusers' scheduler steps to from the one before, given the same noise."""
  # In float32, as diffusers keeps it, 1 - abar_t is off by 6e-4 at t = 0.
  scheduler.alphas_cumprod = torch.from_numpy(PROCESS.abar)
  if not scheduler.config.get("set_alpha_to_one", True):
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
  times = np.stack([t for t, *_ in calls])
  assert times.dtype == np.int32
  np.testing.assert_array_equal(times, np.repeat(times[:, :1], len(x_0), axis=1))
  draw = jax.vmap(lambda t: jax.random.normal(jax.random.fold_in(rng, t), x_0.shape))
  noises = np.array(draw(times[:, 0]))
  arrivals = [x_t for _, x_t, *_ in calls[1:]] + [np.asarray(x_0)]
  for (t, x_t, eps, _), z, arrival in zip(calls, noises, arrivals, strict=True):
    for module in (scheduling_ddpm, scheduling_ddim):
      monkeypatch.setattr(module, "randn_tensor", lambda *_, z=z, **__: torch.from_numpy(z))
    step = scheduler.step(torch.from_numpy(eps), int(t[0]), torch.from_numpy(x_t), **options)
    theirs = step.prev_sample.numpy()
    np.testing.assert_allclose(arrival, theirs, rtol=0, atol=2e-6 * max(1, np.abs(theirs).max()))


def clipped(clip, **fields):
  return Options(clip_sample=clip, **fields)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1000, 300, 50, 10, 1])
def test_ddpm_steps_as_diffusers(monkeypatch, steps, clip):
  eps_fn = Recorder()
  x_0 = sampling.ddpm(eps_fn, PROCESS, RNG, noise(0), steps=steps, options=clipped(clip))
  scheduler = diffusers.DDPMScheduler(clip_sample=clip)
  scheduler.set_timesteps(steps)
  calls = eps_fn.calls()
  assert [t[0] for t, *_ in calls] == scheduler.timesteps.tolist()
  check_each_step(monkeypatch, calls, x_0, RNG, scheduler)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("clip", "again"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("steps", [1000, 50, 10])
def test_ddim_steps_as_diffusers(monkeypatch, steps, clip, again, eta):
  eps_fn, options = Recorder(), clipped(clip, use_clipped_model_output=again)
  x_0 = sampling.ddim(eps_fn, PROCESS, RNG, noise(0), steps=steps, eta=eta, options=options)
  scheduler = diffusers.DDIMScheduler(clip_sample=clip, set_alpha_to_one=True, steps_offset=0)
  scheduler.set_timesteps(steps)
  calls = eps_fn.calls()
  assert [t[0] for t, *_ in calls] == scheduler.timesteps.tolist()
  how = {"eta": eta, "use_clipped_model_output": again}
  check_each_step(monkeypatch, calls, x_0, RNG, scheduler, **how)


OF_BOTH = [
  {"timestep_spacing": "trailing"},
  {"timestep_spacing": "linspace"},
  {"steps_offset": 1},
  {"clip_sample_range": 0.5},
]
OF_DDPM = [
  {"variance_type": "fixed_large"},
  {"variance_type": "fixed_small_log"},
  {"variance_type": "fixed_large", "steps_offset": 3, "clip_sample_range": 2.0},
]
OF_DDIM = [
  {"set_alpha_to_one": False},
  {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
  {"set_alpha_to_one": False, "timestep_spacing": "trailing"},
]


@pytest.mark.parametrize(
  ("given", "steps"), [*((given, 7) for given in OF_BOTH + OF_DDPM), (OF_DDPM[-1], 600)], ids=str
)
def test_each_option_of_ddpm_steps_as_diffusers(monkeypatch, given, steps):
  eps_fn = Recorder()
  x_0 = sampling.ddpm(eps_fn, PROCESS, RNG, noise(0), steps=steps, options=Options(**given))
  scheduler = diffusers.DDPMScheduler(**given)
  scheduler.set_timesteps(steps)
  calls = eps_fn.calls()
  assert [t[0] for t, *_ in calls] == scheduler.timesteps.tolist()
  check_each_step(monkeypatch, calls, x_0, RNG, scheduler)


@pytest.mark.parametrize(
  ("given", "steps"), [*((given, 7) for given in OF_BOTH + OF_DDIM), (OF_DDIM[1], 600)], ids=str
)
def test_each_option_of_ddim_steps_as_diffusers(monkeypatch, given, steps):
  eps_fn = Recorder()
  x_0 = sampling.ddim(
    eps_fn, PROCESS, RNG, noise(0), steps=steps, eta=0.5, options=Options(**given)
  )
  scheduler = diffusers.DDIMScheduler(**given)
  scheduler.set_timesteps(steps)
  calls = eps_fn.calls()
  assert [t[0] for t, *_ in calls] == scheduler.timesteps.tolist()
  how = {"eta": 0.5, "use_clipped_model_output": True}
  check_each_step(monkeypatch, calls, x_0, RNG, scheduler, **how)


def test_more_steps_of_ddim_give_the_same_pictures():
  """Of the embedded digits, whose x0 are clipped at most steps."""
  net, params, process = library.load_pretrained("assets:pretrain_mnist")
  eps_fn = library.eps_fn(process.predictor(net.apply), params)
  shape = (16, 28, 28, 1)

  def draw(steps, again=True):
    options = Options(use_clipped_model_output=again)
    return library.sample(eps_fn, process, RNG, shape, steps=steps, options=options)

  few, many = draw(20), draw(100)
  assert abs(few.mean() - many.mean()) < 0.02
  assert draw(100, again=False).mean() > draw(20, again=False).mean() + 0.1  # greyer
  assert np.corrcoef(few.ravel(), many.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_are_those_of_diffusers(spacing):
  options = Options(timestep_spacing=spacing)
  scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
  for steps in range(1, 1001):
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.tolist()  # by rounding, 61 trailing steps end in a 62nd at -1
    assert times(PROCESS, steps, options).tolist() == [t for t in theirs if t >= 0], steps


def test_the_identity_says_the_options_that_are_not_the_default():
  assert Options().facts() == {}
  given = {"timestep_spacing": "trailing", "set_alpha_to_one": False}
  assert Options(**given).facts() == given


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("t", [0, 250])
def test_inject_noises_once_and_steps_as_diffusers(monkeypatch, t, clip):
  recorder, x, c = Recorder(), noise(1), jnp.arange(3)
  eps_fn = jax.tree_util.Partial(recorder)
  copies = sampling.inject(eps_fn, PROCESS, RNG, x, t, c, n=2, options=clipped(clip))
  assert copies.shape == (3, 2, 4, 4, 2)
  calls = recorder.calls()
  assert [call[0][0] for call in calls] == list(range(t, -1, -1))
  k_noise, k_steps = jax.random.split(RNG)
  x_t = PROCESS.q_sample(x, jnp.full(3, t), jax.random.normal(k_noise, x.shape))
  np.testing.assert_allclose(calls[0][1], np.repeat(x_t, 2, axis=0), atol=1e-6)
  np.testing.assert_array_equal(calls[0][3], [0, 0, 1, 1, 2, 2])
  scheduler = diffusers.DDPMScheduler(clip_sample=clip)
  check_each_step(monkeypatch, calls, copies.reshape(6, 4, 4, 2), k_steps, scheduler)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 50])
def test_one_known_image_comes_back_exactly(name, steps):
  # All mass on mu: every predicted x0 is mu, whatever x_t, and the last step takes only x0.
  mu = np.random.default_rng(0).uniform(-1, 1, (1, *SHAPE[1:]))
  eps_fn = toys.mixture_eps_fn(PROCESS, mu, 0.0, [1.0])
  x_0 = sampling.sample(eps_fn, PROCESS, RNG, noise(0), sampler=name, steps=steps)
  np.testing.assert_allclose(x_0, np.repeat(mu, 3, axis=0), atol=2e-5)


# Two modes of 2x2 images, ten standard deviations of the mean pixel apart.
MEANS = np.stack([np.full((2, 2, 1), 0.4), np.full((2, 2, 1), -0.1)]).astype(np.float32)
STD, WEIGHTS = 0.1, (0.3, 0.7)


def mixture():
  return toys.mixture_eps_fn(PROCESS, MEANS, STD, WEIGHTS)


def near_first(x):
  """Which images [..., H, W, C] are nearer to the first mean."""
  return np.mean(x, axis=(-3, -2, -1)) > MEANS.mean()


@pytest.mark.parametrize(
  ("sampler", "steps"), [("ddpm", 1000), ("ddim", 1000), ("plms", 100), ("dpm", 200)]
)
def test_exact_scores_give_the_mixture_back(sampler, steps):
  n = 4096
  x_T = noise(0, (n, 2, 2, 1))
  x = np.asarray(sampling.sample(mixture(), PROCESS, RNG, x_T, sampler=sampler, steps=steps))
  first = near_first(x)
  assert abs(first.mean() - WEIGHTS[0]) < 4 * np.sqrt(WEIGHTS[0] * WEIGHTS[1] / n)
  for mean, mode in zip(MEANS, (first, ~first), strict=True):
    error = x[mode] - mean
    assert np.abs(error.mean(axis=0)).max() < 4 * STD / np.sqrt(mode.sum())
    assert abs(error.std() / STD - 1) < 0.05  # 1000 steps lose 1-4% of it


def share_of_first(t, mode, n=100_000):
  """The mean over x_t from one mode of the posterior share of the first, by NumPy in float64."""
  gamma = np.sqrt(PROCESS.abar[t])
  var = (gamma**2 * STD**2 + 1 - gamma**2) / 4  # of the mean of four pixels
  mu = gamma * MEANS[:, 0, 0, 0].astype(np.float64)
  x_t = mu[mode] + np.sqrt(var) * np.random.default_rng(0).standard_normal(n)
  log_odds = ((x_t - mu[1]) ** 2 - (x_t - mu[0]) ** 2) / (2 * var)
  return np.mean(1 / (1 + np.exp(-log_odds) * WEIGHTS[1] / WEIGHTS[0]))


@pytest.mark.parametrize("t", [10, 250, 999])
def test_inject_stays_in_its_mode_early_and_mixes_late(t):
  n = 512  # images a mode, each injected twice
  x = MEANS[:, None] + STD * noise(3, (2, n, 2, 2, 1))
  copies = sampling.inject(mixture(), PROCESS, RNG, x.reshape(2 * n, 2, 2, 1), t, n=2)
  shares = near_first(np.asarray(copies)).reshape(2, 2 * n).mean(axis=1)
  for mode, share in enumerate(shares):
    expected = share_of_first(t, mode)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 0.01
  if t == 10:
    np.testing.assert_array_equal(shares, [1, 0])
  if t == 999:
    np.testing.assert_allclose(shares, WEIGHTS[0], atol=0.08)


def test_inject_is_a_function_of_its_key_and_its_copies_differ():
  x = jnp.repeat(MEANS, 2, axis=0)
  inject = lambda seed: np.asarray(
    sampling.inject(mixture(), PROCESS, jax.random.key(seed), x, 40, n=3)
  )
  once, again, other = inject(0), inject(0), inject(1)
  assert once.shape == (4, 3, 2, 2, 1)
  assert once.dtype == np.float32
  np.testing.assert_array_equal(once, again)
  assert np.all(once != other)
  rows = once.reshape(12, -1)
  assert len(np.unique(rows, axis=0)) == 12


@pytest.mark.parametrize(
  ("sampler", "options", "random"),
  [(sampling.ddpm, {}, True), (sampling.ddim, {"eta": 1.0}, True), (sampling.ddim, {}, False)],
)
def test_keys_matter_where_the_sampler_is_random(sampler, options, random):
  x_T = noise(0, (3, 2, 2, 1))
  run = jax.jit(lambda rng: sampler(mixture(), PROCESS, rng, x_T, steps=10, **options))
  once, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(once, again)
  assert np.all((once != other) == random)


def test_a_second_checkpoint_does_not_recompile():
  traces = []

  def apply(params, x_t, t, c=None):
    traces.append(t)
    return params["w"] * x_t

  def run(w):
    eps_fn = jax.tree_util.Partial(apply, {"w": jnp.float32(w)})
    x_0 = sampling.sample(eps_fn, Diffusion(), RNG, noise(0), sampler="ddim", steps=5)
    copies = sampling.inject(eps_fn, Diffusion(), RNG, noise(0), 5, n=2)
    return np.asarray(x_0), np.asarray(copies)

  before = sampling.sample._cache_size(), sampling.inject._cache_size()
  first, traced = run(0.5), len(traces)
  second = run(0.6)
  assert len(traces) == traced
  after = sampling.sample._cache_size(), sampling.inject._cache_size()
  assert after == (before[0] + 1, before[1] + 1)
  assert all(np.any(a != b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda e: sampling.ddpm(e, PROCESS, RNG, noise(0), steps=0), "steps 0 is outside 1..1000"),
    (lambda e: sampling.ddim(e, PROCESS, RNG, noise(0), steps=1001), "steps 1001 is outside"),
    (lambda e: sampling.ddim(e, PROCESS, RNG, noise(0), eta=1.5), "eta 1.5 is outside"),
    (
      lambda e: sampling.ddim(e, PROCESS, RNG, noise(0), steps=1000, options=Options("leading", 1)),
      "steps 1000 with steps_offset 1 begin at 1000, past the last time 999; use fewer",
    ),
    (lambda e: Options("trailin"), "no timestep spacing 'trailin' .did you mean 'trailing'"),
    (lambda e: Options(variance_type="learned"), "no variance type 'learned'.*fixed_large"),
    (lambda e: Options(steps_offset=-1), "steps_offset is -1; use a whole number, 0 or more"),
    (lambda e: Options(clip_sample_range=0.0), "clip_sample_range is 0; use more than 0"),
    (lambda e: sampling.inject(e, PROCESS, RNG, noise(0), 1000), "t 1000 is outside 0..999"),
    (lambda e: sampling.inject(e, PROCESS, RNG, noise(0), -1), "t -1 is outside 0..999"),
    (lambda e: sampling.inject(e, PROCESS, RNG, noise(0), 5, n=0), "n 0 denoised copies"),
    (
      lambda e: sampling.sample(e, PROCESS, RNG, noise(0), sampler="dppm", steps=9),
      "no sampler 'dppm' .did you mean 'dpm'.*; there are: ddpm, ddim, plms, dpm",
    ),
    (
      lambda e: sampling.sample(e, PROCESS, RNG, noise(0), sampler="ddpm", steps=2000),
      "steps 2000 is outside 1..1000",
    ),
  ],
)
def test_bad_input_says_the_rule(call, words):
  with pytest.raises(ValueError, match=words) as error:
    call(mixture())
  assert "\n" not in str(error.value)
