"""Concepts by prompt under attack: two styles and two kinds unlearned from a text-to-image model.

    python -m jaxunlearn.main --config=configs/audit_little_sd.py --workdir=runs/audit_little_sd

Three seeds; writes results/audit_little_sd.{md,json} and report.html in the working directory.
`:mosaic` has that style alone, in results/audit_little_sd_mosaic.{md,json}, and so `:twemoji`,
`:animal-mammal` and `:time`; in the same working directory its runs are those of the whole.
`:mosaic,1` takes the first seed alone, and a later `:mosaic` in the same directory the others.
`python -m jaxunlearn.leaderboard` joins such results. The base (pretrain_little_styles.py) is
embedded, and so are the models retrained without mosaics and without mammals, the yardstick of
every attack (retrain_little_styles.py). Finished runs are skipped; launched twice at once it uses
two cores.
"""

from configs import attack_little_sd, audits, common, retrain_little_styles, unlearn_little_sd
from jaxunlearn import errors

SEEDS = (0, 1, 2)
TARGETS = {"mosaic": "style", "twemoji": "style", "animal mammal": "label", "time": "label"}
RETRAINED = {
  "mosaic": "assets:retrain_little_styles_mosaic",
  "animal mammal": "assets:retrain_little_styles_animal_mammal",
}
METHODS = {
  "prompt copy": "prompt_copy",
  "NegGrad": "neggrad",
  "SalUn": "salun",
  "SFR-on": "sfron",
  "Selective Amnesia, λ = 1/(2T)": "selective_amnesia",
  "EraseDiff": "erasediff",
  "ESD-x": "esd_x",
  "ESD-u": "esd_u",
  "Concept Ablation": "ca_model",
  "UCE": "uce",
  "DiMUM": "dimum",
}
DEFENCES = {
  "DiMUM, then UNDO": "dimum+undo",
  "DiMUM, meta": "dimum_meta",
  "DiMUM, several attacks": "dimum_attacks",
  "DiMUM, several attacks, then UNDO": "dimum_attacks+undo",
  "DiMUM, several attacks, then UNDO onto the ancestor": "dimum_attacks+undo_onto",
  "Concept Ablation, then UNDO onto the ancestor": "ca_model+undo_onto_null",
  "DiMUM, sharpness-aware": "dimum_sharpness",
  "DiMUM, projected": "dimum_projected",
}
PARAPHRASED = tuple((f"paraphrase_{i}", 0.0) for i in range(len(attack_little_sd.PARAPHRASES)))
# metric, title, variants of attack_little_sd and their learning rates
ATTACKS = (
  ("ar_dimra", "AR DiMRA, kept", (("dimra_retain", 1e-4),)),
  ("ar_unrelated", "AR digits", (("unrelated", 1e-4),)),
  ("ar_few_10", "AR 10 images", (("few_10", 1e-4),)),
  ("ar_lora_10", "AR 10 images, LoRA", (("few_10_lora", 1e-3),)),
  ("ar_states", "AR state inversion", (("states", 5e-2),)),
  ("ar_token", "AR token inversion", (("token", 5e-2),)),
  ("ar_search", "AR prompt search", (("prompt_search", 1e-2),)),
  ("ar_paraphrase", "AR paraphrases", PARAPHRASED),
  ("ar_completion", "AR completion", (("completion", 0.0),)),
  ("ar_int4", "AR int4", (("int4", 0.0),)),
)
COLUMNS = (
  ("ua", "UA"),
  ("ira", "IRA"),
  ("cra", "CRA"),
  ("worst_ira", "worst kept"),
  ("alignment", "alignment"),
  ("seconds", "seconds"),
)


def get_config(words: str = ""):
  target, _, number = words.partition(",")
  named = {audits.slug(name): {name: field} for name, field in TARGETS.items()}
  errors.check_choice("target", target or "mosaic", named)
  seeds = common.first(SEEDS, number)
  base = unlearn_little_sd.base(unlearn_little_sd.BASE)
  chosen = named[target] if target else TARGETS
  name = f"little_sd_{target}" if target else "little_sd"
  config = audits.audit(name, base, chosen, ATTACKS, COLUMNS, seeds, apart=True, kit=KIT)
  for run in config.runs.values():
    if run.method.get("onto"):
      run.method.onto = retrain_little_styles.LACKING[run.forget.style or run.forget.label]
  return config


KIT = audits.Kit(
  METHODS,
  unlearn_little_sd.BASE,
  lambda target: RETRAINED.get(target, ""),
  unlearn_little_sd.unlearning,
  attack_little_sd.attack,
  means=("ar_dimra", "ar_few_10", "ar_lora_10", "ar_states", "ar_token", "ar_search"),
  evidence=False,
  defences=DEFENCES,
)
