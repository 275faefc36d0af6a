"""Commitments: what opens them, what is left when their key is gone, and runs of before them."""

import hashlib
import hmac
import json
import os
import pathlib
import shutil
import stat

import numpy as np
import pytest

from jaxunlearn import data
from jaxunlearn.cdm import ids, keys, ledger, migrate, receipts, sources, verify
from jaxunlearn.cdm import traces as of_the_package
from jaxunlearn.data import roll
from tests import traces

OLD = pathlib.Path(__file__).with_name("old_run")  # as the version before commitments wrote it


def records(n=8):
  ids = np.array([f"{'ab'[i // 4]}/{i:02d}.png" for i in range(n)])
  image = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2, 1)
  return data.Records(ids, image, np.arange(n, dtype=np.int32) // 4, ("a", "b"))


@pytest.fixture
def book(tmp_path):
  book = keys.Keys(tmp_path)
  book.add(records())
  return book


def lines(book):
  return [line.split("\t") for line in book.path.read_text().splitlines()]


def test_a_commitment_is_the_hmac_of_id_and_digest(book):
  pixels = records().image[2].tobytes()
  key, digest, _, name = lines(book)[2]
  assert (digest, name) == (hashlib.sha256(pixels).hexdigest(), "a/02.png")
  said = b"a/02.png" + hashlib.sha256(pixels).digest()
  assert [*book.read()][2] == hmac.new(bytes.fromhex(key), said, "sha256").hexdigest()


def test_a_known_commitment():
  opening = keys.Opening("00" * 32, hashlib.sha256(b"").hexdigest(), "", "x")
  said = "56e77af84339e4cf51b25c987c8b25b78bb37682010ecc33d9f9c3872e0d3de7"  # by openssl dgst -mac
  assert opening.commitment == said


def test_keys_are_random_and_the_owner_s_alone(book, tmp_path):
  other = keys.Keys(tmp_path / "other")
  other.path.parent.mkdir()
  other.add(records())
  assert len({line[0] for line in lines(book) + lines(other)}) == 16
  assert not book.read().keys() & other.read().keys()
  assert stat.S_IMODE(book.path.stat().st_mode) == 0o600


def test_a_destroyed_key_is_nowhere_and_the_others_stay(book):
  before = book.read()
  gone = [c for c, o in before.items() if o.id == "a/02.png"]
  hard_link = book.path.with_name("old bytes")
  os.link(book.path, hard_link)
  book.keep(before.keys() - set(gone))
  assert {c: o for c, o in before.items() if c not in gone} == book.read()
  assert stat.S_IMODE(book.path.stat().st_mode) == 0o600
  assert set(hard_link.read_bytes()) == {0}
  hard_link.unlink()
  assert [p.name for p in book.path.parent.iterdir()] == [keys.FILE]
  one = records().take(np.array([2]))
  assert traces.of(book.path.parent, "a/02.png", one.image.tobytes(), one.image[0]) == {}


def test_a_write_that_was_killed_leaves_no_old_key(book):
  book.path.with_suffix(".tmp").write_text("left behind")
  book.keep([])
  assert [p.name for p in book.path.parent.iterdir()] == [keys.FILE] and not book.read()


def test_the_fingerprint_is_of_the_pictures_as_they_are(book):
  mine = records().take(np.array([1, 5]))
  named = {o.id: c for c, o in book.read().items()}
  listed = f"{named['a/01.png']}\n{named['b/05.png']}\n"
  assert book.fingerprint(mine) == hashlib.sha256(listed.encode()).hexdigest()
  mine.image[0] ^= 1
  assert book.fingerprint(mine) != hashlib.sha256(listed.encode()).hexdigest()


def test_changed_records_are_named_and_new_ones_are_welcome(book):
  mine = records()
  book.check(mine)
  book.keep([c for c, o in book.read().items() if o.id != "a/03.png"])
  book.check(mine)
  mine.image[0] ^= 1
  with pytest.raises(
    ValueError, match=r"since the run began: .*: 1 changed \(.*\), 1 missing \('b/07\.png'\)"
  ):
    book.check(mine.take(np.arange(7)))


@pytest.mark.parametrize("line", ["", "x", "00\t00\tm\tid", f"{'0' * 64}\t{'0' * 64}\tm\t"])
def test_a_damaged_file_of_keys(book, line):
  book.path.write_text(book.path.read_text() + f"{line}\n")
  with pytest.raises(ValueError, match=r"keys\.txt is damaged at line 9; put its copy back"):
    book.read()


# Receipts.


def test_a_receipt_opens_what_the_run_no_longer_can(book, tmp_path):
  (commitment, opening), *_ = book.read().items()
  path = tmp_path.with_name("out") / "receipt.json"
  receipts.write(path, tmp_path, [opening])
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  book.keep([])
  assert receipts.read(path).commitment == commitment == json.loads(path.read_text())["commitment"]
  with pytest.raises(ValueError, match=r"cannot write receipt .* use another path"):
    receipts.write(path, tmp_path, [opening])
  with pytest.raises(ValueError, match="is inside the run, which is to forget it; use another"):
    receipts.write(tmp_path / "x" / "r.json", tmp_path, [opening])
  path.write_text(path.read_text().replace(opening.id, "a/99.png"))
  with pytest.raises(ValueError, match="was changed: its key does not open its commitment"):
    receipts.read(path)
  path.write_text(2 * (json.dumps({**opening._asdict(), "commitment": ""}) + "\n"))
  with pytest.raises(ValueError, match="has receipts of 2 records; give a file with one of them"):
    receipts.read(path)
  for text in ("", "{}", "[]", "\xff", '{"key": 1, "sha256": 2, "id": 3}'):
    path.write_text(text)
    with pytest.raises(ValueError, match="is no receipt; give what `cdm delete --receipt` wrote"):
      receipts.read(path)


def test_what_still_names_a_record_is_found(book, tmp_path):
  gone, kept = [*book.of_ids(["a/02.png"]).values()], ["a/00.png", "b/02.png"]
  (tmp_path / "shards/a/checkpoints").mkdir(parents=True)
  for name, text, hit in (
    ("config.json", '"ids": ["a/02.png"]', True),
    ("notes.txt", "see /data/a/02.png.", True),
    ("digest.txt", gone[0].sha256, True),
    ("longer.txt", "xa/02.png a/02.pngs b/02.png 02.png", False),
    ("shards/a/checkpoints/x", "a/02.png", False),
  ):
    (tmp_path / name).write_text(text)
    found = of_the_package.find(tmp_path, gone, kept)
    assert (name in found) == hit, name
    (tmp_path / name).unlink()
  (tmp_path / "alone.txt").write_text("02.png")
  assert "alone.txt" in of_the_package.find(tmp_path, gone, ["a/00.png"])


# Who holds the keys reads the ids of a source.


def test_the_ids_of_a_source(book):
  run = book.path.parent
  names = {o.id: o.id[0] for o in book.read().values()}
  sources.write(run / sources.FILE, {c: names[o.id] for c, o in book.read().items()})
  assert ids.ids(run, "b") == [f"b/{i:02d}.png" for i in range(4, 8)]
  assert ids.ids(run) == sorted(names)
  with pytest.raises(ValueError, match="no source 'c'; there are: a, b"):
    ids.ids(run, "c")
  book.keep([c for c, o in book.read().items() if o.id != "b/05.png"])
  with pytest.raises(ValueError, match="does not open 1 of 4 records; put its copy back"):
    ids.ids(run, "b")
  assert len(ids.ids(run, "a")) == 4


def test_ids_of_no_run(tmp_path):
  with pytest.raises(ValueError, match="holds no compartmentalised run; give its working"):
    ids.ids(tmp_path)


# Runs of before commitments.


@pytest.fixture
def old(tmp_path):
  return shutil.copytree(OLD, tmp_path / "run")


def test_an_old_run_is_refused_until_it_is_migrated(old):
  with pytest.raises(
    ValueError, match="name records; first run `jaxunlearn cdm migrate-ledger --r"
  ):
    sources.read(old / "sources.csv")
  assert ledger.verify(old).lines == 7  # it can be checked all the same


def test_a_migrated_run_names_its_records_in_its_keys_alone(old):
  mine = records()
  before = ledger.Ledger(old).lines()
  place = lambda i: traces.of(old, mine.ids[i], mine.image[i].tobytes(), mine.image[i])
  assert {"records.txt", "sources.csv", "shards/a/records.txt"} <= set(place(1))
  assert "records.txt" in place(7)  # deleted before, and still named
  found = migrate.migrate(old, mine)
  assert set(place(1)) == {"keys.txt"} and place(7) == {}
  assert found == ledger.verify(old) and found.lines == 8 and found.files == 5
  after = ledger.Ledger(old).lines()
  for then, now in zip(before, after[:-1], strict=True):
    assert all(then[name] == now[name] for name in ("line", "time", "event"))
  assert after[-1]["event"] == "migrated" and after[-1]["old_lines"] == 7
  text = (old / ledger.FILE).read_text() + (old / "deletions/1.json").read_text()
  leaks = [d for line in before for n, d in line.get("files", {}).items() if "checkpoints" not in n]
  leaks += [line["fingerprint"] for line in before if line["event"] == "trained"]
  assert len(leaks) == 9 and not any(leak in text for leak in leaks) and "first_seen" not in text
  assert after[6]["fingerprint"] == "0a1b2c3d" and after[4]["plan"][0]["restart"] == 0
  named, known = sources.read(old / "sources.csv"), keys.Keys(old).read()
  assert {known[c].id: s for c, s in named.items()} == {n: n[0] for n in mine.ids[:7].tolist()}
  assert (old / "shards/b/records.txt").read_text().split() == [c for c in named if named[c] == "b"]
  assert verify.keys_of(old) == "keys open 7 of 7 records"
  with pytest.raises(ValueError, match=r"is migrated already: its sources\.csv has commitments"):
    migrate.migrate(old, mine)


@pytest.mark.parametrize("moved", range(5))
def test_a_migration_that_was_killed_goes_on(old, moved, monkeypatch):
  replace, calls = pathlib.Path.replace, []

  def dying(path, target):
    if "migrating" in path.parts and "migrating" not in pathlib.Path(target).parts:
      calls.append(path)
      if len(calls) == moved + 1:
        raise KeyboardInterrupt
    return replace(path, target)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(pathlib.Path, "replace", dying)
    migrate.migrate(old, records())
  assert migrate.migrate(old, records()).lines == 8
  assert verify.keys_of(old) == "keys open 7 of 7 records" and not (old / migrate.STAGE).exists()


def test_no_migration_of_a_broken_run_or_on_other_data(old):
  other = records()
  other.image[0] ^= 1
  before = {path: path.read_bytes() for path in ledger.files_of(old) if path.is_file()}
  with pytest.raises(ValueError, match=r"1 changed \('a/00\.png'\)\. Restore it, and migrate"):
    migrate.migrate(old, other)
  with pytest.raises(ValueError, match="records of a source are no longer in the data"):
    migrate.migrate(old, records().take(np.arange(2)))
  assert {path: path.read_bytes() for path in ledger.files_of(old) if path.is_file()} == before
  (old / "shards/a/checkpoints/4/params").write_text("x")
  with pytest.raises(ledger.Broken, match="is not what line 3 recorded"):
    migrate.migrate(old, records())


def test_keys_that_were_lost_are_counted(old, capsys):
  migrate.migrate(old, records())
  book = keys.Keys(old)
  first = next(iter(book.read()))
  listed = book.path.read_text()
  book.keep(book.read().keys() - {first})
  assert verify.keys_of(old) == "keys open 6 of 7 records"
  book.path.write_text(listed)
  assert verify.cli([f"--run={old}"]) == 0
  assert "keys open 7 of 7 records\n" in capsys.readouterr().out
  book.path.write_text("damaged\n")
  assert verify.cli([f"--run={old}"]) == 2
  assert capsys.readouterr().err.count("\n") == 1
  assert roll.FILE not in {path.name for path in old.iterdir()}
