"""Every config resolves, has its command in its docstring, and is a run that can start."""

import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from configs import (
  attack_fashion,
  attack_little_sd,
  audit_emoji,
  audit_fashion,
  audit_little_sd,
  cdm_latent_uvit,
  cdm_little_sd,
  pretrain_cdm_backbone,
  pretrain_latent_uvit,
  pretrain_little_styles,
  retrain_little_styles,
  siss_celeba,
  siss_celeba_sequence,
  siss_mnist,
  table_cdm_little_styles,
  unlearn_canvas_sd_full,
  unlearn_fashion,
  unlearn_little_sd,
)
from jaxunlearn import build, data, fields, methods, prompts, streams
from jaxunlearn.data import folder, mnist_tshirt, tfds_tshirt
from jaxunlearn.weights import layout, pretrained

ROOT = pathlib.Path(__file__).parent.parent
NAMES = sorted(
  p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common", "audits")
)
PIPELINES = (
  "table_mnist",
  "table_emoji",
  "siss_celeba_sequence",
  "audit_fashion",
  "audit_emoji",
  "audit_little_sd",
  "table_cdm",
  "table_cdm_little_styles",
  "table_siss_sd",
  "table_little_sd",
)
AUTOENCODERS = ("pretrain_little_vae",)  # tests/latents_test.py steps one
# On what another command made: tests/your_model_test.py runs one, tests/siss_sd_test.py the others.
OF_THE_USER = ("siss_folder", "siss_sd", "siss_little_sd")
FULL = re.compile(r".*_(cifar10|canvas|canvas_sd)_full")  # tests/full_configs_test.py steps them
# On what another run made; tests/text_to_image_test.py and cdm_text_test.py run one.
TEXT = (
  *("pretrain_little_sd", "pretrain_little_styles", "retrain_little_styles"),
  *("unlearn_little_sd", "attack_little_sd", "pretrain_cdm_backbone", "cdm_little_sd"),
  "cdm_little_styles",
)
OTHERS = PIPELINES + AUTOENCODERS + TEXT
RUNS = [name for name in NAMES if name not in OTHERS + OF_THE_USER and not FULL.fullmatch(name)]


@pytest.fixture(autouse=True)
def _no_full_sets(monkeypatch, tmp_path):
  """The full sets and the Hub are not here: digits, a T-shirt, faces all but black, no weights."""
  monkeypatch.setattr(tfds_tshirt.Source, "load", lambda _: mnist_tshirt.Source(digits=100).load())
  monkeypatch.setattr(folder.Source, "load", lambda self: (faces(self.size), faces(self.size)))
  monkeypatch.setattr(layout, "_fetch", lambda origin: tmp_path)


def faces(size):
  ids = np.array([f"{i}.jpg" for i in range(9999, 10050)])
  label = np.zeros(len(ids), np.int32)
  image = np.zeros((len(ids), size, size, 3), np.uint8)
  image[:, 0, 0, 0] = np.arange(len(ids))
  return data.Records(ids, image, label, (".",))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_the_command(name):
  module = importlib.import_module(f"configs.{name}")
  assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERS])
def test_the_precision_of_a_network_is_a_flag(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  assert config.model.dtype in ("float32", "bfloat16")


@pytest.mark.parametrize("name", RUNS)
def test_it_builds(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  if config.init_from.startswith("runs/"):  # of a run that is not here
    config.init_from = ""
  setup = build.build(config)
  assert setup.forget.any() or setup.config.streams.x == "all"


@pytest.mark.parametrize("variant", sorted(siss_mnist.METHODS))
def test_every_variant_builds(variant):
  build.build(siss_mnist.get_config(variant))


@pytest.mark.parametrize(
  "name", [n for n in methods.names() if {"x", "a"} >= set(methods.make(n).streams)]
)
def test_any_method_of_its_streams_runs_by_its_module_name_or_says_what_it_needs(name):
  config, method = siss_mnist.get_config(name), methods.make(name)
  if method.needs:
    with pytest.raises(ValueError, match=f"^method {name} needs a conditional model; set config"):
      build.build(config)
  else:
    assert build.build(config).method == method


def test_a_wrong_variant_lists_the_choices():
  with pytest.raises(ValueError, match=r"no method 'sis' \(did you mean 'siss'.*retrack"):
    siss_mnist.get_config("sis")


@pytest.mark.parametrize(
  ("variant", "norm"), [("siss", 500), ("siss_no_is", 500), ("siss_relative", None)]
)
def test_celeba_sets_the_papers_norm_or_the_relative_one(variant, norm):
  config = siss_celeba.get_config(variant)
  assert build.build(config).method.forget_norm == norm


@pytest.mark.parametrize("form", siss_celeba_sequence.FORMS)
def test_the_sequence_forgets_one_face_after_the_other(form):
  """As its authors do, all 50 are out of what is kept, and Adam goes on."""
  config = siss_celeba_sequence.get_config(form)
  assert len(config.runs) == 50
  for i, (name, run) in enumerate(config.runs.items()):
    assert run.init_from == (f"run:face_{i:02d}" if i else "hub:google/ddpm-celebahq-256"), name
    run = run.copy_and_resolve_references()
    run.init_from = ""
    setup = build.build(run)
    assert len(setup.train) == (2 if form == "authors" else 51 - i)
    assert run.init_optimizer == (form == "authors" and i > 0)
    assert setup.train.ids[setup.forget].tolist() == [f"{10000 + i}.jpg"]
  assert config.runs["face_50"].eval.metrics == ("sscd", "fid", "nll")
  assert config.runs["face_49"].eval.metrics == ("sscd",)


def test_the_sequence_takes_its_faces_from_a_file(tmp_path):
  (tmp_path / "ids.txt").write_text("9999.jpg\n10007.jpg\n")
  runs = siss_celeba_sequence.get_config(f"restarted,{tmp_path / 'ids.txt'}").runs
  assert [run.forget.ids for run in runs.values()] == [("9999.jpg",), ("10007.jpg",)]
  with pytest.raises(
    ValueError, match=r"no form of the sequence 'author' \(did you mean 'authors'"
  ):
    siss_celeba_sequence.get_config("author")


EMBEDDED = sorted(path.parent.name for path in data.ASSETS.glob("*/config.json"))


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_weights_are_of_their_config(name):
  made_by = max((n for n in NAMES if name.startswith(n)), key=len)  # retrain_styles of ..._flags
  net = build.build(importlib.import_module(f"configs.{made_by}").get_config()).net
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  params = pretrained.load(data.ASSETS / name, shapes)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("variant", sorted(unlearn_fashion.METHODS))
def test_every_way_to_unlearn_a_class_builds(variant):
  setup = build.build(unlearn_fashion.get_config(variant))
  assert setup.concept == data.Concept(0, 1) and setup.forget.sum() == 900


@pytest.mark.parametrize("variant", sorted(attack_fashion.ATTACKS))
def test_every_attack_builds(variant, tmp_path, monkeypatch):
  config = attack_fashion.get_config(variant)
  config.init_from = "assets:pretrain_fashion"
  if variant == "dimra_samples":
    arrays = {"image": np.zeros((20, 28, 28, 1), np.uint8), "c": np.arange(20) % 10}
    np.savez(tmp_path / streams.SAMPLES, **arrays)
    config.streams.x = f"samples:{tmp_path}"
  setup = build.build(config)
  seen = {
    bool(np.any(stream.records.label[stream.index] == 1)) for stream in setup.streams.values()
  }
  assert config.attack == "dimra" or seen == {True}


@pytest.fixture(scope="module")
def emoji():
  """(records of few emoji, what of them is to be forgotten, the style)."""
  records, _ = data.load("emoji_styles", most=4)
  concept = data.named(records, "style", "mosaic")
  return records, concept.matches(records.conditions), concept


def of_emoji(config, emoji):
  """The method of a config on emoji, and its streams."""
  fields.check(config)
  method, (records, forget, concept) = methods.make(**config.method), emoji
  takes = {name: config.streams[name] for name in method.streams}
  return method, streams.make(records, forget, takes, 8, 0, concept, conditional=True)


@pytest.mark.parametrize("variant", sorted(unlearn_little_sd.METHODS))
def test_every_way_to_unlearn_by_prompt_has_its_streams(variant, emoji):
  config = unlearn_little_sd.get_config(variant)
  assert config.forget.style == "mosaic" and config.trained.pattern
  method, made = of_emoji(config, emoji)
  told = {to for stream in made.values() for to in [stream.take.to] if to}
  assert ("to" in method.needs) <= bool(told & {"next", "random"})
  assert ("own" in method.needs) == (told == {"own"})


@pytest.mark.parametrize("variant", attack_little_sd.ATTACKS)
def test_every_attack_by_prompt_sees_what_its_kind_says(variant, emoji, tmp_path):
  config = attack_little_sd.get_config(variant)
  if variant == "dimra_samples":
    image, c = np.zeros((12, 64, 64, 3), np.uint8), np.stack([np.arange(12) % 8] * 2, axis=1) % 6
    np.savez(tmp_path / streams.SAMPLES, image=image, c=c)
    config.streams.x = f"samples:{tmp_path}"
  _, made = of_emoji(config, emoji)
  streams.check_attack(config.attack, made, *emoji[:2])
  streams.check_still(config.attack, config.train.steps, config.init_bits)
  assert config.eval.after == (config.train.steps == 0) == bool(config.eval.metrics)


def test_a_retrained_model_never_saw_what_it_is_to_lack():
  """Nor did the model that its training begins with: all have seen noto and twemoji."""
  assert "Animals & Nature" in pretrain_cdm_backbone.get_config().data.without
  origins = {"mosaic": pretrain_little_styles.ORIGIN, "animal-mammal": "assets:cdm_backbone"}
  for name, origin in origins.items():
    config = retrain_little_styles.get_config(name)
    assert config.init_from == origin and config.streams.x == "retain"
    assert name.replace("-", " ") in (config.forget.label, config.forget.style)
    base = pretrain_little_styles.get_config()
    assert (config.train, config.optimizer, config.data) == (base.train, base.optimizer, base.data)
  for name in ("noto", "twemoji", "time"):
    with pytest.raises(ValueError, match=f"no variant '{name}'"):
      retrain_little_styles.get_config(name)


def test_unlearn_canvas_is_asked_for_as_its_authors_do():
  config = unlearn_canvas_sd_full.get_config()
  names = prompts.spelt((("Dogs",), ("Van_Gogh", "Seed_Images")), config.prompts.blank)
  assert prompts.prompts(names, config.prompts.template) == [
    "A Dogs image in Van Gogh style.",
    "A Dogs image in Seed Images style.",
  ]
  assert config.eval.seeds == (188, 288, 588, 688, 888) and config.eval.guidance == 8
  for variant in unlearn_canvas_sd_full.METHODS:
    fields.check(unlearn_canvas_sd_full.get_config(variant))


@pytest.mark.parametrize("audit", [audit_fashion, audit_emoji, audit_little_sd])
def test_an_audit_attacks_every_run_that_is_not_the_base_model(audit):
  config = audit.get_config()
  attacked = {name.partition("@")[0] for name in config.runs if "@" in name}
  methods = [names for label, names, _ in config.rows if not label.startswith("pretrained")]
  rows = {name for names in methods for name in names}
  assert attacked == rows
  suffixes = {s for _, _, suffixes in config.attacks for s in suffixes}
  assert {name.partition("@")[2] for name in config.runs if "@" in name} == suffixes


def test_the_audit_of_one_target_has_the_runs_of_the_whole():
  whole, one = audit_little_sd.get_config(), audit_little_sd.get_config("animal-mammal")
  own = {name for name in whole.runs if name == "replay" or "_animal-mammal_" in name}
  assert set(one.runs) == own
  assert all(one.runs[name].to_json() == whole.runs[name].to_json() for name in own)
  assert one.out == "results/audit_little_sd_animal-mammal" and one.attacks == whole.attacks
  with pytest.raises(ValueError, match="no target 'dog'; there are: mosaic, twemoji"):
    audit_little_sd.get_config("dog")


def test_a_backbone_and_the_sources_on_it_share_no_picture():
  for backbone, compartments in (
    (pretrain_cdm_backbone, cdm_little_sd),
    (pretrain_latent_uvit, cdm_latent_uvit),
  ):
    public, private = (
      data.concatenate(data.load(**config.get_config().data)) for config in (backbone, compartments)
    )
    assert not set(public.ids) & set(private.ids) and len(public) + len(private) > 3000
    assert compartments.get_config("uniform8").sources.n == 8
    with pytest.raises(ValueError, match=r"variant 'group2'; give class, style or uniform, a num"):
      compartments.get_config("group2")


@pytest.mark.parametrize(
  ("table", "variant"), [(audit_little_sd, "mosaic"), (table_cdm_little_styles, "class")]
)
def test_a_table_of_fewer_seeds_has_the_first_runs_of_all(table, variant):
  whole, one = table.get_config(variant), table.get_config(f"{variant},1")
  assert set(one.runs) == {n for n in whole.runs if n == "replay" or "_0" in n.partition("@")[0]}
  assert all(one.runs[name].to_json() == whole.runs[name].to_json() for name in one.runs)
  assert [(label, names[:1]) for label, names, _ in whole.rows] == [row[:2] for row in one.rows]
  with pytest.raises(ValueError, match="no number of seeds '4'; there are: 1, 2, 3"):
    table.get_config(f"{variant},4")


def test_a_table_of_compartments_of_a_wrong_split_lists_the_choices():
  with pytest.raises(ValueError, match="no split 'group'; there are: uniform, class"):
    table_cdm_little_styles.get_config("group")


@pytest.mark.parametrize("audit", [audit_fashion, audit_emoji, audit_little_sd])
def test_an_attack_is_the_same_on_every_row(audit):
  """But for what it starts from: rows are compared by what the same attack brings back."""
  kinds: dict[str, set[str]] = {}
  for name, run in audit.get_config().runs.items():
    _, _, attack = name.partition("@")
    if attack:
      fields = run.to_dict()
      del fields["init_from"], fields["forget"], fields["seed"], fields["eval"]["seed"]
      kinds.setdefault(attack, set()).add(json.dumps(fields, sort_keys=True))
  assert kinds and {attack: len(of) for attack, of in kinds.items()} == dict.fromkeys(kinds, 1)
