"""The yardstick of audit_little_sd.py: the base model's training without one kind or one style.

    python -m jaxunlearn.main --config=configs/retrain_little_styles.py:mosaic \\
        --workdir=runs/retrain_mosaic
    python -m jaxunlearn.export --run=runs/retrain_mosaic --half --deleted=count \\
        --license=apache-2.0 --out=jaxunlearn/assets/retrain_little_styles_mosaic

and so for `:animal-mammal`, to --out=jaxunlearn/assets/retrain_little_styles_animal_mammal.

The base is the little Stable Diffusion, trained further (pretrain_little_styles.py). No style that
is drawn by rule was in its first training: the second is repeated without it. Mammals were:
`:animal-mammal` begins with the backbone of the compartments, which has seen no animal and no food
(pretrain_cdm_backbone.py; trained half as long). What a model is to lack no network of it has seen,
but for the autoencoder, which stays.
"""

from configs import pretrain_little_styles
from jaxunlearn import errors
from jaxunlearn.data import emoji_styles

MAMMALS = "animal mammal"
BACKBONE = "assets:cdm_backbone"
LACKING = {**dict.fromkeys(emoji_styles.RULES, pretrain_little_styles.ORIGIN), MAMMALS: BACKBONE}


def get_config(name: str = "mosaic"):
  target = name.replace("-", " ")
  errors.check_choice("variant", target, LACKING)
  config = pretrain_little_styles.get_config()
  config.init_from = LACKING[target]
  config.forget["style" if target in emoji_styles.RULES else "label"] = target
  config.streams.x = "retain"
  config.eval.asked = 72
  config.eval.metrics = ("unlearning_accuracy", *config.eval.metrics)
  return config
