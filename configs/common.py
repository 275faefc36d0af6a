"""Every field of a config, with the defaults that most runs keep; the other files change a few.

Not a run of its own.
"""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict, config_dict

from jaxunlearn import adapters, data, errors, evals, methods
from jaxunlearn.diffusion import Diffusion, sampling


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.init_from = ""  # "": random; assets:NAME, a run's directory or a diffusers folder
  config.init_optimizer = False  # the state of the optimiser too, from a run's directory
  config.init_bits = 0  # 4 or 8, say: the kernels of init_from rounded to that; 0: as they are
  config.model = ConfigDict({"name": "unet", "dtype": "float32"})
  config.process = ConfigDict(dataclasses.asdict(Diffusion()))
  # How samples are made, sampling.Options; None: as init_from's scheduler has it, else the default.
  config.sampler = unset(sampling.Options)
  config.scheduler = ConfigDict()  # what an export hands on of init_from's scheduler
  config.data = source("mnist_tshirt")
  # What to delete: one of ids, file, label, style; and what earlier runs deleted.
  config.forget = ConfigDict(dataclasses.asdict(data.Forget()))
  config.streams = ConfigDict({"x": "all"})  # stream of the method -> what it takes: streams.py
  config.attack = ""  # dimra, few_shot or inversion, where the run attacks another
  config.method = method("denoising")
  # What of the network is trained: a pattern of paths ("": all), and LoRA's rank (0: no LoRA).
  config.trained = ConfigDict(dataclasses.asdict(adapters.Trained()))
  config.optimizer = ConfigDict(
    {
      "learning_rate": 1e-4,
      "b1": 0.9,
      "b2": 0.999,
      "weight_decay": 1e-6,
      "clip": 1.0,  # the largest norm of a gradient; None: any
      "warmup": 0,
      "schedule": "constant",
    }
  )
  config.ema = 0.0  # the largest decay; 0 keeps no average
  config.ema_warmup = True  # the decay grows from .1; False: it is the same from the first step
  config.train = ConfigDict(
    {
      "steps": 100,
      "batch": 64,
      "micro_batches": 1,
      "gather_once": False,  # True: what fsdp splits is gathered once a step, not for each part
      "log_every": 1,
      "checkpoint_every": 50,
      "keep": 2,
      "synthetic": False,  # noise in place of the data, for timing
    }
  )
  config.profile = ""  # FIRST:LAST: a trace of those steps, in profile/
  # -1: the rest of the devices; each core of a CPU is one (docs/launch.md).
  config.mesh = ConfigDict({"data": -1, "fsdp": 1})
  config.eval = ConfigDict(
    {
      "before": True,
      "after": True,
      "every": 0,  # steps between probes for the curves; 0: none
      "probe_samples": 64,
      "probe_metrics": ("target_rate", "copy_score"),
      "metrics": (
        "target_rate",
        "inception_score",
        "feature_fid",
        "class_quality",
        "nll",
        "copy_score",
      ),
      "samples": 512,  # of a conditional model, of its kept conditions in turn
      "asked": 0,  # of a conditional model, samples of what is to be forgotten
      "guidance": 0.0,  # w in (1 + w) eps_c - w eps_null
      "keep": False,  # the samples, for the streams of other runs
      "features": False,  # of the samples, by the classifier, for the verdicts of a table
      "batch": 128,
      "sampler": "ddpm",  # or ddim, plms, dpm
      "steps": 25,
      "seed": 0,
      # Every condition once a seed, styles in turn and objects in each, the noise by the seed and
      # the place in this order: UnlearnCanvas's answer set. (): samples and asked, as above.
      "seeds": (),
      "jpeg": 0,  # the quality at which samples are saved as JPEG before they are judged; 0: not
      **dataclasses.asdict(evals.Options(target_name="tshirt")),
    }
  )
  return config


def source(name: str, **fields) -> ConfigDict:
  """A data source by module name with all its fields, so that each can be overridden by a flag."""
  return ConfigDict({"source": name, **dataclasses.asdict(data.make(name, **fields))})


def method(name: str, **fields) -> ConfigDict:
  """A method by module name with all its fields, so that each can be overridden by a flag."""
  values = dataclasses.asdict(methods.make(name, **fields))
  # A flag can set a None only where it knows the type: here a number that is optional.
  typed = {k: config_dict.placeholder(float) if v is None else v for k, v in values.items()}
  return ConfigDict({"name": name, **typed})


def unset(kind: type) -> ConfigDict:
  """The fields of a dataclass, each None, which a flag can set to a value of its type."""
  values = {name: type(value) for name, value in dataclasses.asdict(kind()).items()}
  return ConfigDict({name: config_dict.placeholder(one) for name, one in values.items()})


def first(seeds: Sequence[int], number: str) -> tuple[int, ...]:
  """The first seeds, so many as a variant says; "": all."""
  counts = {str(n): n for n in range(1, len(seeds) + 1)}
  errors.check_choice("number of seeds", number or "1", counts)
  return tuple(seeds[: counts.get(number)])
