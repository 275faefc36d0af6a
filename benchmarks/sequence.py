"""Ten requests to delete, one after the other: cost, evidence and harm after each, by method.

  python -m benchmarks.sequence --out=results     (an hour or more on 2 idle cores; resumes)
  python -m benchmarks.sequence --quick           (a smoke test: two requests, tiny networks)

The embedded base model of digits first deletes the T-shirt, which it draws, then single digits, by
the steps of configs/table_mnist.py. Each request is a run that starts from the one before; what was
deleted is in no stream any more, as configs/siss_celeba_sequence.py has it in its form `restarted`.
Last, the T-shirt is looked for once more. `--part=models`, launched twice at once on a core each,
shares these runs: 28 minutes, and 12 for what follows. A compartmentalised model deletes ten
records exactly, from its last checkpoints that had not seen them; every shard is then compared, bit
by bit, with one trained without them.

A cost is in rows x network passes, a forward being one and a backward two. Training anew without
all ten costs the same as the first training did; from the request on where the sum of the deletions
is more, it is cheaper. Work stands in --workdir, and is gone on with.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks import pages
from benchmarks.siss_step import environment
from configs import cdm_digits_clothes, pretrain_mnist, siss_mnist, table_mnist
from jaxunlearn import data, evals, library, pipeline
from jaxunlearn.answer import plan
from jaxunlearn.cdm import delete
from jaxunlearn.cdm import run as compartments

TABLE = {variant: (label, steps) for label, (variant, steps, _) in table_mnist.METHODS.items()}
METHODS = {variant: TABLE[variant] for variant in ("siss", "siss_no_is", "neggrad", "naive")}
CDM, MODE = "CDM", "top1"
REQUESTS = 10
SHARD_STEPS, SLICES = 200, 4
P, P_HIGH = "membership_pia/deleted-p", "membership_pia/deleted-p-high"
METRICS = ("target_rate", "inception_score", "feature_fid", "membership")
TINY = {
  "patch_size": 4,
  "attention_head_dim": 8,
  "block_out_channels": (8,),
  "down_block_types": ("DownBlock2D",),
  "up_block_types": ("UpBlock2D",),
  "norm_num_groups": 4,
}


# One model, trained further for each request.


def sequence(requests: int, quick: bool, out: str) -> ConfigDict:
  """The pipeline of all runs: base, METHOD_1 ... METHOD_N, METHOD_again."""
  config = ConfigDict({"runs": {}, "rows": (), "columns": (("target_rate", "rate"),)})
  config.published, config.out = (), out
  chosen = tuple(METHODS)[: 1 if quick else None]
  ids = request_ids(requests, 96 if quick else 8500)
  add(config, "base", base(ids[0], quick))
  for method in chosen:
    before, steps = "base", 1 if quick else METHODS[method][1]
    for i, name in enumerate(ids):
      run = siss_mnist.deletion(model(quick), f"run:{before}", method)
      run.train.update(steps=steps, checkpoint_every=steps)
      before = f"{method}_{i + 1:02d}"
      add(config, before, measured(run, name, ids[:i], quick))
    again = table_mnist.trained(pretrain_mnist, "pretrain_mnist")
    again.update({"model": model(quick).model, "data": model(quick).data})
    again.init_from = f"run:{before}"
    add(config, f"{method}_again", measured(again, ids[0], ids[1:], quick))
  return config


def request_ids(requests: int, digits: int) -> tuple[str, ...]:
  """The T-shirt, then digits from all over the set."""
  return ("tshirt/00000", *(f"mnist/{i * digits // requests:05d}" for i in range(1, requests)))


def model(quick: bool) -> ConfigDict:
  """The base model's config; of a smoke test a tiny one."""
  config = pretrain_mnist.get_config()
  if quick:
    config.model.update(TINY)
    config.data.update(digits=96, share=1 / 9)
  return config


def base(first: str, quick: bool) -> ConfigDict:
  """The model before any request, as it is; of a smoke test after one step from random."""
  config = table_mnist.trained(pretrain_mnist, "pretrain_mnist")
  config.update({"model": model(quick).model, "data": model(quick).data})
  if quick:
    config.init_from = ""
    config.train.update(steps=1, batch=8)
  return measured(config, first, (), quick)


def measured(config: ConfigDict, name: str, gone: Sequence[str], quick: bool) -> ConfigDict:
  """The config with its request, and the evaluation that all share."""
  config.forget.update(label="", ids=(name,), earlier=tuple(gone))
  config.eval.target_name = "target"
  if not name.startswith("tshirt"):  # the radius of the base model is the T-shirt's
    config.eval.target_radius = plan.radius(data.load(**config.data)[0], [name])
  config.eval.update(metrics=METRICS, samples=256, before=False, every=0)
  config.eval.update(membership_attacks=("pia",), membership_kept=64, membership_heldout=1000)
  if quick:
    config.eval.update(samples=8, batch=8, steps=2, membership_heldout=20, membership_kept=20)
    config.eval.reference = "retain"  # the held-out digits are thousands
    config.train.batch = 8
  return config


def add(config: ConfigDict, name: str, run: ConfigDict) -> None:
  config.runs[name] = run
  config.rows += ((name, (name,), ()),)


def rows_of(config: ConfigDict, workdir: pathlib.Path) -> list[dict[str, Any]]:
  """A row a request of each method."""
  out = []
  for name, run in config.runs.items():
    method, _, number = name.rpartition("_")
    if method not in METHODS:
      continue
    found = pipeline.outcome_of(workdir / name) or {}
    row = {"method": METHODS[method][0], "request": number, "steps": run.train.steps}
    row["passes"] = plan.passes(run.to_dict()) if number != "again" else 0
    row["id"], row["diverged"] = run.forget.ids[0], found.get("diverged", "")
    out.append(row | values(found.get("after", {})))
  return out


def values(after: dict[str, Any]) -> dict[str, Any]:
  """The entries that the table shows, by short names."""
  rate = next((n for n in after if n.endswith("_rate")), "")
  names = {"rate": rate, "p": P, "p_high": P_HIGH, "is": "inception_score", "fid": "feature_fid"}
  return {short: after[name] for short, name in names.items() if name in after}


def anew(config: ConfigDict) -> int:
  """Rows x passes of the first training."""
  given = data.ASSETS / "pretrain_mnist" / "training.json"
  train = json.loads(given.read_text())["train"] if config.runs.base.init_from else None
  train = train or config.runs.base.train
  return train["steps"] * train["batch"] * 3


# Compartments.


def of_sources(workdir: pathlib.Path, requests: int, quick: bool) -> dict[str, Any]:
  """The rows of a compartmentalised model, and what training it anew costs."""
  path = workdir / "cdm.json"
  done = json.loads(path.read_text()) if path.exists() else {}
  if not done:
    first = compartments.run(sources_config(quick), workdir / "cdm")
    cdm = delete.open_run(workdir / "cdm")
    known = sorted(cdm.sources)
    picked = [known[i * len(known) // requests] for i in range(requests)]
    done = {"ids": picked, "before": first[MODE], "rows": []}
    path.write_text(json.dumps(done, indent=2) + "\n")
  for number in range(len(done["rows"]), requests):
    done["rows"].append(delete_one(workdir / "cdm", done["ids"][number], number))
    path.write_text(json.dumps(done, indent=2) + "\n")
  cdm = delete.open_run(workdir / "cdm")
  whole = sum(shard.steps for shard in cdm.shards().values())
  return {**done, "anew": whole * cdm.config.train.batch * 3}


def sources_config(quick: bool) -> ConfigDict:
  config = cdm_digits_clothes.compartments("class", 2 if quick else 4)
  config.train.update(steps=SHARD_STEPS, checkpoint_every=SHARD_STEPS // SLICES)
  config.eval.samples = 256
  config.compose.update(modes=(MODE,), alone=False, attributed=1, attribution_probes=2)
  if quick:
    config.model.update(TINY)
    config.init_from = ""
    config.data.update(digits=9800, heldout=50, public=0.95)
    config.train.update(steps=2, batch=4, checkpoint_every=1)
    config.sources.slices = 2
    config.router = ConfigDict({"name": "kmeans", "k": 2})
    config.eval.update(samples=8, batch=8, steps=2)
    config.compose.calibration_levels = 1
  return config


def delete_one(run: pathlib.Path, name: str, number: int) -> dict[str, Any]:
  """Deletes a record, or goes on where that was stopped; its row."""
  cdm = delete.open_run(run)
  cdm.settle()
  if name in cdm.sources:
    delete.delete(cdm, [name])
  record = delete.finish(cdm)
  (item,) = record["plan"]
  cdm = delete.open_run(run)
  delete.prove(cdm, [item["source"]])
  cost = item["steps"] - item["restart"]
  row = {"method": CDM, "request": f"{number + 1:02d}", "id": name, "steps": cost, "diverged": ""}
  row["passes"] = cost * cdm.config.train.batch * 3
  return row | {"equal": True} | values({**record["after"][MODE], **membership(cdm, name)})


def membership(cdm: Any, name: str) -> dict[str, Any]:
  """What an attack finds of the deleted record in the composed model."""
  everything, heldout = cdm.setup.train, cdm.setup.heldout
  gone = everything.ids == name
  kept = np.flatnonzero(~gone)[:: max(1, len(gone) // 64)][:64]
  like = [other.startswith(f"{name.partition('/')[0]}/") for other in heldout.ids]
  split = evals.Split(
    kept=everything.take(kept),
    deleted=everything.take(np.flatnonzero(gone)),
    like_kept=heldout,
    like_deleted=heldout.take(np.flatnonzero(like)),
  )
  eps_fn = cdm.eps_fn(cdm.model(cdm.train()), cdm.modes[MODE])
  found = library.measure(
    ["membership"],
    eps_fn,
    cdm.setup.process,
    reference=heldout,
    samples=1,
    steps=1,
    split=split,
    membership_attacks=("pia",),
    weights="ema",
  )
  return {key: value._asdict() for key, value in found.items()}


# The tables.


def summary(name: str, rows: Sequence[dict[str, Any]], whole: int, first: dict) -> dict[str, Any]:
  """What ten requests come to, by one method."""
  requests = [row for row in rows if row["request"] != "again"]
  again = [row for row in rows if row["request"] == "again"]
  sums = np.cumsum([row["passes"] for row in requests]).tolist()
  dearer = [i + 1 for i, passes in enumerate(sums) if passes > whole]
  mean = sums[-1] / len(sums)
  return {
    "method": name,
    "share": mean / whole,
    "anew_from": dearer[0] if dearer else int(whole // mean) + 1 if mean else 0,
    "seen": bool(dearer),
    "before": values(first),
    "last": requests[-1],
    "diverged": sum(bool(row["diverged"]) for row in requests),
    "again": again[0] if again else {},
  }


def markdown(result: dict[str, Any]) -> str:
  lines = [
    "# Ten requests, one after the other",
    "",
    pages.made(result["command"], result["environment"]),
    "",
    "Training anew: as many rows times network passes as the first training. Values before the "
    "first request, and after the last.",
    "",
    "| | a request, of training anew | anew is cheaper from request | IS | feature FID "
    "| T-shirt rate before | and at the end |",
    "|---|---|---|---|---|---|---|",
  ]
  for one in result["summaries"]:
    later = "" if one["seen"] else ", by extrapolation"
    ends = [_change(one, name) for name in ("is", "fid")]
    shirt = [_value(one["before"].get("rate")), _value(one["again"].get("rate"))]
    dear = f"{one['anew_from']}{later}" if one["anew_from"] else "none"
    cells = [f"{one['share']:.1%}", dear, *ends, *shirt]
    lines.append(f"| {one['method']} | {' | '.join(cells)} |")
  lines += [
    "",
    "| | request | record | steps so far | of training anew | its rate | p, PIA "
    "| p of the other end | IS | feature FID |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  sums: dict[str, list[int]] = {}
  for row in result["rows"]:
    total = sums.setdefault(row["method"], [0, 0])
    total[0] += row["steps"]
    total[1] += row["passes"]
    whole = result["anew"][row["method"] == CDM]
    shown = [_value(row.get(name)) for name in ("rate", "p", "p_high", "is", "fid")]
    head = [row["method"], row["request"], row["id"], str(total[0]), f"{total[1] / whole:.1%}"]
    note = ["diverged"] if row["diverged"] else []
    lines.append(f"| {' | '.join([*head, *(note or shown[:1]), *shown[1:]])} |")
  lines += [
    "",
    f"{CDM}: every bit of each shard that was trained again equals one that never had the record, "
    f"in {sum(row.get('equal', False) for row in result['rows'])} of "
    f"{sum(row['method'] == CDM for row in result['rows'])} requests.",
  ]
  return "\n".join(lines)


def _value(entry: dict[str, Any] | None) -> str:
  if entry is None:
    return "-"
  ends = entry["ci95"]
  span = f" [{float(ends[0]):.3g}, {float(ends[1]):.3g}]" if ends else ""
  return f"{float(entry['value']):.3g}{span}"


def _change(one: dict[str, Any], name: str) -> str:
  pair = [phase.get(name) for phase in (one["before"], one["last"])]
  return " → ".join(f"{float(entry['value']):.3g}" if entry else "-" for entry in pair)


def measure(workdir: pathlib.Path, requests: int, quick: bool, part: str) -> dict[str, Any]:
  """Runs what is not done yet, and collects everything."""
  workdir.mkdir(parents=True, exist_ok=True)
  config = sequence(requests, quick, str(workdir / "runs_table"))
  if part != "cdm":
    pipeline.run(config, workdir)
  if part == "models":
    return {}
  cdm = of_sources(workdir, 1 if quick else requests, quick)
  rows = [*rows_of(config, workdir), *cdm["rows"]]
  first = (pipeline.outcome_of(workdir / "base") or {}).get("after", {})
  whole = [anew(config), cdm["anew"]]
  names = list(dict.fromkeys(row["method"] for row in rows))
  mine = lambda name: [row for row in rows if row["method"] == name]
  befores = {CDM: cdm["before"]}
  summaries = [summary(n, mine(n), whole[n == CDM], befores.get(n, first)) for n in names]
  return {"rows": rows, "anew": whole, "summaries": summaries}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add_to = parser.add_argument
  add_to("--out", type=pathlib.Path, help="write sequence.{md,json} there")
  add_to("--workdir", type=pathlib.Path, default=pathlib.Path("runs/sequence"))
  add_to("--requests", type=int, default=REQUESTS)
  add_to("--part", default="all", choices=("all", "models", "cdm"), help="models: no table")
  add_to("--quick", action="store_true")
  args = parser.parse_args()
  requests = 2 if args.quick else args.requests
  load = environment()
  found = measure(args.workdir, requests, args.quick, args.part)
  if not found:
    return
  command = " ".join(["python -m benchmarks.sequence", *sys.argv[1:]])
  result = {"command": command, "environment": load, **found}
  pages.write(args.out, "sequence", result, markdown(result) + "\n")
  print(markdown(result))


if __name__ == "__main__":
  main()
