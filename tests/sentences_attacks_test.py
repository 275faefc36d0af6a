"""The numbers in sentences about attacks are those of the committed results."""

import re

from configs import retrain_little_styles, unlearn_little_sd
from jaxunlearn import methods
from tests.committed import PAGES, README, flowing, result


def test_the_numbers_in_sentences_about_classes_under_attack_are_the_committed_results():
  page, rows = flowing(PAGES["audit"]), result("audit_fashion")
  of = lambda label, column: f"{rows[label][column]['value']:.2f}"
  named = {
    "SFR-on": "SFR-on",
    "NegGrad": "NegGrad",
    "Selective Amnesia by the rule": "Selective Amnesia, λ = 1/(2T)",
    "EraseDiff": "EraseDiff",
    "ESD": "ESD",
    "DiMUM": "DiMUM",
    "DiMUM-meta": "DiMUM, meta",
    "SalUn": "SalUn",
    "EraseDiff by BOME": "EraseDiff, BOME",
  }
  back = {name: of(label, "ar_dimra") for name, label in named.items()}
  assert list(back.values()) == sorted(back.values(), reverse=True)
  (said,) = re.findall(r"brings the class back after (.*?; retrained [.\d]+)\)", page)
  assert re.findall(r"\((\d\.\d\d|AR \d\.\d\d)", said)[1:] == list(back.values())[1:]
  assert said.startswith(f"SFR-on (AR {back['SFR-on']}), NegGrad ({back['NegGrad']})")
  assert said.endswith(f"{back['EraseDiff by BOME']}; retrained {of('retrained', 'ar_dimra')}")
  mean = {name: of(label, "ar_few_10_mean") for name, label in named.items()}
  for name in ("ESD", "DiMUM-meta", "DiMUM", "Selective Amnesia by the rule", "SFR-on"):
    assert f"{name} ({mean[name]})" in page
  assert f"EraseDiff ({mean['EraseDiff']}) give the class back sooner" in page
  bome = mean["EraseDiff by BOME"], of("EraseDiff, BOME", "ar_inversion")
  assert "better than DiMUM: {} against ten images, {} against a new".format(*bome) in page
  ends = lambda label, runs: [f"{f(rows[label]['ua']['runs'][runs]):.2f}" for f in (min, max)]
  trouser, sneaker = slice(0, 3), slice(3, 6)
  for label, form in (
    ("SFR-on", "Trouser ({} to {}) and not Sneaker ({} to {})"),
    ("EraseDiff", "rule ({} to {}, and {} to {})"),
  ):
    assert form.format(*ends(label, trouser), *ends(label, sneaker)) in page
    assert rows[label]["verdict"]["words"].startswith("runs disagree")
  blind = [f"{row['membership_pia/deleted-auc']['value']:.2f}" for row in rows.values()]
  assert f"its AUC is {min(blind)} to {max(blind)} in every row" in page


def test_the_numbers_in_sentences_about_emoji_under_attack_are_the_committed_results():
  page, rows = flowing(PAGES["audit"]), result("audit_emoji")
  flags = lambda label, column: f"{rows[f'{label}: Flags'][column]['value']:.2f}"
  style = lambda label, column: f"{rows[f'{label}: twemoji'][column]['value']:.2f}"
  again = [flags(label, "ar_dimra") for label in ("ESD", "SalUn", "DiMUM", "DiMUM, meta")]
  again += [flags(label, "ar_dimra") for label in ("EraseDiff, BOME", "retrained")]
  told = "brings back {} after ESD, {} after SalUn, {} and {} after the DiMUMs, and {} after"
  assert (told + " EraseDiff by BOME (retrained {})").format(*again) in page
  vector = [flags(label, "ar_inversion") for label in ("EraseDiff, BOME", "SalUn")]
  assert "EraseDiff by BOME ({}), and least after SalUn ({})".format(*vector) in page
  some = [flags(label, "ua") for label in ("EraseDiff", "SFR-on", "Selective Amnesia, λ = 1/(2T)")]
  told = (
    "release ({}) and SFR-on ({}) forget some of it, Selective Amnesia as published nothing, and"
  )
  assert (told + " by the rule {}.").format(*some) in page
  some = [style(label, "ua") for label in ("DiMUM, meta", "DiMUM", "EraseDiff", "SFR-on")]
  told = (
    "DiMUM-meta ({}), DiMUM ({}), SalUn, EraseDiff by BOME and ESD forget some of it, EraseDiff"
  )
  assert (told + " by its release less ({}), SFR-on hardly any ({})").format(*some) in page
  blind = [r["membership_pia/deleted-auc"]["value"] for name, r in rows.items() if "Flags" in name]
  assert f"PIA's AUC is {min(blind):.2f} to {max(blind):.2f} in every row" in page
  unsure = [name for name, row in rows.items() if row["verdict"]["words"].startswith("undecided")]
  assert [name.split(": ")[0] for name in unsure if "twemoji" in name] == [
    "SalUn",
    "SFR-on",
    "EraseDiff",
    "ESD",
    "DiMUM",
    "DiMUM, meta",
  ]


def test_the_numbers_in_sentences_about_a_style_under_attack_are_the_committed_results():
  page, rows = flowing(PAGES["concepts"]), result("audit_little_sd_mosaic")
  rows = {label.removesuffix(": mosaic"): row for label, row in rows.items()}
  of = lambda label, column: f"{rows[label][column]['value']:.2f}"
  full, lora = (lambda label, k=k: of(label, f"ar_{k}_10_mean") for k in ("few", "lora"))
  ira, ua, held = lambda label: of(label, "ira"), lambda label: of(label, "ua"), "ar_states_mean"
  some, undo = "DiMUM, several attacks", "DiMUM, several attacks, then UNDO"
  by_seed = lambda label, k: [f"{end(rows[label][k]['runs']):.2f}" for end in (min, max)]
  ends = lambda k: [f"{abs(end):.2f}" for end in rows["retrained"][k]["ci95"]]
  defended = ("DiMUM, meta", some, "DiMUM")
  asked = rows["pretrained"]["ira"]["value"] - 0.02
  for form, told in (
    ("a mean AR of {} ({} to {} by", (full("retrained"), *by_seed("retrained", FULL))),
    ("by seed), {} by LoRA. It keeps", (lora("retrained"),)),
    ("keeps {} (IRA), the pretrained model {}.", map(ira, ("retrained", "pretrained"))),
    ("have a UA of {} and keep all", (ua("prompt copy"),)),
    ("the model draws mosaics ({})", (of("prompt copy", "ar_paraphrase"),)),
    ("(IRA {}, {}, {}). Of", map(ira, (*KEEPING, "ESD-x"))),
    ("a new word brings back {}, and {} after UCE", (of(n, "ar_token") for n in KEEPING)),
    ("UCE has less ({1} for {0})", map(lora, KEEPING)),
    ("DiMUM keeps {}, and state", (ira("DiMUM"),)),
    ("than after either ({} for {} and {})", (of(n, held) for n in ("DiMUM", *KEEPING))),
    ("back {} and {} (DiMUM {}, ret", (of(n, held) for n in defended)),
    ("retrained {}), words", (of("retrained", held),)),
    ("{} and {} by LoRA (DiMUM {})", map(lora, defended)),
    ("{} and {} in full (DiMUM {})", map(full, defended)),
    ("Kept accuracy is {} and {}:", map(ira, defended[:2])),
    ("lowers LoRA to {} and kept accuracy to {}. Sharp", (lora(undo), ira(undo))),
    ("inversion then brings back {}, LoRA {}, and", (of(ONTO, k) for k in (held, LORA))),
    ("in full {} ({} to {} by seed). -", (full(ONTO), *by_seed(ONTO, FULL))),
    ("It keeps {} (CRA {}, the", (ira(BOTH), of(BOTH, "cra"))),
    ("the pretrained model {}). Ten", (of("pretrained", "cra"),)),
    ("bring back {} ({} to {} by seed), LoRA", (full(BOTH), *by_seed(BOTH, FULL))),
    ("by seed), LoRA {}, state inversion {}, a new", (of(BOTH, k) for k in (LORA, held))),
    ("a new word {}, completion {}.", (of(BOTH, k) for k in ("ar_token", "ar_completion"))),
    ("for ten pictures in full ({} to {})", ends(FULL)),
    ("it keeps {} where {:.3f} was asked", (ira(BOTH), asked)),
    ("inside too ({} at most)", ends("ar_token")[1:]),
    ("it is not ({} for {}), nor", (of(BOTH, held), *ends(held)[1:])),
    ("LoRA ({} for {}). After", (of(BOTH, LORA), *ends(LORA)[1:])),
    ("LoRA is above ({}), and kept accuracy is {}.", (of(ONTO, LORA), ira(ONTO))),
    ("({} in full, {} by LoRA), projected", (f("DiMUM, sharpness-aware") for f in (full, lora))),
    ("close to DiMUM ({}, {})", (f("DiMUM, projected") for f in (full, lora))),
    ("have a UA of {} and {}, SFR-on", map(ua, ("NegGrad", "ESD-u"))),
    ("Selective Amnesia {} and {};", map(ua, ("SFR-on", "Selective Amnesia, λ = 1/(2T)"))),
    ("goes from {} to {} by seed", by_seed("NegGrad", "ua")),
  ):
    assert form.format(*told) in page, form
  methods = rows.keys() - {"pretrained", "retrained", "prompt copy"}
  lowest, second, third = sorted(methods, key=lambda label: rows[label][FULL]["value"])[:3]
  assert {lowest, second} == {ONTO, BOTH} and third == undo and full(ONTO) == full(BOTH)
  assert f"AR of {full(ONTO)} after UNDO onto the ancestor, the lowest (twice, by two" in page
  assert f"teachers), then {full(undo)} after" in page
  inside = {
    label: [
      low <= rows[label][k]["value"] <= high
      for k in (FULL, "ar_token", held, LORA)
      for low, high in [rows["retrained"][k]["ci95"]]
    ]
    for label in (ONTO, BOTH)
  }
  assert inside == {ONTO: [True, True, True, False], BOTH: [True, True, False, False]}
  secure = [n for n in methods if rows[n][FULL]["value"] <= rows["retrained"][FULL]["ci95"][1]]
  assert {n: rows[n]["ira"]["value"] >= asked for n in secure} == {ONTO: False, BOTH: True}
  told = (
    f"recovery of {full(BOTH)} after the best that keeps its quality, {full('retrained')} after"
  )
  assert len(methods) == 18 and "in eighteen ways" in page
  assert "unlearned in eighteen ways" in flowing(README) and told in flowing(README)
  gone = [label for label in methods if rows[label]["ua"]["value"] >= 0.9]
  assert f"an AR of {max(of(label, 'ar_int4') for label in gone)} at most, where UA" in page
  words = ("ar_token", "ar_search", "ar_paraphrase", "ar_completion")
  most = max(of(label, k) for label in ("DiMUM, meta", some) for k in words)
  assert f"words and completion {most} at most" in page
  assert all(row["runs"] == 3 for row in rows.values()) and "three training seeds" in page


KEEPING = ("Concept Ablation", "UCE")
ONTO = "DiMUM, several attacks, then UNDO onto the ancestor"
BOTH = "Concept Ablation, then UNDO onto the ancestor"
FULL, LORA = "ar_few_10_mean", "ar_lora_10_mean"


def test_a_defence_costs_a_share_of_retraining():
  again = retrain_little_styles.get_config()
  rows = lambda config, passes: config.train.steps * config.train.batch * passes

  def share(variant):
    trained = unlearn_little_sd.get_config(variant)
    passes = methods.make(**trained.method).forwards
    return f"{rows(trained, passes) / rows(again, 1):.0%}"

  page = flowing(PAGES["concepts"])
  assert f"several attacks, {share('dimum_attacks')} of the rows" in page
  assert share("undo_onto") == share("undo_onto_null")
  told = f"{share('undo_onto')}, and {share('ca_model')} for Concept Ablation."
  assert f"UNDO onto the ancestor, {told}" in page
