"""The ledger as a log that others check: its lines are the leaves of a Merkle tree (merkle.py).

A leaf is a line's bytes without the newline. The first n lines never change, so that a checkpoint
of n lines holds for every later ledger of the run.
"""

import json
import pathlib

from jaxunlearn.cdm import ledger
from jaxunlearn.proofs import merkle, notes


class Log:
  """The lines of a run's ledger; the chain has to hold."""

  def __init__(self, run: pathlib.Path):
    self.path = pathlib.Path(run) / ledger.FILE
    self.lines = ledger.raw_lines(run)
    self.leaves = [merkle.leaf(line) for line in self.lines]

  def head(self, origin: str) -> notes.Checkpoint:
    return notes.Checkpoint(origin, len(self.leaves), merkle.root(self.leaves))

  def check(self, known: notes.Checkpoint, name: pathlib.Path) -> None:
    """Raises ValueError where the checkpoint, read from `name`, is of another tree than ours."""
    if known.size > len(self.lines):
      raise ValueError(
        f"{name} is of {known.size} lines and {self.path} has {len(self.lines)}: it was cut short, "
        "or is another; put its copy back"
      )
    if merkle.root(self.leaves[: known.size]) != known.root:
      raise ValueError(
        f"{name} is of another tree: its root is not that of the first {known.size} lines of "
        f"{self.path}; give a checkpoint of this run"
      )

  def deletion(self, commitment: str) -> int:
    """The place, from 0, of the line that says so; raises ValueError where none does."""
    for index, line in enumerate(self.lines):
      said = json.loads(line)
      if said["event"] == "deleted" and said.get("commitment") == commitment:
        return index
    raise ValueError(
      f"no line of {self.path} says that {commitment[:12]}... was deleted; give a receipt, or the "
      "commitment that `cdm delete` printed"
    )

  def proof(self, index: int, note: str) -> str:
    """That the log has the line, by a checkpoint of it."""
    size = notes.parse_checkpoint(note).size
    hashes = merkle.path(self.leaves[:size], index)
    return notes.write_proof(self.lines[index], index, hashes, note)
