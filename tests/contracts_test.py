"""What every model and every data source keeps: a new one is tested because it exists.

Methods and metrics have their own: methods_test.py, evals_test.py. Networks are only traced, with
the fields that they have by default.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import data, models
from jaxunlearn.models import text_to_image

every_model = pytest.mark.parametrize("name", models.names())
every_source = pytest.mark.parametrize("name", data.names())


@every_model
def test_a_model_is_hashable_and_made_once(name):
  assert models.make(name) is models.make(name)
  assert hash(models.make(name)) == hash(models.make(name))


@every_model
def test_a_model_gives_float32_noise_of_its_images_shape(name):
  book = {"classes": (2,), "book": text_to_image.Book(np.zeros((3, 77), np.int32))}
  net = models.make(name, **book if name == "text_to_image" else {})
  params = jax.eval_shape(net.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((2, *net.image_shape), jnp.float32)
  t = jax.ShapeDtypeStruct((2,), jnp.int32)
  shape = (2,) if len(net.classes) == 1 else (2, len(net.classes))
  conditions = [None] + [jax.ShapeDtypeStruct(shape, jnp.int32)] * bool(net.classes)
  for c in conditions:
    eps = jax.eval_shape(net.apply, params, x, t, c)
    assert (eps.shape, eps.dtype) == (x.shape, jnp.float32)
  assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params))


@every_model
def test_a_model_names_its_fields_where_one_is_wrong(name):
  with pytest.raises(ValueError, match=f"^model {name} has no field 'sizee'.*; it has: "):
    models.make(name, sizee=3)


@every_source
def test_a_source_gives_the_same_records_each_time_or_says_what_it_lacks(name):
  try:
    first, again = data.load(name), data.load(name)
  except (ValueError, OSError) as error:  # of the user's own files
    assert "\n" not in str(error)
    return
  for one, other in zip(first, again, strict=True):
    assert one.fingerprint() == other.fingerprint()
  train, heldout = first
  assert not set(train.ids) & set(heldout.ids)
  assert len(train) and train.image.shape[1:] == heldout.image.shape[1:]
  for records in first:
    assert records.label.dtype == np.int32
    assert records.label.min() >= 0 and records.label.max() < len(records.classes)


@every_source
def test_a_source_names_its_fields_where_one_is_wrong(name):
  with pytest.raises(ValueError, match=f"^data source {name} has no field 'sizee'"):
    data.load(name, sizee=3)
