"""The numbers in sentences of the README and of the pages are those of the committed results."""

import csv
import math
import re
import statistics

import numpy as np

from benchmarks import little_sd_step
from configs import table_little_sd
from jaxunlearn.evals import classifiers
from tests.committed import PAGES, README, ROOT, flowing, result


def changes(name):
  """The changes of the composed modes in percent, as the table has them."""
  table = (ROOT / "results" / f"{name}.md").read_text()
  return [float(x) for x in re.findall(r"^\| (?!alone).*\| \+?([-\d.]+)% \|$", table, re.MULTILINE)]


def test_the_numbers_in_sentences_about_siss_are_the_committed_results():
  rows, readme, page = result("siss_mnist"), flowing(README), flowing(PAGES["siss"])
  siss = {name: row["inception_score"]["value"] for name, row in rows.items()}
  change = lambda name: f"{siss[name] / siss['pretrained'] - 1:.1%}"
  assert (
    f"ReTrack keeps it ({change('ReTrack')}), SISS (No IS) is at {change('SISS (No IS)')}" in page
  )
  assert f"SISS λ=0.5 at {change('SISS λ=0.5')}; naive deletion" in page
  assert f"only fine-tunes, is at {change('naive deletion')}," in page
  assert f"makes it in {rows['pretrained']['tshirt_rate']['value']:.1%} of samples" in readme
  assert "by the protocol of the paper's release" in page
  assert all("solver=siss:" in row["nll_bpd"]["identity"][0] for row in rows.values())
  for name in ("SISS λ=0.5", "SISS (No IS)", "ReTrack"):
    assert rows[name]["tshirt_rate"]["runs"] == [0, 0, 0]
    assert "n=512" in rows[name]["tshirt_rate"]["identity"][0]  # 3 x 512 is 1,536


def test_the_numbers_in_sentences_about_stable_diffusion_at_full_size_are_the_results():
  found, page = result("sd_cpu"), flowing(PAGES["stable_diffusion"])
  stages = {name.partition(":")[0]: stage for name, stage in found["stages"].items()}
  seconds = [f"{stages[name]['seconds']:.0f} s" for name in ("find", "delete")]
  assert f"four pictures are found in {seconds[0]}, two steps of two pairs" in page
  assert f"take {seconds[1]} and {stages['delete']['peak_gib']:.1f} GiB, and diffusers" in page
  step = found["step"]
  apart = f"{step['apart_over_step']:.1e} of its own length from the same step in PyTorch"
  assert f"{apart}, over {step['arrays']} arrays" in page and found["trained"] == "attn2"


def test_the_numbers_in_sentences_about_copy_protection_are_the_committed_results():
  rows, page = result("cdm_copy_protection")["rows"], flowing(PAGES["cdm"])
  naive = [row for row in rows if row["name"] == "naive"]
  assert max(abs(row["mean_kl"] - row["bound"]) for row in naive) < 0.01
  assert "keep the bound within 0.01 nats in the mean" in page
  held = {row["name"]: row["held"] for row in rows if (row["sources"], row["apart"]) == (2, 2)}
  assert f"the average keeps {held['naive']:.0%} of it. Soft weights" in page
  assert f"and keep {held['soft']:.0%}: one n-th" in page
  assert all(abs(r["held"] - 1 / r["sources"]) < 0.03 for r in rows if r["name"] == "soft")


def test_the_numbers_in_sentences_about_the_little_stable_diffusion_are_the_committed_results():
  rows = {(row["kind"], row["name"]): row["shown"] for row in result("little_sd_quality")["rows"]}
  page, shown = flowing(PAGES["stable_diffusion"]), lambda name: f"{rows['style', name]:.0%}"
  assert f"twemoji is at {shown('twemoji')} and noto at {shown('noto')}" in page
  judge = classifiers.load("decoded_noto_twemoji").facts
  assert f"recognises {float(judge['decoded_accuracy']):.0%} of the latter" in page


def test_the_numbers_in_sentences_about_growth_are_the_committed_results():
  axes = {axis["title"]: axis["points"] for axis in result("growth")["axes"].values()}
  before, after = (p for p in axes["side, pixels"] if p["x"] in (64, 128))
  times = {name: after[name] / before[name] for name in ("seconds", "memory")}
  told = f"takes {times['seconds']:.1f} times as long and {times['memory']:.1f} times the memory"
  assert told in flowing(PAGES["speed"])


def test_the_numbers_in_sentences_about_ten_requests_are_the_committed_results():
  found, page = result("sequence"), flowing(PAGES["siss"])
  share = {one["method"]: one["share"] for one in found["summaries"]}
  costs = [round(10 * share[name], 2) for name in ("naive deletion", "SISS (No IS)", "NegGrad")]
  assert costs == [0.2, 0.4, 0.1] and round(10 * share["SISS λ=0.5"], 2) == 0.33
  assert f"a request costs {share['CDM']:.1%} of training anew on average" in flowing(README)
  of = lambda method: [row for row in found["rows"] if row["method"] == method]
  value = lambda row, name: row[name]["value"]
  siss, no_is, naive, cdm = map(of, ("SISS λ=0.5", "SISS (No IS)", "naive deletion", "CDM"))
  ends = [value(row, "p_high") for row in siss + no_is if row["request"] != "again"]
  assert len(ends) == 20 and f"p-value of the other end of at most {max(ends):.3f}," in page
  fids = [value(row, "fid") for row in siss]
  assert f"to {fids[-1]:.0f}, with {max(fids):.0f} on the way; without importance" in page
  assert f"once to {max(value(row, 'fid') for row in no_is):.0f}, and back" in page
  first, last = naive[0], naive[-1]
  told = f"p-value of {value(first, 'p'):.3f}, after {first['steps'] * 9} further steps"
  assert f"{told} {value(last, 'p'):.3f}" in page
  digits = [value(row, "p") for row in naive[1:-1]]
  assert f"sees nothing after its request ({min(digits):.2f} to {max(digits):.2f})" in page
  drawn = [row for row in cdm if row["steps"]]
  assert f"never drawn ({len(cdm) - len(drawn)} of the ten)" in page
  assert all(row["equal"] for row in cdm)
  most = max(row["passes"] for row in cdm) / found["anew"][1]
  assert f"up to {most:.0%} of training anew" in page
  small = [row for row in cdm if value(row, "p") < 0.05]
  low, high = sorted(value(row, "p") for row in small)
  assert f"two of the ten records have {low:.3f} and {high:.3f}, and neither was" in page
  assert not any(row in drawn for row in small)


def test_the_numbers_in_sentences_about_membership_are_the_committed_results():
  rows, page = result("siss_mnist"), flowing(PAGES["siss"])
  p = lambda label, digits=3, end="": (
    f"{rows[label]['membership_pia/deleted-p' + end]['value']:.{digits}f}"
  )
  assert f"the model that never saw it has {p('retrained', 2)}." in page
  assert f"its p-value there is {p('retrained', 2)} by PIA" in flowing(PAGES["evidence"])
  found = [p(label) for label in ("pretrained", "naive deletion", "SISS λ=0")]
  told = "It is {} in the pretrained model, and still {} after naive deletion and {} after λ = 0"
  assert told.format(*found) in page
  seeds = rows["SISS λ=0.5"]["membership_pia/deleted-p"]["runs"]
  ends = f"seed to seed ({min(seeds):.2f} to {max(seeds):.0f})"
  assert f"SISS λ=0.5 has {p('SISS λ=0.5', 2)} on average and differs from {ends}" in page
  other = [p(label, 3, "-high") for label in ("SISS (No IS)", "ReTrack")]
  assert "there the other end is small ({} and {})".format(*other) in page
  assert min(float(p(label)) for label in ("SISS (No IS)", "ReTrack")) >= 0.99
  broken = sorted(p(label) for label in ("EraseDiff", "SISS λ=1", "NegGrad"))
  assert f"the p-value is {broken[0]} to {broken[-1]}, in models" in page
  verdicts = {label: row["verdict"]["words"] for label, row in rows.items()}
  assert f"({verdicts.pop('pretrained').removeprefix('nearer the original, ')})" in page
  assert all(words.startswith("undecided") for words in verdicts.values())


def test_the_numbers_in_sentences_about_membership_of_emoji_are_the_committed_results():
  rows, page = result("siss_emoji"), flowing(PAGES["siss"])
  value = lambda label, name: rows[label][f"membership_pia/{name}"]["value"]
  assert f"with an AUC of {value('pretrained', 'kept-auc'):.2f}." in page
  (least,) = {value(label, "deleted-p") for label in ("pretrained", "naive deletion")}
  assert least == value("SISS λ=0.5", "deleted-p-high") == 1 / 33
  assert f"(p {least:.3f}, the least that 32 held-out pictures allow)" in page
  assert f"after SISS sees it at the other end ({least:.3f})" in page


def test_the_numbers_in_sentences_about_stable_diffusion_are_the_committed_results():
  page, speed = (flowing(PAGES[name]) for name in ("stable_diffusion", "speed"))
  full, step = result("stable_diffusion_cpu"), result("little_sd_step")["step"]
  made, ours, again = (full["parts"][part] for part in ("make", "read", "back"))
  apart = (f"{part['largest_difference']:.1e}" for part in (ours, again))
  assert f"{' and '.join(apart)} from that" in page
  assert f"held {ours['peak_gib']:.1f} GiB" in page
  assert f"{ours['picture_seconds']:.0f} s and {made['picture_seconds']:.0f} s" in page
  forward, picture = (found["ratio"] for found in full["speed"].values())
  assert f"takes {picture:.2f} of PyTorch's time with the small model" in page
  assert (
    f"takes {picture:.2f} of PyTorch's time with diffusers, a forward pass {forward:.2f}" in speed
  )
  ours, given_back = (step["ratio"][name] for name in little_sd_step.PROCESSES[:2])
  assert f"text encoder takes {ours:.2f} of it" in speed and f"{given_back:.2f} without" in speed
  kernel = [statistics.median(step["kernel_seconds"][n]) for n in little_sd_step.PROCESSES[:2]]
  assert f"{kernel[1]:.2f} s of its CPU time, against {kernel[0]:.2f} s" in speed
  gpu = result("gpu_nvidia_h100_80gb_hbm3")["parts"]
  apart = [row["distance"] for row in gpu["numbers"] if row["precision"] == "float32"]
  assert f"each of {len(apart)} methods in float32 is within 4e-7" in speed and max(apart) < 4e-7
  (kill,) = gpu["resume"]
  assert f"killed after {kill['killed_after_step']} of 24 steps" in speed
  assert kill["largest_difference"] == 0


def test_the_sentences_about_deleted_pictures_are_the_committed_results():
  page, rows = flowing(PAGES["stable_diffusion"]), result("siss_little_sd")
  ends = ("success", "success_original")
  of = lambda label, column: int(sum(rows[label][column]["runs"]))
  both = lambda label: tuple(of(label, column) for column in ends)
  assert {rows[label]["runs"] for label in table_little_sd.METHODS} == {24}
  assert (
    "Naive deletion succeeds at {} of 24 by the prompt that it was given and at {} by the original"
    " one, SISS at {} and {}, SISS without importance sampling at {} and {}. The paper".format(
      *both("naive deletion"), *both("SISS λ=0.5"), *both("SISS (No IS)")
    )
    in page
  )
  assert "ReTrack and λ = 0 ({} and {})".format(*both("SISS λ=0")) in page
  assert "by the original prompt ({} and {})".format(*both("Concept Ablation")) in page
  assert max(of(label, ends[1]) for label in rows) == of("Concept Ablation", ends[1])
  poor = lambda label: sum(share < 0.35 for share in rows[label]["typical_share"]["runs"])
  said = "look real in {} and {} of their 24 runs, and in {} of EraseDiff's"
  assert said.format(*map(poor, ("NegGrad", "SISS λ=1", "EraseDiff"))) in page
  assert both("NegGrad") == (0, 0)
  assert of("ReTrack", "gone") == 24 and of("ReTrack", ends[0]) == 24 - 9
  runs = lambda label: rows[label][ends[1]]["runs"]
  pairs = lambda label: list(zip(runs(label), runs("naive deletion"), strict=True))
  count = lambda label: (pairs(label).count((1, 0)), pairs(label).count((0, 1)))
  sign = lambda a, b: (
    2 * sum(math.comb(a + b, k) for k in range(max(a, b), a + b + 1)) / 2 ** (a + b)
  )
  won, lost = count("SISS (No IS)")
  assert lost == 0 and f"in {won} cases where naive" in page
  assert f"(sign test, p = {sign(won, lost):.3f}, as if".replace("0.", ".") in page
  won, lost = count("SISS λ=0.5")
  assert f"SISS in {won} against {lost} (p = {sign(won, lost):.2f})".replace("0.", ".") in page
  again, rest = (
    f"SISS λ=0.5, then {how}" for how in ("few-shot on the picture", "DiMRA on the rest")
  )
  assert all(rows[again][f"memorised_kmeans{end}_rate"]["value"] == 1 for end in ("", "_original"))
  assert {of(rest, column) for column in ("gone", "gone_original")} == {7}
  noise = lambda label: [rows[label][f"text_noise{end}"]["value"] for end in ("", "_original")]
  before = noise("pretrained")
  times = lambda label: [f"{a / b:.2f}" for a, b in zip(noise(label), before, strict=True)]
  assert "and the noise is {} and {} times what it was".format(*times("SISS λ=0.5")) in page
  assert "Ablation it is {} and {} times that".format(*times("Concept Ablation")) in page


def test_the_numbers_in_sentences_about_other_prompts_are_the_committed_results():
  page = flowing(PAGES["stable_diffusion"])
  rows = {(r["method"], r["prompts"]): r for r in result("neighbours_little_sd")["rows"]}
  change = lambda method, prompts: f"{rows[method, prompts]['change']:.2f}"
  work = ("naive deletion", "SISS λ=0.5", "SISS (No IS)", "ReTrack", "Concept Ablation", "SISS λ=0")
  ends = lambda prompts: [f(change(method, prompts) for method in work) for f in (min, max)]
  least, most = ends("unrelated")
  assert (change("naive deletion", "unrelated"), change("ReTrack", "unrelated")) == (least, most)
  assert f"by {least} (naive deletion) to {most} (ReTrack) for the methods that work" in page
  assert "of the same subgroup by {} to {}.".format(*ends("same subgroup")) in page
  siss = [change("SISS λ=0.5", prompts) for prompts in ("same style", "unrelated")]
  assert "SISS and the same style ({}, unrelated {})".format(*siss) in page
  real = lambda method, when="typical": f"{rows[method, 'unrelated'][when]:.0%}"
  assert f"{real('SISS λ=0.5', 'typical_before')} look real before; after SISS" in page
  told = "after SISS {}, λ = 0 {}, No IS {}, naive deletion and Concept Ablation {}, ReTrack {};"
  good = ("SISS λ=0.5", "SISS λ=0", "SISS (No IS)", "naive deletion", "ReTrack")
  assert told.format(*map(real, good)) in page
  assert real("naive deletion") == real("Concept Ablation")
  bad = map(real, ("SISS λ=1", "EraseDiff", "NegGrad"))
  assert "after λ = 1 {}, EraseDiff {}, NegGrad {}.".format(*bad) in page


def test_the_numbers_in_sentences_about_compartments_are_the_committed_results():
  page, dropped = flowing(PAGES["cdm"]), changes("cdm_forget_source")
  moves = f"moves the feature FID by {min(dropped)}% to {max(dropped)}%"
  assert moves in page and moves in flowing(README)
  fid = {name: row["feature_fid"]["value"] for name, row in result("cdm_uniform").items()}
  assert fid["8: soft"] / fid["monolith"] < 1.04 and "are within 4% of one network" in page
  record = (ROOT / "results/cdm_forget_record.md").read_text()
  redone, whole = map(int, re.search(r"(\d+) of (\d+) steps", record).groups())
  assert f"({redone / whole:.0%} for the one shown)" in page
  rows = result("benchmark_cdm_sampling")["rows"]
  ratio = {row["name"]: row["ratio"] for row in rows if row["n"] == 8}
  assert f"takes {ratio['top-1']:.2f} of the time of one network" in page
  assert f"with soft weights {ratio['soft, scan']:.1f} times it" in page
  blocks = {row["name"]: row["ms_per_sample"] for row in rows if row["n"] in (1, 8)}
  best = blocks["top-1"] / blocks["monolith, blocks of 16"]
  assert f"top-1 takes {best:.2f} times as long as the best form of one network" in page
  assert f"and {ratio['soft, scan, blocks of 16']:.1f} in blocks of 16" in page
  lora = [ratio[f"soft, LoRA{how}"] for how in ("", " merged", ", blocks of 16")]
  times = (
    "takes {:.1f} times, merged weights {:.1f} (a copy of the weights for each source), and in"
  )
  assert f"{times} blocks of 16, unmerged, {{:.1f}}".format(*lora) in page


def test_the_numbers_in_sentences_about_compartments_of_styles_are_the_committed_results():
  page, rows = flowing(PAGES["cdm"]), result("cdm_little_styles_class")
  of = lambda name, column: rows[name][column]["value"]
  fid = lambda name: f"{of(name, 'feature_fid'):.0f}"
  whole, half = "monolith, as large as one source", "monolith, half the steps"
  routed, averages = ("2: soft", "4: soft"), ("2: average", "4: average")
  aligned = [f"{of(name, 'alignment'):.3f}" for name in (*routed, whole)]
  assert "{} with 2 sources and {} with 4, beside {};".format(*aligned) in page
  assert "one model on everything: {} and {}, beside {} (three training seeds).".format(
    *aligned
  ) in flowing(README)
  seeds = lambda name: np.array(rows[name]["alignment"]["runs"])
  apart = [seeds(name) - seeds(whole) for name in routed]
  assert f"{-np.min(apart):.2f} below to {np.max(apart):.2f} above it" in page
  assert f"half as long has {of(half, 'alignment'):.2f}." in page
  for n in "24":
    assert rows[f"{n}: soft"]["alignment"] == rows[f"{n}: top-1"]["alignment"]
  takes = [f"{of(f'4: {mode}', 'network_evaluations'):.0f}" for mode in ("top-1", "soft")]
  assert "takes {} evaluations where `soft` takes {}.".format(*takes) in page
  lost = [f"{of(name, 'alignment'):.2f}" for name in averages]
  told = (*lost, *map(fid, averages))
  assert "lose**: {} and {}, and the worst feature FID, {} and {}.".format(*told) in page
  single = rows[whole]["feature_fid"]["runs"]
  assert "{} and {} for {}. Seed by seed".format(*map(fid, (*routed, whole))) in page
  changes = [rows[name]["feature_fid_change"]["runs"] for name in routed]
  ends = [f"{end:+.0%}" for one in changes for end in (min(one), max(one))]
  assert "2 sources change it by {} to {}, and 4 by {} to {}.".format(*ends) in page
  means = [rows[name]["feature_fid_change"] for name in routed]
  assert "In the mean that is {:+.0%} and {:+.0%},".format(*(one["value"] for one in means)) in page
  assert all(low < 0 < high for low, high in (one["ci95"] for one in means))
  assert f"monolith's own three seeds are {max(single) - min(single):.0f} apart" in page
  assert f"alignment rises by {of(whole, 'alignment') - of(half, 'alignment'):.2f}." in page
  copied = max(row["copied"]["value"] for row in rows.values())
  assert f"{copied:.1%} of samples at most lie nearer" in page
  assert f"and {of(whole, 'real_fid'):.0f} for as many real ones" in page
  assert (
    all(row["runs"] == 3 for row in rows.values()) and "interval of three training seeds" in page
  )


def test_the_numbers_in_sentences_about_attribution_are_the_committed_results():
  scores: dict[str, list[dict[str, str]]] = {}
  with (ROOT / "results/cdm_attribution.csv").open() as file:
    for line in csv.DictReader(file):
      scores.setdefault(line["id"], []).append(line)
  first = lambda lines, way: max(lines, key=lambda line: float(line[way]))["source"]
  hits = {
    way: [name for name, lines in scores.items() if first(lines, way) == first(lines, "oracle")]
    for way in ("credit", "weight", "elbo", "guda")
  }
  clear = [name for name, of in scores.items() if max(float(one["oracle"]) for one in of) > 20]
  of_compartments = [set(hits[way]) for way in ("credit", "weight", "elbo")]
  assert [len(hit) for hit in of_compartments] == [12, 12, 12] and len(scores) == 16
  assert len(clear) == 9 and all(hit >= set(clear) for hit in of_compartments)
  page = flowing(PAGES["cdm"])
  assert "same source first for 12 of 16 pictures, and for each of the nine whose" in page
  assert f"GUDA's approximate unlearning names it for {len(hits['guda'])}." in page


def test_the_numbers_in_sentences_about_speed_are_the_committed_results():
  steps = {name: unet["steps"] for name, unet in result("benchmark_siss_step")["unets"].items()}
  ratio = lambda unet, step: f"{steps[unet][f'ours {step}']['ratio']:.2f}"
  cifar, mnist = (
    [ratio(unet, step) for step in ("plain", "siss")] for unet in ("cifar10", "mnist")
  )
  page = flowing(PAGES["speed"])
  assert f"reached are {' and '.join(cifar)} on the CIFAR-10 UNet, {' and '.join(mnist)} on" in page
  siss = f"SISS step takes {cifar[1]} of PyTorch's time on the CIFAR-10 UNet and {mnist[1]} on"
  assert siss in flowing(README)
  memory = [
    done[f"ours {step}"]["peak_mib"] / done[f"torch {step}"]["peak_mib"]
    for done in steps.values()
    for step in ("plain", "siss")
  ]
  assert f"in {min(memory):.1f} to {max(memory):.1f} times the memory" in page


def test_the_numbers_in_sentences_about_the_demo_and_about_siss_are_the_committed_results():
  page, (first, second) = flowing(PAGES["speed"]), result("demo")["launches"].values()
  times = f"takes {first['seconds']:.0f} s, and {second['seconds']:.0f} s when it is launched again"
  assert times in page
  share = second["compiling"] / first["compiling"]
  assert f"{first['compiling']:.0f} s the first time, then takes {share:.0%} of that" in page
  found = result("siss_over_plain")
  step = f"takes {found['ratio']:.2f} of a plain one: {found['steps']['siss']['passes']:.2f} F"
  assert f"{found['steps']['siss']['parameters']:,} parameters, a SISS step of" in page
  assert step in page


def test_the_numbers_in_sentences_about_sampling_are_the_committed_results():
  found, page = result("benchmark_sampling"), flowing(PAGES["speed"])
  ratios = {n: [r["ratio"] for r in found["sampling"] if r["batch"] == n] for n in (1, 16, 64, 256)}
  ends = {n: f"{min(each):.2f} to {max(each):.2f}" for n, each in ratios.items()}
  many = f"16 take {ends[16]}, 64 take {ends[64]}, and 256 take {ends[256]}: the target of .8 is"
  assert f"takes {ends[1]} of diffusers' time, {many}" in page
  shown = f"model takes {ends[1]} of diffusers' time, 256 of them {ends[256]}."
  assert shown in flowing(README)
  missed = {(r["model"], r["batch"]) for r in found["sampling"] if r["ratio"] >= 0.8}
  many = {(r["model"], 256) for r in found["sampling"]} - {("pretrain_fashion", 256)}
  assert missed == {("pretrain_emoji", 16), ("pretrain_emoji", 64), *many}
  rows = {row["sampler"]: row for row in found["samplers"] if row["model"] == "pretrain_mnist"}
  ddim, dpm = rows["DDIM, 50 steps"], rows["DPM-Solver++, 15 steps"]
  times = f"takes {dpm['ms_a_picture']:.0f} ms in place of {ddim['ms_a_picture']:.0f} in 50"
  fid = lambda v: "{:.0f} ({:.0f} to {:.0f})".format(v["value"], *v["ci95"])
  assert times in page
  assert f"FID of {fid(dpm['feature_fid'])} beside {fid(ddim['feature_fid'])}" in page
  uvit, classifier, inception = (f"{row['ratio']:.2f}" for row in found["others"])
  others = (
    f"takes {uvit} of PyTorch's time, the classifier of digits {classifier}, and the features"
  )
  assert f"{others} of FID {inception}," in page
  spent = {(r["solver"], r["probes"]): r for r in found["likelihoods"]}
  usual, close, whole = (
    spent[solver, 8] for solver in ("dopri5:0.001", "dopri5:1e-05", "siss:rk4")
  )
  assert f"takes {usual['seconds']:.1f} s with 8 probes and a tolerance of 1e-3" in page
  assert f"and {close['seconds']:.1f} s with 1e-5, for a difference smaller than" in page
  assert abs(close["value"] - usual["value"]) < usual["ci95"][1] - usual["ci95"][0]
  assert f"whole times only, it takes {whole['seconds']:.0f} s." in page
