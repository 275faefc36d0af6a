"""What tests of proofs share: a key made from a number, and the check that stands alone."""

import importlib.util
import pathlib

from cryptography.hazmat.primitives.asymmetric import ed25519

from jaxunlearn.proofs import notes

VERIFIER = pathlib.Path(__file__).parents[1] / "docs/verify_deletion.py"
ORIGIN = "example.org/runs/7"


def load():
  """docs/verify_deletion.py as a module."""
  spec = importlib.util.spec_from_file_location("verify_deletion", VERIFIER)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


verifier = load()


def signer(seed=0, name=ORIGIN):
  return notes.Signer(name, ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))
