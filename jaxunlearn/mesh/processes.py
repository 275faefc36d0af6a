"""Several processes as one run: joined at the start, agreed on what is done once, stopped together.

Every process runs the same program on the same config and has some of the devices. Files are
written by the first one, process 0, into a working directory that all of them see; checkpoints by
all, through Orbax. With one process everything here is the plain thing.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxunlearn import errors

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HOW = ("auto", "on", "off")
STOPPING = (
  "\nstopping: what is done is saved after this step or batch of samples (compiling is awaited); "
  "Ctrl-C again quits at once"
)
ONE_KEY = 0.5  # seconds within which signals count as one: a launcher may pass it on
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
LOST = "another process of this run was lost; launch all of them again to go on"
_LINE = 2**12  # bytes; what is broadcast is a multiple of it, so that few programs are compiled
_polls = itertools.count()


def join(how: str = "auto") -> None:
  """Makes this process one of a run's, where a launcher's environment says that it is.

  Args:
    how: auto reads the environment (`launched`), on leaves all to JAX (a Cloud TPU VM), off.

  Raises:
    ValueError: variables that are missing or no numbers, or JAX finds no launcher.
  """
  if how == "off" or (how == "auto" and not launched(os.environ)):
    return
  # On CPU; accelerators have their own.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(**explicit(os.environ), heartbeat_timeout_seconds=HEARTBEAT)


def launched(environment: Mapping[str, str]) -> bool:
  """Whether a launcher has started this process as one of several: see docs/launch.md."""
  many = lambda name: environment.get(name, "").isdigit() and int(environment[name]) > 1
  return (
    any(name in environment for name in EXPLICIT)
    or (many("SLURM_NTASKS") and "SLURM_PROCID" in environment)
    or many("OMPI_COMM_WORLD_SIZE")
    or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
  )


def explicit(environment: Mapping[str, str]) -> dict[str, Any]:
  """The arguments of jax.distributed.initialize that the variables of EXPLICIT give; or none.

  Raises:
    ValueError: some but not all are set, or one is no number in its range.
  """
  values = [environment.get(name, "") for name in EXPLICIT]
  if not any(values):
    return {}
  address, count, index = values
  if not (address and count.isdigit() and index.isdigit() and int(index) < int(count)):
    given = " ".join(f"{name}={value!r}" for name, value in zip(EXPLICIT, values, strict=True))
    raise ValueError(
      f"{given}: set all three, HOST:PORT, n, and 0 to n - 1; or none for one process"
    )
  return {
    "coordinator_address": address,
    "num_processes": int(count),
    "process_id": int(index),
  }


def first() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def from_first(make: Callable[[], Any]) -> Any:
  """What `make` gives in process 0 (JSON), in every process; called there alone.

  Raises:
    ValueError: process 0 raised it; in every process.
  """
  if jax.process_count() == 1:
    return make()
  said: dict[str, Any] = {}
  if first():
    try:
      said = {"value": make()}
    except ValueError as error:
      said = {"error": str(error)}
  said = json.loads(_broadcast(json.dumps(said).encode()))
  if "error" in said:
    raise ValueError(said["error"])
  return said["value"]


def _broadcast(text: bytes) -> bytes:
  size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
  room = np.zeros(-(-size // _LINE) * _LINE, np.uint8)
  if first():
    room[:size] = np.frombuffer(text, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(room))[:size].tobytes()


def wait(name: str) -> None:
  """Returns once every process is here."""
  multihost_utils.sync_global_devices(name)


def local(tree: Any) -> Any:
  """Global arrays as whole host arrays, in every process; all that each has already, as it is."""

  def whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
      return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.tree.map(whole, tree)


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
  """Within it SIGTERM and SIGINT only raise a flag, which the loop reads between steps.

  The first is answered by a line at once, a second Ctrl-C ends the process with errors.QUIT.
  Of several processes each must read it equally often: a signal to one is then seen by all of
  them at the same reading, a second or so later.
  """
  with _answered():
    yield from _flagged()


def _flagged() -> Iterator[Callable[[], bool]]:
  if jax.process_count() > 1:
    # JAX watches SIGTERM itself and lets the processes agree on a reading to come.
    with _handled(lambda *_: os.kill(os.getpid(), signal.SIGTERM), signal.SIGINT):
      yield lambda: multihost_utils.reached_preemption_sync_point(next(_polls))
    return
  seen: list[int] = []
  with _handled(lambda number, _: seen.append(number), signal.SIGTERM, signal.SIGINT):
    yield lambda: bool(seen)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
  """Signals are also read by a thread: the main one may compile for minutes before it looks."""
  inside, outside = socket.socketpair()
  outside.setblocking(False)
  old = signal.set_wakeup_fd(outside.fileno(), warn_on_full_buffer=False)
  thread = threading.Thread(target=_answer, args=(inside,), daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(old)
    outside.close()
    thread.join()
    inside.close()


def _answer(signals: socket.socket) -> None:
  """Says that the run will stop, quits at another Ctrl-C; ends when the other side is closed."""
  asked = 0.0
  while number := signals.recv(1):
    if number[0] not in (signal.SIGINT, signal.SIGTERM):
      continue
    now = time.monotonic()
    if not asked:
      asked = now
      print(STOPPING, file=sys.stderr, flush=True)
    elif number[0] == signal.SIGINT and now - asked > ONE_KEY:
      quit_at_once()


def quit_at_once(*_: Any) -> NoReturn:
  """Ends this process without saving anything more."""
  print("\nquit; launch again to go on from the newest checkpoint", file=sys.stderr, flush=True)
  os._exit(errors.QUIT)


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
  previous = {name: signal.signal(name, handler) for name in signals}
  try:
    yield
  finally:
    for name, old in previous.items():
      signal.signal(name, old)


def fail(error: Exception) -> NoReturn:
  """Raises the error; of several processes this one ends at once, so that all the others do."""
  if jax.process_count() == 1:
    raise error
  text = str(error)
  if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in text:
    print(f"error: {LOST} ({text.splitlines()[0]})", file=sys.stderr)
    leave(errors.PROCESS_LOST)
  traceback.print_exception(error)
  leave(1)


def leave(code: int) -> NoReturn:
  """Ends this process. One of several that fails does not wait for the others to end as well."""
  if jax.process_count() > 1 and code:
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(2)  # what it last said to the others may be on its way
    os._exit(code)
  sys.exit(code)
