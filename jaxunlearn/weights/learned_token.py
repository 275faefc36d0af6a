"""A learned token as a file that diffusers' `load_textual_inversion` takes: {token: embedding}."""

import pathlib

import numpy as np
import safetensors.numpy

FILE = "learned_embeds.safetensors"


def save(folder: pathlib.Path, token: str, rows: np.ndarray) -> None:
  """Writes FILE of a token's embeddings [n, D]: one vector, or several that stand for it."""
  rows = np.ascontiguousarray(rows, np.float32)
  state = {token: rows[0] if len(rows) == 1 else rows}
  (folder / FILE).write_bytes(safetensors.numpy.save(state, metadata={"format": "pt"}))
