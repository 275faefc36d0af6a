"""How a sampler walks a process back: the options it has, and the times it visits."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int

from jaxunlearn import errors
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.inputs import ranges

SPACINGS = ("leading", "trailing", "linspace")
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


@dataclasses.dataclass(frozen=True)
class Options:
  """How a sampler goes, by the fields of diffusers' `scheduler_config.json` and their defaults.

  `use_clipped_model_output` is an argument of DDIM's step there, and false by default.
  """

  timestep_spacing: str = "leading"  # multiples of T // steps; trailing: from T - 1 down; linspace
  steps_offset: Annotated[int, ranges.Range(0.0, whole=True)] = 0  # added to leading times
  set_alpha_to_one: bool = True  # the last abar_s of DDIM and PLMS is 1; False: abar_0
  clip_sample: bool = True  # DDPM and DDIM clip x0, to +- clip_sample_range
  clip_sample_range: ranges.Above0 = 1.0
  use_clipped_model_output: bool = True  # DDIM's eps is that of the clipped x0
  variance_type: str = "fixed_small"  # DDPM's v (..._log is the same); fixed_large: beta

  def __post_init__(self) -> None:
    errors.check_choice("timestep spacing", self.timestep_spacing, SPACINGS)
    errors.check_choice("variance type", self.variance_type, VARIANCES)
    ranges.check(self)

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> "Options":
    """Those of config.sampler, where None is the default; raises ValueError for another field."""
    given = {name: value for name, value in fields.items() if value is not None}
    return errors.build(cls, "sampler", given)

  def facts(self) -> dict[str, Any]:
    """What stands in the identity of a value: the options that are not the default."""
    ours, default = dataclasses.asdict(self), dataclasses.asdict(Options())
    return {name: value for name, value in ours.items() if value != default[name]}


DEFAULT = Options()


def times(
  process: Diffusion, steps: int, options: Options = DEFAULT, beyond: int = 0
) -> Int[np.ndarray, " S"]:
  """The times of so many steps, the latest first.

  Leading and linspace times are spaced for `beyond` more, which come last and are left out.

  Raises:
    ValueError: steps outside 1..T (less `beyond`), or times past T - 1.
  """
  T, trailing = process.T, options.timestep_spacing == "trailing"
  beyond = 0 if trailing else beyond
  if not 1 <= steps <= T - beyond:
    raise ValueError(f"steps {steps} is outside 1..{T - beyond}, the steps of the process; use one")
  if trailing:
    return np.arange(T, 0, -T / steps)[:steps].round().astype(int) - 1
  count = steps + beyond
  if options.timestep_spacing == "linspace":
    return np.linspace(0, T - 1, count).round()[beyond:][::-1].astype(int)
  t = np.arange(beyond, count)[::-1] * (T // count) + options.steps_offset
  if t[0] >= T:
    raise ValueError(
      f"steps {steps} with steps_offset {options.steps_offset} begin at {t[0]}, past the last time "
      f"{T - 1}; use fewer steps"
    )
  return t
