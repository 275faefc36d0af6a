"""Every kind of run: its page and its card say what its config did, sentence by sentence."""

import functools
import json
import re
import types

import pytest

from jaxunlearn.reports import model_card, report, subject, verdict
from tests.kinds import COMPOSED, JUDGE, KINDS, LIMITS, PIXELS, PROBES, TSHIRT
from tests.report_test import Page, entry


@functools.cache
def config_of(name):
  return json.loads(KINDS[name].make().to_json())


def lines_of(kind):
  return PROBES if kind.kind == "attack" and kind.results.get("after") else []


def found(sentences):
  """Which limits they are; a sentence that is none of them fails."""
  which = [[key for key, words in LIMITS.items() if re.search(words, s)] for s in sentences]
  assert all(len(keys) == 1 for keys in which), list(zip(sentences, which, strict=True))
  return [keys[0] for keys in which]


def limits_on(html):
  section = html[html.index("What is not proven") : html.index("<h2>Config</h2>")]
  return [Page(item).text for item in re.findall(r"<li>(.*?)</li>", section, re.DOTALL)]


@pytest.mark.parametrize("name", KINDS)
def test_the_page_says_what_the_config_did(name):
  kind, config = KINDS[name], config_of(name)
  assert subject.kind(config) == kind.kind
  html = report.page(config, lines_of(kind), kind.results, {})
  head, body = html[: html.index("<h2>Config</h2>")], limits_on(html)
  (title,) = re.findall(r"<h1>(.*?)</h1>", html)
  assert Page(title).text.startswith(kind.title)
  facts = [
    (Page(a).text, Page(b).text) for a, b in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html)
  ]
  assert kind.fact in facts
  (line,) = re.findall(r'<p class="line">(.*?)</p>', html)
  assert Page(line).text.startswith(kind.line)
  assert sorted(found(body)) == sorted(kind.limits)
  for words in kind.says:
    assert words in " ".join(body)
  for words in kind.never:
    assert words not in Page(head).text, words
  assert ("Nothing was evaluated yet" in head) == (not kind.results)
  assert ("No metric was asked for" in head) == (kind.results == {"after": {}})


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.card])
def test_the_card_says_the_same(name, tmp_path):
  kind, config = KINDS[name], config_of(name)
  (tmp_path / "evals").mkdir()
  for phase, values in kind.results.items():
    (tmp_path / "evals" / f"{phase}.json").write_text(json.dumps(values))
  lines = "".join(json.dumps(line) + "\n" for line in lines_of(kind))
  (tmp_path / "metrics.jsonl").write_text(lines)
  item = "ema" if config["ema"] else "params"
  options = model_card.Options(deleted="count")
  card = model_card.render(tmp_path, config, item, 30, options)
  told, _, rest = card.partition("## What was deleted")[2].partition("## Evaluation")
  assert re.search(kind.card, " ".join(told.split()))
  assert kind.line in rest
  limits = rest.partition("own records go:")[2].strip().splitlines()
  proof = {"no proof"} if " by this run:" in told else set()
  assert sorted(found([line.removeprefix("- ") for line in limits])) == sorted(kind.limits | proof)
  for words in kind.never:
    assert words not in card, words
  title = next(line for line in card.splitlines() if line.startswith("# "))
  assert ("attack" in title) == (kind.kind == "attack")
  assert ("deleted by" in title) == (kind.kind in ("naive", "unlearning"))
  assert ("left out by" in title) == (kind.kind == "retraining")


@pytest.mark.parametrize("name", KINDS)
def test_the_headline_is_one_line(name):
  kind = KINDS[name]
  said = report.headline(kind.results, config_of(name), lines_of(kind))
  assert said.startswith(kind.headline) and "\n" not in said


def test_a_deleted_source_is_told():
  deleted = {"sources": {f"class-{i}": {"records": 9} for i in (1, 2, 3)}, "seen": {}}
  deleted |= {"deleted": ["source class-0, 9 records"], "calibration": [], "attribution": []}
  text = Page(report.page(config_of("compartments"), [], COMPOSED, {}, deleted)).text
  assert "3 compartments of digits and clothes" in text and "source class-0, 9 records" in text


# The verdict.


def test_compositions_are_told_apart_by_their_intervals():
  said = verdict.verdict(config_of("compartments"), COMPOSED)
  assert said.line.endswith("50 at worst (plain average); a source alone 30.")
  assert said.pro == ("Better than the best source alone, 30: 12 (the largest weight alone).",)
  assert said.contra[0] == "Not clearly better than the best source alone, 30: 50 (plain average)."
  alike = {"naive": COMPOSED["naive"], "soft": {"feature_fid": entry(49.0, [44.0, 54.0], PIXELS)}}
  assert verdict.verdict(config_of("compartments"), alike).line == (
    "Feature FID 49 at best (weighted by the router), 50 at worst (plain average), "
    "no clear difference."
  )


def test_the_rarest_values_break_nothing():
  odd = {"tshirt_rate": entry("nan", None, PIXELS), "inception_score": entry(0.0)}
  for phases in ((odd, odd), (TSHIRT["before"], odd), (odd, TSHIRT["after"])):
    results = dict(zip(("before", "after"), phases, strict=True))
    said = verdict.verdict(config_of("unlearning the T-shirt"), results)
    assert said.line and "None" not in said.line


def at(ar):
  return {"ua": entry(1 - ar, None, JUDGE), "ar": entry(ar, None, JUDGE)}


@pytest.mark.parametrize(
  "before, probes, after, line, step",
  [
    (0.0, (0.2, 0.6, 0.9), 1.0, "Trouser came back: first recovered at step 20. UA 1 → 0.", 20),
    (0.0, (0.2, 0.3, 0.4), 0.9, "Trouser came back: first recovered at step 30. UA 1 → 0.1.", 30),
    (0.0, (0.2, 0.6, 0.1), 0.1, "Trouser came back: first recovered at step 20. UA 1 → 0.9.", 20),
    (0.0, (0.1, "nan", 0.2), 0.2, "Trouser did not come back in 30 steps. UA 1 → 0.8.", None),
    (0.7, (0.9, 0.9, 0.9), 0.9, "Trouser was there before the attack began. UA 0.3 → 0.1.", 0),
  ],
)
def test_an_attack_is_told_by_its_first_recovery(before, probes, after, line, step):
  config, results = config_of("attack, 10"), {"before": at(before), "after": at(after)}
  lines = [{"step": 10 * i, "probe_ar": ar} for i, ar in enumerate(probes, start=1)]
  assert verdict.first_recovery(results, lines) == step
  said = verdict.verdict(config, results, lines)
  assert said.line.strip() == line
  assert bool(said.contra) == (step is not None)
  where = "not recovered" if step is None else f"first recovered at step {step}"
  assert report.headline(results, config, lines).endswith(where)


def test_an_attack_without_evaluations_is_told_by_its_probes():
  said = verdict.verdict(config_of("attack, 10"), {}, PROBES)
  assert said.line.strip() == "Trouser came back: first recovered at step 10."


def test_what_an_attack_cost_is_told():
  kept = lambda ira, low, high: {"ira": entry(ira, [low, high], JUDGE)}
  results = {"before": at(0.1) | kept(0.9, 0.8, 1.0), "after": at(0.9) | kept(0.1, 0.0, 0.2)}
  said = verdict.verdict(config_of("attack, 10"), results)
  assert said.pro == ("The attack also harmed what is kept: kept accuracy 0.9 → 0.1 (-89%).",)


def test_a_headline_has_what_went_and_what_it_cost():
  more = lambda value: {"inception_score": entry(value)}
  results = {
    "before": TSHIRT["before"] | more(7.0),
    "after": TSHIRT["after"] | more(6.79),
  }
  said = report.headline(results, config_of("unlearning the T-shirt"))
  assert said == "T-shirt 3.1% -> 0% (under 5.7%), inception score -3%"


@pytest.mark.parametrize(
  ("name", "records", "done", "says"),
  [
    ("unlearning the T-shirt", 63, 0, "with SISS (63 records), from assets:pretrain_mnist: "),
    ("unlearning the T-shirt", 1, 7, "(1 record), from assets:pretrain_mnist: "),
  ],
)
def test_a_run_opens_with_one_line(name, records, done, says):
  config = config_of(name)
  said = subject.opening(config, records, [types.SimpleNamespace(device_kind="cpu")] * 2, done)
  assert said.startswith(f"{subject.title(config)} ") and says in said and "\n" not in said
  assert said.endswith(f"{', going on after step 7' if done else ''}, on 2 x cpu")
