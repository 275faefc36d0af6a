"""UCE, unified concept editing: keys and values of a concept become another's, in closed form.

    W = (lam W0 + s_e sum v c^T + s_p sum W0 c_j c_j^T) A^-1,   v = W0 c'
    A = lam I + s_e sum c c^T + s_p sum c_j c_j^T

(Gandikota et al., WACV 2024.) W0 is each to_k and to_v of the attention to text; c is the state of
the last token of a prompt to forget, c' that of the prompt it is mapped to, c_j those of prompts to
keep. Nothing is trained: train.steps = 0. The prompts are those of stream `a` with what it maps to
(`to = "next"`), and those of `x`; or, spelt out, `concept`, `guide` and `keep`.

An empty guide (`to = "null"`) is the state of the start token, as in the release: every prompt has
that state, so that it says little. config.trained.pattern = "attn2_kv" leaves the rest alone.

Deviations:
  - Solved in float64; the release inverts in float32.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import methods
from jaxunlearn.inputs import ranges

EDITED = re.compile(r"attn2/to_[kv]/kernel$")


@dataclasses.dataclass(frozen=True)
class Method(methods.Objective):
  erase: ranges.AtLeast0 = 1.0  # s_e
  preserve: ranges.AtLeast0 = 1.0  # s_p
  lam: ranges.Above0 = 0.5
  concept: str = ""  # the prompt to forget; "": those of the stream `a`
  guide: str = ""  # what `concept` becomes
  keep: tuple[str, ...] = ()  # prompts to keep; (): those of the stream `x`

  streams = ("x", "a")
  terms = ("x",)
  needs = ("c", "to", "text")

  def start(self, params, data, rng, text):
    """Raises ValueError where no to_k and to_v of an attention to text are trained."""
    c, guide, kept = (np.float64(states) for states in self._states(data, text))
    path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    if not any(EDITED.search(path_of(path)) for path, _ in jax.tree.leaves_with_path(params)):
      raise ValueError(
        "method uce writes attn2/to_k and attn2/to_v and this run trains neither; set "
        "config.trained.pattern to attn2_kv and rank to 0"
      )
    edit = lambda path, w: self.solved(w, c, guide, kept) if EDITED.search(path_of(path)) else w
    return jax.tree.map_with_path(edit, params)

  def _states(self, data, text):
    """Those of the prompts to forget, of what they become, and of those to keep."""
    c, to = data["a"].told()
    pairs = np.unique(np.stack([np.asarray(v).reshape(len(c), -1) for v in (c, to)]), axis=1)
    c, to = ([self.concept], [self.guide]) if self.concept else pairs
    kept = np.asarray(data["x"].told()[0])
    kept = self.keep or np.unique(kept.reshape(len(kept), -1), axis=0)
    return text.last(c), text.last(to), text.last(kept)

  def solved(self, kernel, c, guide, kept):
    """The kernel [E, D], W transposed, for states [P, E] to forget, their guides, and to keep."""
    w = np.float64(kernel)
    left = self.lam * np.eye(len(w)) + self.erase * c.T @ c + self.preserve * kept.T @ kept
    right = self.lam * w + self.erase * c.T @ (guide @ w) + self.preserve * kept.T @ (kept @ w)
    return jnp.asarray(np.linalg.solve(left, right), jnp.float32)

  def draw(self, process, batch, rng, extras, step):
    return methods.draw_one(process, batch["x"], rng)

  def losses(self, eps_fn, process, draws, extras):
    return methods.one_denoising_loss(eps_fn, process, draws)
