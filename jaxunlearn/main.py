"""Train, unlearn or attack a model, as a config says.

    jaxunlearn run --config=siss_mnist --workdir=runs/siss_mnist
    python -m jaxunlearn.main --config=configs/siss_mnist.py --workdir=runs/siss_mnist

The project's configs have names (`jaxunlearn list configs`), yours are files; `:VARIANT` may
follow. Any field can be set: `--config.train.steps=40`. The fields stand in configs/common.py, a
run's own choices in its file. `--dry_run` prints what the run would be and what one step costs, and
stops. A run that was killed goes on from its newest checkpoint when launched again.

Exit codes: 0 finished, 2 bad input, 3 diverged (NaN or inf), 5 another process of the run was lost,
130 quit by a second Ctrl-C, or by one before the run began; 143 stopped by a signal, and all saved.
"""

import pathlib
import sys
import threading
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from jaxunlearn import errors
from jaxunlearn.commands import configs, flag_errors, flag_help
from jaxunlearn.errors import BAD_INPUT, DIVERGED, QUIT

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "NAME or FILE.py; NAME:VARIANT or FILE.py:VARIANT.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run writes, and resumes from.")
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print the resolved config and the cost of one step, then stop."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "", "With --dry_run: the TPUs to compile for, like v5e:2x4 or v4:2x2x2."
)
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "auto",
  ("auto", "on", "off"),
  "Several processes as one run: auto, where the environment has a launcher's variables.",
)


def main(_: list[str]) -> None:
  logging.get_absl_handler().addFilter(_shown)
  sys.unraisablehook = threading.excepthook = _in_a_thread
  # Importing JAX is slow; --help is not.
  from jaxunlearn import checkpoint, pipeline, train
  from jaxunlearn.mesh import cores, memory, processes, programs

  memory.keep()
  try:
    processes.join(_DISTRIBUTED.value)
    cores.as_devices(*cores.rows_of(_CONFIG.value))
    if _DRY_RUN.value:
      from jaxunlearn.compiled import dry_run

      print(dry_run.describe(_CONFIG.value, _TOPOLOGY.value))
    else:
      launch, workdir = pipeline.run_alone, pathlib.Path(_WORKDIR.value or "")
      if "runs" in _CONFIG.value:
        launch = pipeline.run
      programs.keep(workdir.parent / "xla_cache")
      launch(_CONFIG.value, workdir)
  except (ValueError, OSError, checkpoint.Damaged, train.Diverged) as error:
    print(f"error: {errors.advised(error)}", file=sys.stderr)
    logging.debug("raised here:", exc_info=True)  # --verbosity=1 shows it
    processes.leave(DIVERGED if isinstance(error, train.Diverged) else BAD_INPUT)
  except Exception as error:
    processes.fail(error)


def parse_flags(argv: list[str]) -> list[str]:
  """Like absl's, but every wrong flag is one line and one exit code."""
  flag_help.answer(argv, __doc__, [_CONFIG, _WORKDIR, _DRY_RUN, _TOPOLOGY, _DISTRIBUTED])
  configs.expose()
  try:
    argv = configs.spelt_out(argv)
    args = flags.FLAGS(argv)
    getattr(_CONFIG.value, "keys", None)  # raises here what kept the file from being read
    flag_errors.check_config(_CONFIG.value, flag_errors.config_path(argv))
    if len(args) > 1:
      raise flags.Error(f"{args[1]!r} is not a flag; write --config.FIELD=VALUE")
    if _TOPOLOGY.value and not _DRY_RUN.value:
      raise flags.Error("--topology needs --dry_run; add --dry_run, or leave --topology out")
    if not _WORKDIR.value and not _DRY_RUN.value:
      raise flags.Error("--workdir is missing; try --workdir=runs/NAME")
    return args
  except (Exception, SystemExit) as error:  # a config file may raise anything
    if isinstance(error, SystemExit) and not flag_errors.of_config_file(error, argv):
      raise  # --help
    print(f"error: {flag_errors.said(error, argv)}", file=sys.stderr)
  sys.exit(BAD_INPUT)


def _in_a_thread(args: Any) -> None:
  """Tracebacks are of the run itself: what the threads of a failed save say follows from it."""
  logging.log_first_n(logging.WARNING, "in a thread: %.200s", 1, args.exc_value)


def _shown(record: Any) -> bool:
  """Whether a line of the log is for the user, below --verbosity=1.

  Other libraries' infos would break up the progress bar. Exceptions that they log reach the run
  as well, which says in one line what to do.
  """
  warns = record.levelno > 20 and not record.exc_info
  return warns or "jaxunlearn" in record.pathname or logging.level_debug()


def start() -> None:
  try:
    app.run(main, flags_parser=parse_flags)
  except KeyboardInterrupt:  # while it begins or ends: a run itself reads signals
    print("\nquit; launch again to go on", file=sys.stderr)
    sys.exit(QUIT)


if __name__ == "__main__":
  start()
