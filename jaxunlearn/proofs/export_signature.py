"""Check that an export is what was signed: every file, and the signature itself.

    openssl ecparam -genkey -name prime256v1 -noout -out sign.pem
    openssl ec -in sign.pem -pubout -out sign.pub
    jaxunlearn export --run=runs/siss_mnist --out=FOLDER --sign_key=sign.pem
    jaxunlearn verify-export FOLDER --key=sign.pub

FOLDER/model.sig is a signature in the form of OpenSSF Model Signing: a Sigstore bundle of a DSSE
envelope of an in-toto statement that has every file's SHA-256, without a network. The package
model-signing writes and reads it, and its own command accepts it:

    model_signing verify key FOLDER --signature FOLDER/model.sig --public_key sign.pub

Like that command, this one leaves Git's own files out (.git, .github, .gitattributes, .gitignore).

Exit codes: 0 all holds, 2 bad input, 4 something does not fit.
"""

import argparse
import base64
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxunlearn import errors

FILE = "model.sig"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
BROKEN = 4


class Mismatch(ValueError):
  """A folder that is not what was signed."""


def sign(folder: pathlib.Path, key: pathlib.Path) -> None:
  """Writes FOLDER/model.sig, of every other file there.

  Args:
    key: a PEM file with an elliptic key: P-256, P-384 or P-521.

  Raises:
    ValueError: no such key, or model-signing is not installed.
  """
  signing, hashing, _ = _library()
  try:
    config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[FILE]))
    config.sign(folder, folder / FILE)
  except (ValueError, TypeError, AttributeError, OSError) as error:
    raise ValueError(
      f"cannot sign with {key} ({errors.one_line(str(error))}); make a key with: openssl ecparam "
      "-genkey -name prime256v1 -noout -out sign.pem"
    ) from error


def verify(folder: pathlib.Path, key: pathlib.Path) -> int:
  """The number of files, each of which is what was signed.

  Raises:
    Mismatch: a file was changed, added or lost, or the signature, or it is of another key.
    ValueError: no signature or public key there, or model-signing is not installed.
  """
  _, _, verifying = _library()
  path = folder / FILE
  if not path.is_file():
    raise ValueError(f"{folder} holds no {FILE}; sign it with `jaxunlearn export --sign_key=PEM`")
  try:
    config = verifying.Config().use_elliptic_key_verifier(public_key=key)
  except (ValueError, TypeError, AttributeError, OSError) as error:
    raise ValueError(
      f"{key} holds no public key of an elliptic curve; make it with: openssl ec -in sign.pem "
      "-pubout -out sign.pub"
    ) from error
  count = _checked(path)
  try:
    config.verify(folder, path)
  except Exception as error:  # what the library raises is not documented
    reason = errors.one_line(str(error)) or "the signature is not of that key and those bytes"
    raise Mismatch(f"{folder} is not what was signed: {reason}; fetch it again") from error
  return count


def _checked(path: pathlib.Path) -> int:
  """The number of files that a signature names; raises Mismatch where it has what none covers."""
  try:
    bundle = json.loads(path.read_bytes())
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
    hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    if bundle == _bundle(payload, signature, hint):
      return len(json.loads(payload)["predicate"]["resources"])
  except (ValueError, LookupError, TypeError):
    pass
  raise Mismatch(f"{path} was changed: it is not the bundle that was signed; fetch it again")


def _bundle(payload: bytes, signature: bytes, hint: str) -> dict[str, Any]:
  """The whole content of a signature; `hint` is checked against the key with it."""
  encode = lambda content: base64.b64encode(content).decode()
  return {
    "mediaType": BUNDLE,
    "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
    "dsseEnvelope": {
      "payload": encode(payload),
      "payloadType": PAYLOAD,
      "signatures": [{"sig": encode(signature), "keyid": ""}],
    },
  }


def _library() -> tuple[Any, Any, Any]:
  try:
    from model_signing import hashing, signing, verifying
  except ImportError as error:
    raise ValueError(
      f"signed exports need the package model-signing ({error}); pip install 'jaxunlearn[sign]'"
    ) from error
  return signing, hashing, verifying


def start(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="jaxunlearn verify-export", description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("folder", type=pathlib.Path, help="what `jaxunlearn export` wrote")
  parser.add_argument("--key", type=pathlib.Path, required=True, help="a public key, a PEM file")
  args = parser.parse_args(argv)
  try:
    count = verify(args.folder, args.key)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return BROKEN if isinstance(error, Mismatch) else errors.BAD_INPUT
  print(f"{count} files are what was signed")
  return 0


if __name__ == "__main__":
  sys.exit(start())
