"""report.py and charts.py: what is written equals what was measured, escaped and self-contained."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from jaxunlearn import data, methods
from jaxunlearn.reports import (
  charts,
  evidence,
  limits,
  names,
  pictures,
  report,
  rows,
  subject,
  verdict,
)

EVIL = "<script>alert(1)</script>"
CONFIG = {
  "seed": 3,
  "init_from": "assets:pretrain_mnist",
  "data": {"source": "mnist_tshirt", "share": 0.03},
  "forget": {"ids": [], "file": "", "label": "tshirt"},
  "method": {"name": "siss", "lam": 0.5, "forget_norm": None, "stratified": True},
  "streams": {"x": "retain", "a": "forget"},
  "train": {"steps": 60, "batch": 64},
  "note": EVIL,
}
HOW = "extractor=pixels sampler=ddim steps=25 n=512"


def entry(value, ci95=None, identity=HOW):
  return {"value": value, "ci95": ci95, "identity": identity}


BEFORE = {
  "tshirt_rate": entry(0.03125, [0.019, 0.05]),
  "class_share/0": entry(0.123456789, [0.1, 0.15]),
  "class_share/1": entry(0.1, [0.08, 0.13]),
  "nll_bpd": entry(1.214, None, "solver=dopri5"),
}
AFTER = {
  "tshirt_rate": entry(0.0, [0.0, 0.0074]),
  "class_share/0": entry(0.11, [0.09, 0.14]),
  "class_share/1": entry(0.0, [0.0, 0.0074]),
  "nll_bpd": entry(7.93, None, "solver=heun"),
}


class Page(html.parser.HTMLParser):
  """Tags with their attributes, text, and each `data` element."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text, self.numbers = [], "", []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data
    if self.tags and self.tags[-1][0] == "data" and data.strip():
      self.numbers.append((self.tags[-1][1]["value"], data))
      self.tags.append(("", {}))


def make_run(folder, phases, lines=(), config=CONFIG):
  (folder / "evals").mkdir()
  for phase, values in phases.items():
    (folder / "evals" / f"{phase}.json").write_text(json.dumps(values))
    samples = np.zeros((9, 4, 4, 1), np.float32)
    pictures.write_phase(folder / "samples", phase, samples, samples[:1])
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return report.write(folder)


def read_page(folder):
  return Page((folder / "report.html").read_text())


def test_results_are_what_was_evaluated(tmp_path, capsys):
  results = make_run(tmp_path, {"after": AFTER, "before": BEFORE})
  assert results == {"before": BEFORE, "after": AFTER}
  assert list(results) == ["before", "after"]
  written = json.loads((tmp_path / "results.json").read_text())
  assert written.pop("evidence") == evidence.as_data(evidence.evidence(CONFIG, results))
  assert written == results
  said, page = capsys.readouterr().out.splitlines()
  assert said == report.headline(results, CONFIG) and page == f"report: {tmp_path / 'report.html'}"
  assert not list(tmp_path.rglob("*.tmp"))


def test_numbers_on_the_page_equal_the_json(tmp_path):
  results = make_run(tmp_path, {"before": BEFORE, "after": AFTER})
  shown = read_page(tmp_path).numbers
  values = [e["value"] for phase in results.values() for e in phase.values()]
  assert sorted(float(exact) for exact, _ in shown) == sorted(values)
  for exact, text in shown:
    assert float(text) == pytest.approx(float(exact), rel=5e-4)


def test_the_page_has_each_sentence_of_the_evidence(tmp_path):
  results = make_run(tmp_path, {"before": BEFORE, "after": AFTER})
  text = read_page(tmp_path).text
  for side, heading in evidence.HEADINGS.items():
    card = text[text.index(heading) :]
    said = [one.text for one in evidence.evidence(CONFIG, results) if one.side == side]
    assert all(words in card for words in said) and (said or side == "against")


def test_text_is_escaped(tmp_path):
  values = {EVIL: entry(1.0, None, EVIL), f"{EVIL}/0": entry(1.0, None, EVIL)}
  config = CONFIG | {"forget": {"label": EVIL}, "init_from": EVIL, "method": {"name": EVIL}}
  make_run(tmp_path, {"before": values, "x<u>": values}, [{"step": 1, EVIL: 1.0}], config)
  page = read_page(tmp_path)
  assert not {"script", "u"} & {tag for tag, _ in page.tags}
  assert "<script" not in (tmp_path / "report.html").read_text()
  assert page.text.count(EVIL) >= 6


def test_self_contained(tmp_path):
  make_run(tmp_path, {"before": BEFORE, "after": AFTER}, [{"step": 1, "loss_x": 1.0}])
  text, page = (tmp_path / "report.html").read_text(), read_page(tmp_path)
  assert not re.search(r"(https?:)?//[a-z]|url\(|@import", text)
  attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
  sources = [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
  assert len(sources) == 5  # two grids, the target, its nearest twice
  assert all(value.startswith("data:image/png;base64,") for value in sources)
  assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize("phases", [{}, {"before": BEFORE}, {"after": AFTER}])
def test_missing_phases_and_empty_metrics(tmp_path, phases):
  assert make_run(tmp_path, phases) == phases
  text = read_page(tmp_path).text
  for phase in ("before", "after"):
    assert (f"no evaluation {phase}" in text) == (phase not in phases)
  assert "Over the steps" not in text


def test_an_empty_folder(tmp_path):
  assert report.write(tmp_path) == {}
  assert "Nothing was evaluated yet" in read_page(tmp_path).text


def test_later_phases_come_in_natural_order(tmp_path):
  phases = {"attack_100": AFTER, "attack_20": AFTER, "after": AFTER, "before": BEFORE}
  results = make_run(tmp_path, phases)
  assert list(results) == ["before", "after", "attack_20", "attack_100"]
  text = read_page(tmp_path).text
  assert "attack 20, attack 100. No others were." in text
  assert "relearning attack was not run" not in text


def test_values_that_are_not_finite(tmp_path):
  after = AFTER | {"nll_bpd": entry(math.nan, [-math.inf, math.inf])}
  lines = [{"step": i, "loss_x": "nan" if i == 4 else float(i)} for i in range(1, 6)]
  results = make_run(tmp_path, {"after": after}, [*lines, {"step": 6, "loss_x": "inf"}])
  assert results["after"]["nll_bpd"]["value"] == "nan"
  refuse = lambda token: pytest.fail(f"{token} is not strict JSON")
  read = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
  assert read["after"]["nll_bpd"]["ci95"] == ["-inf", "inf"]
  page = read_page(tmp_path)
  assert "not finite at 2 steps, first at 4" in page.text
  drawn = " ".join(str(value) for _, attrs in page.tags for value in attrs.values())
  assert "nan%" not in drawn and "inf%" not in drawn


def test_a_row_measured_differently_is_flagged(tmp_path):
  make_run(tmp_path, {"before": BEFORE, "after": AFTER})
  text = read_page(tmp_path).text
  assert text.count("not comparable: solver") == 3  # in the table, and at both identities
  assert "surprise at the target (solver)" in text
  assert rows.row("tshirt_rate", {"before": BEFORE, "after": AFTER}).differs == ""
  other = {"m": entry(1.0, None, "free text")}
  assert rows.row("m", {"a": other, "b": {"m": entry(1.0)}}).differs


def test_the_limits_are_made_from_the_numbers():
  said = " ".join(limits.limits(CONFIG, {"before": BEFORE, "after": AFTER}))
  assert "The T-shirt rate after is 0 of 512 samples. That bounds the rate by 0.74%" in said
  assert "training seed 3" in said
  assert "samples 512; sampler ddim; sampling steps 25" in said
  again = " ".join(limits.limits(CONFIG, {"before": BEFORE, "after": BEFORE}))
  assert "is 0" not in again
  judged = {"feature_fid": entry(1.0, None, "extractor=digits:1a2b n=64")}
  said = " ".join(limits.limits({}, {"after": judged}))
  assert "By a small classifier of this project (digits:1a2b)" in said


@pytest.mark.parametrize(
  "forget, words",
  [
    ({"ids": [], "file": "", "label": "7"}, "the class 7"),
    ({"ids": [], "file": "", "label": "tshirt"}, "the T-shirt"),
    ({"ids": [], "file": "", "label": "", "style": "ink"}, "the style ink"),
    ({"ids": [], "file": "a.txt", "label": ""}, "the records listed in a.txt"),
    ({"ids": ["a"]}, "1 record (a)"),
    ({"ids": [f"sha256:{'ab' * 32}"]}, "every copy of 1 file (sha256:abababababab…)"),
    ({"ids": ["sha256:ab", "sha256:cd"]}, "every copy of 2 files (sha256:ab, sha256:cd)"),
    ({"ids": ["sha256:ab", "b.png"]}, "2 records (sha256:ab, b.png)"),
    ({"ids": ["a", "b", "c", "d"]}, "4 records (a, b, c, …)"),
    ({"ids": [], "file": "", "label": ""}, ""),
    ({}, ""),
  ],
)
def test_what_was_deleted(forget, words):
  assert subject.deleted({"forget": forget}) == words


def test_places_of_intervals_and_bars():
  results = {"before": {"a/0": entry(2.0, [1.0, 3.0])}, "after": {"a/0": entry(5.0)}}
  row = rows.row("a/0", results)
  assert (row.group, row.item) == ("a", "0")
  assert row.cells[0].at == (25.0, 0.0, 50.0)
  assert row.cells[1].at == (100.0,)
  assert row.axis == ((0.0, "1"), (100.0, "5"))
  assert rows.bars([row])[0].cells[0].at == (40.0, 20.0, 60.0)


def test_chart_is_log_over_two_decades_only():
  steps = np.arange(1.0, 4.0)
  chart = lambda *values: charts.chart("m", np.stack([steps, values], axis=1))
  assert chart(1, 10, 101).log
  assert not chart(1, 10, 100).log
  assert not chart(0, 10, 1000).log
  assert not chart(-1, 10, 1000).log
  assert [label for _, label in chart(1, 10, 1000).y_ticks] == ["1", "10", "100", "1000"]


def test_chart_puts_values_where_its_ticks_say():
  chart = charts.chart("m", np.array([[0.0, 0.0], [50.0, 2.0], [100.0, 10.0]]))
  x = {float(label): place for place, label in chart.x_ticks}
  y = {float(label): place for place, label in chart.y_ticks}
  assert chart.dots == ((x[0], y[0]), (pytest.approx((x[40] + x[60]) / 2), y[2]), (x[100], y[10]))
  assert (x[0], x[100]) == (chart.left, chart.right)
  assert (y[0], y[10]) == (chart.bottom, chart.top)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [math.nan], [math.inf, 1e-300, 1e300]])
def test_chart_of_degenerate_curves(values):
  chart = charts.chart("m", np.stack([np.arange(1.0, len(values) + 1), values], axis=1))
  assert "nan" not in chart.path and "inf" not in chart.path
  assert len(chart.bad_steps) == sum(not math.isfinite(v) for v in values)
  assert len(chart.y_ticks) >= 2


@pytest.mark.parametrize(
  "low, high", [(0.0, 1.0), (-3.2, 4.1), (0.61, 0.7), (9.0, 909.0), (1e-15, 3e-14)]
)
def test_ticks_are_two_to_six_within(low, high):
  found = charts.ticks(low, high)
  assert 2 <= len(found) <= 6
  assert all(low - 1e-9 * (high - low) <= t <= high + 1e-9 * (high - low) for t in found)


def test_thin_keeps_the_extremes():
  points = np.stack([np.arange(5000.0), np.random.default_rng(0).normal(size=5000)], axis=1)
  points[1234, 1], points[4321, 1] = 50, -50
  kept = charts.thin(points)
  assert len(kept) <= 400 and (np.diff(kept[:, 0]) > 0).all()
  assert 50 in kept[:, 1] and -50 in kept[:, 1]


def test_curves_put_losses_first_and_probes_last():
  lines = [
    {"step": 1, "scale": 1.0, "grad_norm": 2.0, "loss_x": "inf"},
    {"step": 2, "probe_r": 0.5},
  ]
  found = charts.curves(lines)
  assert list(found) == ["loss_x", "grad_norm", "scale", "probe_r"]
  np.testing.assert_array_equal(found["loss_x"], [[1, math.inf]])
  np.testing.assert_array_equal(found["probe_r"], [[2, 0.5]])


@pytest.mark.parametrize(
  "values, ends",
  [
    ([0.03125, 0.0], ("0", "0.04")),
    ([51.9, 64.5], ("50", "65")),
    ([-0.31, 0.2], ("-0.4", "0.2")),
    ([7.0], ("6", "8")),
    ([0.0, 0.0], ("0", "0.1")),
    ([704000.0, 2816000.0], ("500,000", "3,000,000")),
  ],
)
def test_the_ends_of_an_axis_are_round_and_hold_the_values(values, ends):
  phases = {f"p{i}": {"m": entry(v)} for i, v in enumerate(values)}
  row = rows.row("m", phases)
  assert tuple(label for _, label in row.axis) == ends
  assert all(0 <= cell.at[0] <= 100 for cell in row.cells)
  assert rows.row("m", {"p": {"m": entry("nan")}}).axis == ()


def test_curves_that_mean_something_come_first_and_have_names():
  line = dict.fromkeys(("loss_x", "grad_norm", "norm_a", "both", "probe_ua", "probe_ar"), 1.0)
  told, folded = report.curves([{"step": 1} | line], attack=False)
  assert [c.name for c in told] == [
    *("loss on what is kept", "gradient norm of the step"),
    *("forget norm: gradient norm, forgotten", "UA, on the way"),
  ]
  assert [c.name for c in folded] == ["rows that serve both terms", "AR, on the way"]
  told, _ = report.curves([{"step": 1} | line], attack=True)
  assert [c.name for c in told[:2]] == ["AR, on the way", "loss on what the attack learns from"]


def test_a_page_has_no_name_of_a_field_and_no_none(tmp_path):
  lines = [{"step": 1, "loss_x": 1.0, "norm_a": 2.0, "probe_tshirt_rate": 0.1}]
  make_run(tmp_path, {"before": BEFORE, "after": AFTER}, lines)
  text = read_page(tmp_path).text
  text = text[: text.index("How each value was measured")] + text[text.index("Class by class") :]
  text = text[: text.index("Every field of this run")]
  assert "SISS (λ 0.5, stratified)" in text and "T-shirt rate" in text
  for name in ("None", "tshirt_rate", "nll_bpd", "loss_x", "norm_a", "mnist_tshirt", "class_share"):
    assert name not in text, name


@pytest.mark.parametrize(
  "name, words",
  [
    ("tshirt_rate", "T-shirt rate"),
    ("target_rate", "target rate"),
    ("class_share/ankle-boot", "class share"),
    ("your_own", "your own"),
  ],
)
def test_metrics_have_names(name, words):
  assert names.metric(name) == words


def test_every_method_and_every_source_has_a_name_for_the_page():
  assert not set(methods.names()) - set(names.METHODS)
  assert not set(data.names()) - set(names.SOURCES)


def test_what_a_reader_knows_is_not_lost():
  assert names.item("ankle-boot") == "Ankle boot" and names.item("t-shirt") == "T-shirt"
  assert names.item("deleted-tpr-1") == "Deleted: TPR at 1% FPR"
  assert names.section("class_share") != names.section("membership_pia")
  assert names.phase("alone_class-0") == "class-0 alone"
  assert names.phase("top1") == "the largest weight alone"
  assert names.fields({"name": "m", "a": None, "b": (), "c": 0.0, "d": False}, "name") == (
    "c 0, not d"
  )


def test_compositions_come_before_sources_and_each_source_has_its_loss(tmp_path):
  phases = {
    "alone_a": {"fid": entry(3.0)},
    "soft": {"fid": entry(2.0)},
    "top1": {"fid": entry(1.0)},
  }
  for name in ("a", "b"):
    (tmp_path / "shards" / name).mkdir(parents=True)
    line = json.dumps({"step": 1, "loss_x": 1.0}) + "\n"
    (tmp_path / "shards" / name / "metrics.jsonl").write_text(line if name == "a" else "")
  config = CONFIG | {"sources": {"by": "class", "n": 2}, "compartment": {"name": "full"}}
  make_run(tmp_path, phases, config=config)
  text = read_page(tmp_path).text
  table = text[text.index("Values with") :]
  places = [table.index(n) for n in ("weighted by the router", "the largest weight", "a alone")]
  assert places == sorted(places)
  assert "loss of a" in text and "loss of b" not in text
  assert list(json.loads((tmp_path / "results.json").read_text())) == ["alone_a", "soft", "top1"]


def test_what_was_trained_and_what_the_first_run_began_with(tmp_path):
  """Of a UNet of 1 x 28 x 28 pixels: its first convolution has 9 x 8 weights and 8 biases."""
  for name, origin in (("first", "hub:OWNER/NAME"), ("second", str(tmp_path / "first"))):
    (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / name / "config.json").write_text(json.dumps({"init_from": origin}))
  model = {"name": "unet", "in_channels": 1, "block_out_channels": [8], "norm_num_groups": 4}
  model |= {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
  config = CONFIG | {"init_from": str(tmp_path / "second"), "model": model}
  facts = lambda **trained: subject.facts(config | {"trained": trained}, [])
  assert facts()["Started from"] == f"{tmp_path / 'second'}, which began with hub:OWNER/NAME"
  assert "Trained" not in facts()
  told = facts(pattern="conv_in")["Trained"]
  assert told.startswith("80 parameters, those of conv_in; ")
  assert told.endswith(f" stay as in {tmp_path / 'second'}")
  told = facts(pattern="conv_in", rank=2, alpha=4.0)["Trained"]
  assert told.startswith("34 parameters, LoRA of rank 2 and alpha 4 on conv_in; ")


@pytest.mark.parametrize(
  ("share", "said"),
  [(1.0, "100%"), (0.996, "99.6%"), (0.99, "99%"), (0.875, "88%"), (0.0074, "0.74%"), (0.0, "0%")],
)
def test_a_share_has_two_digits_and_no_exponent(share, said):
  assert verdict._percent(share) == said
