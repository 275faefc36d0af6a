"""The ledger: a chain that finds any changed byte of a line or a file, and names the right one."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxunlearn.cdm import ledger, verify
from jaxunlearn.cdm.ledger import Broken, Ledger

ROOT = pathlib.Path(__file__).parents[1]
IDS = "shards/a/records.txt"
CHECKPOINT = "shards/a/checkpoints/10"
WEIGHTS = f"{CHECKPOINT}/params/d/weights"


def sha256(content):
  return hashlib.sha256(content).hexdigest()


def put(run, name, content=b"bytes"):
  path = run / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return path


def write(path, *events, lines=()):
  """Writes events behind lines, the format taken from ledger.py's docstring."""
  lines = list(lines)
  for event in events:
    fields = {"line": len(lines) + 1, "time": "2030-01-01T00:00:00+00:00", **event}
    fields["previous"] = sha256(lines[-1].encode()) if lines else "0" * 64
    digest = sha256(json.dumps(fields).encode())
    lines.append(json.dumps({**fields, "sha256": digest}))
  path.write_text("".join(f"{line}\n" for line in lines))
  return lines


def rewrite(line, **facts):
  """A line with other facts, whose own hash fits."""
  fields = {**json.loads(line), **facts}
  del fields["sha256"]
  return json.dumps({**fields, "sha256": sha256(json.dumps(fields).encode())})


@pytest.fixture
def run(tmp_path):
  """A run of one shard: its ids, a checkpoint, a deletion."""
  book = Ledger(tmp_path)
  book.append("start", seed=3, config={"steps": 20})
  ids = [put(tmp_path, "sources.csv", b"id,source\nx,a\n"), put(tmp_path, IDS, b"x\ny\nz\n")]
  book.append("sources", files=ids, records=3)
  put(tmp_path, WEIGHTS, np.random.default_rng(0).bytes(150))
  put(tmp_path, f"{CHECKPOINT}/meta")
  book.append("trained", files=[tmp_path / CHECKPOINT], source="a", last_step=10)
  book.append("delete", removed=["shards/b", "router/b.npz"], ids=["b/1"])
  return tmp_path


def broken(run, **fields):
  with pytest.raises(Broken) as info:
    ledger.verify(run, **fields)
  assert "\n" not in str(info.value)
  return str(info.value)


def test_what_holds_is_summed_up(run):
  head = sha256((run / ledger.FILE).read_bytes().splitlines()[-1])
  assert ledger.verify(run) == ledger.Summary(lines=4, files=4, removed=2, head=head)


def test_the_lines_are_those_of_the_docstring(run):
  lines = (run / ledger.FILE).read_text().splitlines()
  for number, (text, line) in enumerate(zip(lines, Ledger(run).lines(), strict=True), 1):
    assert json.loads(text) == line
    assert line["line"] == number
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", line["time"])
    assert line["previous"] == (sha256(lines[number - 2].encode()) if number > 1 else "0" * 64)
    assert rewrite(text) == text
  start, sources, trained, delete = Ledger(run).lines()
  assert (start["event"], start["seed"], start["config"]) == ("start", 3, {"steps": 20})
  assert sources["files"][IDS] == sha256(b"x\ny\nz\n")
  assert set(trained["files"]) == {WEIGHTS, f"{CHECKPOINT}/meta"}
  assert trained["folders"] == [CHECKPOINT]
  assert delete["removed"] == ["router/b.npz", "shards/b"]


def test_another_writer_of_the_format_is_understood(tmp_path):
  digest = sha256(put(tmp_path, "a").read_bytes())
  write(tmp_path / ledger.FILE, {"event": "start"}, {"event": "sources", "files": {"a": digest}})
  assert Ledger(tmp_path).append("more")["line"] == 3
  assert ledger.verify(tmp_path)[:2] == (3, 1)


def test_append_returns_the_line(tmp_path):
  assert Ledger(tmp_path).lines() == []
  line = Ledger(tmp_path).append("proof", source="a", equal=True)
  assert Ledger(tmp_path).lines() == [line]


def test_a_flipped_byte_of_the_ledger_is_found_in_its_line(run):
  path = run / ledger.FILE
  good = path.read_bytes()
  masks = np.random.default_rng(0).integers(1, 256, len(good))
  for at, mask in enumerate(masks.tolist()):
    path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
    assert broken(run).startswith(f"line {good[:at].count(10) + 1} of ledger.jsonl "), (at, mask)


@pytest.mark.parametrize("name", [IDS, WEIGHTS])
def test_a_flipped_byte_of_a_file_is_found(run, name):
  good = (run / name).read_bytes()
  number = {IDS: 2, WEIGHTS: 3}[name]
  for at in range(len(good)):
    bad = good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :]
    (run / name).write_bytes(bad)
    said = broken(run)
    assert said.startswith(f"{name} is not what line {number} recorded: "), at
    assert sha256(bad)[:12] in said
    assert sha256(good)[:12] in said


@pytest.mark.parametrize("change", [lambda b: b"", lambda b: b[:-1], lambda b: b + b"\n"])
def test_a_file_of_another_length_is_found(run, change):
  path = run / IDS
  path.write_bytes(change(path.read_bytes()))
  assert broken(run).startswith(f"{IDS} is not what line 2 recorded")


def test_a_missing_file_is_found(run):
  (run / WEIGHTS).unlink()
  assert broken(run).startswith(f"{WEIGHTS} is missing; line 3 recorded it")
  put(run, f"{WEIGHTS}/x")  # a folder of its name is not it
  assert broken(run).startswith(f"{WEIGHTS} is missing")


def test_the_first_file_is_named_in_the_order_of_the_lines(run):
  again = Ledger(run).append("delete", files=[run / IDS])
  (run / IDS).unlink()
  assert broken(run).startswith(f"{IDS} is missing; line {again['line']} recorded it")
  (run / WEIGHTS).unlink()
  assert broken(run).startswith(f"{WEIGHTS} is missing; line 3 recorded it")
  (run / "sources.csv").unlink()
  assert broken(run).startswith("sources.csv is missing; line 2 recorded it")


def test_a_line_cut_out_doubled_or_moved_is_found(run):
  path = run / ledger.FILE
  one, two, three, four = path.read_bytes().splitlines(keepends=True)
  for lines, number, why in [
    ([one, three, four], 2, "is not there: line 3 is"),
    ([two, three, four], 1, "is not there: line 2 is"),
    ([one, two, two, three, four], 3, "is not there: line 2 is"),
    ([one, three, two, four], 2, "is not there: line 3 is"),
    ([one, b"\n", two, three, four], 2, "was changed: it is not JSON"),
  ]:
    path.write_bytes(b"".join(lines))
    assert broken(run).startswith(f"line {number} of ledger.jsonl {why}")
    with pytest.raises(Broken, match=f"line {number} of"):
      Ledger(run).lines()


def test_a_line_rewritten_with_care_is_found_by_the_next(run):
  path = run / ledger.FILE
  lines = path.read_text().splitlines()
  lines[1] = rewrite(lines[1], records=4)
  path.write_text("\n".join(lines) + "\n")
  assert broken(run).startswith("line 3 of ledger.jsonl does not follow line 2")


def test_a_kept_head_finds_what_was_cut_off_or_written_anew(run):
  path = run / ledger.FILE
  early, head = (sha256(line) for line in path.read_bytes().splitlines()[-2:])
  Ledger(run).append("added")
  whole = path.read_text().splitlines()
  for kept in (early, head, ledger.verify(run).head):
    assert ledger.verify(run, head=kept).lines == 5
  path.write_text("\n".join(whole[:3]) + "\n")
  assert ledger.verify(run).lines == 3  # nothing else tells
  assert ledger.verify(run, head=early).lines == 3
  assert broken(run, head=head).startswith(f"no line of ledger.jsonl is the kept head {head[:12]}")
  events = [{"event": "anew"} for _ in whole]
  write(path, *events)
  assert ledger.verify(run).lines == 5
  assert "written anew" in broken(run, head=head)
  for bad in ("cafe", head.upper(), f"{head}\n"):
    with pytest.raises(ValueError, match="is no SHA-256") as info:
      ledger.verify(run, head=bad)
    assert not isinstance(info.value, Broken)


def test_nothing_is_appended_to_a_broken_chain(run):
  path = run / ledger.FILE
  bad = path.read_bytes().replace(b'"seed": 3', b'"seed": 4')
  path.write_bytes(bad)
  with pytest.raises(Broken, match=r"line 1 of .* was changed"):
    Ledger(run).append("more")
  assert path.read_bytes() == bad


@pytest.mark.parametrize("cut", [1, 2, 100, 10**6])
def test_a_torn_last_line_is_cut_off_and_that_is_recorded(run, cut):
  path = run / ledger.FILE
  good = path.read_bytes()
  Ledger(run).append("torn")
  last = path.read_bytes()[len(good) :]
  torn = last[: max(1, len(last) - cut)]
  path.write_bytes(good + torn)
  assert "line 5 of ledger.jsonl is torn" in broken(run)
  assert len(Ledger(run).lines()) == 4
  with pytest.raises(ValueError, match="not JSON compliant"):
    Ledger(run).append("bad", value=float("nan"))
  assert path.read_bytes() == good + torn  # and not cut without a word
  assert Ledger(run).append("on")["line"] == 6
  mended = Ledger(run).lines()[4]
  assert mended["event"] == "mended"
  assert (mended["cut_bytes"], mended["cut_sha256"]) == (len(torn), sha256(torn))
  assert path.read_bytes().startswith(good)
  assert ledger.verify(run).lines == 6


def test_an_emptied_ledger_does_not_hold(run):
  (run / ledger.FILE).write_bytes(b"")
  assert broken(run).startswith("line 1 of ledger.jsonl")


def test_a_later_line_replaces_a_file_of_an_earlier_one(run):
  put(run, IDS, b"x\nz\n")
  assert broken(run).startswith(IDS)
  Ledger(run).append("delete", files=[run / IDS])
  assert ledger.verify(run).files == 4
  put(run, IDS, b"x\ny\nz\n")
  assert broken(run).startswith(f"{IDS} is not what line 5 recorded")


def remove(run, name):
  for path in sorted((run / name).rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  (run / name).rmdir()


def test_a_removed_path_must_not_come_back(run):
  put(run, "shards/b")
  assert broken(run) == "shards/b is there again; line 4 removed it. Remove it"
  (run / "shards/b").unlink()
  (run / "shards/b").symlink_to("nowhere")
  assert broken(run).startswith("shards/b is there again")


def test_what_was_in_a_removed_folder_is_no_longer_asked_for_nor_welcome(run):
  remove(run, CHECKPOINT)
  assert "is missing" in broken(run)
  Ledger(run).append("delete", removed=[pathlib.Path(CHECKPOINT)])
  assert ledger.verify(run).files == 2
  put(run, WEIGHTS)
  assert broken(run).startswith(f"{CHECKPOINT} is there again; line 5 removed it")


def test_a_folder_is_not_removed_with_one_whose_name_it_begins_with(run):
  name = f"{CHECKPOINT}0/meta"
  put(run, name)
  Ledger(run).append("trained", files=[run / f"{CHECKPOINT}0"])
  remove(run, CHECKPOINT)
  Ledger(run).append("delete", removed=[CHECKPOINT])
  put(run, name, b"other bytes")
  assert broken(run).startswith(f"{name} is not what line 5 recorded")


def test_a_folder_made_again_holds_without_what_was_in_it(run):
  remove(run, CHECKPOINT)
  Ledger(run).append("delete", removed=[CHECKPOINT])
  again = put(run, f"{CHECKPOINT}/params/d/others")
  Ledger(run).append("retrained", files=[run / CHECKPOINT])
  assert ledger.verify(run).files == 3
  put(run, WEIGHTS)  # what the deletion took away
  assert broken(run).startswith(f"{WEIGHTS} is there again; line 5 removed it")
  (run / WEIGHTS).unlink()
  again.write_bytes(b"other bytes")
  assert "is not what line 6 recorded" in broken(run)


def test_a_source_that_comes_back_does_not_bring_its_checkpoints_back(run):
  remove(run, "shards/a")
  Ledger(run).append("delete", removed=["shards/a"])
  Ledger(run).append("added", files=[put(run, IDS)])
  put(run, "shards/a/metrics.jsonl")
  assert ledger.verify(run).files == 2
  put(run, f"{CHECKPOINT}/meta")
  assert broken(run).startswith(f"{CHECKPOINT}/meta is there again; line 5 removed it")


def test_a_folder_recorded_again_is_replaced_as_a_whole(run):
  (run / WEIGHTS).unlink()
  put(run, f"{CHECKPOINT}/other")
  Ledger(run).append("trained", files=[run / CHECKPOINT])
  assert ledger.verify(run).files == 4
  put(run, WEIGHTS)
  assert broken(run).startswith(f"{WEIGHTS} has no line; line 5 recorded the whole of")


@pytest.mark.parametrize("name", ["new", "params/new", "params/d/deep/new"])
def test_a_file_beside_those_of_a_checkpoint_is_found(run, name):
  put(run, "shards/a/metrics.jsonl")  # that folder is not closed
  assert ledger.verify(run).files == 4
  put(run, f"{CHECKPOINT}/{name}")
  said = broken(run)
  assert said.startswith(f"{CHECKPOINT}/{name} has no line; line 3 recorded the whole of")


def test_a_link_to_a_folder_beside_those_of_a_checkpoint_is_found(run):
  (run / CHECKPOINT / "link").symlink_to(run / "shards")
  assert broken(run).startswith(f"{CHECKPOINT}/link has no line")


def test_files_of_a_folder_close_it_too(tmp_path):
  for name in ("c/1", "c/d/2"):
    put(tmp_path, name)
  assert ledger.files_of(tmp_path / "c") == [tmp_path / p for p in ("c", "c/1", "c/d/2")]
  assert ledger.files_of(tmp_path / "c/1") == [tmp_path / "c/1"]
  line = Ledger(tmp_path).append("trained", files=ledger.files_of(tmp_path / "c"))
  assert (list(line["files"]), line["folders"]) == (["c/1", "c/d/2"], ["c"])


def test_relative_directories_serve(run, monkeypatch):
  monkeypatch.chdir(run.parent)
  here = pathlib.Path(run.name)
  line = Ledger(here).append("again", files=[run / IDS, here / "shards" / ".." / "sources.csv"])
  assert list(line["files"]) == [IDS, "sources.csv"]
  assert ledger.verify(here).files == 4


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"files": ["nope"]}, "nope is not in .*; write a file before its line"),
    ({"files": ["../other"]}, "other is not under .*; a ledger records files of its run"),
    ({"files": ["."]}, "is not under"),
    ({"removed": [IDS]}, f"{IDS} is still in .*; remove it before its line"),
    ({"removed": ["../other"]}, "other is not under"),
    ({"previous": "x"}, "a fact cannot be named 'previous'"),
    ({"value": float("inf")}, "not JSON compliant"),
  ],
)
def test_what_cannot_be_recorded_leaves_the_ledger_as_it_was(run, fields, says):
  put(run.parent, "other")
  if "files" in fields:
    fields = {"files": [run / name for name in fields["files"]]}
  before = (run / ledger.FILE).read_bytes()
  with pytest.raises(ValueError, match=says):
    Ledger(run).append("bad", **fields)
  assert (run / ledger.FILE).read_bytes() == before


def test_processes_that_append_at_once_keep_one_chain(tmp_path):
  program = f"""
import pathlib, sys, time
from jaxunlearn.cdm.ledger import Ledger
run = pathlib.Path({str(tmp_path)!r})
(run / sys.argv[1]).touch()
while not (run / "go").exists():
  time.sleep(0.001)
for i in range(40):
  Ledger(run).append("trained", source=sys.argv[1], i=i)
"""
  names = ["a", "b"]
  command = [sys.executable, "-c", program]
  started = [subprocess.Popen([*command, name], cwd=ROOT) for name in names]
  while not all((tmp_path / name).exists() for name in names):
    assert all(process.poll() is None for process in started)
    time.sleep(0.001)
  (tmp_path / "go").touch()
  assert [process.wait() for process in started] == [0, 0]
  assert ledger.verify(tmp_path).lines == 80
  for name in names:
    mine = [line["i"] for line in Ledger(tmp_path).lines() if line["source"] == name]
    assert mine == list(range(40))


def test_a_thousand_lines_are_no_burden(tmp_path):
  files = {f"checkpoints/1/params/d/{i}": sha256(b"") for i in range(20)}
  for name in files:
    put(tmp_path, name, b"")
  events = [{"event": "trained", "files": files, "folders": ["checkpoints/1"]}] * 1000
  write(tmp_path / ledger.FILE, *events)
  began = time.process_time()
  Ledger(tmp_path).append("more")
  assert ledger.verify(tmp_path)[:2] == (1001, 20)
  assert time.process_time() - began < 5


def test_verify_on_the_command_line(run, capsys):
  head = ledger.verify(run).head
  assert verify.cli([f"--run={run}", f"--head={head}"]) == 0
  said = "4 lines and 4 files hold; 2 removed paths are gone\n" + f"head {head}\n"
  assert capsys.readouterr().out == said
  assert verify.cli([f"--run={run}", "--head=cafe"]) == 2
  assert verify.cli([f"--run={run / 'shards'}"]) == 2
  errors = capsys.readouterr().err.splitlines()
  assert errors[0].startswith("error: head 'cafe' is no SHA-256")
  assert errors[1].startswith(f"error: {run / 'shards'} holds no ledger.jsonl")


def test_a_user_reads_one_line_and_an_exit_code(run):
  (run / IDS).write_text("x\n")
  done = subprocess.run(
    [sys.executable, "-m", "jaxunlearn.cdm.verify", f"--run={run}"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (verify.BROKEN, "")
  assert re.fullmatch(rf"error: {IDS} is not what line 2 recorded: .*\n", done.stderr)
