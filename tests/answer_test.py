"""`jaxunlearn answer`: from a request to a folder, for one model and for compartments."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxunlearn import data, export, train
from jaxunlearn.answer import __main__ as answer
from jaxunlearn.answer import case, folder, one_model, plan, standing
from jaxunlearn.cdm import delete, ledger
from jaxunlearn.cdm import run as cdm_run
from jaxunlearn.data import roll
from tests import tiny_config
from tests.cdm_run_test import config_of, late, pictures  # noqa: F401
from tests.kinds import KINDS


def flags(run, out, **named):
  words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in named.items()]
  return answer.parse([f"--run={run}", f"--out={out}", *words])


def give(run, out, **named):
  answer.command(flags(run, out, **named))
  rows = list(csv.DictReader((out / "copies.csv").read_text().splitlines()))
  return json.loads((out / folder.ANNEX).read_text()), rows


def refused(run, out, **named):
  """The one line, and the exit code, of bad input."""
  with pytest.raises((ValueError, SystemExit)) as info:
    answer.command(flags(run, out, **named))
  assert "\n" not in str(info.value)
  return str(info.value)


def deleting(**forget):
  config = tiny_config.get_config("siss")
  config.forget.label = ""
  config.forget.update(copies="keep", **forget)
  config.train.update(steps=2, checkpoint_every=1, batch=8)
  config.eval.update(before=True, after=True, samples=8, batch=8, steps=2)
  config.eval.metrics = ("target_rate", "copy_score")
  config.eval.inject_n, config.eval.inject_t = 2, 1
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """runs/base, and runs/first which deletes one digit from it; an export of each."""
  root = tmp_path_factory.mktemp("runs")
  base = tiny_config.get_config()
  base.forget.label, base.streams = "", ConfigDict({"x": "all"})
  base.train.update(steps=1, batch=8)
  train.run(base, root / "base")
  first = deleting(ids=("mnist/00005",))
  first.init_from = str(root / "base")
  train.run(first, root / "first")
  for name in ("base", "first"):
    export.export(root / name, root / "exports" / name, deleted="count")
  return root


@pytest.fixture
def root(finished, tmp_path):
  """A copy; lineage names the first place, which digests tell."""
  return shutil.copytree(finished, tmp_path / "runs")


def test_what_the_run_did_already_is_the_answer(root, tmp_path, capsys):
  out = tmp_path / "answer"
  annex, rows = give(root / "first", out, ids="mnist/00005")
  assert sorted(path.name for path in out.iterdir()) == sorted(
    [folder.ANNEX, *folder.PAGES, *folder.TABLES]
  )
  assert out.stat().st_mode & 0o777 == 0o700
  assert annex["deleted_from_the_model"] and annex["plan"]["steps"] == 2
  assert [one["id"] for one in annex["request"]] == ["mnist/00005"]
  letter = (out / "letter.md").read_text()
  for one in annex["evidence"]:
    assert one["text"].replace("[", "\\[") in letter
  assert "`mnist/00005`, found by its name" in letter and case.FURTHER in letter
  assert "The measurements are of all that the run deleted: 1 record." in letter
  assert {one["what"] for one in annex["done"]} >= {
    "it was evaluated before",
    "it was evaluated after",
  }
  assert all(one["time"] for one in annex["done"])
  index = (out / "README.md").read_text()
  assert all(f"| {problem} | [{file}]({file}) |" in index for problem, file in folder.PROBLEMS)
  assert all((out / file).exists() for _, file in folder.PROBLEMS)
  assert len(folder.PROBLEMS) == 7
  assert capsys.readouterr().out.startswith("1 record; deleted\n")
  how = {(row["what"], row["path"].rpartition("/")[2]): row["how"] for row in rows}
  assert how["checkpoint", "1"] == "with --purge" and ("checkpoint", "2") not in how
  assert how["samples", "target.png"] == how["page", "report.html"] == "with --purge"
  assert how["model", "base"] == "by hand"
  exports = [row for row in rows if row["what"] == "export"]
  assert {row["path"].rpartition("/")[2] for row in exports} >= {"base", "first"}
  assert "records.txt" in (out / "traces.csv").read_text()


def test_what_can_be_made_again_is_purged_when_that_is_asked_for(root, tmp_path):
  annex, rows = give(root / "first", tmp_path / "answer", ids="mnist/00005", purge=True)
  run = root / "first"
  assert [path.name for path in (run / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]
  assert not list((run / "samples").glob("target*")) and (run / "samples/after.png").exists()
  page = (run / "report.html").read_text()
  assert "The target, and the samples nearest" not in page and "What speaks for forgetting" in page
  assert {row["how"] for row in rows} == {"deleted now", "by hand"}
  assert "We deleted " in (tmp_path / "answer/letter.md").read_text()
  again, rows = give(run, tmp_path / "answer", ids="mnist/00005")
  assert {row["how"] for row in rows} == {"by hand"} and again["evidence"] == annex["evidence"]


def test_a_record_that_is_still_there_is_planned_and_deleted_when_that_is_asked_for(
  root, tmp_path, capsys
):
  run, out = root / "first", tmp_path / "answer"
  annex, rows = give(run, out, ids="mnist/00007,mnist/00005")
  assert not annex["deleted_from_the_model"] and annex["evidence"] == []
  said = capsys.readouterr().out
  assert "not deleted yet" in said and "give the same command with --execute" in said
  assert "Training anew without them: 1 steps of 8 rows; the deletion is" in said
  assert annex["plan"]["passes"] == 2 * 8 * 5
  letter = (out / "letter.md").read_text()
  assert "**The records are not deleted from the model yet.**" in letter
  assert "still in the model" in (out / "evidence.md").read_text()
  assert not (root / "first_answer").exists()
  annex, rows = give(run, out, ids="mnist/00007,mnist/00005", execute=True)
  made = root / "first_answer"
  assert annex["deleted_from_the_model"] and annex["run"]["path"] == str(made)
  config = json.loads((made / "config.json").read_text())
  assert config["forget"]["ids"] == ["mnist/00007"] and config["init_from"] == str(run)
  assert config["forget"]["earlier"] == ["mnist/00005"]
  assert 0 < config["eval"]["target_radius"] < 10
  assert [row["how"] for row in rows if row["path"] == str(run)] == ["by hand"]
  assert {one["metric"] for one in annex["evidence"]} >= {"target_rate", "copy_score"}
  (root / "base" / "evals").mkdir(exist_ok=True)
  (root / "base" / "evals" / "after.partial.json").write_text("{}{")  # another run is at work
  hint, _ = give(run, tmp_path / "second", ids="mnist/00007")
  assert f"{made} deleted them already" in hint["plan"]["lines"][-1]
  later, _ = give(made, tmp_path / "third", ids="mnist/00007,mnist/00005")
  assert later["deleted_from_the_model"]
  told = {one["metric"]: one["side"] for one in later["evidence"]}
  assert told["earlier"] == "unknown" and "target_rate" in told
  alone, _ = give(made, tmp_path / "fourth", ids="mnist/00005")
  assert [one["metric"] for one in alone["evidence"]] == ["earlier"]


def test_what_other_runs_hold(tmp_path):
  """By their records, by their attack, and by what they were made from."""

  def make(name, config, parts=(), **origin):
    path = tmp_path / name
    path.mkdir()
    config = json.loads(config.to_json()) | {"init_from": str(origin.get("init_from", ""))}
    (path / "config.json").write_text(json.dumps(config))
    (path / roll.FILE).write_text("".join(f"{part}\tmark\tx\n" for part in parts))
    return path

  of = lambda kind: KINDS[kind].make()
  base = make("base", of("pretraining"), ["kept"])
  gone = make("gone", of("unlearning the T-shirt"), ["forget"], init_from=base)
  after = make("after", of("pretraining"), (), init_from=gone)
  derived = make("derived", of("naive deletion"), (), init_from=base)
  few = make("few", of("attack, 10"), ["forget"], init_from=gone)
  dimra = make("dimra", of("attack, kept"), ["forget"], init_from=gone)
  stranger = make("stranger", of("pretraining"), ["heldout"])
  named = make("named", of("pretraining"), (), init_from="assets:base")
  runs = standing.Runs([standing.Wanted("x", "mark")], ["assets:base"])
  assert {path.name: runs.holds(path) for path in (base, gone, after, derived, few)} == {
    "base": standing.TRAINED,
    "gone": standing.DELETED,
    "after": standing.AFTER,
    "derived": standing.DERIVED,
    "few": standing.SHOWN,
  }
  assert runs.holds(dimra) == standing.AFTER
  assert runs.holds(stranger) == standing.NEVER and runs.holds(named) == standing.DERIVED
  other = standing.Runs([standing.Wanted("x", "another picture of that name")])
  assert other.holds(base) == standing.NEVER


@pytest.mark.parametrize(
  ("kind", "method"),
  [("pretraining, looked for", "siss"), ("unlearning a class", "siss"), ("naive deletion", None)],
)
def test_a_plan_takes_the_method_of_the_run_where_it_can(kind, method, tmp_path):
  config = json.loads(KINDS[kind].make().to_json())
  made = plan.deletion(config, tmp_path / "run", ["a"], ["b"], steps=7, learning_rate=1e-5)
  assert made.method.name == (method or "denoising")
  assert made.train.steps == (7 if method else config["train"]["steps"])
  assert made.forget.ids == ("a",) and made.forget.earlier == ("b",)
  assert made.init_from == str(tmp_path / "run") and made.forget.label == ""


def test_the_yardstick_is_a_model_that_never_had_the_records(tmp_path):
  config = lambda kind: json.loads(KINDS[kind].make().to_json())
  retrained = config("retraining without a class")
  assert one_model.never_had(retrained)
  assert one_model.never_had(config("as it is"))  # assets:retrain_fashion_trouser
  other = config("as it is")["forget"] | {"label": "Coat"}
  assert not one_model.never_had(config("as it is") | {"forget": other})
  assert not one_model.never_had(config("unlearning a class"))
  named = {f"assets:{path.name}" for path in data.ASSETS.glob("retrain_*")}
  assert named == set(one_model.RETRAINED)
  (tmp_path / "config.json").write_text(json.dumps(retrained))
  measured = config("as it is") | {"init_from": str(tmp_path)}
  assert one_model.never_had(measured | {name: retrained[name] for name in ("data", "forget")})
  other = retrained["forget"] | {"label": "Coat"}
  assert not one_model.never_had(measured | {"data": retrained["data"], "forget": other})


def test_what_a_later_run_is_to_delete_is_still_in_the_model():
  image = np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)
  records = data.Records(np.array([*"abcd"]), image, np.zeros(4, np.int32), ("x",))
  config = json.loads(deleting(ids=("a",), earlier=("b",), later=("c",)).to_json())
  kept, gone, earlier = standing.KEPT, standing.DELETED, standing.EARLIER
  assert standing.of_run(config, records) == {"a": gone, "b": earlier, "c": kept, "d": kept}


def test_the_radius_reaches_half_way_to_the_nearest_other_record():
  image = np.zeros((4, 2, 2, 1), np.uint8)
  image[1, 0, 0], image[2, 0, 0], image[3, 0, 0] = 255, 204, 255  # at 1, .8 and 1
  ids = np.array(["zero", "one", "near", "copy"])
  records = data.Records(ids, image, np.zeros(4, np.int32), ("x",))
  assert plan.radius(records, ["one"]) == 0.1  # its copy is meant too
  assert plan.radius(records, ["zero"]) == 0.4
  assert plan.radius(records, ["zero", "one"]) == 0.1


# A run of compartments.


@pytest.fixture(scope="module")
def cdm(pictures, tmp_path_factory):  # noqa: F811
  workdir = tmp_path_factory.mktemp("compartments") / "cdm"
  config = config_of(pictures)
  config.compose.update(modes=("soft",), alone=False)
  cdm_run.run(config, workdir)
  return workdir


def test_an_exact_deletion_from_request_to_letter(cdm, pictures, tmp_path, capsys):  # noqa: F811
  run, out = shutil.copytree(cdm, tmp_path / "cdm"), tmp_path / "answer"
  name, _ = late(delete.open_run(run), "b")
  sent = tmp_path / "sent.png"
  with Image.open(pictures / name) as image:
    image.save(sent, compress_level=1)
  annex, _ = give(run, out, pictures=sent)
  assert not annex["deleted_from_the_model"]
  assert annex["plan"]["lines"][0].startswith("b: 1 of 14 records, first seen in step")
  annex, rows = give(run, out, pictures=sent, execute=True, prove=True)
  assert annex["deleted_from_the_model"] and annex["traces"] == []
  sides = [(one["side"], one["metric"]) for one in annex["evidence"]]
  assert sides == [("for", "ledger"), ("for", "proof")]
  assert "Every bit equals that of a training from step 0" in (out / "letter.md").read_text()
  assert [row["what"] for row in rows] == ["picture"]
  ledger.verify(run)
  stopped = run / "deletions" / "2.json"
  stopped.write_text("{}")
  said = refused(run, tmp_path / "again", receipt=out / case.RECEIPT)
  assert said.startswith(f"a deletion from {run} was stopped; finish it with `jaxunlearn cdm del")
  stopped.unlink()
  said = refused(run, tmp_path / "again", ids=name)
  assert said.startswith(f"{name!r} belongs to no source of {run}: it was deleted before, or never")
  receipt = out / case.RECEIPT
  later, _ = give(run, tmp_path / "again", receipt=receipt)
  assert later["deleted_from_the_model"] and later["done"] == annex["done"]
  assert later["evidence"] == annex["evidence"]


def test_a_ledger_that_was_cut_short_is_refused(cdm, tmp_path):
  run = shutil.copytree(cdm, tmp_path / "cdm")
  head = ledger.verify(run).head
  path = run / ledger.FILE
  path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
  said = refused(run, tmp_path / "answer", ids="a/00.png", head=head)
  assert said.startswith(f"no line of ledger.jsonl is the kept head {head[:12]}")
  (run / ledger.FILE).write_bytes(path.read_bytes()[:-9])
  said = refused(run, tmp_path / "answer", ids="a/00.png")
  assert re.match(r"line \d+ of ledger.jsonl is torn", said)


# Bad input.


@pytest.mark.parametrize(
  ("named", "message"),
  [
    ({}, "the request names nothing; give --ids, --files or --pictures"),
    ({"ids": "mnist/00005", "receipt": "r"}, "--receipt names the record; leave --ids, --files"),
    ({"receipt": "r"}, "--receipt is for runs of compartments; give --ids, --files or"),
    ({"ids": "mnist/77777"}, "1 of 1 ids to forget do not exist, the first is 'mnist/77777'"),
    ({"ids": "mnist/00005", "prove": True}, "--prove compares what was trained again; give it"),
    ({"ids": "mnist/00005", "steps": 0}, "steps is 0; use a whole number, 1"),
  ],
)
def test_bad_requests_are_one_line(named, message, finished, tmp_path):
  assert refused(finished / "first", tmp_path / "answer", **named).startswith(message)


def test_bad_folders_are_one_line(finished, tmp_path):
  run = finished / "first"
  assert "is no run's working directory; give one" in refused(
    tmp_path / "a", tmp_path / "o", ids="x"
  )
  said = refused(run, run / "answer", ids="mnist/00005")
  assert said.endswith("is inside the run; use a folder outside of it")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine.txt").touch()
  assert "holds other files ('mine.txt'); use a new folder" in refused(
    run, tmp_path / "full", ids="x"
  )


def test_a_run_that_is_not_finished_is_refused(finished, tmp_path):
  run = shutil.copytree(finished / "first", tmp_path / "run")
  (run / "results.json").unlink()
  assert "is at step 2 of 2 or was not evaluated" in refused(run, tmp_path / "o", ids="mnist/00005")


def test_a_picture_of_several_records_is_listed_in_the_folder(finished, tmp_path):

  train_set, _ = data.load("mnist_tshirt", digits=96, share=1 / 9)
  grey = np.asarray(train_set.image[5].squeeze(-1) * 0.9, np.uint8)
  Image.fromarray(grey).save(tmp_path / "sent.jpg", quality=60)
  out = tmp_path / "answer"
  said = refused(finished / "first", out, pictures=tmp_path / "sent.jpg")
  assert "is no record, but is like" in said and said.endswith(
    f"{out / 'candidates.png'} shows them"
  )
  annex, _ = give(finished / "first", out, pictures=tmp_path / "sent.jpg", confirm="mnist/00005")
  assert annex["request"][0]["by"] == "likeness, confirmed"


def test_the_exit_code_is_that_of_the_house(finished, tmp_path, monkeypatch, capsys):
  words = ["answer", f"--run={finished / 'first'}", f"--out={tmp_path / 'o'}", "--ids=none"]
  monkeypatch.setattr("sys.argv", words)
  assert answer.start() == 2
  assert capsys.readouterr().err.startswith("error: 1 of 1 ids to forget do not exist")
