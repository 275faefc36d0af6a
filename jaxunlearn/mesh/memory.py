"""Memory that a program on a CPU has freed stays with its process, for the next step to take.

XLA frees all that a step has worked in when the step ends. glibc gives it back to the system, which
has to fill every page with zeros again for the next step: results/little_sd_step.md has what that
costs.
"""

import ctypes

# As in glibc's malloc.h: of many arenas only the first keeps what it has, it gives nothing back,
# and up to 2 GiB, the most that it can be told, are taken from it.
MOST = 2**31 - 1
OPTIONS = {"M_ARENA_MAX": (-8, 1), "M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_THRESHOLD": (-3, MOST)}


def keep() -> bool:
  """Tells malloc so, and says whether it took it: glibc does, others have nothing to be told.

  To be called by a command of this project before JAX has devices, whose threads would have arenas
  of their own; never by the library, in a process that is somebody else's.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # no glibc
    return False
  return all(mallopt(*option) for option in OPTIONS.values())
