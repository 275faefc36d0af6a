"""PLMS and DPM-Solver++: step by step as diffusers, exact flows of a Gaussian, their order."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn.diffusion import Diffusion, sampling
from jaxunlearn.diffusion.options import SPACINGS, Options, times
from tests import toys
from tests.recorder import Recorder

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PROCESS = Diffusion("scaled_linear", beta_1=0.00085, beta_T=0.012)
RNG = jax.random.key(7)
SHAPE = (2, 3, 3, 2)
X_T = jax.random.normal(jax.random.key(0), SHAPE)
STEPS = (1, 2, 3, 4, 10, 50)


def theirs(kind, steps, **fields):
  """diffusers' scheduler of the process, in float64, at so many steps."""
  scheduler = kind(**LATENT, **fields)
  scheduler.alphas_cumprod = torch.from_numpy(PROCESS.abar)
  if not scheduler.config.get("set_alpha_to_one", True):
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
  scheduler.set_timesteps(steps)
  return scheduler


def steps_of(sampler, steps, options):
  """(t, x_t, eps, where it went) of every call of the network."""
  recorder, c = Recorder(), jnp.arange(len(X_T))
  walk = sampling.SAMPLERS[sampler]
  x_0 = np.asarray(walk(recorder, PROCESS, RNG, X_T, c, steps=steps, options=options))
  calls = recorder.calls()
  for t, *_, told in calls:
    assert t.dtype == np.int32 and set(t) == {t[0]}
    np.testing.assert_array_equal(told, c)
  arrivals = [x_t for _, x_t, *_ in calls[1:]] + [x_0]
  return [(int(t[0]), x_t, eps, x_s) for (t, x_t, eps, _), x_s in zip(calls, arrivals, strict=True)]


def assert_walks_as(scheduler, walk):
  assert [t for t, *_ in walk] == scheduler.timesteps.tolist()
  for t, x_t, eps, x_s in walk:
    want = scheduler.step(torch.from_numpy(eps), t, torch.from_numpy(x_t)).prev_sample.numpy()
    np.testing.assert_allclose(x_s, want, rtol=0, atol=1e-6 * max(1, np.abs(want).max()))


OF_PLMS = [
  *({"steps_offset": 1, "set_alpha_to_one": False, "steps": n} for n in STEPS),
  *({"timestep_spacing": spacing, "steps": 7} for spacing in SPACINGS),
  {"timestep_spacing": "trailing", "set_alpha_to_one": False, "steps": 3},
  {"timestep_spacing": "linspace", "steps": 2},
  {"timestep_spacing": "linspace", "steps_offset": 1, "steps": 1},
  {"set_alpha_to_one": True, "steps": 4},
]


@pytest.mark.parametrize("given", OF_PLMS, ids=str)
def test_plms_steps_as_diffusers(given):
  given = {"set_alpha_to_one": True} | given
  steps = given.pop("steps")
  walk = steps_of("plms", steps, Options(**given))
  assert len(walk) == steps + (steps > 1)
  assert_walks_as(theirs(diffusers.PNDMScheduler, steps, skip_prk_steps=True, **given), walk)


OF_DPM = [
  *({"timestep_spacing": "linspace", "steps": n} for n in STEPS),
  *(
    {"timestep_spacing": "leading", "steps_offset": i, "steps": n} for i in (0, 1) for n in (3, 20)
  ),
  *({"timestep_spacing": "trailing", "steps": n} for n in (2, 15)),
]


@pytest.mark.parametrize("given", OF_DPM, ids=str)
def test_dpm_steps_as_diffusers(given):
  steps = given["steps"]
  given = {name: value for name, value in given.items() if name != "steps"}
  walk = steps_of("dpm", steps, Options(**given))
  assert_walks_as(theirs(diffusers.DPMSolverMultistepScheduler, steps, **given), walk)
  # It has no clip and no last abar, whatever the options say.
  other = Options(**given, clip_sample=False, set_alpha_to_one=False)
  np.testing.assert_array_equal(steps_of("dpm", steps, other)[-1][-1], walk[-1][-1])


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_times_of_dpm_are_those_of_diffusers(spacing):
  options = Options(timestep_spacing=spacing)
  scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing)
  for steps in [*range(1, 999, 9), 61, 999]:
    scheduler.set_timesteps(steps)
    want = scheduler.timesteps.tolist()  # by rounding, 61 trailing steps end in a 62nd at -1
    got = times(PROCESS, steps, options, beyond=1)
    assert got.tolist() == [t for t in want if t >= 0] and len(set(got)) == steps, steps


@pytest.mark.parametrize(("steps", "offset"), [(1, 0), (10, 1), (50, 1)])
def test_ddim_to_abar_1_without_a_clip_is_euler(steps, offset):
  given = {"timestep_spacing": "leading", "steps_offset": offset}
  options = Options(**given, clip_sample=False)
  euler = theirs(diffusers.EulerDiscreteScheduler, steps, **given)
  levels = np.sqrt(1 + euler.sigmas.numpy() ** 2)  # 1 / gamma
  assert euler.init_noise_sigma == pytest.approx(levels[0])  # from unit noise, as ours
  for i, (t, x_t, eps, x_s) in enumerate(steps_of("ddim", steps, options)):
    assert t == euler.timesteps[i]
    sample = torch.from_numpy(x_t * levels[i])
    np.testing.assert_allclose(euler.scale_model_input(sample, euler.timesteps[i]), x_t, rtol=1e-5)
    step = euler.step(torch.from_numpy(eps), euler.timesteps[i], sample)
    np.testing.assert_allclose(x_s * levels[i + 1], step.prev_sample, rtol=1e-5, atol=1e-5)


# The exact flow of N(mean, std^2) keeps (x_t - gamma mean) / sqrt(gamma^2 std^2 + sigma^2).
LINEAR, MEAN = Diffusion(), 0.4
LINE = jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)


def gaussian(std):
  return toys.mixture_eps_fn(LINEAR, np.full((1, 1, 1, 1), MEAN), std, [1.0])


def flow(x, std, abar, abar_s):
  """Where the exact flow brings x from abar to abar_s."""
  spread = lambda abar: np.sqrt(abar * std**2 + 1 - abar)
  middle = np.sqrt(abar_s) * MEAN
  return middle + spread(abar_s) / spread(abar) * (x - np.sqrt(abar) * MEAN)


@pytest.mark.parametrize(
  ("sampler", "std", "order"), [("ddim", 0.5, 1), ("plms", 2.0, 2), ("dpm", 0.5, 2)]
)
def test_a_sampler_has_its_order(sampler, std, order):
  # At t = 200, where all of them call: the last step, to abar 1, is of first order in any.
  t, off = 200, []
  for intervals in (10, 20, 40):
    recorder = Recorder(gaussian(std))
    steps = intervals - (sampler == "dpm")
    walk = sampling.SAMPLERS[sampler]
    walk(recorder, LINEAR, RNG, LINE, steps=steps, options=Options(clip_sample=False))
    calls = {int(call[0][0]): call[1] for call in recorder.calls()}
    want = flow(LINE, std, LINEAR.abar[max(calls)], LINEAR.abar[t])
    off.append(np.abs(calls[t] - want).max())
  np.testing.assert_allclose(np.log2(off[:-1]) - np.log2(off[1:]), order, atol=0.1)


def test_twenty_steps_of_second_order_are_nearer_than_ddims():
  def error(sampler, steps=20):
    options = Options(clip_sample=False)
    x_0 = sampling.sample(
      gaussian(0.5), LINEAR, RNG, LINE, sampler=sampler, steps=steps, options=options
    )
    first = times(LINEAR, steps, options, beyond=int(sampler == "dpm"))[0]
    return np.abs(x_0 - flow(LINE, 0.5, LINEAR.abar[first], 1.0)).max()

  assert error("plms") < error("ddim") / 20
  assert error("dpm") < error("ddim") / 3
  assert error("dpm", 40) < error("ddim", 40) / 20


def test_one_scan_serves_every_checkpoint_and_no_key_matters():
  def run(sampler, w, seed):
    eps_fn = jax.tree_util.Partial(_scaled, jnp.float32(w))
    key = jax.random.key(seed)
    return np.asarray(sampling.sample(eps_fn, PROCESS, key, X_T, sampler=sampler, steps=5))

  for sampler in ("plms", "dpm"):
    traced = len(TRACES)
    first = run(sampler, 0.5, 0)
    assert len(TRACES) == traced + 1  # the network stands once in the program
    np.testing.assert_array_equal(first, run(sampler, 0.5, 1))
    assert np.any(first != run(sampler, 0.6, 0)) and len(TRACES) == traced + 1


TRACES = []


def _scaled(w, x_t, t, c=None):
  TRACES.append(t)
  return w * x_t


@pytest.mark.parametrize(
  ("sampler", "steps", "given", "words"),
  [
    ("plms", 0, {}, "steps 0 is outside 1..1000, the steps of the process; use one"),
    ("plms", 1001, {}, "steps 1001 is outside 1..1000"),
    (
      *("plms", 1000, {"steps_offset": 1}),
      "steps 1000 with steps_offset 1 begin at 1000, past the last time 999; use fewer steps",
    ),
    ("dpm", 0, {}, "steps 0 is outside 1..999"),
    ("dpm", 1000, {}, "steps 1000 is outside 1..999"),
    ("dpm", 1000, {"timestep_spacing": "linspace"}, "steps 1000 is outside 1..999"),
    ("dpm", 1001, {"timestep_spacing": "trailing"}, "steps 1001 is outside 1..1000"),
    ("dpm", 999, {"steps_offset": 1}, "steps 999 with steps_offset 1 begin at 1000, past"),
    ("plsm", 5, {}, "no sampler 'plsm' .did you mean .*; there are: ddpm, ddim, plms, dpm"),
  ],
)
def test_bad_input_is_told_before_there_is_a_network(sampler, steps, given, words):
  with pytest.raises(ValueError, match=words) as error:
    sampling.check(PROCESS, sampler, steps, Options(**given))
  assert "\n" not in str(error.value)


def test_what_can_be_walked_is_no_error():
  sampling.check(PROCESS, "dpm", 1000, Options(timestep_spacing="trailing"))
  sampling.check(PROCESS, "plms", 1, Options(steps_offset=1))
