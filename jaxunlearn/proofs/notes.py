"""Signed notes, checkpoints of a log and proofs of a line, in the forms of C2SP.

A note (c2sp.org/signed-note) is a text, an empty line, and lines `— NAME BASE64` of the key's ID
and its Ed25519 signature (RFC 8032) of the text. A checkpoint (c2sp.org/tlog-checkpoint) is a note
of three lines: the log's name or origin, its size, the root of its tree. A proof
(c2sp.org/tlog-proof) has the place of a line, the hashes from it to that root, and the checkpoint;
its field `extra` holds the line itself. A public key is a text too: NAME+ID+BASE64.
"""

import base64
import binascii
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

PROOF = "c2sp.org/tlog-proof@v1"
ED25519 = b"\x01"  # the type of signature


class Signer(NamedTuple):
  """A name and its private key."""

  name: str  # like example.org/runs/7
  key: Any  # Ed25519PrivateKey

  @property
  def public(self) -> bytes:
    """The public key, 32 bytes."""
    return self.key.public_key().public_bytes_raw()

  @property
  def id(self) -> bytes:
    """SHA-256(name || newline || type || public key), the first 4 bytes."""
    said = self.name.encode() + b"\n" + ED25519 + self.public
    return hashlib.sha256(said).digest()[:4]

  @property
  def verifier(self) -> str:
    """The public key as a text: NAME+ID+BASE64."""
    return f"{self.name}+{self.id.hex()}+{encode(ED25519 + self.public)}"

  def sign(self, text: str) -> str:
    """The signed note of a text, which ends in a newline."""
    signature = self.id + self.key.sign(text.encode())
    return f"{text}\n— {self.name} {encode(signature)}\n"

  def open(self, note: str) -> str:
    """The text of a note that this key has signed; raises ValueError where it has not."""
    from cryptography.exceptions import InvalidSignature

    text, _, lines = note.rpartition("\n\n")
    for line in lines.split("\n"):
      _, _, rest = line.partition("— ")
      name, _, signature = rest.rpartition(" ")
      raw = decode(signature)
      if (name, raw[:4]) == (self.name, self.id):
        try:
          self.key.public_key().verify(raw[4:], f"{text}\n".encode())
          return f"{text}\n"
        except InvalidSignature as error:
          raise ValueError(f"the signature of {self.name} is not of that text") from error
    raise ValueError(f"{self.name} has not signed it with the key {self.id.hex()}")


class Checkpoint(NamedTuple):
  """The head of a log's tree."""

  origin: str
  size: int
  root: bytes

  @property
  def text(self) -> str:
    return f"{self.origin}\n{self.size}\n{encode(self.root)}\n"


def read_signer(name: str, path: pathlib.Path) -> Signer:
  """The Ed25519 key of a PEM file, under that name.

  Raises:
    ValueError: a name that no note can have, no such key, or cryptography is not installed.
  """
  if not name or "+" in name or any(char.isspace() or not char.isprintable() for char in name):
    raise ValueError(
      f"origin {name!r} has blanks or a plus, or is empty; use one like example.org/runs/7"
    )
  try:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
  except ImportError as error:
    raise ValueError(
      "signing needs the package cryptography; pip install 'jaxunlearn[sign]'"
    ) from error
  try:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
  except (OSError, ValueError, TypeError) as error:
    raise ValueError(f"cannot read a private key from {path}; {_MAKE}") from error
  if not isinstance(key, Ed25519PrivateKey):
    raise ValueError(f"{path} holds another key than Ed25519; {_MAKE}")
  return Signer(name, key)


_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out log.pem"


def parse_checkpoint(note: str) -> Checkpoint:
  """What a checkpoint says, its signatures unread; raises ValueError where it is none."""
  head = note.split("\n")[:4]
  try:
    origin, size, root = head[:3]
    if origin and size == str(int(size)) and len(decode(root)) == 32:
      return Checkpoint(origin, int(size), decode(root))
  except ValueError:
    pass
  raise ValueError("no checkpoint: give a log's name, size and root hash, a line each, and signed")


def write_proof(line: bytes, index: int, hashes: Sequence[bytes], note: str) -> str:
  """The proof that the log of that checkpoint has the line at that place, counted from 0."""
  rows = [PROOF, f"extra {encode(line)}", f"index {index}", *map(encode, hashes)]
  return "\n".join(rows) + f"\n\n{note}"


def encode(content: bytes) -> str:
  return base64.b64encode(content).decode()


def decode(text: str) -> bytes:
  """The bytes of Base64; raises ValueError where it is none."""
  try:
    raw = base64.b64decode(text, validate=True)
  except binascii.Error as error:
    raise ValueError(f"{text[:20]!r} is no Base64") from error
  if encode(raw) != text:
    raise ValueError(f"{text[:20]!r} is no Base64: it ends in other bits than 0")
  return raw
