"""The proof of one deletion, from the ledger to a stranger who checks it with one file."""

import base64
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization

from jaxunlearn import data
from jaxunlearn.cdm import keys, ledger, proof, receipts, sign_ledger
from jaxunlearn.cdm.log import Log
from jaxunlearn.proofs import notes, statement
from tests.proving import ORIGIN, VERIFIER, signer, verifier


class Case:
  """A run of eight records of which one was deleted, a key, and what is written for others."""

  def __init__(self, folder):
    self.run, self.key, self.out = folder / "run", folder / "log.pem", folder / "out"
    self.checkpoint, self.receipt = folder / "log.checkpoint", folder / "receipt.json"
    self.run.mkdir()
    private = signer().key.private_bytes(
      serialization.Encoding.PEM,
      serialization.PrivateFormat.PKCS8,
      serialization.NoEncryption(),
    )
    self.key.write_bytes(private)
    image = np.arange(32, dtype=np.uint8).reshape(8, 2, 2, 1)
    ids = np.array([f"a/{i:02d}.png" for i in range(8)])
    self.book, self.ledger = keys.Keys(self.run), ledger.Ledger(self.run)
    self.book.add(data.Records(ids, image, np.zeros(8, np.int32), ("a",)))
    self.ledger.append("start", seed=1)
    plan = [{"source": "a", "records": 1, "of": 8, "restart": 4, "steps": 8}]
    self.ledger.append("delete", deleted_records=1, plan=plan)
    self.opening = self.book.of_ids(["a/03.png"])["a/03.png"]
    receipts.write(self.receipt, self.run, [self.opening])
    self.ledger.extend("deleted", [{"commitment": self.opening.commitment}])
    self.ledger.append("proof", source="a", equal=True)

  def destroy(self):
    self.book.keep(self.book.read().keys() - {self.opening.commitment})

  def sign(self, **changed):
    fields = {"run": self.run, "origin": ORIGIN, "sign_key": self.key, "out": self.checkpoint}
    sign_ledger.command(sign_ledger.parse(flags(fields | changed)))

  def prove(self, **changed):
    fields = {"run": self.run, "checkpoint": self.checkpoint, "sign_key": self.key}
    fields |= {"receipt": self.receipt, "out": self.out} | changed
    fields = {name: value for name, value in fields.items() if value}
    proof.command(proof.parse(flags(fields)))

  @property
  def files(self):
    names = {"proof": "deletion.tlog-proof", "statement": "deletion.json"}
    return {name: self.out / file for name, file in names.items()} | {"receipt": self.receipt}


def flags(fields):
  return [f"--{name}={value}" for name, value in fields.items()]


@pytest.fixture
def case(tmp_path):
  return Case(tmp_path)


@pytest.fixture
def proved(case):
  case.destroy()
  case.sign()
  case.prove()
  return case


def refused(monkeypatch, **fields):
  monkeypatch.setattr(sys, "argv", ["verify", *flags(fields)])
  with pytest.raises(SystemExit) as info:
    verifier.main()
  assert "\n" not in str(info.value.code)
  return str(info.value.code)


def test_a_stranger_checks_it_with_the_one_file(proved, tmp_path):
  picture = tmp_path / "03.png"
  picture.write_bytes(np.arange(12, 16, dtype=np.uint8).tobytes())
  fields = {"key": signer().verifier, **proved.files, "picture": picture}
  done = subprocess.run(
    [sys.executable, "-P", VERIFIER, *flags(fields)],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    check=True,
  )
  commitment = proved.opening.commitment
  first, second, third, fourth = done.stdout.splitlines()
  assert re.fullmatch(rf"{ORIGIN} has as deleted, line 3 of 4, 20.*\+00:00: {commitment}", first)
  assert second.endswith('method {"name": "retrainedWithout", "equalToNeverTrained": true}')
  assert third == "your receipt opens it: 'a/03.png'"
  assert fourth == "which is your picture, byte for byte"
  assert len(VERIFIER.read_text().splitlines()) <= 150
  assert "jaxunlearn" not in re.findall(r"^(?:import|from) (\w+)", VERIFIER.read_text(), re.M)


def test_what_is_written_names_no_record(proved):
  for name in ("proof", "statement"):
    raw = proved.files[name].read_bytes()
    shown = raw + b"".join(map(decoded, re.findall(rb"[A-Za-z0-9+/]{24,}=*", raw)))
    assert proved.opening.commitment.encode() in shown
    others = proved.book.read().values()
    for secret in [proved.opening, *others]:
      assert not any(text.encode() in shown for text in (secret.id, secret.key, secret.sha256))
    assert not any(other.commitment.encode() in shown for other in others)


def decoded(text):
  return base64.b64decode(text + b"=" * (-len(text) % 4))


def test_the_forms_are_those_of_the_specifications(proved):
  lines = proved.files["proof"].read_text().split("\n")
  assert lines[0] == "c2sp.org/tlog-proof@v1" and lines[2] == "index 2"
  assert base64.b64decode(lines[1].removeprefix("extra ")) == Log(proved.run).lines[2]
  assert lines[5] == "" and "\n".join(lines[6:]) == proved.checkpoint.read_text()
  envelope = json.loads(proved.files["statement"].read_text())
  assert envelope["payloadType"] == "application/vnd.in-toto+json"
  said = json.loads(base64.b64decode(envelope["payload"]))
  assert said["_type"] == "https://in-toto.io/Statement/v1"
  assert said["predicateType"] == "https://jaxunlearn/deletion/v1"
  line = hashlib.sha256(Log(proved.run).lines[2]).hexdigest()
  assert [subject["digest"] for subject in said["subject"]] == [{"sha256": line}]
  names = re.findall(r'"(\w+)":', json.dumps(said["predicate"]))
  assert all(re.fullmatch("[a-z][a-zA-Z]*", name) for name in names)
  for name in ("deletedAt", "statedAt"):
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["predicate"][name])


def test_others_libraries_read_the_statement_and_its_signature(proved):
  from google.protobuf import json_format
  from in_toto_attestation.v1 import statement as intoto
  from in_toto_attestation.v1 import statement_pb2
  from securesystemslib import dsse, exceptions
  from securesystemslib.signer import SSlibKey

  read = lambda: json.loads(proved.files["statement"].read_text())
  hint = read()["signatures"][0]["keyid"]
  key = lambda one: SSlibKey(hint, "ed25519", "ed25519", {"public": one.public.hex()})
  dsse.Envelope.from_dict(read()).verify([key(signer())], 1)
  with pytest.raises(exceptions.VerificationError):
    dsse.Envelope.from_dict(read()).verify([key(signer(1))], 1)
  said = json.loads(base64.b64decode(read()["payload"]))
  message = json_format.ParseDict(said, statement_pb2.Statement())
  intoto.Statement.copy_from_pb(message).validate()


def test_the_page_of_the_predicate_says_what_is_written(proved):
  page = (VERIFIER.parent / "deletion_predicate.md").read_text()
  example = json.loads(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
  envelope = json.loads(proved.files["statement"].read_text())
  said = json.loads(base64.b64decode(envelope["payload"]))

  def shape(tree):
    return {k: shape(v) for k, v in tree.items()} if isinstance(tree, dict) else type(tree)

  assert shape(example) == shape(said)
  for name in re.findall(r'"(\w+)":', json.dumps(said["predicate"])):
    assert f"`{name}`" in page or f".{name}`" in page, name


def test_every_changed_byte_is_refused(proved, monkeypatch):
  """But blanks between JSON's fields, and the key's hint, which nothing relies on."""
  key = signer().verifier
  hint = rb'"keyid": "[^"]*"'
  rng = np.random.default_rng(0)
  for name, path in proved.files.items():
    good = path.read_bytes()
    spans = [found.span() for found in re.finditer(hint, good)]
    ends = [at + i for at in range(len(good) - 1) for i in (0, 1) if good[at + 1] == ord("\n")]
    for at in {*ends, *rng.choice(len(good), 60, replace=False).tolist()}:
      path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
      if not json_same(good, path) and not any(a <= at < b for a, b in spans):
        said = refused(monkeypatch, key=key, **proved.files)
        assert said.startswith("refused: "), (name, at)
    path.write_bytes(good)


def json_same(good, path):
  try:
    return json.loads(path.read_bytes()) == json.loads(good)
  except ValueError:
    return False


def test_what_does_not_belong_together_is_refused(proved, tmp_path, monkeypatch):
  (tmp_path / "other").mkdir()
  other = Case(tmp_path / "other")
  other.destroy()
  other.sign()
  other.prove()
  key, mine, theirs = signer().verifier, proved.files, other.files
  says = lambda **fields: refused(monkeypatch, **({"key": key, **mine} | fields))
  assert says(statement=theirs["statement"]) == "refused: the statement is of another line"
  assert says(receipt=theirs["receipt"]) == "refused: the receipt is of another record"
  assert says(picture=other.key) == "refused: the picture is another"
  assert says(key=signer(1).verifier).startswith(f"refused: {ORIGIN} has not signed the checkpoint")
  assert says(key=signer(0, "x").verifier) == "refused: x has not signed the checkpoint with KEY"
  assert says(key=key.replace("+", "+0", 1)) == "refused: KEY's ID is not its own"
  first, _ = mine["proof"].read_text().split("\n\n", 1)
  mine["proof"].write_text(f"{first}\n\n{other.checkpoint.read_text()}")
  assert says() == "refused: the proof is of another tree"


# Bad input of the commands.


def test_a_proof_for_another_tree_or_of_a_ledger_cut_short(proved, tmp_path):
  (tmp_path / "other").mkdir()
  other = Case(tmp_path / "other")
  other.destroy()
  with pytest.raises(
    ValueError, match=r"is of another tree: its root is not that of the first 4 l"
  ):
    other.prove(checkpoint=proved.checkpoint)
  with pytest.raises(ValueError, match="is of another tree"):  # nor is it replaced
    other.sign(out=proved.checkpoint)
  other.ledger.append("more")
  other.sign()
  path = other.run / ledger.FILE
  whole = path.read_bytes()
  path.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
  with pytest.raises(
    ValueError, match=r"is of 5 lines and .* has 4: it was cut short, or is anoth"
  ):
    other.prove()
  path.write_bytes(whole[:-5])
  for use in (other.sign, other.prove):
    with pytest.raises(ledger.Broken, match=r"line 5 of ledger\.jsonl is torn"):
      use()


def test_a_checkpoint_holds_for_the_longer_ledger(proved):
  proved.ledger.append("more")
  proved.prove(out=proved.out / "again")
  again = (proved.out / "again/deletion.tlog-proof").read_text()
  assert again == proved.files["proof"].read_text()
  proved.sign()
  assert notes.parse_checkpoint(proved.checkpoint.read_text()).size == 5


def test_bad_requests_for_a_proof(case):
  with pytest.raises(
    ValueError, match="is not a file; write one with `jaxunlearn cdm sign-ledger`"
  ):
    case.prove()
  case.sign()
  with pytest.raises(
    ValueError, match=r"the key of .* is still in .*; finish with `cdm delete --r"
  ):
    case.prove()
  case.destroy()
  for commitment in ("0" * 64, next(iter(case.book.read()))):
    with pytest.raises(ValueError, match=r"no line of .* says that .* was deleted; give a receipt"):
      case.prove(receipt="", commitment=commitment)
  case.ledger.extend("deleted", [{"commitment": "d" * 64}])
  with pytest.raises(ValueError, match="is of 4 lines and the deletion is line 5; sign the ledger"):
    case.prove(receipt="", commitment="d" * 64)
  case.key.write_bytes(
    signer(1).key.private_bytes(
      serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
  )
  with pytest.raises(ValueError, match=f"{ORIGIN} has not signed it with the key"):
    case.prove()


@pytest.mark.parametrize(
  ("events", "says"),
  [
    ([], {"name": "unknown"}),
    ([{"event": "delete", "deleted_source": "a"}], {"name": "sourceDropped"}),
    (
      [{"event": "delete", "plan": [{"source": "a"}, {"source": "b"}]}],
      {"name": "retrainedWithout", "equalToNeverTrained": False},
    ),
  ],
)
def test_how_it_was_deleted(events, says, tmp_path):
  book = ledger.Ledger(tmp_path)
  for facts in events:
    book.append(**facts)
  book.extend("deleted", [{"commitment": "0"}])
  book.append("proof", source="a", equal=True)
  book.append("delete", plan=[])
  book.append("proof", source="b", equal=True)  # of the next deletion
  assert proof.method(Log(tmp_path), len(events)) == says


def test_the_bytes_that_an_envelope_signs():
  """The form of DSSE's own example, with our type."""
  kind = "application/vnd.in-toto+json"
  assert statement.pae(b"hello world") == f"DSSEv1 28 {kind} 11 hello world".encode()
