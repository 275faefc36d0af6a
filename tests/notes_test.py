"""The tree of RFC 6962 and the notes, checkpoints and proofs of C2SP.

They are checked by docs/verify_deletion.py, which knows nothing of the package.
"""

import base64
import hashlib
import re

import pytest

from jaxunlearn.cdm import ledger
from jaxunlearn.proofs import merkle, notes
from tests.proving import ORIGIN, signer, verifier


def sha256(content):
  return hashlib.sha256(content).digest()


# The tree.


def test_the_roots_of_certificate_transparency_s_own_test():
  """Inputs and roots of the reference implementation of RFC 6962."""
  inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
  inputs.append("606162636465666768696a6b6c6d6e6f")
  leaves = [merkle.leaf(bytes.fromhex(text)) for text in inputs]
  roots = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
  }
  assert {n: merkle.root(leaves[:n]).hex() for n in roots} == roots


def mth(lines):
  """RFC 6962, section 2.1, as it is written there."""
  if len(lines) < 2:
    return sha256(b"\0" + lines[0]) if lines else sha256(b"")
  k = 1 << (len(lines) - 1).bit_length() - 1
  return sha256(b"\1" + mth(lines[:k]) + mth(lines[k:]))


def test_every_path_of_every_small_tree_leads_to_its_root_and_no_other_does():
  lines = [bytes([i]) for i in range(33)]
  leaves = [*map(merkle.leaf, lines)]
  for n in range(1, 34):
    root = merkle.root(leaves[:n])
    assert root == mth(lines[:n])
    for i in range(n):
      path = merkle.path(leaves[:n], i)
      assert len(path) <= (n - 1).bit_length()
      assert verifier.root_of(leaves[i], i, n, path) == root
      if n > 1:
        assert verifier.root_of(leaves[i - 1], i, n, path) != root
        with pytest.raises(SystemExit, match=r"too (few|many) hashes"):
          verifier.root_of(leaves[i], i, n, path[:-1])
      with pytest.raises(SystemExit, match="too many hashes"):
        verifier.root_of(leaves[i], i, n, [*path, root])


def deleted(commitment="c" * 64, line=1, time="2030-01-01T00:00:00+00:00"):
  fields = {"time": time, "event": "deleted", "commitment": commitment}
  return ledger.line_of([b""] * (line - 1), fields)


def test_a_proof_among_a_million_lines_is_of_2_kilobytes():
  n, index = 10**6, 345_678
  leaves = [sha256(i.to_bytes(4, "big")) for i in range(n)]
  line = deleted(line=index + 1)
  leaves[index] = merkle.leaf(line)
  hashes = merkle.path(leaves, index)
  root = verifier.root_of(leaves[index], index, n, hashes)
  text = notes.write_proof(
    line, index, hashes, signer().sign(notes.Checkpoint(ORIGIN, n, root).text)
  )
  assert len(hashes) == 20 and len(text.encode()) <= 2048
  key = verifier.read_key(signer().verifier)
  assert verifier.read_proof(text, key) == (line, index, hashes, ORIGIN, n, root)


# Notes.


def test_the_example_of_the_specification_of_notes():
  key = verifier.read_key("example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
  signature = (
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
  )
  note = f"This is an example message.\n\n— example.com/foo {signature}\n"
  assert verifier.open_note(note, key) == "This is an example message."
  with pytest.raises(verifier.InvalidSignature):
    verifier.open_note(note.replace("message", "massage"), key)


def test_a_note_has_the_form_and_others_may_sign_it_too():
  mine, other = signer(), signer(1, "witness.example/w")
  text = notes.Checkpoint(ORIGIN, 3, b"r" * 32).text
  root = base64.b64encode(b"r" * 32).decode()
  assert text == f"{ORIGIN}\n3\n{root}\n"
  note = mine.sign(text)
  assert re.fullmatch(re.escape(text) + rf"\n— {ORIGIN} [A-Za-z0-9+/]+=*\n", note)
  both = note + other.sign(text).split("\n\n")[1]
  for one in (mine, other):
    assert verifier.open_note(both, verifier.read_key(one.verifier)) == text[:-1]
    assert one.open(both) == text
  assert notes.parse_checkpoint(both) == (ORIGIN, 3, b"r" * 32)
  with pytest.raises(ValueError, match=f"{ORIGIN} has not signed it with the key"):
    signer(2).open(both)
  with pytest.raises(ValueError, match=f"the signature of {ORIGIN} is not of that text"):
    mine.open(both.replace("\n3\n", "\n4\n"))


@pytest.mark.parametrize(
  "note", ["", "a\n1\n", "a\nx\ncg==\n", "\n1\n" + "A" * 43 + "=\n", "a\n01\n"]
)
def test_what_is_no_checkpoint(note):
  with pytest.raises(ValueError, match="no checkpoint: give a log's name, size and root hash"):
    notes.parse_checkpoint(note)


def test_bad_keys(tmp_path):
  path = tmp_path / "log.pem"
  for name in ("", "a b", "a+b", "a\u2003b"):
    with pytest.raises(ValueError, match="has blanks or a plus, or is empty; use one like"):
      notes.read_signer(name, path)
  with pytest.raises(
    ValueError, match=r"cannot read a private key from .*; make one with: openssl"
  ):
    notes.read_signer("a", path)
  path.write_text("x")
  with pytest.raises(ValueError, match="cannot read a private key from"):
    notes.read_signer("a", path)
