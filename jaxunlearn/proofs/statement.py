"""The statement of one deletion: in-toto Statement v1 in a DSSE envelope, signed with Ed25519.

docs/deletion_predicate.md has the predicate's fields. The envelope's signature is of
PAE = "DSSEv1" SP length(type) SP type SP length(payload) SP payload; no note begins so, since the
name of a log has no blank, and one key may sign both.
"""

import datetime
import hashlib
import json
from typing import Any

from jaxunlearn.proofs import notes

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://jaxunlearn/deletion/v1"
PAYLOAD = "application/vnd.in-toto+json"


def statement(line: bytes, checkpoint: notes.Checkpoint, method: dict[str, Any]) -> dict[str, Any]:
  """What is stated of a ledger's line `deleted`; the checkpoint is of a tree that has it."""
  said = json.loads(line)
  predicate = {
    "commitment": {"algorithm": "HMAC-SHA256", "value": said["commitment"]},
    "deletedAt": zulu(datetime.datetime.fromisoformat(said["time"])),
    "keyDestroyed": True,
    "method": method,
    "log": {
      "origin": checkpoint.origin,
      "index": said["line"] - 1,
      "size": checkpoint.size,
      "rootHash": checkpoint.root.hex(),
    },
    "statedAt": zulu(datetime.datetime.now(datetime.UTC)),
  }
  digest = {"sha256": hashlib.sha256(line).hexdigest()}
  return {
    "_type": STATEMENT,
    "subject": [{"name": f"{checkpoint.origin}/ledger/{said['line']}", "digest": digest}],
    "predicateType": PREDICATE,
    "predicate": predicate,
  }


def envelope(said: dict[str, Any], signer: notes.Signer) -> dict[str, Any]:
  """The statement, signed."""
  payload = json.dumps(said).encode()
  signature = notes.encode(signer.key.sign(pae(payload)))
  return {
    "payloadType": PAYLOAD,
    "payload": notes.encode(payload),
    "signatures": [{"keyid": f"{signer.name}+{signer.id.hex()}", "sig": signature}],
  }


def pae(payload: bytes) -> bytes:
  """The bytes that are signed for a payload."""
  return f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload


def zulu(time: datetime.datetime) -> str:
  """RFC 3339 with Z."""
  return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
