"""Compartments of a text-to-image model: LoRA a source on latents and prompts, from end to end."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import cdm_digits_clothes, common
from jaxunlearn import data, home
from jaxunlearn.adapters import Full, Lora, Subset
from jaxunlearn.cdm import (
  add,
  attribution,
  compartment,
  compose,
  conditions,
  delete,
  explain,
  export,
  ledger,
  serve,
)
from jaxunlearn.cdm import model as model_of
from jaxunlearn.cdm import run as cdm_run
from jaxunlearn.cdm.compose import Mode
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.commands import sample
from jaxunlearn.diffusion import NULL
from jaxunlearn.latents import cache
from tests import cdm_run_test, tiny_pipeline

STEPS, SIDE = 4, 16
CAPTIONS = {"a": "a red whale", "b": "the emoji", "c": "a hand"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
  """(a pipeline's folder, three folders of six captioned pictures)."""
  model, pictures = (tmp_path_factory.mktemp(name) for name in ("model", "pictures"))
  tiny_pipeline.write(model)
  rng, lines = np.random.default_rng(0), []
  for i in range(18):
    name = f"{'abc'[i % 3]}/{i:02}.png"
    (pictures / name).parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(pictures / name)
    lines.append(json.dumps({"file_name": name, "text": CAPTIONS[name[0]]}))
  (pictures / "metadata.jsonl").write_text("\n".join(lines) + "\n")
  return model, pictures


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory):
  """Where latents are kept."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(home.VARIABLE, str(tmp_path_factory.mktemp("cache")))
    yield


def config_of(places, **fields):
  model, pictures = places
  config = cdm_digits_clothes.compartments("folder", 0)
  config.init_from = str(model)
  with config.unlocked():
    config.model = {"name": "pretrained"}
  config.data = common.source("captions", path=str(pictures), size=SIDE, heldout=0)
  config.sources.update(slices=2, **fields)
  config.compartment = {"name": "lora", "rank": 2}
  config.router = {"name": "kmeans", "k": 2}
  config.mesh.data = 1
  config.train.update(steps=STEPS, batch=2, log_every=1, checkpoint_every=2)
  config.eval.update(metrics=("copy_score",), samples=2, batch=2, steps=2, guidance=1.0)
  config.compose.update(modes=("soft", "top1"), alone=False, attributed=0, over="vmap")
  return config


@pytest.fixture(scope="module")
def finished(places, tmp_path_factory):
  """A run that is done, to be copied."""
  workdir = tmp_path_factory.mktemp("runs") / "cdm"
  cdm_run.run(config_of(places), workdir)
  return workdir


@pytest.fixture
def run(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "cdm")


def paths(tree):
  return {"/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(tree)}


def test_a_run_is_of_latents_and_prompts(run):
  results = json.loads((run / "results.json").read_text())
  assert set(results) == {"soft", "top1"}
  assert results["soft"]["network_evaluations"]["value"] == 2 * 2 * 3  # steps, guidance, sources
  assert (run / "samples").is_dir() and (run / "report.html").is_file()
  ledger.verify(run)
  start = ledger.Ledger(run).lines()[0]
  assert start["model"]["name"] == "text_to_image" and start["codec"]["path"]
  cdm = delete.open_run(run)
  states = cdm_run_test.states(cdm)
  assert all(
    path.startswith("unet/") and "/to_" in path and path[-1] in "ab"
    for path in paths(states["a"].params)
  )
  batch = cdm.shards()["a"].at(0)
  assert batch.image.shape == (2, 8, 8, 4) and set(batch.c.tolist()) == {1}


@pytest.mark.parametrize("kind", [Lora(rank=2), Subset("attn2"), Full()], ids=str)
def test_another_source_changes_no_bit(kind, places, tmp_path):
  cdm = Cdm(config_of(places, lanes=3), tmp_path)
  cdm.open()
  cdm.compartment = compartment.make(kind, cdm.setup.net, cdm.setup.process)
  shards = list(cdm.shards().values())
  one = cdm_run_test.cdm_update(cdm, shards, steps=3)
  changed = [shards[0], shards[1].without(shards[1].records.ids[:2].tolist()), shards[2]]
  other = cdm_run_test.cdm_update(cdm, changed, steps=3)
  assert [cdm_run_test.same(*pair) for pair in zip(one, other, strict=True)] == [True, False, True]


def test_a_deletion_is_exact_and_takes_its_latents_along(run, places):
  cdm = delete.open_run(run)
  name, _ = cdm_run_test.late(cdm, "b")
  record = cdm.setup.train.take(np.flatnonzero(cdm.setup.train.ids == name))
  assert not len(cache.missing(cdm.setup.codec, record))
  before = cdm_run_test.states(cdm)
  delete.delete(cdm, [name])
  assert len(cache.missing(cdm.setup.codec, record)) == 1
  assert not len(cache.missing(cdm.setup.codec, cdm.shards()["a"].records))
  delete.finish(cdm)
  delete.prove(cdm, ["b"])
  assert len(cache.missing(cdm.setup.codec, record)) == 1  # the data has it still
  assert ledger.Ledger(run).lines()[-1]["equal"]
  assert cdm_run_test.same(before["a"], cdm_run_test.states(cdm)["a"])
  ledger.verify(run)
  delete.drop(cdm, "c")
  assert set(cdm.sources.values()) == {"a", "b"} and not (run / "shards/c").exists()
  assert add.add(cdm, "c") == 6


def asked_of(origin, **fields):
  return sample.Asked(str(origin), ("a hand", "the emoji"), n=1, batch=2, steps=2, **fields)


def test_what_one_may_use_is_composed_without_the_files_of_others(run, tmp_path):
  """Of a run and of its export; both equal the subset of everything."""
  (run / "policy.yaml").write_text("alice: [a, c]\n")
  with pytest.raises(ValueError, match="say who you are with --as=NAME"):
    sample.find(asked_of(run))
  with pytest.raises(ValueError, match="gives alice a, c and not b; leave that out"):
    sample.find(asked_of(run, who="alice", sources=("a", "b")))
  whole = delete.open_run(run)
  both = whole.model(cdm_run_test.states(whole)).only(("a", "c"))
  for gone in ("shards/b", "router/b.npz", "sources.csv", "keys.txt", "ledger.jsonl"):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  export.command(export.parse([f"--run={run}", f"--out={tmp_path / 'out'}", "--as=alice"]))
  found = [sample.find(asked_of(run, who="alice")), sample.find(asked_of(tmp_path / "out"))]
  x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)), jnp.array([500, 20])
  names = whole.setup.train.classes
  c = jnp.array([names.index("a hand"), names.index("the emoji")])
  call = jax.jit(lambda eps_fn, *at: eps_fn(*at))
  want = call(whole.eps_fn(both, Mode("soft")), x, t, c)  # guidance 1
  for subject in found:
    got = call(subject.guided(1.0), x, t, jnp.array([0, 1]))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert sample.draw(found[0], asked_of(run)).shape == (2, SIDE, SIDE, 3)
  card = (tmp_path / "out" / "README.md").read_text()
  assert "# A composition of 2 sources" in card and "| `a` | 6 | 0.5 |" in card
  assert "`b`" not in card and "14" not in card.split("parameters")[0]


def test_a_prompt_is_answered_by_the_sources_that_were_told_it(run):
  """Each caption here is of one source; one that nobody was told leaves the priors."""
  cdm = delete.open_run(run)
  model = cdm.model(cdm_run_test.states(cdm))
  owner = {name: i for i, name in enumerate(model.names)}
  wanted = np.zeros((3, 3))
  for source, caption in CAPTIONS.items():
    wanted[cdm.setup.train.classes.index(caption), owner[source]] = 1
  np.testing.assert_array_equal(model.prior_under, wanted)
  served = serve.read(run, ("a", "b"), ("a green ship", "the emoji", "a red whale", "a hand"))
  np.testing.assert_allclose(
    served.sources.prior_under, [[0.5, 0.5], [0, 1], [1, 0], [0.5, 0.5]], rtol=1e-6
  )
  for path in (run / "router").glob("*.npz"):  # as releases before wrote it
    kept = {k: v for k, v in model_of.read_part(path).items() if k not in conditions.KEYS}
    np.savez(path, **kept)
  old = serve.read(run, ("a", "b"), ("the emoji",)).sources
  assert old.told is None and old.prior.tolist() == [0.5, 0.5]


def test_a_picture_of_a_prompt_is_attributed_under_it(run, monkeypatch):
  cdm = delete.open_run(run)
  model = cdm.model(cdm_run_test.states(cdm))
  given = []

  def asked(*args, **_):
    given.extend(args)
    raise StopIteration

  monkeypatch.setattr(attribution, "attribute", asked)
  x, t = np.zeros((2, 8, 8, 4), np.float32), jnp.array([500, 20])
  c = np.array([cdm.setup.train.classes.index(CAPTIONS[name]) for name in "ba"])
  with pytest.raises(StopIteration):
    explain.attribute(cdm, model, x, c)
  every, weigh = given[:2]
  call = jax.jit(lambda predict, *at: predict(*at))
  np.testing.assert_allclose(jnp.exp(call(weigh, x, t)), [[0, 1, 0], [1, 0, 0]])
  bound = call(compose.eps_all(cdm.applied(), model), x, t, c)
  np.testing.assert_allclose(call(every, x, t), bound, rtol=1e-4, atol=1e-5)


def test_what_a_source_was_told_counts_views_and_classes():
  net = types.SimpleNamespace(classes=(3,))
  image, ids = np.zeros((2, 2, 2, 1), np.uint8), np.array(["a", "b"])
  records = data.Records(ids, image, np.array([2, 0], np.int32), ("x", "y", "z"))
  other = dataclasses.replace(records, also=np.array([[2, 1], [1, 1]], np.int32))
  parts = [conditions.part(net, one) for one in (records, other)]
  np.testing.assert_array_equal(conditions.counts(net, parts), [[1, 0, 1], [0, 3, 1]])
  assert conditions.part(types.SimpleNamespace(classes=()), records) == {}


def test_guidance_is_within_each_source(run):
  cdm = delete.open_run(run)
  model = cdm.model(cdm_run_test.states(cdm))
  c = jnp.array([0, 2])
  x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)), jnp.array([500, 20])
  eps = jax.jit(lambda eps_fn: eps_fn(x, t, c))(cdm.eps_fn(model, cdm.modes["soft"]))
  assert eps.shape == x.shape and np.isfinite(eps).all()
  by = lambda c: jax.jit(jax.vmap(lambda own: cdm.applied()(own, x, t, c)))(model.params)
  every, null = by(c), by(jnp.full(2, NULL))
  w = jnp.exp(cdm.routed().logits(model.parts, cdm.setup.process, x, t))
  shards = [cdm.shards()[name].records for name in model.names]
  w *= jnp.stack([(mine.label[:, None] == c).sum(0) for mine in shards], axis=1)
  w = (w / w.sum(1, keepdims=True)).T[..., None, None, None]
  np.testing.assert_allclose(eps, (w * (2 * every - null)).sum(0), rtol=1e-4, atol=1e-4)
