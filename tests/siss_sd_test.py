"""The third experiment in miniature: what was found is deleted, looked for, put into a table."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import siss_little_sd, siss_mnist, siss_sd, table_little_sd, table_siss_sd
from jaxunlearn import build, fields, pipeline, train
from jaxunlearn.memorisation import clusters, dataset, drawing, split
from jaxunlearn.reports import success, verdict
from tests import tiny_pipeline

NAME = "the-whale"
SMALL = {
  "data.size": 16,
  "mesh.data": 1,
  "train.steps": 2,
  "train.batch": 4,
  "train.micro_batches": 1,
  "method.neighbours": 2,
  "eval.metrics": ("memorised",),
  "eval.probe_metrics": ("memorised",),
  "eval.memorised_by": ("kmeans", "radius"),
  "eval.every": 1,
  "eval.samples": 4,
  "eval.probe_samples": 4,
  "eval.batch": 4,
  "eval.steps": 2,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """(a pipeline's folder, what `memorised` would write of its pictures)."""
  model, folder = (tmp_path_factory.mktemp(name) for name in ("model", "memorised"))
  tiny_pipeline.write(model)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (12, 16, 16, 3))
  images[:5] = np.clip(images[0] + rng.normal(0, 3, (5, 16, 16, 3)), 0, 255)
  images, hits = images.astype(np.uint8), np.arange(12) < 5
  (folder / NAME / drawing.IMAGES).mkdir(parents=True)
  for i, image in enumerate(images):
    Image.fromarray(image).save(folder / NAME / drawing.IMAGES / drawing.name_of(i))
  parts, labels = split.of(images, hits), clusters.fit(images, 0)
  dataset.write(folder / NAME, images, "the whale ''", ["the whale"], parts, labels)
  summary = {NAME: {"usable": True}, "an-emoji": {"usable": False}}
  (folder / "summary.json").write_text(json.dumps(summary))
  return model, folder


def small(config, model):
  config.init_from = str(model)
  config.update_from_flattened_dict({k: v for k, v in SMALL.items() if has(config, k)})
  return config


def has(config, path):
  group, name = path.split(".")
  return name in config[group]


def test_a_deletion_is_measured_by_both_prompts_and_shown(found, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
  model, folder = found
  config = small(siss_sd.get_config(f"siss,{folder / NAME}"), model)
  results = train.run(config, tmp_path / "run")
  for phase in ("before", "after"):
    values = results[phase]
    for way in SMALL["eval.memorised_by"]:
      for end in ("", "_original"):
        rate = values[f"memorised_{way}{end}_rate"]
        assert "asked=2 " in rate["identity"] and 0 <= rate["value"] <= 1
  assert "extractor=kmeans:" in results["after"]["memorised_kmeans_rate"]["identity"]
  names = {path.name for path in (tmp_path / "run" / "samples").glob("*.png")}
  assert {"before_pairs.png", "after_pairs.png", "target.png", "after_nearest.png"} <= names
  page = (tmp_path / "run" / "report.html").read_text()
  assert "By the original prompt it is seen in " in page
  assert ", by the original prompt " in verdict.headline(config.to_dict(), results)
  assert "the training picture nearest to it" in page and "memorised by k-means" in page
  rule = {"rate": "memorised_kmeans", "quality": "memorised_kmeans_rate", "least": 0.0}
  assert success.of_run(tmp_path / "run", rule, "", True) in (True, False)
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert sum("probe_memorised_kmeans_rate" in line for line in lines) == 2


@pytest.mark.parametrize(
  "variant", [*siss_mnist.METHODS, "concept_ablation", "siss_lora", "siss_attn2"]
)
def test_every_variant_builds_on_what_was_found(found, variant):
  model, folder = found
  method, _, part = (
    variant.partition("_") if variant[5:] in table_siss_sd.TRAINED else (variant, "", "")
  )
  for module in (siss_sd, siss_little_sd):
    config = small(module.get_config(f"{method},{folder / NAME}"), model)
    config.trained.update(table_siss_sd.TRAINED.get(part, {}))
    setup = build.build(config)
    assert setup.forget.sum() == 5 and setup.train.classes == ("the whale ''", "the whale")
    build.check_needs(setup)


def test_concept_ablation_gives_the_original_prompt_what_is_kept(found, tmp_path):
  model, folder = found
  config = small(siss_sd.get_config(f"concept_ablation,{folder / NAME}"), model)
  stream = build.build(config).streams["alt"]
  rows = stream.pick(7, 0)
  assert set(rows.c.tolist()) == {1} and set(rows.to.tolist()) == {0}
  assert set(rows.index.tolist()) == set(range(5, 12))
  shutil.copytree(folder / NAME, tmp_path / NAME)
  (tmp_path / NAME / "prompts.txt").write_text("the whale ''\n")
  with pytest.raises(ValueError, match="has one prompt, \"the whale ''\"; concept ablation needs"):
    siss_sd.get_config(f"concept_ablation,{tmp_path / NAME}")


def test_the_settings_are_the_papers():
  config = siss_sd.get_config()
  assert (config.train.steps, config.train.batch, config.train.micro_batches) == (35, 16, 16)
  opt = config.optimizer
  assert (opt.learning_rate, opt.b1, opt.b2, opt.weight_decay, opt.clip) == (
    1e-5,
    0.9,
    0.999,
    1e-2,
    1,
  )
  assert config.method.forget_norm == 750 and config.eval.guidance + 1 == 7.5
  assert siss_sd.get_config("erasediff").method.eta == 1e-2
  retrack = siss_sd.get_config("retrack")
  assert (retrack.method.neighbours, retrack.method.weight, retrack.train.steps) == (10, 0.5, 30)
  assert siss_little_sd.get_config().method.forget_norm is None


def test_the_tables_have_a_run_of_each_method_prompt_and_seed(found):
  _, folder = found
  for module, seeds, more in ((table_siss_sd, 1, 0), (table_little_sd, 3, 2)):
    config = module.get_config(str(folder))
    rows = len(module.METHODS) + 1
    assert len(config.rows) == rows + more and len(config.runs) == rows * seeds + more
    for run in config.runs.values():
      fields.check(run)
    pipeline.check(config)
  first = table_little_sd.get_config(f"{folder},1")
  assert set(first.runs) == {name for name in config.runs if "_seed0" in name}
  relearned = config.runs[f"siss_{NAME}_seed0@few_shot"]
  assert relearned.init_from == f"run:siss_{NAME}_seed0" and relearned.streams.x == "forget"
  assert table_siss_sd.get_config(f"{folder},lora").runs[f"siss_{NAME}_seed42"].trained.rank == 4
  with pytest.raises(ValueError, match=r"no part to train 'lorra' \(did you mean 'lora'"):
    table_siss_sd.get_config(f"{folder},lorra")
  with pytest.raises(
    ValueError, match=r"^nowhere/summary.json is not there; python -m jaxunlearn.m"
  ):
    table_little_sd.get_config("nowhere")
  with pytest.raises(ValueError, match=r"no number of seeds '4'.*; there are: 1, 2, 3"):
    table_little_sd.get_config(f"{folder},4")
  with pytest.raises(ValueError, match=r"^nowhere/prompts.txt is not there; python -m jaxunlearn"):
    siss_sd.get_config("concept_ablation,nowhere")


@pytest.mark.parametrize(
  ("change", "error"),
  [
    ({"eval.memorised_file": "no.npz"}, "the clusters no.npz are not there; python -m jaxunlearn."),
    (
      {"eval.memorised_by": ("kmens",)},
      r"no way in config.eval.memorised_by 'kmens' \(did you mea",
    ),
    (
      {"eval.memorised_by": ("sscd",), "eval.sscd_weights": "no.pt"},
      "SSCD's ResNet-50 needs no.pt",
    ),
    (
      {"forget.file": "gone.txt"},
      "forget.file 'gone.txt' is not a file; give one record id a line",
    ),
    ({"data.prompts": "gone.txt"}, "data.prompts 'gone.txt' is not a file"),
  ],
)
def test_bad_input_is_one_line(found, tmp_path, change, error):
  model, folder = found
  config = small(siss_sd.get_config(f"siss,{folder / NAME}"), model)
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=error):
    train.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_clusters_of_another_size_are_refused(found, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
  model, folder = found
  config = small(siss_sd.get_config(f"siss,{folder / NAME}"), model)
  config.eval.update(metrics=("memorised",), memorised_file=str(tmp_path / "kmeans.npz"))
  clusters.write(tmp_path / "kmeans.npz", clusters.Clusters(np.zeros((2, 8, 8, 3)), 0))
  with pytest.raises(
    ValueError, match=r"pictures are \(16, 16, 3\) and the clusters are of \(8, 8"
  ):
    train.run(config, tmp_path / "run")


# Success


RULE = {"rate": "memorised_kmeans", "quality": "clip_iqa", "least": 0.35}


def finished(folder, name, rate, quality, probes, original=0.0):
  value = lambda v: {"value": v, "ci95": None, "identity": "x=y"}
  rates = {"memorised_kmeans_rate": rate, "memorised_kmeans_original_rate": original}
  after = {**rates, "clip_iqa": quality}
  (folder / name).mkdir()
  content = {"after": {k: value(v) for k, v in after.items()}}
  (folder / name / "results.json").write_text(json.dumps(content))
  lines = [json.dumps({"step": i, "probe_clip_iqa": q}) for i, q in enumerate(probes)]
  (folder / name / "metrics.jsonl").write_text("\n".join([*lines, ""]))


def test_success_is_none_of_the_samples_and_quality_throughout(tmp_path):
  finished(tmp_path, "good", 0.0, 0.7, [0.8, 0.7], original=1 / 16)
  finished(tmp_path, "seen", 1 / 16, 0.7, [0.8, 0.7])
  finished(tmp_path, "broken", 0.0, 0.5, [0.8, 0.34])
  (tmp_path / "diverged").mkdir()
  (tmp_path / "diverged" / "diverged.json").write_text(json.dumps({"diverged": "nan"}))
  names = ("good", "seen", "broken", "diverged")
  config = fields.ConfigDict({"success": RULE})
  entry = lambda column: success.of_row(config, tmp_path, names, column)
  assert entry("success")["runs"] == [1, 0, 0, 0] and entry("success")["value"] == 1 / 4
  assert entry("gone")["runs"] == [1, 0, 1, 0] and entry("gone")["words"] == "2/4 (15% to 85%)"
  assert entry("success_original")["runs"] == [0, 1, 0, 0]
  assert entry("success")["identity"] == [
    "interval=wilson rate=memorised_kmeans_rate=0 clip_iqa>=0.35"
  ]
  runs = {name: {"train": {"steps": 35}} for name in names}
  columns = (("gone", "none"), ("success", "success"), ("clip_iqa", "quality"))
  table = fields.ConfigDict({"runs": runs, "success": RULE, "columns": columns, "published": ()})
  table.rows = (("SISS", names, ()),)
  results = pipeline.summarise(table, tmp_path)
  assert results["SISS"]["success"]["value"] == 1 / 4
  assert "| SISS | 35 | 2/4 (15% to 85%) (1 diverged) | 1/4 (" in pipeline.markdown(table, results)
  rule = fields.ConfigDict({"success": RULE | {"quality": "clip_iqaa"}})
  with pytest.raises(ValueError, match="has no clip_iqaa, which"):
    success.of_row(rule, tmp_path, ("good",), "success")
