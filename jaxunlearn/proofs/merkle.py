"""The Merkle tree of RFC 6962, section 2.1, over the lines of a log.

    MTH({})     = SHA-256()
    MTH({d})    = SHA-256(0x00 || d)
    MTH(D[n])   = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])),  k the largest power of 2 below n

Level by level from the leaves, where a node without a neighbour goes up as it is, this is the same.
"""

import hashlib
from collections.abc import Iterator, Sequence


def leaf(content: bytes) -> bytes:
  """The hash of one line, 32 bytes."""
  return hashlib.sha256(b"\x00" + content).digest()


def root(leaves: Sequence[bytes]) -> bytes:
  """The root of the leaves' hashes."""
  return hashlib.sha256().digest() if not leaves else [*_levels(leaves)][-1][0]


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
  """The hashes that lead from one leaf to the root: its sibling first, at most log2 n of them."""
  out = []
  for level in _levels(leaves):
    if (beside := index ^ 1) < len(level):
      out.append(level[beside])
    index //= 2
  return out


def _levels(leaves: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
  """The leaves, what they make in pairs, and so on up to the root."""
  level = leaves
  yield level
  while len(level) > 1:
    pairs = zip(level[::2], level[1::2], strict=False)
    odd = level[len(level) & ~1 :]
    level = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in pairs] + [*odd]
    yield level
