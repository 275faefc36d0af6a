"""Signed exports: the signer's own verifier accepts them, and no changed byte passes ours."""

import json
import pathlib
import sys

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from model_signing import _cli

from jaxunlearn.proofs import export_signature
from tests import export_test

PEM = serialization.Encoding.PEM


def make_keys(folder, private):
  """(private key file, public key file)."""
  folder.mkdir(exist_ok=True)
  paths = folder / "sign.pem", folder / "sign.pub"
  form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
  paths[0].write_bytes(private.private_bytes(PEM, *form))
  public = private.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
  paths[1].write_bytes(public)
  return paths


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
  return make_keys(tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def folder(keys, tmp_path):
  """A signed folder of a few files."""
  folder = tmp_path / "model"
  (folder / "unet").mkdir(parents=True)
  for name, text in (("README.md", "card"), ("unet/config.json", "{}"), ("unet/w.bin", "\0\1\2")):
    (folder / name).write_text(text)
  export_signature.sign(folder, keys[0])
  return folder


def theirs(folder, public):
  """The exit code of model-signing's own command, and what it says."""
  flags = [f"--signature={folder / export_signature.FILE}", f"--public_key={public}"]
  done = CliRunner().invoke(_cli.main, ["verify", "key", str(folder), *flags])
  return done.exit_code, done.output


def ours(capsys, *words):
  code = export_signature.start([str(word) for word in words])
  return code, "".join(capsys.readouterr())


def test_an_export_is_signed_and_both_verifiers_accept_it(keys, tmp_path, capsys):
  run, out = export_test.make_run(tmp_path / "run", ema=False), tmp_path / "out"
  export_test.command(f"--run={run}", f"--out={out}", f"--sign_key={keys[0]}")
  capsys.readouterr()
  assert ours(capsys, out, f"--key={keys[1]}") == (0, "7 files are what was signed\n")
  code, says = theirs(out, keys[1])
  assert code == 0 and "succeeded" in says


def test_a_changed_byte_of_any_file_is_refused(folder, keys):
  assert export_signature.verify(folder, keys[1]) == 3
  assert theirs(folder, keys[1])[0] == 0
  for path in [path for path in folder.rglob("*") if path.is_file()]:
    good = path.read_bytes()
    step = 1 if path.name != export_signature.FILE else 31
    for at in range(0, len(good), step):
      path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
      with pytest.raises(export_signature.Mismatch):
        export_signature.verify(folder, keys[1])
    path.write_bytes(good)
  assert export_signature.verify(folder, keys[1]) == 3


def test_what_no_signature_covers_may_not_be_in_the_bundle(folder, keys):
  path = folder / export_signature.FILE
  bundle = json.loads(path.read_text())
  for change in ({"more": 1}, {"verificationMaterial": {"publicKey": {"hint": ""}}}):
    path.write_text(json.dumps(bundle | change))
    with pytest.raises(export_signature.Mismatch, match="it is not the bundle that was signed"):
      export_signature.verify(folder, keys[1])


def test_a_file_more_or_less_is_refused_in_one_line(folder, keys, capsys):
  key = f"--key={keys[1]}"
  (folder / "more").write_text("x")
  code, says = ours(capsys, folder, key)
  assert code == export_signature.BROKEN and says.count("\n") == 1
  assert says.startswith(f"error: {folder} is not what was signed: ") and "more" in says
  (folder / "more").unlink()
  (folder / "README.md").unlink()
  code, says = ours(capsys, folder, key)
  assert (code, says.count("\n")) == (export_signature.BROKEN, 1) and "README.md" in says


def test_another_key_is_refused(folder, tmp_path, capsys):
  other = make_keys(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
  code, says = ours(capsys, folder, f"--key={other[1]}")
  assert (code, says.count("\n")) == (export_signature.BROKEN, 1)


def test_bad_input_is_one_line(folder, keys, tmp_path, capsys):
  edwards = make_keys(tmp_path / "ed", ed25519.Ed25519PrivateKey.generate())
  for key in (tmp_path / "nowhere", keys[0], edwards[1], folder / "README.md"):
    code, says = ours(capsys, folder, f"--key={key}")
    assert (code, says.count("\n")) == (2, 1) and "holds no public key of an elliptic" in says
  for key in (tmp_path / "nowhere", keys[1], edwards[0]):
    with pytest.raises(ValueError, match=r"cannot sign with .*; make a key with: openssl ecparam"):
      export_signature.sign(folder, pathlib.Path(key))
  (folder / export_signature.FILE).unlink()
  code, says = ours(capsys, folder, f"--key={keys[1]}")
  assert code == 2 and "holds no model.sig; sign it with `jaxunlearn export --sign_key=" in says


def test_without_the_package_it_is_said_how_to_get_it(folder, keys, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "model_signing", None)
  code, says = ours(capsys, folder, f"--key={keys[1]}")
  assert (code, says.count("\n")) == (2, 1) and "pip install 'jaxunlearn[sign]'" in says
