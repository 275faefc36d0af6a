"""The lines that a run begins and ends with say what the config and the results say."""

import pathlib

import pytest

from jaxunlearn.reports import headline


class Device:
  device_kind = "cpu"


CONFIG = {"method": {"name": "siss"}, "train": {"steps": 100, "batch": 64}, "init_from": "assets:x"}


def value(number):
  return {"value": number, "ci95": None, "identity": "n=8"}


@pytest.mark.parametrize(
  ("results", "says"),
  [
    (
      {
        "before": {"tshirt_rate": value(0.031), "inception_score": value(9.0)},
        "after": {"tshirt_rate": value(0.0), "inception_score": value(8.73)},
      },
      "tshirt 3.1% -> 0%, inception score -3%.",
    ),
    ({"after": {"ua": value(1.0), "fid": value(12.345)}}, "unlearning accuracy 100%, FID 12.3."),
    ({"soft": {"feature_fid": value("inf")}}, "feature FID inf."),
    ({"after": {"class_share/1": value(0.1)}}, "Done."),
    ({}, "Done; nothing was evaluated (config.eval.after)."),
  ],
)
def test_a_sentence_of_the_results(results, says):
  assert headline.sentence(results) == says
  page = pathlib.Path("runs/x/report.html")
  assert headline.closing(results, page) == f"{says}\nreport: runs/x/report.html"


@pytest.mark.parametrize(
  ("more", "deleted", "says"),
  [
    ({}, "the class tshirt", "delete the class tshirt (63 records) from assets:x"),
    ({}, "", "train from assets:x"),
    ({"init_from": ""}, "", "train, from random parameters"),
    ({"attack": "few_shot"}, "the class b", "attack (few_shot) on the class b from assets:x"),
  ],
)
def test_what_a_run_will_do(more, deleted, says):
  said = headline.opening(CONFIG | more, deleted, 63, [Device()])
  assert said == f"siss: {says}, 100 steps of 64 rows, on 1 x cpu"


def test_plurals():
  assert [headline.plural(n, "run") for n in (0, 1, 2000)] == ["0 runs", "1 run", "2,000 runs"]
