"""A trace of some steps by jax.profiler, to be looked at in xprof or TensorBoard."""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax


def window(steps: str) -> tuple[int, int]:
  """(FIRST, LAST) of `FIRST:LAST`, steps from 1; (0, 0) of an empty string.

  Raises:
    ValueError: anything else.
  """
  found = re.fullmatch(r"(\d+):(\d+)", steps or "0:0")
  first, last = map(int, found.groups()) if found else (0, -1)
  if last < first or (steps and not first):
    raise ValueError(f"config.profile is {steps!r}; use FIRST:LAST, two steps from 1, like 10:12")
  return first, last


def traced(
  update: Callable[..., Any], done: int, steps: str, folder: pathlib.Path
) -> Callable[..., Any]:
  """`update` with the steps of the window traced into `folder`; `done` steps came before it."""
  first, last = window(steps)
  if not steps:
    return update
  at = done

  def step(*args: Any) -> Any:
    nonlocal at
    at += 1
    if at == first:
      jax.profiler.start_trace(str(folder))
    with jax.profiler.StepTraceAnnotation("train", step_num=at):
      out = update(*args)
    if at == last and first > done:
      jax.block_until_ready(out)
      jax.profiler.stop_trace()
    return out

  return step
