"""Latents and prompts under training: meshes, free states of prompts, new tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import step
from jaxunlearn.adapters import ALL, Trained
from jaxunlearn.diffusion import NULL
from jaxunlearn.methods import embeddings
from jaxunlearn.models import text_to_image
from tests import latent_models, meshes, nets
from tests import methods_test as toys
from tests.latent_models import NET, TEXT, TOKEN_NET, net_of, setup_of

LORA = Trained(r"attn[12]/to_", rank=2)
PROMPTS, TOKEN = Trained("prompts"), Trained("token")
KINDS = {"full": (ALL, NET), "lora": (LORA, NET), "prompts": (PROMPTS, NET)}
KINDS |= {"token": (TOKEN, TOKEN_NET)}


def gradients(setup):
  """The K gradients of the first batch as the update takes them, and the state that they are of."""
  state, program = latent_models.start(setup), step.program(setup)
  draws = step.draw(program, 0, state.step, setup.batch(0), state.extras)
  found, metrics = step.Gradients(program)(state.params, draws, state.extras, state.frozen)
  return jax.device_get(found), jax.device_get(metrics), jax.device_get(state)


@functools.cache
def found(kind, shape=(1, 1)):
  trained, net = KINDS[kind]
  return gradients(setup_of("siss", trained, shape, net))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_gives_the_gradients_of_one_device(kind):
  """On 4 x 2 devices, which split what is trained and what is frozen."""
  grads, metrics, _ = found(kind, (4, 2))
  want, told, _ = found(kind)
  for got, one in zip(grads, want, strict=True):
    assert any(np.any(leaf) for leaf in jax.tree.leaves(one))
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(one)))
    close = lambda a, b, norm=norm: np.testing.assert_allclose(a, b, atol=1e-5 * norm)
    jax.tree.map(close, got, one)
  np.testing.assert_allclose(metrics["loss_x"], told["loss_x"], rtol=meshes.TOLERANCE)


def test_the_gradient_of_a_new_token_is_that_of_a_row_of_the_table():
  """A vocabulary that has the token from the start, all of it trained: the same, in its row."""
  (got, *_), _, state = found("token")
  assert state.params.keys() == {"token"} and got["token"].shape == (1, 12)
  text = text_to_image.more_tokens(TEXT, 1)
  net = text_to_image.Net(nets.TEXT_UNET, text, (4,), TOKEN_NET.book)
  whole = dict(state.frozen)
  new = jnp.asarray(state.params["token"])
  rows = text_to_image.with_rows(whole["text_encoder"], new)
  setup = setup_of("siss", Trained("token_embedding"), net=net)
  params, frozen = setup.split({**whole, "text_encoder": rows})
  program = step.program(setup)
  draws = step.draw(program, 0, state.step, setup.batch(0), {})
  (want, *_), _ = step.Gradients(program)(params, draws, {}, frozen)
  (table,) = jax.tree.leaves(want)
  np.testing.assert_allclose(got["token"][0], table[20], rtol=1e-4)


def test_a_new_token_begins_as_the_mean_of_a_word():
  params = nets.random_params(TOKEN_NET)
  table = params["text_encoder"]["embeddings"]["token_embedding"]["embedding"]
  token = TOKEN_NET.extended(params, "token")["token"]
  np.testing.assert_allclose(token, table[[4, 5]].mean(axis=0, keepdims=True), rtol=1e-6)
  assert net_of(start=(4,), tokens=3).extended(params, "token")["token"].shape == (3, 12)


def test_the_table_of_prompts_is_what_the_text_encoder_says():
  """Each condition's states, before anything is trained; NULL is the empty prompt."""
  params = nets.random_params(NET)
  free = NET.extended(params, "prompts")
  assert free["states"]["prompts"].shape == (4, 6, 12)
  c = jnp.array([3, NULL, 0])
  np.testing.assert_allclose(NET.states(free, c), NET.states(params, c), atol=1e-5)
  assert NET.extended(free, "prompts") is free


def test_a_table_of_two_conditions_has_all_prompts_of_a_value():
  book = text_to_image.Book(np.random.default_rng(0).integers(0, 19, (7, 6)).astype(np.int32))
  net = text_to_image.Net(nets.TEXT_UNET, TEXT, (3, 2), book)
  params = nets.random_params(net)
  free = net.extended(params, "prompts")
  c = jnp.array([[2, 0], [0, 1], [1, NULL], [2, 1]])
  np.testing.assert_allclose(net.states(free, c), net.states(params, c), atol=1e-5)
  table = embeddings.table(free, 1)  # of the second condition
  assert table.shape == (3, 3, 6, 12)
  moved = embeddings.with_table(free, 1, table.at[0].set(table[1]))
  np.testing.assert_array_equal(net.states(moved, jnp.array([[2, 0]])), net.states(free, c[3:]))
  np.testing.assert_array_equal(net.states(moved, c[1:]), net.states(free, c[1:]))


def test_embedding_copy_is_another_prompts_states():
  setup = setup_of("embedding_copy", PROMPTS)
  state = latent_models.start(setup)
  states = state.params["states"]["prompts"]
  np.testing.assert_array_equal(states[3], states[0])  # next of the last is the first
  assert np.any(np.asarray(states[1]) != np.asarray(states[0]))


def test_state_inversion_moves_the_states_of_one_prompt():
  setup = setup_of("embedding_inversion", PROMPTS)
  grads, _, state = gradients(setup)
  direction, _ = setup.method.combine(grads, state.extras)
  moved = np.asarray(direction["states"]["prompts"])
  assert np.all(moved[3] != 0) and not moved[:3].any() and not direction["states"]["empty"].any()


@pytest.mark.parametrize("trained", [ALL, LORA, TOKEN])
def test_a_model_without_a_table_of_prompts_says_what_to_train(trained):
  net = TOKEN_NET if trained is TOKEN else NET
  with pytest.raises(ValueError, match=r"^the prompts of this model .*pattern to prompts$"):
    latent_models.start(setup_of("embedding_inversion", trained, net=net))


@pytest.mark.parametrize("pattern", ["prompts", "token"])
def test_what_is_of_a_text_to_image_model_alone(pattern):
  with pytest.raises(ValueError, match=f"{pattern}' is of a text-to-image model and this is none"):
    Trained(pattern).split(jax.random.key(0), toys.random_params())
  with pytest.raises(ValueError, match=f"rank is 2 and the pattern {pattern} has no kernels"):
    Trained(pattern, rank=2)
