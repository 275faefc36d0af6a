"""`jaxunlearn audit` on pipelines of diffusers: what it makes of its flags, and one whole."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxunlearn import fields, pipeline
from jaxunlearn.commands import audit
from jaxunlearn.evals import classifiers
from tests import pets, tiny_pipeline

FLAGS = {"model": "M", "before": "B", "forget": "heart", "data": "emoji_styles"}
OUT = pathlib.Path("out")


def made(**changes):
  return audit.make(audit.Asked(**FLAGS | {"out": OUT} | changes))


def test_each_model_is_measured_and_all_but_the_first_attacked_the_cheap_way_first():
  config = made(retrained="R")
  names = list(config.runs)
  assert names[:3] == ["before", "model", "retrained"]
  assert names[3:5] == ["model@int4_0e+00", "retrained@int4_0e+00"]
  assert len(names) == 3 + 2 * len(audit.ATTACKS)
  assert [config.runs[name].init_from for name in names[:5]] == ["B", "M", "R", "M", "R"]
  assert config.runs["model@int4_0e+00"].init_bits == 4
  assert [label for label, _, _ in config.rows] == ["before", "model", "retrained"]


def test_what_is_forgotten_is_a_class_or_a_style():
  assert made().runs.model.forget.label == "heart" and not made().runs.model.forget.style
  assert made(forget="style:edges").runs.model.forget.style == "edges"


def test_small_models_are_attacked_at_ten_times_the_rates_and_attacks_can_be_chosen():
  runs = made(small=True, attacks=["few_10"]).runs
  assert list(runs) == ["before", "model", "model@few_10_1e-04"]
  assert runs["model@few_10_1e-04"].optimizer.learning_rate == pytest.approx(1e-4)


def test_every_run_has_fields_that_are_ones():
  for name, run in made(attacks=["int4", "completion", "few_10", "prompt_search"]).runs.items():
    fields.check(run)
    assert run.attack or "@" not in name


@pytest.mark.parametrize(
  ("changes", "error"),
  [
    ({"attacks": ["few_ten"]}, r"no attack 'few_ten' \(did you mean 'few_10'"),
    ({"minutes": -1.0}, "--minutes is -1; use 0 or more"),
    ({"samples": 0}, "--samples is 0; use 1 or more"),
  ],
)
def test_a_flag_that_makes_no_sense_is_refused(changes, error):
  with pytest.raises(ValueError, match=error):
    made(**changes)


def classifier(classes, channel):
  recipe = pets.classifier("x", classes, channel).recipe
  return pets.PixelClassifier(recipe, {}, f"pixel:{channel}", {}, channel)


def test_a_pipeline_of_diffusers_is_audited_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
  known = {"things": classifier(("cat", "dog"), 0), "looks": classifier(("ink", "photo"), 1)}
  monkeypatch.setattr(classifiers, "load", known.__getitem__)
  rng = np.random.default_rng(0)
  for name in ("before", "model"):
    tiny_pipeline.write(tmp_path / name)
  for i in range(40):
    path = tmp_path / "data" / ("ink", "photo")[i % 2] / ("cat", "dog")[i // 2 % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  asked = audit.Asked(
    model=str(tmp_path / "model"),
    before=str(tmp_path / "before"),
    forget="style:ink",
    data=str(tmp_path / "data"),
    out=tmp_path / "out",
    template="a {class} of {style}",
    classifier="things",
    style_classifier="looks",
    size=16,
    samples=4,
    steps=2,
    guidance=1.0,
    attacks=("int4", "completion"),
  )
  audit.run(asked)
  table = json.loads((tmp_path / "out" / "audit.json").read_text())
  assert list(table) == ["before", "model"]
  assert {"ua", "ira", "cra", "ar_int4", "ar_completion"} <= table["model"].keys()
  assert table["model"]["ua"]["value"] == table["before"]["ua"]["value"]
  page = (tmp_path / "out" / "runs" / "report.html").read_text()
  assert "AR int4" in page and "of 1 methods unlearn" in page
  assert "| model | 0 |" in capsys.readouterr().out
  ran = []
  monkeypatch.setattr(pipeline, "run_single", lambda *at: ran.append(at))
  audit.run(asked)
  assert not ran
