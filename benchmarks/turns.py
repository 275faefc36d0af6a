"""Timing: by turns, what is compared one after the other, again and again; and of a command."""

import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(run: Callable[[], Any]) -> float:
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
  """Median seconds of both and of the ratio between neighbours in time, and the ratio's range."""
  for run in (ours, theirs):
    run(), run()  # compiles, warms up; a step compiles again for what it returned
  both = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
  ratios = [a / b for a, b in both]
  return {
    "ours": statistics.median(a for a, _ in both),
    "pytorch": statistics.median(b for _, b in both),
    "ratio": statistics.median(ratios),
    "range": [min(ratios), max(ratios)],
  }


REST = 0.5  # seconds: the threads of PyTorch wait busily after their last work, on all cores


class Apart:
  """The function that `make(*args)` returns, in a process of its own: nothing else is in its way.

  Its memory and its threads are as in a program that does nothing else. It rests before each call,
  which gives the seconds that it took and those of its CPU time that the kernel took.
  """

  def __init__(self, make: Callable[..., Callable[..., Any]], *args: Any):
    context = multiprocessing.get_context("spawn")
    self._pipe, there = context.Pipe()
    self._process = context.Process(target=_serve, args=(there, make, args), daemon=True)
    self._process.start()
    there.close()

  def __call__(self, *args: Any) -> tuple[float, float]:
    """Raises EOFError where the process ended instead."""
    time.sleep(REST)
    self._pipe.send(args)
    return self._pipe.recv()

  def stop(self) -> None:
    self._pipe.send(None)
    self._process.join()


def _serve(pipe: Any, make: Callable[..., Callable[..., Any]], args: Any) -> None:
  run = make(*args)
  while (given := pipe.recv()) is not None:
    kernel = os.times().system
    took = seconds(lambda: run(*given))
    pipe.send((took, os.times().system - kernel))


def measure(
  command: str, env: Mapping[str, str] | None = None, folder: str = "WORK"
) -> dict[str, Any]:
  """A command of Python's, in the environment or `env`: seconds, peak GiB, its last lines, itself.

  `folder` is where it works, which no reader has: in the lines and the command it is called WORK.

  Raises:
    CalledProcessError: it fails.
  """
  begin = time.perf_counter()
  argv = [sys.executable, *shlex.split(command)[1:]]
  with tempfile.TemporaryFile("w+") as output:
    child = subprocess.Popen(argv, stdout=output, env=env)
    _, status, usage = os.wait4(child.pid, 0)
    output.seek(0)
    lines = output.read().strip().splitlines()
  if status:
    raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
  seconds = time.perf_counter() - begin
  return {
    "seconds": seconds,
    "peak_gib": usage.ru_maxrss / 2**20,
    "output": [line.replace(folder, "WORK") for line in lines[-8:]],
    "command": command.replace(folder, "WORK"),
  }
