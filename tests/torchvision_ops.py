"""torchvision beside a CPU build of torch, where its compiled operators do not load.

It lies in a folder of its own, `parity` in the environment; requirements-parity.txt says why and
how it gets there. Its networks are plain Python and need none of the operators; only its import
asks that some of them be defined.
"""

import functools
import importlib
import pathlib
import sys

import torch

FOLDER = pathlib.Path(sys.prefix) / "parity"
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as what it defines
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def load():
  """The torchvision module; networks and transforms run, detection operators may not.

  After it, `pytorch_fid` can be imported too.
  """
  sys.path.append(str(FOLDER))
  try:
    return importlib.import_module("torchvision")
  except RuntimeError:  # "operator torchvision::nms does not exist"
    for name in _OPERATORS:
      _LIBRARY.define(f"{name}{_SCHEMA}")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
      del sys.modules[name]  # what the failed import left half made
    return importlib.import_module("torchvision")
