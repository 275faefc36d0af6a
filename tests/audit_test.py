"""audit.py: recovery against hand-made probes, and a page that holds what was measured."""

import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxunlearn import pipeline
from jaxunlearn.reports import audit, pictures
from jaxunlearn.reports.charts import Chart
from tests.report_test import EVIL, Page

ATTACKS = (
  ("ar_relearn", "AR relearn", ("relearn_1e-03", "relearn_1e-04")),
  ("ar_few", "AR few", ("few_1e-03",)),
)
HOW = "asked=96 extractor=clothes:ab12 n=9 seed={}"
HOW_0 = HOW.format(0)


def entry(value, identity=HOW_0):
  return {"value": value, "ci95": None, "identity": identity}


def attack(workdir, name, suffix, *ar, diverged=False):
  """Probes at steps 10, 20, ... among other lines."""
  folder = workdir / f"{name}@{suffix}"
  (folder / "samples").mkdir(parents=True)
  lines = [{"step": 10 * i, "probe_ar": v} for i, v in enumerate(ar, start=1)]
  others = [{"step": 5, "loss_x": 1.0}, {"step": 10, "distance": 2.0}]
  text = "".join(json.dumps(line) + "\n" for line in (*others, *lines))
  (folder / "metrics.jsonl").write_text(text)
  if diverged:
    (folder / "diverged.json").write_text('{"diverged": "loss_x is nan"}')


# What comes back.


def still(workdir, suffix, **after):
  """An attack that trains nothing: its evaluation alone."""
  folder = workdir / f"m@{suffix}"
  folder.mkdir(parents=True)
  found = {"after": {name: entry(value) for name, value in after.items()}}
  (folder / "results.json").write_text(json.dumps(found))


def test_an_attack_that_trains_nothing_has_the_ar_of_its_evaluation(tmp_path):
  still(tmp_path, "few_1e-03", ar=0.4, ua=0.6)
  still(tmp_path, "relearn_1e-03", completion_ar=0.3)
  out = recovered(tmp_path)
  assert (out["ar_few"]["value"], out["ar_relearn"]["value"]) == (0.4, 0.3)
  assert out["ar_few_mean"]["value"] == pytest.approx(0.4)
  assert audit.mean_curves(tmp_path, ("m",), ATTACKS)["few_1e-03"] == [[0, 0.4, 0.4, 0.4]]


def test_what_is_audited_counts_as_a_method():
  """Though it is only measured: somebody else has unlearned it."""
  run = {"method": {"name": "denoising"}, "train": {"steps": 0}}
  rows = tuple((name, (name,), ()) for name in ("before", "model", "retrained"))
  config = ConfigDict(
    {"attacks": ATTACKS, "runs": dict.fromkeys(("before", "model", "retrained"), run), "rows": rows}
  )
  config.audited = "model"
  results = {
    "before": {"ua": entry(0.0)},
    "model": {"ua": entry(1.0), "ar_few": entry(0.2)},
    "retrained": {"ua": entry(1.0), "ar_few": entry(0.1)},
  }
  line = audit.verdict(config, results).line
  assert line.startswith("1 of 1 methods unlearn") and "1 of them (model) clearly stays" in line


def recovered(workdir, own=0.1):
  return audit.recovered(workdir, "m", ATTACKS, {"ar": entry(own)})


def test_the_largest_over_rates_and_steps_counts(tmp_path):
  attack(tmp_path, "m", "relearn_1e-03", 0.2, 0.4, 0.3)
  attack(tmp_path, "m", "relearn_1e-04", 0.1, 0.7)
  attack(tmp_path, "m", "few_1e-03", 0.5)
  out = recovered(tmp_path)
  assert (out["ar_relearn"]["value"], out["ar_relearn"]["best"]) == (0.7, "relearn_1e-04")
  assert (out["ar_few"]["value"], out["ar_few"]["best"]) == (0.5, "few_1e-03")
  identity = f"attacks=relearn_1e-03,relearn_1e-04 probes=5 {HOW_0}"
  assert out["ar_relearn"]["identity"] == identity
  assert out["ar_relearn"]["ci95"] is None
  assert out["ar_relearn_mean"]["value"] == pytest.approx((0.3 + 0.4) / 2)
  distance = {"value": 2.0, "ci95": None, "identity": "attack=relearn_1e-04 step=10"}
  assert out["ar_relearn_distance"] == distance


def test_step_0_is_the_unlearned_model_itself(tmp_path):
  attack(tmp_path, "m", "few_1e-03", 0.5, 0.2)
  assert recovered(tmp_path, own=0.6)["ar_few"]["value"] == 0.6
  assert recovered(tmp_path, own=0.4)["ar_few"]["value"] == 0.5
  assert recovered(tmp_path, own=0.6)["ar_few_mean"]["value"] == pytest.approx(0.35)


def test_what_was_not_attacked_has_no_entry(tmp_path):
  assert recovered(tmp_path) == {}
  attack(tmp_path, "m", "few_1e-03", 0.5)
  attack(tmp_path, "m", "relearn_1e-03")  # it was stopped before its first probe
  attack(tmp_path, "other", "relearn_1e-03", 0.9)
  assert set(recovered(tmp_path)) == {"ar_few", "ar_few_mean", "ar_few_distance"}


def test_the_finite_probes_of_a_diverged_attack_count(tmp_path):
  attack(tmp_path, "m", "relearn_1e-03", 0.2, 0.8, "nan", diverged=True)
  attack(tmp_path, "m", "relearn_1e-04", 0.1, 0.1, 0.1)
  out = recovered(tmp_path)["ar_relearn"]
  assert (out["value"], out["best"]) == (0.8, "relearn_1e-03")
  assert "probes=5 " in out["identity"]


def test_mean_curves_are_over_the_runs_that_got_to_a_step(tmp_path):
  attack(tmp_path, "a", "few_1e-03", 0.0, 0.2, 0.6)
  attack(tmp_path, "b", "few_1e-03", 0.3, 0.8, diverged=True)
  curves = audit.mean_curves(tmp_path, ("a", "b", "never_attacked"), ATTACKS)
  assert list(curves) == ["few_1e-03"]
  want = [[10, 0.15, 0.0, 0.3], [20, 0.5, 0.2, 0.8], [30, 0.6, 0.6, 0.6]]
  np.testing.assert_allclose(curves["few_1e-03"], want)
  assert audit.mean_curves(tmp_path, ("never_attacked",), ATTACKS) == {}


# The page.

ROWS = ("pretrained", "copy", "method", "lost")


def config_of(rows=ROWS, concept="Trouser"):
  """Two concepts, a run each; the row `copy` is the trivial control."""
  config = ConfigDict({"attacks": ATTACKS, "runs": {}, "rows": (), "published": ()})
  config.columns = (("ua", "UA"), ("ar_relearn", "AR relearn"), ("ar_few", "AR few"))
  for row, variant in zip(rows, ROWS, strict=True):
    names = (f"{variant}_0", f"{variant}_1")
    config.rows += ((row, names, ()),)
    for name, forget in zip(names, ({"label": concept}, {"style": "ink"}), strict=True):
      method = {"name": "embedding_copy" if variant == "copy" else "denoising"}
      run = {"forget": forget, "method": method, "train": {"steps": 7}, "eval": {"seed": 4}}
      config.runs[name] = ConfigDict(run)
  return config


def made(workdir, config, own=0.25, diverged=("lost_0", "lost_1"), brightness=0.0):
  """Leaves the files of the runs: `method` comes back under `few`, `copy` does not."""
  shown = lambda value: np.full((16, 4, 4, 1), value, np.float32)
  picture = lambda run, phase, value: pictures.write_conditions(
    workdir / run / "samples", phase, shown(value), np.zeros(16, int), np.ones(16, bool)
  )
  for i, name in enumerate(config.runs):
    (workdir / name).mkdir()
    if name in diverged:
      (workdir / name / "diverged.json").write_text('{"diverged": "loss_x is nan at step 3"}')
      continue
    identity = HOW.format(i % 2)
    after = {"ua": entry(1 - own, identity), "ar": entry(own, identity)}
    (workdir / name / "results.json").write_text(json.dumps({"after": after}))
    picture(name, "after", -1 + 0.1 * i)
    if name.startswith(("copy", "method")):
      top = 0.75 if name.startswith("method") else 0.3
      attack(workdir, name, "few_1e-03", 0.3, top)
      attack(workdir, name, "relearn_1e-04", 0.3, 0.2)
      picture(f"{name}@few_1e-03", "probe", 0.5 + 0.01 * i)
  return pipeline.summarise(config, workdir)


def written(workdir, config, results):
  audit.write(config, results, workdir)
  text = (workdir / "report.html").read_text()
  return text, Page(text)


def test_the_page_holds_every_row_and_number(tmp_path):
  config = config_of()
  results = made(tmp_path, config)
  text, page = written(tmp_path, config, results)
  assert "Unlearned and attacked: the class Trouser, the style ink" in page.text
  heads = re.findall(r'<th scope="row">(\w+)', text)
  assert heads[: len(ROWS)] == list(ROWS)
  columns = [metric for metric, _ in config.columns]
  values = [results[row][m]["value"] for row in ROWS for m in columns if m in results[row]]
  assert [float(exact) for exact, _ in page.numbers] == values
  assert len(values) == 3 + 2 * 2
  assert page.text.count("± 0") == len(values)  # two runs that are equal
  assert not list(tmp_path.glob("*.tmp"))


def test_a_high_ar_is_flagged_in_words_and_a_low_one_is_not(tmp_path):
  config = config_of()
  text, _ = written(tmp_path, config, made(tmp_path, config, own=0.25))
  table = text[text.index("<tbody>") : text.index("</tbody>")]
  flagged = [row for row in table.split("<tr>") if "recovered" in row]
  assert len(flagged) == 1 and ">method<" in flagged[0]
  assert flagged[0].count("recovered") == 1


def measured(value, ci95=None):
  return {"value": value, "ci95": ci95}


def judge(never=(), **rows):
  """The verdict on rows of methods, beside a pretrained model, a control and a retrained one."""
  config = ConfigDict({"attacks": ATTACKS, "runs": {}, "rows": ()})
  kinds = {"pretrained": ("denoising", 0), "copy": ("embedding_copy", 0), "never": ("denoising", 0)}
  for row in ("pretrained", "copy", "never", *rows):
    method, steps = kinds.get(row, ("siss", 7))
    config.runs[f"{row}_0"] = {"method": {"name": method}, "train": {"steps": steps}}
    config.rows += ((row, (f"{row}_0",), ()),)
  others = {"pretrained": {"ua": (0.1,)}, "copy": {"ua": (1.0,)}, "never": dict(never)}
  results = {
    row: {metric: measured(*entry) for metric, entry in entries.items()}
    for row, entries in (others | rows).items()
  }
  return audit.verdict(config, results)


def test_the_verdict_counts_methods_and_what_stays():
  said = judge(
    good={"ua": (0.9,), "ar_few": (0.2, (0.1, 0.3)), "ar_relearn": (0.1,)},
    unclear={"ua": (0.9,), "ar_few": (0.4, (0.1, 0.7))},
    back={"ua": (0.9,), "ar_few": (0.8,)},
    no={"ua": (0.2,), "ar_few": (0.0,)},
  )
  assert said.line == (
    "3 of 4 methods unlearn, with a UA of at least 0.5; 1 of them (good) clearly stays below an AR "
    "of 0.5 under every attack here."
  )
  assert said.pro == ("good: AR 0.2 at most (AR few), up to 0.3 with its interval.",)
  assert said.contra == (
    "unclear: AR 0.4 at most (AR few), up to 0.7 with its interval.",
    "back: AR 0.8 at most (AR few).",
  )


def test_an_attack_that_teaches_it_is_not_counted():
  never = {"ua": (0.9,), "ar_few": (0.8,), "ar_relearn": (0.0,)}
  said = judge(never, good={"ua": (0.9,), "ar_few": (0.9,), "ar_relearn": (0.1,)})
  assert said.pro == ("good: AR 0.1 at most (AR relearn).",)
  assert "under the attacks that count" in said.line
  assert said.contra == ("Not counted: AR few. Models that never saw it learn it too.",)


def test_a_diverged_row_and_the_control_are_named(tmp_path):
  config = config_of()
  _, page = written(tmp_path, config, made(tmp_path, config))
  said = " ".join(page.text.split())
  assert "7 steps, 0 runs 2 diverged" in said
  assert "lost: 2 of its runs diverged and are in none of its values. loss_x is nan" in said
  assert "Not attacked: pretrained, lost." in said
  assert "The row copy is the trivial control" in said


def test_identities_are_merged_and_a_difference_between_rows_is_flagged(tmp_path):
  config = config_of()
  results = made(tmp_path, config, diverged=("lost_1",))
  found = {title: rest for title, *rest in audit.identities(config.columns, results)}
  assert found["UA"] == ["asked=96 extractor=clothes:ab12 n=9 seed=0|1", "seed"]
  assert found["AR few"][0].startswith("attacks=few_1e-03 probes=2 ")
  assert found["AR few"][1] == ""
  text, _ = written(tmp_path, config, results)
  assert "rows differ in: seed" in text


def test_curves_start_at_the_unlearned_model_and_end_where_the_attack_does():
  row = {"ar": {"runs": [0.0, 0.5]}, "curves": {"few_1e-03": [[10, 0.5, 0.0, 1.0]]}}
  (line,) = audit.lines(row, ATTACKS, last=20.0)
  middle = (Chart.left + Chart.right) / 2
  y = lambda ar: float(Chart.bottom - (Chart.bottom - Chart.top) * ar)
  assert line.mean == f"M{float(Chart.left)} {y(0.25)} L{middle} {y(0.5)}"
  corners = ((Chart.left, 0), (middle, 0), (middle, 1), (Chart.left, 0.5))
  assert line.band == "M" + " L".join(f"{float(x)} {y(ar)}" for x, ar in corners)
  assert (line.number, line.title, line.text) == (2, "AR few", "0.5 at step 10")


def test_grids_are_before_unlearned_and_attacked_of_the_same_noise(tmp_path):
  config = config_of()
  made(tmp_path, config)
  grids = {(g.label, g.concept): g.pictures for g in audit.grids(config, tmp_path)}
  assert list(grids) == [(r, c) for r in ROWS[1:] for c in ("the class Trouser", "the style ink")]
  files = ("pretrained_1/samples/after", "method_1/samples/after")
  files = (*files, "method_1@few_1e-03/samples/probe")
  want = [audit.report.data_uri(tmp_path / f"{file}_asked.png") for file in files]
  assert len(set(want)) == 3
  captions, uris = zip(*grids["method", "the style ink"], strict=True)
  assert list(uris) == want
  assert captions == ("pretrained", "method", "attacked, AR few: 0.75 at step 20")
  assert [bool(uri) for _, uri in grids["lost", "the style ink"]] == [True, False, False]


def test_another_noise_is_not_shown_beside(tmp_path):
  config = config_of()
  made(tmp_path, config)
  config.runs["pretrained_1"].eval.seed = 5
  shown = [g.pictures[0][1] for g in audit.grids(config, tmp_path)]
  assert [bool(uri) for uri in shown] == [True, False] * 3


def test_the_attack_shown_is_the_strongest_and_its_peak_is_told(tmp_path):
  attack(tmp_path, "m", "relearn_1e-03", 0.9, 0.2)
  attack(tmp_path, "m", "relearn_1e-04", 0.2, 0.4)
  attack(tmp_path, "m", "few_1e-03", 0.1, 0.9)
  assert audit._strongest(tmp_path, "m", ATTACKS)[0] == "few_1e-03"  # as much, and at the end
  first = "attacked, AR relearn, rate 1e-03: 0.2 at step 20, at most 0.9"
  assert audit._strongest(tmp_path, "m", ATTACKS[:1]) == ("relearn_1e-03", first)


def test_text_is_escaped_and_the_page_is_self_contained(tmp_path):
  rows = ("pretrained", f"copy {EVIL}", EVIL, f"lost {EVIL}")
  config = config_of(rows, concept=EVIL)
  config.columns = tuple((metric, f"{title} {EVIL}") for metric, title in config.columns)
  config.attacks = tuple((m, f"{title} {EVIL}", s) for m, title, s in ATTACKS)
  text, page = written(tmp_path, config, made(tmp_path, config))
  assert "<script" not in text and page.text.count(EVIL) > 10
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
  assert not re.search(r"(https?:)?//[a-z]|url\(|@import", re.sub(r'base64,[^"]+', "", text))
  images = [attrs for tag, attrs in page.tags if tag == "img"]
  assert len(images) == 2 * (3 + 3 + 1)
  for attrs in images:
    assert attrs["src"].startswith("data:image/png;base64,") and attrs["alt"]


def test_a_page_without_pictures_and_attacks(tmp_path):
  config = config_of()
  results = made(tmp_path, config)
  for path in [*tmp_path.rglob("*.png"), *tmp_path.rglob("metrics.jsonl")]:
    path.unlink()
  results = pipeline.summarise(config, tmp_path)
  _, page = written(tmp_path, config, results)
  assert "img" not in {tag for tag, _ in page.tags}
  assert page.text.count("no picture") == 2 * 3 * 3
  assert "Not attacked: pretrained, copy, method, lost." in page.text


def test_a_page_of_nothing_but_diverged_runs(tmp_path):
  config = config_of()
  results = made(tmp_path, config, diverged=tuple(config.runs))
  _, page = written(tmp_path, config, results)
  assert page.numbers == [] and page.text.count("2 diverged") == len(ROWS)


def test_values_that_are_not_finite(tmp_path):
  config = config_of()
  _, page = written(tmp_path, config, made(tmp_path, config, own=float("nan")))
  assert ("nan", "nan") in page.numbers
  drawn = [attrs["d"] for tag, attrs in page.tags if tag == "path"]
  assert drawn and "nan" not in "".join(drawn)


def test_numbers_of_the_table_have_no_exponent():
  shown = [audit._digits(value, 2) for value in (0.123, 0.00926, 8.26, 823.4, 4556.4)]
  assert shown == ["0.12", "0.0093", "8.3", "820", "4,556"]
