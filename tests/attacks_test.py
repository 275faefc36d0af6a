"""Attacks that search for a prompt, round weights or complete pictures; and what each may know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import attack_little_sd
from jaxunlearn import evals, streams
from jaxunlearn.diffusion import NULL, Diffusion, sampling
from jaxunlearn.mesh import sharding
from jaxunlearn.methods import Rows, unlearn_diff_attack
from jaxunlearn.models import clip, text_to_image
from jaxunlearn.reports import limits, subject, verdict
from jaxunlearn.weights import of_run, rounding
from tests import conditional_evals_test as evals_test
from tests import nets, pets, streams_test, toys

RNG = np.random.default_rng(0)

# The simplex.


def nearest_point(w):
  """By sorting (Held, Wolfe and Crowder, 1974), in float64."""
  u = np.sort(np.float64(w))[::-1]
  fits = u + (1 - np.cumsum(u)) / np.arange(1, len(u) + 1) > 0
  k = np.flatnonzero(fits)[-1]
  return np.maximum(w - (u[: k + 1].sum() - 1) / (k + 1), 0)


def test_the_projection_is_the_nearest_point_of_the_simplex():
  w = RNG.normal(0, [[0.1], [1.0], [30.0]], (3, 40)).astype(np.float32)
  got = np.asarray(unlearn_diff_attack.on_simplex(w))
  np.testing.assert_allclose(got, [nearest_point(row) for row in w], atol=2e-5)
  np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(unlearn_diff_attack.on_simplex(got), got, atol=1e-6)


@pytest.mark.parametrize(("step", "first"), [(0, 75), (2, 75), (3, 50), (9, 0), (12, 75)])
def test_the_times_of_one_bin_are_attacked_for_some_steps_then_of_the_next(step, first):
  method = unlearn_diff_attack.Method(times=4, per_time=3)
  rows, process = Rows(jnp.zeros((500, 1, 1, 1)), jnp.zeros(500, jnp.int32)), Diffusion(T=100)
  draws = method.draw(process, {"a": rows}, jax.random.key(0), {}, jnp.int32(step))
  assert set(np.asarray(draws["t"]).tolist()) == set(range(first, first + 25))


# A prefix before prompts.

START, END = 18, 19
TEXT = clip.Text(
  hidden_size=8,
  intermediate_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  vocab_size=20,
  max_position_embeddings=8,
  end=END,
)
WORDS = [[1, 2], [3, 4, 5, 6, 7, 8]]


def ids_of(words, before=()):
  kept = [*before, *words][:6]
  return [START, *kept, END, *[END] * (6 - len(kept))]


def net_of(before=()):
  book = text_to_image.Book(np.array([*(ids_of(w, before) for w in WORDS), ids_of([])]))
  return text_to_image.Net(text=TEXT, classes=(2,), book=book)


@pytest.fixture(scope="module")
def params():
  return {"text_encoder": jax.tree.map(jnp.asarray, nets.random_params(TEXT))}


def test_a_prefix_is_its_heaviest_tokens_before_each_prompt_but_the_empty_one(params):
  """A prompt that has no more room is cut, and keeps its end."""
  weights = RNG.uniform(0, 0.4, (3, 20)).astype(np.float32)
  tokens = (9, 11, 10)
  weights[np.arange(3), tokens] = 0.6
  c = jnp.array([0, 1, NULL])
  got = net_of().states({**params, "prefix": jnp.asarray(weights)}, c)
  want = net_of(tokens).states(params, c)
  np.testing.assert_allclose(got, want, atol=2e-5)
  alone = net_of().states(params, c)
  assert np.abs(alone[:2] - got[:2]).max() > 0.1
  np.testing.assert_allclose(alone[2], got[2], atol=1e-6)


def test_the_gradient_of_a_prefix_is_that_of_the_weighted_sum(params):
  table = np.asarray(params["text_encoder"]["embeddings"]["token_embedding"]["embedding"])
  weights = jnp.asarray(RNG.uniform(size=(2, 20)), jnp.float32)
  ids = jnp.asarray([ids_of(WORDS[0], (0, 0))])
  hard = table[np.argmax(weights, axis=1)]
  value = lambda after: jnp.sin(TEXT.states(params["text_encoder"], ids, after[None])).sum()
  of_net = lambda w: jnp.sin(net_of().states({**params, "prefix": w}, jnp.array([0]))).sum()
  slope = jax.grad(value)(jnp.asarray(hard))
  np.testing.assert_allclose(jax.grad(of_net)(weights), slope @ table.T, rtol=1e-3, atol=1e-4)


# Rounding.


@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_kernel_is_near_on_few_levels_and_stays(bits):
  kernel = RNG.normal(size=(3, 3, 5, 6)).astype(np.float32) * np.geomspace(0.01, 100, 6)
  kernel[..., 2] = 0
  tree = {"conv": {"kernel": np.float32(kernel), "bias": RNG.normal(size=6)}, "embedding": kernel}
  got = rounding.rounded(tree, bits)
  scale = np.abs(kernel).max(axis=(0, 1, 2)) / (2 ** (bits - 1) - 1)
  assert (np.abs(got["conv"]["kernel"] - kernel) <= scale / 2 * (1 + 1e-5)).all()
  assert (got["conv"]["kernel"][..., 2] == 0).all()
  for channel in np.delete(got["conv"]["kernel"].reshape(-1, 6), 2, axis=1).T:
    assert len(np.unique(channel)) <= 2**bits - 1
  np.testing.assert_array_equal(got["conv"]["bias"], tree["conv"]["bias"])
  np.testing.assert_array_equal(got["embedding"], kernel)
  again = rounding.rounded(got, bits)
  np.testing.assert_allclose(again["conv"]["kernel"], got["conv"]["kernel"], rtol=1e-6)
  assert rounding.rounded(tree, 0) is tree


def test_a_run_starts_from_rounded_weights():
  class Net:
    def init(self, key):
      return {"dense": {"kernel": jax.random.normal(key, (4, 3)), "bias": jnp.ones(3)}}

  whole, few = (of_run.start("", Net(), 0, sharding.make_mesh(1), bits) for bits in (0, 4))
  want = rounding.rounded(jax.device_get(whole), 4)
  jax.tree.map(np.testing.assert_array_equal, few, want)
  assert np.any(np.asarray(few["dense"]["kernel"]) != np.asarray(whole["dense"]["kernel"]))


# What an attack may know.


@pytest.mark.parametrize(
  ("name", "takes", "error"),
  [
    (
      "unrelated",
      {"x": "retain"},
      "attack unrelated trains on other data and stream 'x' takes ret",
    ),
    ("prompt_search", {"a": "retain"}, "attack prompt_search relearns from images of what was"),
    ("prompt_serch", {"a": "forget"}, "no attack 'prompt_serch'.*did you mean 'prompt_search'"),
  ],
)
def test_an_attack_that_sees_what_its_name_does_not_say_is_refused(name, takes, error):
  with pytest.raises(ValueError, match=error):
    streams_test.attack(name, takes)


def test_an_attack_that_sees_what_its_name_says_is_taken():
  streams_test.attack("prompt_search", {"a": "forget"})
  streams_test.attack("paraphrase", {"x": "retain"})


@pytest.mark.parametrize(
  ("name", "steps", "bits", "error"),
  [
    ("paraphrase", 3, 0, "attack paraphrase trains nothing and config.train.steps is 3; use 0"),
    ("rounding", 0, 0, "attack rounding rounds weights and config.init_bits is 0; use 8 or 4"),
  ],
)
def test_an_attack_that_trains_nothing_has_no_steps(name, steps, bits, error):
  with pytest.raises(ValueError, match=error):
    streams.check_still(name, steps, bits)
  streams.check_still(name, 0, 4)
  streams.check_still("few_shot", 30, 0)


@pytest.mark.parametrize(
  ("name", "metric", "said"),
  [
    ("rounding", "ar", "Rounding the weights of"),
    ("paraphrase", "ar", "in other words"),
    ("completion", "completion_ar", "complete noised pictures of"),
  ],
)
def test_a_page_says_what_an_attack_did_that_trained_nothing(name, metric, said):
  config = {
    "attack": name,
    "init_bits": 4,
    "init_from": "runs/x",
    "forget": {"style": "ink"},
    "method": {"name": "denoising"},
    "streams": {"x": "retain"},
    "train": {"steps": 0},
  }
  assert said in subject.title(config)
  for value, verb in ((0.7, "comes back"), (0.1, "does not come back")):
    results = {"after": {metric: {"value": value, "ci95": None, "identity": "x"}}}
    line = verdict.verdict(config, results).line
    assert f"{verb}: AR is {value}" in line and verdict.headline(config, results) == line
  assert "No metric says" in verdict.headline(config, {"after": {}})
  assert "it trained nothing" in " ".join(limits.limits(config, results))


# Completion.


def test_a_point_is_what_everything_is_completed_to():
  process = Diffusion()
  point = RNG.normal(size=(1, 2, 2, 1)).astype(np.float32)
  eps_fn = toys.mixture_eps_fn(process, point, 0.0, np.ones(1))
  x = jnp.asarray(RNG.normal(size=(3, 2, 2, 1)), jnp.float32)
  options = sampling.Options(clip_sample=False)
  made = sampling.complete(eps_fn, process, jax.random.key(0), x, 400, steps=10, options=options)
  np.testing.assert_allclose(made, np.broadcast_to(point, x.shape), atol=1e-3)
  with pytest.raises(ValueError, match="t 50 is before the last of 2 steps; use a later one"):
    late = sampling.Options(steps_offset=60)
    sampling.complete(eps_fn, process, jax.random.key(0), x, 50, steps=2, options=late)


def test_completion_counts_the_pictures_that_become_the_concept(monkeypatch):
  """A model that makes a dog of every picture, beside one that makes a fox of it."""
  pets.stand_in(monkeypatch)
  records = pets.records(shape=(2, 2, 2))
  dogs = records.take(np.flatnonzero(records.label == 1))
  nothing = records.take(np.arange(0))
  samples = np.zeros((1, 2, 2, 2), np.float32)
  for name, want in (("dog", 1.0), ("fox", 0.0)):
    split = evals.Split(records, dogs, records, nothing)
    task = evals_test.make_task(samples, [0], evals_test.DOG, split=split)
    task.options.update(completion_n=7, completion_t=500, completion_steps=5)
    eps_fn = Partial(_leads_to, jnp.asarray(pets.pictures_of([name])))
    found = evals.metric("completion")(eps_fn, task)["completion_ar"]
    assert found.value == want and found.identity.startswith("completed=7 completion_t=500")
  assert evals.metric("completion")(eps_fn, evals_test.make_task(samples, [0])) == {}


def _leads_to(picture, x_t, t, c=None):
  process = evals_test.PROCESS
  return process.eps(x_t, jnp.broadcast_to(picture, x_t.shape), t)


@pytest.mark.parametrize(
  ("ar", "line"),
  [
    ((0.25, 0.72), "AR 0.72 at most, first recovered at step 30"),
    ((0.0, 0.125), "AR 0.12 at most, not recovered"),
    ((), "not measured: no AR, no UA"),
  ],
)
def test_an_attack_that_is_probed_alone_ends_with_its_largest_ar(ar, line):
  config = attack_little_sd.get_config("few_10").to_dict()
  metrics = [{"step": 15 * i, verdict.PROBE: value} for i, value in enumerate(ar, 1)]
  assert verdict.headline(config, {}, metrics) == line
