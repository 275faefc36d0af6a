"""Check that a record was deleted: the log's signature, the proof, the statement, your receipt.

    python verify_deletion.py --key=KEY --proof=deletion.tlog-proof [--statement=deletion.json]
      [--receipt=receipt.json [--picture=FILE]]

KEY is the log's public key, NAME+ID+BASE64, which you have from its owner by another way than the
files. This file stands alone: copy it. It needs Python 3.11 and the package cryptography.
Forms: c2sp.org/tlog-proof, c2sp.org/tlog-checkpoint, c2sp.org/signed-note, RFC 6962, in-toto v1.
Exit codes: 0 all that was given holds, 1 something does not.
"""

import argparse
import base64
import hashlib
import hmac
import json
import pathlib
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PAYLOAD = "application/vnd.in-toto+json"
KIND = ("https://in-toto.io/Statement/v1", "https://jaxunlearn/deletion/v1")


def require(holds, why):
  if not holds:
    sys.exit(f"refused: {why}")


sha256 = lambda content: hashlib.sha256(content).digest()
read = lambda path: pathlib.Path(path).read_bytes()


def decode(text):
  raw = base64.b64decode(text, validate=True)
  require(base64.b64encode(raw) == text.encode(), "Base64 that ends in other bits than 0")
  return raw


def read_key(text):
  """(name, ID, public key) of NAME+ID+BASE64."""
  name, key_id, encoded = text.split("+", 2)
  material = decode(encoded)
  require(material[:1] == b"\x01" and len(material) == 33, "KEY is not of Ed25519")
  require(sha256(name.encode() + b"\n" + material)[:4].hex() == key_id, "KEY's ID is not its own")
  return name, bytes.fromhex(key_id), Ed25519PublicKey.from_public_bytes(material[1:])


def open_note(note, key):
  """The text of a note, which that key has to have signed."""
  name, key_id, public = key
  text, _, signatures = note.rpartition("\n\n")
  *lines, end = [line.split(" ") for line in signatures.split("\n")]
  require(end == [""] and all(line[0] == "—" for line in lines), "a signature line is damaged")
  own = [decode(raw)[4:] for _, signer, raw in lines if (signer, decode(raw)[:4]) == (name, key_id)]
  require(own, f"{name} has not signed the checkpoint with KEY")
  for signature in own:
    public.verify(signature, f"{text}\n".encode())
  return text


def read_proof(text, key):
  """(line, index, hashes, origin, size, root) of a proof, its checkpoint's signature checked."""
  head, _, note = text.partition("\n\n")
  form, extra, index, *hashes = head.split("\n")
  require(form == "c2sp.org/tlog-proof@v1", "no proof of the form c2sp.org/tlog-proof@v1")
  require(extra[:6] == "extra " and index[:6] == "index ", "the proof has no line, or no index")
  origin, size, root = open_note(note, key).split("\n")[:3]
  require(origin == key[0], f"the checkpoint is of {origin}, not of {key[0]}")
  for number in (index[6:], size):
    require(number == str(abs(int(number))), f"{number} is no number of a log")
  return decode(extra[6:]), int(index[6:]), [*map(decode, hashes)], origin, int(size), decode(root)


def root_of(leaf, index, size, hashes):
  """The root that a line's hash and the hashes beside its path make (RFC 9162, 2.1.3.2)."""
  require(index < size, f"index {index} is not in a log of {size} lines")
  node, last = leaf, size - 1
  for beside in hashes:
    require(last > 0, "the proof has too many hashes")
    if index % 2 or index == last:
      node = sha256(b"\x01" + beside + node)
      while index % 2 == 0 and index:
        index, last = index // 2, last // 2
    else:
      node = sha256(b"\x01" + node + beside)
    index, last = index // 2, last // 2
  require(last == 0, "the proof has too few hashes")
  return node


def check_statement(envelope, key, line, log):
  """That the same key signed a statement of that line."""
  payload = decode(envelope["payload"])
  require(envelope["payloadType"] == PAYLOAD, "the statement is not in-toto's")
  signed = f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload
  key[2].verify(decode(envelope["signatures"][0]["sig"]), signed)
  said, fact = json.loads(payload), json.loads(line)
  require((said["_type"], said["predicateType"]) == KIND, f"the statement is not of {KIND}")
  digests = [subject["digest"] for subject in said["subject"]]
  require(digests == [{"sha256": sha256(line).hex()}], "the statement is of another line")
  predicate = said["predicate"]
  require(predicate["commitment"]["value"] == fact["commitment"], "it is of another record")
  require(predicate["deletedAt"] == fact["time"].replace("+00:00", "Z"), "it has another time")
  require(all(predicate["log"][name] == log[name] for name in log), "it is of another checkpoint")
  return predicate


def check(args):
  """Yields a line for each thing that holds."""
  key = read_key(args.key)
  line, index, hashes, origin, size, root = read_proof(read(args.proof).decode(), key)
  made = root_of(sha256(b"\x00" + line), index, size, hashes)
  require(made == root, "the proof is of another tree")
  fact = json.loads(line)
  require(fact["event"] == "deleted" and fact["line"] == index + 1, "the line is of no deletion")
  yield f"{origin} has as deleted, line {index + 1} of {size}, {fact['time']}: {fact['commitment']}"
  if args.statement:
    log = {"origin": origin, "index": index, "size": size, "rootHash": root.hex()}
    said = check_statement(json.loads(read(args.statement)), key, line, log)
    yield f"its owner states so: method {json.dumps(said['method'])}"
  if args.receipt:
    own = json.loads(read(args.receipt))
    content = own["id"].encode() + bytes.fromhex(own["sha256"])
    opened = hmac.digest(bytes.fromhex(own["key"]), content, "sha256").hex()
    require(opened == own["commitment"] == fact["commitment"], "the receipt is of another record")
    yield f"your receipt opens it: {own['id']!r}"
    if args.picture:
      require(sha256(read(args.picture)).hex() == own["sha256"], "the picture is another")
      yield "which is your picture, byte for byte"


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name in ("key", "proof", "statement", "receipt", "picture"):
    parser.add_argument(f"--{name}", required=name in ("key", "proof"))
  try:
    for said in check(parser.parse_args()):
      print(said)
  except InvalidSignature:
    sys.exit("refused: a signature is not of KEY and those bytes")
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    sys.exit(f"refused: a file is damaged ({type(error).__name__}: {error})")


if __name__ == "__main__":
  main()
