"""A run of compartments: isolation bit by bit, deletion and its proof, addition, resumption."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs import cdm_digits_clothes, common
from jaxunlearn import evaluation, step, weights
from jaxunlearn.adapters import Full, Lora, Prompts
from jaxunlearn.answer import __main__ as answering
from jaxunlearn.cdm import (
  add,
  compartment,
  delete,
  keys,
  ledger,
  receipts,
  sources,
  training,
  verify,
)
from jaxunlearn.cdm import run as cdm_run
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.commands import guard
from jaxunlearn.mesh import cores, programs, sharding
from tests import nets, tiny_config, traces

STEPS, N = 8, 48


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Three folders of 16 pictures of 8x8, of which 2 each are held out."""
  root = tmp_path_factory.mktemp("pictures")
  rng = np.random.default_rng(0)
  for i in range(N):
    path = root / "abc"[i % 3] / f"{i:02d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
  return root


def config_of(pictures, **fields):
  config = cdm_digits_clothes.compartments("folder", 0)
  config.model = {"name": "uvit", "sample_size": 8, "in_channels": 1, "patch_size": 4}
  config.model.update(width=8, depth=2, heads=2)
  config.data = common.source("folder", path=str(pictures), size=8, channels=1, heldout=7)
  config.init_from = ""
  config.sources.update(slices=4, **fields)
  config.router = {"name": "kmeans", "k": 2}
  config.train.update(steps=STEPS, batch=4, log_every=1, checkpoint_every=4)
  config.mesh.data = 1
  config.eval.update(metrics=(), samples=8, batch=8, steps=2)
  config.compose.update(modes=("soft", "top2"), attributed=1, calibration_levels=2)
  return config


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
  """A run that is done, to be copied."""
  workdir = tmp_path_factory.mktemp("runs") / "cdm"
  cdm_run.run(config_of(pictures), workdir)
  return workdir


@pytest.fixture
def run(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "cdm")


def states(cdm):
  return {name: cdm.training().restore(shard) for name, shard in cdm.shards().items()}


def same(one, other):
  return delete.same_bits(one, other)


def test_a_run_has_every_mode_and_a_good_ledger(run):
  results = json.loads((run / "results.json").read_text())
  assert set(results) == {"soft", "top2", "alone_a", "alone_b", "alone_c"}
  cost = {phase: values["network_evaluations"]["value"] for phase, values in results.items()}
  assert cost["soft"] == 6 and cost["top2"] == 4 and cost["alone_a"] == 2
  assert results["soft"]["parameters"]["value"] == 3 * results["alone_a"]["parameters"]["value"]
  ledger.verify(run)
  events = [line["event"] for line in ledger.Ledger(run).lines()]
  assert events == ["start", "sources", *["trained"] * 6, "router"]
  seen = {line["source"]: line["fingerprint"] for line in ledger.Ledger(run).lines()[2:8]}
  assert seen == {name: weights.sha256(run / f"shards/{name}/records.txt") for name in "abc"}
  assert len((run / "attribution.csv").read_text().splitlines()) == 1 + 3
  said = json.loads((run / "compartments.json").read_text())
  assert said["sources"] == {name: {"records": 14} for name in "abc"}
  assert said["seen"]["centroids of b"] == "b alone"
  assert [row["records"] for row in said["calibration"]] == [6, 6]
  page = (run / "report.html").read_text()
  assert "What each part of the router has seen" in page and page.count("<svg") > 1


def test_launched_again_it_changes_nothing(run, pictures):
  before = {path: path.read_bytes() for path in ledger.files_of(run) if path.is_file()}
  cdm_run.run(config_of(pictures), run)
  for path, content in before.items():
    assert path.read_bytes() == content, path


@pytest.mark.parametrize(("lanes", "devices"), [(1, 1), (2, 4)])
def test_another_source_changes_no_bit(lanes, devices, pictures, tmp_path):
  config = config_of(pictures, lanes=lanes)
  config.mesh.data = devices
  cdm = Cdm(config, tmp_path / "one")
  cdm.open()
  whole = cdm.train()
  other = Cdm(config, tmp_path / "other")
  other.open()
  shards = other.shards()
  shards["b"] = shards["b"].without(shards["b"].records.ids[:5].tolist())
  changed = other.training().run(shards.values())
  assert same(whole["a"], changed["a"]) and same(whole["c"], changed["c"])
  assert not same(whole["b"].params, changed["b"].params)


@pytest.mark.parametrize("kind", [Full(), Prompts(tokens=2), Lora(rank=2)])
def test_another_source_changes_no_bit_of_an_adapter(kind, pictures, tmp_path):
  cdm = Cdm(config_of(pictures, lanes=3), tmp_path)
  cdm.open()
  cdm.backbone = nets.random_params(cdm.setup.net)
  cdm.compartment = compartment.make(kind, cdm.setup.net, cdm.setup.process)
  shards = list(cdm.shards().values())
  one = cdm_update(cdm, shards)
  changed = [shards[0], shards[1].without(shards[1].records.ids[:5].tolist()), shards[2]]
  other = cdm_update(cdm, changed)
  assert [same(*pair) for pair in zip(one, other, strict=True)] == [True, False, True]


def test_dropout_is_of_sources_as_well(pictures, tmp_path):
  config = config_of(pictures)
  config.model = {**tiny_config.get_config().model, "sample_size": 8}
  trained = []
  for i, dropout in enumerate((0.0, 0.5, 0.5)):
    config.model.dropout = dropout
    cdm = Cdm(config, tmp_path / str(i))
    cdm.open()
    trained.append(cdm_update(cdm, list(cdm.shards().values())[:1], steps=3))
  assert not same(trained[0], trained[1]) and same(trained[1], trained[2])


def cdm_update(cdm, shards, steps=6):
  """The parameters of each lane after some steps."""
  where = sharding.source_sharding(cdm.setup.mesh, len(shards))
  stacked = training.stack(where, *(cdm.training().start(shard) for shard in shards))
  seeds = jax.numpy.array([shard.seed for shard in shards], jax.numpy.uint32)
  fixed = step.program(cdm.setup), cdm.compartment, where, cdm.backbone
  for batch in training.batches(shards, where, 0, steps):
    stacked, _ = training.update(*fixed, stacked, seeds, batch)
  return [state.params for state in training.unstack(cdm.setup.mesh, stacked)]


def late(cdm, name):
  """A record of that source that its training sees late."""
  shard = cdm.shards()[name]
  first = {i: shard.first_step([i]) for i in shard.records.ids.tolist()}
  return max((i for i in first if first[i] is not None), key=lambda i: first[i]), first


def test_deletion_goes_back_no_further_than_it_must_and_is_proven(run, pictures):
  cdm = delete.open_run(run)
  name, first = late(cdm, "b")
  assert first[name] >= 4
  before = states(cdm)
  assert traces.of_picture(run, pictures, name) == {"keys.txt"}
  for left in ("damaged/8", "tensorboard", "../../proof/shards/b"):  # of a launch that was killed
    (run / "shards/b" / left).mkdir(parents=True)
  (item,) = delete.plan(cdm, [name])
  assert item.restart == first[name] // 4 * 4 and item.cost == STEPS - item.restart
  delete.delete(cdm, [name])
  assert cdm.training().recorded("b") == {4, 8} & set(range(item.restart + 1))
  record = delete.finish(cdm)
  delete.prove(cdm, ["b"])
  after = states(cdm)
  assert same(before["a"], after["a"]) and same(before["c"], after["c"])
  assert not same(before["b"].params, after["b"].params)
  assert name not in cdm.sources and traces.of_picture(run, pictures, name) == set()
  assert not any((run / "shards/b" / left).exists() for left in ("damaged", "tensorboard"))
  delete.open_run(run).open()  # the data has it still
  assert traces.of_picture(run, pictures, name) == set()
  assert set(record["before"]) == set(record["after"])
  ledger.verify(run)
  proof = ledger.Ledger(run).lines()[-1]
  assert proof["event"] == "proof" and proof["equal"] and proof["source"] == "b"
  (deleted,) = [line for line in ledger.Ledger(run).lines() if line["event"] == "deleted"]
  assert deleted["commitment"] not in keys.Keys(run).read()
  assert verify.keys_of(run) == "keys open 41 of 41 records"


def test_a_shard_that_saw_the_record_is_no_proof(run):
  cdm = delete.open_run(run)
  name, _ = late(cdm, "b")
  left = {i: source for i, source in cdm.sources.items() if i != name}
  cdm.assign(left, "delete")  # as if nothing had to be trained again
  with pytest.raises(RuntimeError, match="b differ from shards trained without the deleted"):
    delete.prove(cdm, ["b"])
  assert not ledger.Ledger(run).lines()[-1]["equal"]


def test_a_record_that_was_never_seen_costs_nothing(run, tmp_path, capsys):
  cdm = delete.open_run(run)
  _, first = late(cdm, "c")
  unseen = [i for i in first if first[i] is None]
  assert unseen, "make the shards longer"
  (item,) = delete.plan(cdm, unseen[:1])
  assert item.cost == 0 and "never seen" in str(item)
  (opening,) = cdm.keys.of_ids(unseen[:1]).values()
  (run / "notes.txt").write_text(f"see {unseen[0]}\n")
  receipt = tmp_path / "receipt.json"
  words = [f"--run={run}", f"--ids={unseen[0]}", "--prove"]
  with pytest.raises(ValueError, match="is inside the run, which is to forget it"):
    delete.command(delete.parse([*words, f"--receipt={run / 'receipt.json'}"]))
  delete.command(delete.parse([*words, f"--receipt={receipt}"]))
  said = capsys.readouterr().out
  assert f"deleted {opening.commitment}\n" in said
  assert "\nnotes.txt still names a deleted record and is not rewritten; edit or" in said
  assert receipts.read(receipt).commitment == opening.commitment
  with pytest.raises(ValueError, match=r"belong to no source, .*: it was deleted before, or is"):
    delete.command(delete.parse([*words, f"--receipt={tmp_path / 'second'}"]))


def test_a_deletion_that_was_killed_before_its_key_was_destroyed_is_settled(run):
  cdm = delete.open_run(run)
  left = {name: source for name, source in cdm.sources.items() if name != "a/03.png"}
  (opening,) = cdm.keys.of_ids(["a/03.png"]).values()
  cdm.assign(left, "delete")
  assert "and 1 that are deleted; finish with" in verify.keys_of(run)
  for _ in range(2):
    cdm.settle()
    last = ledger.Ledger(run).lines()[-1]
    assert (last["event"], last["commitment"]) == ("deleted", opening.commitment)
  assert opening.commitment not in cdm.keys.read()
  cdm.keys.keep([*cdm.keys.read()][1:])
  with pytest.raises(ValueError, match=r"keys\.txt opens 40 of the 41 commitments of sources\.csv"):
    _ = cdm.sources


def test_a_dropped_source_is_gone(run, pictures):
  cdm = delete.open_run(run)
  before = states(cdm)
  gone = sources.members(cdm.sources)["b"]
  delete.drop(cdm, "b")
  record = delete.finish(cdm)
  assert not (run / "shards/b").exists() and "b" not in set(cdm.sources.values())
  assert not set.union(*(traces.of_picture(run, pictures, name) for name in gone))
  assert same(before["a"], states(cdm)["a"])
  assert "alone_b" in record["before"] and "alone_b" not in record["after"]
  ledger.verify(run)


def test_a_source_that_comes_later_changes_no_other(run, pictures, tmp_path):
  workdir = tmp_path / "absent"
  cdm_run.run(config_of(pictures, absent=("b",)), workdir)
  cdm = delete.open_run(workdir)
  assert set(cdm.sources.values()) == {"a", "c"}
  early = states(cdm)
  assert add.add(cdm, "b") == 14
  cdm_run.run(cdm.config, workdir)
  everything = states(delete.open_run(run))
  assert same(states(cdm), everything)  # as if it had been there from the start
  assert same(early["a"], everything["a"])
  ledger.verify(workdir)


def test_stopped_anywhere_it_goes_on_bit_by_bit(run, pictures, tmp_path):
  workdir, calls = tmp_path / "stopped", []

  def stopped():
    calls.append(1)
    return len(calls) in (3, 9, 10)

  config = config_of(pictures)
  for _ in range(4):
    try:
      cdm = Cdm(config, workdir, stopped)
      cdm.open()
      cdm.train()
      break
    except evaluation.Stopped:
      continue
  assert same(states(delete.open_run(workdir)), states(delete.open_run(run)))
  ledger.verify(workdir)


def test_a_checkpoint_the_ledger_does_not_know_is_made_again(run, pictures):
  shutil.copytree(run / "shards/a/checkpoints/4", run / "shards/a/checkpoints/5")
  with pytest.raises(ledger.Broken, match="shards/a/checkpoints/5 has no line, and the folders"):
    ledger.verify(run)
  before = states(delete.open_run(run))
  assert not (run / "shards/a/checkpoints/5").exists()
  assert int(before["a"].step) == STEPS


@pytest.mark.parametrize("path", ["shards/a/records.txt", "sources.csv", "router/b.npz"])
def test_a_flipped_byte_is_found(run, path):
  content = bytearray((run / path).read_bytes())
  content[len(content) // 2] ^= 1
  (run / path).write_bytes(bytes(content))
  with pytest.raises(ledger.Broken, match=re.escape(path)):
    ledger.verify(run)


@pytest.mark.parametrize(
  ("ids", "message"),
  [
    (["d/00.png"], "1 of 1 ids belong to no source, the first is 'd/00.png'"),
    (["a/00.png", "a/18.png"], "1 of 2 ids belong to no source, the first is 'a/18.png'"),
  ],
)
def test_bad_deletions(run, ids, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    delete.plan(delete.open_run(run), ids)


def test_all_records_of_a_source_are_the_source(run):
  cdm = delete.open_run(run)
  with pytest.raises(ValueError, match="those are all 14 records of source a; use --source=a"):
    delete.plan(cdm, [name for name, source in cdm.sources.items() if source == "a"])


def test_a_deletion_that_was_stopped_goes_on(run):
  cdm = delete.open_run(run)
  name, _ = late(cdm, "b")
  delete.delete(cdm, [name])  # and the process ends here
  with pytest.raises(ValueError, match="--receipt takes keys that the deletion has destroyed"):
    delete.command(delete.parse([f"--run={run}", "--resume", f"--receipt={run}.json"]))
  delete.command(delete.parse([f"--run={run}", "--resume", "--prove"]))
  assert ledger.Ledger(run).lines()[-1]["equal"]
  ledger.verify(run)


def test_bad_sources(run, pictures, tmp_path):
  with pytest.raises(ValueError, match="no source 'd'"):
    delete.drop(delete.open_run(run), "d")
  with pytest.raises(ValueError, match="source b is there already"):
    add.add(delete.open_run(run), "b")
  with pytest.raises(ValueError, match="holds no compartmentalised run"):
    delete.open_run(tmp_path)
  with pytest.raises(ValueError, match=r"config\.sources\.lanes is 0; use a whole number, 1"):
    Cdm(config_of(pictures, lanes=0), tmp_path)
  with pytest.raises(ValueError, match="no source 'z'"):
    Cdm(config_of(pictures, absent=("z",)), tmp_path / "new").open()


def test_only_what_sources_hold_has_to_be_as_it_was(pictures, tmp_path):
  """A picture that was deleted from the run may go; one of a source may not change."""
  config = config_of(shutil.copytree(pictures, tmp_path / "pictures"))
  config.data.heldout = 0
  opened = lambda: Cdm(config, tmp_path / "run")
  opened().open()
  left = {name: source for name, source in opened().sources.items() if name != "a/00.png"}
  opened().assign(left, "deleted")
  (tmp_path / "pictures/a/00.png").unlink()
  shutil.copy(pictures / "b/01.png", tmp_path / "pictures/b/99.png")
  opened().open()
  (tmp_path / "pictures/a/03.png").unlink()
  with pytest.raises(ValueError, match=r"since the run began: .*: 1 missing \('a/03\.png'\)"):
    opened().open()
  with pytest.raises(ValueError, match=r"1 of 15 records of a source are no longer in the data"):
    opened().shards()


def test_a_command_of_one_process_is_not_run_by_several(run, monkeypatch, capsys):
  monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
  parse = lambda: delete.command(delete.parse([f"--run={run}", "--source=a"]))
  assert guard.guarded(parse) == 2
  assert "this command runs in one process" in capsys.readouterr().err
  assert "a" in set(delete.open_run(run).sources.values())


@pytest.mark.parametrize(
  ("module", "flags"),
  [
    (delete, ["--source=a"]),
    (add, ["--source=a"]),
    (answering, ["--ids=a", "--out=answer", "--execute"]),
  ],
)
def test_what_trains_sources_again_has_the_devices_of_their_training(
  run, monkeypatch, module, flags
):
  """Those that jaxunlearn.main takes: a proof on others compares other bits."""
  batch, asked = json.loads((run / "config.json").read_text())["train"]["batch"], []
  monkeypatch.setattr(sys, "argv", ["command", f"--run={run}", *flags])
  monkeypatch.setattr(module, "command", lambda args: asked.append("command"))
  monkeypatch.setattr(cores, "as_devices", lambda *rows: asked.append(rows))
  monkeypatch.setattr(programs, "keep", lambda folder: None)
  assert module.start() == 0
  assert asked == [(batch,), "command"]


def test_bad_steps(pictures, tmp_path):
  config = config_of(pictures)
  config.train.micro_batches = 2
  with pytest.raises(ValueError, match=r"config\.train\.micro_batches is 2 and a source takes its"):
    Cdm(config, tmp_path)
  config = config_of(pictures)
  config.method, config.streams.a = {"name": "neggrad"}, "forget"
  config.forget.ids = ("a/00.png",)
  with pytest.raises(ValueError, match=r"method neggrad reads streams .*; use denoising"):
    Cdm(config, tmp_path)
  config = config_of(pictures)
  config.trained.pattern = "kernel"
  with pytest.raises(ValueError, match=r"config\.trained is set, and what a source trains"):
    Cdm(config, tmp_path)


def test_sources_are_written_as_data(run):
  known = keys.Keys(run).read()
  named = {known[c].id: name for c, name in sources.read(run / "sources.csv").items()}
  assert len(named) == 42 and {name.partition("/")[0] == source for name, source in named.items()}
