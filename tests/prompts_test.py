"""Prompts of conditions: the rows of the book are those that the network looks up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import prompts
from jaxunlearn.diffusion import NULL
from jaxunlearn.models import clip, text_to_image
from jaxunlearn.weights import tokenizer
from tests import nets, tiny_pipeline

VOCABULARY = (("whale", "emoji", "hand"), ("noto", "flat"))
TEMPLATE = "a {class} in {style} style"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
  return tokenizer.load(tiny_pipeline.write_tokenizer(tmp_path_factory.mktemp("words"), length=20))


def test_every_combination_has_its_row_and_the_empty_prompt_is_last(words):
  book = prompts.write(VOCABULARY, TEMPLATE, words)
  texts = prompts.prompts(VOCABULARY, TEMPLATE)
  assert texts[:3] == ["a whale in noto style", "a whale in flat style", "a emoji in noto style"]
  np.testing.assert_array_equal(book.ids, words.encode([*texts, ""]).ids)
  assert book == prompts.write(VOCABULARY, TEMPLATE, words) and len(book.ids) == 7
  assert prompts.prompts((("a whale", "x"),), "") == ["a whale", "x"]
  assert prompts.prompts((("a", "b"),), "{{{class}}}") == ["{a}", "{b}"]


def test_the_network_reads_the_row_of_its_condition(words):
  """By numbers, by states encoded once, and by the states themselves: the same prediction."""
  book = prompts.write(VOCABULARY, TEMPLATE, words)
  text = clip.Text(
    vocab_size=words.vocabulary,
    hidden_size=12,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=20,
  )
  net = text_to_image.Net(nets.TEXT_UNET, text, (3, 2), book)
  params = {"unet": nets.random_params(nets.TEXT_UNET), "text_encoder": nets.random_params(text)}
  c = jnp.array([[0, 0], [2, 1], [1, NULL], [NULL, NULL]])
  rows = [0, 5, 6, 6]
  assert net.rows(c).tolist() == rows and net.prompts == 6
  np.testing.assert_array_equal(text_to_image.combinations((3, 2))[5], [2, 1])
  states = text.states(params["text_encoder"], jnp.asarray(book.ids))
  x = jax.random.normal(jax.random.key(0), (4, *net.image_shape))
  t = jnp.array([0, 10, 500, 999])
  apply = jax.jit(net.apply)
  by_number = apply(params, x, t, c)
  free = {"prompts": states[:-1].reshape(3, 2, 20, 12), "empty": states[-1]}
  encoded = {"unet": params["unet"], "states": free}
  np.testing.assert_allclose(apply(encoded, x, t, c), by_number, atol=1e-6)
  itself = apply(params, x, t, states[jnp.array(rows)])
  np.testing.assert_allclose(itself, by_number, atol=1e-6)
  none = apply(params, x, t, None)
  np.testing.assert_allclose(none[2:], by_number[2:], atol=1e-6)
  assert not np.allclose(none[:2], by_number[:2])


def test_prompts_that_are_cut_are_told(words, caplog):
  names = tuple(f"emoji {'emoji ' * 30}{i}" for i in range(5))
  prompts.write((names,), "", words)
  assert "is cut to 20 tokens" in caplog.text and "5 prompts of 5 are cut" in caplog.text


@pytest.mark.parametrize(
  ("template", "error"),
  [
    ("", "has classes and styles and config.prompts.template is empty; say how"),
    ("a {klass} in {style}", "no field of config.prompts.template 'klass' .did you mean 'class'"),
    ("a {class}", r"does not name \{style\}; prompts of different conditions would be the same"),
    ("a {class", "which is no template"),
    ("a {}", "no field of config.prompts.template ''"),
  ],
)
def test_a_template_of_other_fields_is_refused(words, template, error):
  with pytest.raises(ValueError, match=error):
    prompts.write(VOCABULARY, template, words)
