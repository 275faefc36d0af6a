"""Compartments of a little Stable Diffusion that learn new styles: LoRA a source.

    python -m jaxunlearn.main --config=configs/cdm_little_styles.py --workdir=runs/cdm_little_styles

The backbone is the little Stable Diffusion, which knows emoji in two styles. The sources bring four
more, drawn by rule: grey, negative, mosaic and edges, of eight kinds of emoji. Whether a picture
shows the style and the kind of its prompt is told by the classifiers of audit_little_sd.py.
`:KINDn` takes another split: class (kinds of emoji), style, or uniform (at random, the hard case),
into n sources; `:uniform1` is the monolith. A last word names what a source trains, as in
cdm_little_sd.py: lora, attn2, full; like `:uniform8,attn2`.
"""

from ml_collections import ConfigDict

from configs import cdm_little_sd, common, pretrain_little_styles
from jaxunlearn.data import emoji_styles

RANK = 16
LORA = {"name": "lora", "rank": RANK, "alpha": float(RANK), "pattern": "^unet/"}
KINDS = {**cdm_little_sd.KINDS, "lora": LORA}
RATES = {"lora": 2e-3}


def get_config(words: str = "class4"):
  return compartments(*cdm_little_sd.variant(words, KINDS, "lora"))


def compartments(by: str, n: int, kind: str = "lora") -> ConfigDict:
  config = pretrain_little_styles.get_config()
  config.data = common.source("emoji_styles", styles=tuple(emoji_styles.RULES))
  config.compartment = ConfigDict(KINDS[kind])
  config.optimizer.learning_rate = RATES.get(kind, 5e-4)
  config = cdm_little_sd.settings(config, by, n)
  config.compose.over = "scan"  # merged kernels of convolutions are slow side by side on a CPU
  config.eval.update(
    classifier="decoded_objects", style_classifier="decoded_styles", steps=10, guidance=3.0
  )
  return config
