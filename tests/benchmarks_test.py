"""The benchmark still runs, and its PyTorch steps take the gradients that this project takes."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from benchmarks import (
  cdm_sampling,
  class_methods,
  copy_protection,
  demo,
  gpu_cases,
  growth,
  little_sd_quality,
  little_sd_step,
  neighbours,
  sampling,
  sd_memory,
  sequence,
  siss_over_plain,
  siss_step,
  stable_diffusion,
  torch_reference,
  turns,
  verdict_level,
)
from jaxunlearn import adapters, methods, models, pipeline
from jaxunlearn.compiled import topology
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.weights import pretrained
from tests import latent_models, nets

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("module", "rows"),
  [
    (cdm_sampling, {"monolith", "top-1", "soft, LoRA merged"}),
    (class_methods, {"dimum"}),
    (copy_protection, {"geometric mean", "naive"}),
  ],
)
def test_quick_writes_a_table(module, rows, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["benchmark", "--quick", f"--out={tmp_path}"])
  module.main()
  (path,) = tmp_path.glob("*.json")
  found = json.loads(path.read_text())["rows"]
  assert rows <= {row["name"] for row in found}
  table = path.with_suffix(".md").read_text()
  assert all(f"| {row['name']} |" in table for row in found)


def test_sampling_is_timed_beside_diffusers(tmp_path):
  sampling.main(["--quick", f"--out={tmp_path}"])
  found = json.loads((tmp_path / "benchmark_sampling.json").read_text())
  assert [row["batch"] for row in found["sampling"]] == [1, 2]
  assert {row["sampler"] for row in found["samplers"]} == sampling.SAMPLERS.keys()
  assert all(row["ratio"] > 0 for row in found["sampling"] + found["others"])
  assert len(found["others"]) == 3 and found["likelihoods"][0]["seconds"] > 0
  assert "| pretrain_mnist | 2 |" in (tmp_path / "benchmark_sampling.md").read_text()


def test_the_second_launch_of_the_demo_loads_what_the_first_compiled(tmp_path):
  assert demo.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
  demo.main(["--quick", f"--out={tmp_path}"])
  first, second = json.loads((tmp_path / "demo.json").read_text())["launches"].values()
  assert 0 < second["compiling"] < first["compiling"] < first["seconds"]
  assert "| second |" in (tmp_path / "demo.md").read_text()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    (demo, "demo"),
    (little_sd_step, "little_sd_step"),
    (sampling, "benchmark_sampling"),
    (siss_over_plain, "siss_over_plain"),
    (siss_step, "benchmark_siss_step"),
  ],
)
def test_the_committed_page_is_that_of_the_committed_result(module, name):
  path = ROOT / "results" / f"{name}.json"
  assert path.with_suffix(".md").read_text() == module.markdown(json.loads(path.read_text()))


def test_the_committed_growth_is_drawn_from_the_committed_result():
  found = json.loads((ROOT / "results" / "growth.json").read_text())
  assert (ROOT / "results" / "growth.svg").read_text() == growth.svg(found["axes"])


def test_growth_fits_powers_and_draws_them(tmp_path):
  x = [2.0, 4.0, 8.0, 16.0]
  np.testing.assert_allclose(growth.exponents(x, [3 * v**1.5 for v in x]), (1.5, 1.5), rtol=1e-9)
  np.testing.assert_allclose(growth.exponents(x, [1, 1, 1, 4]), (0.6, 2), rtol=1e-9)
  command = [sys.executable, "-m", "benchmarks.growth", "--quick", f"--out={tmp_path}"]
  subprocess.run([*command, "--axes", "batch", "devices"], check=True, cwd=ROOT)
  axes = json.loads((tmp_path / "growth.json").read_text())["axes"]
  assert axes["batch"]["exponents"].keys() == {"seconds", "tflop", "memory"}
  assert axes["devices"]["points"][1]["sent"] > 0
  one, two = (point["tflop"] for point in axes["batch"]["points"])
  assert 1.9 < two / one < 2.1
  drawn = xml.etree.ElementTree.fromstring((tmp_path / "growth.svg").read_text())
  assert len(drawn.findall("{*}path[@class='frame']")) == 2
  assert "| batch, pictures | TFLOP |" in (tmp_path / "growth.md").read_text()


def test_the_geometric_mean_has_the_divergence_that_its_bound_says():
  """And Gaussians a distance d apart have -log Z = d^2 / 8 for two of them."""
  s = copy_protection.sources(2, 1.0, peak=0.0)
  x = np.linspace(-8, 8, 4001)
  q = copy_protection.density(s, x)
  p, bound = copy_protection.geometric(q, x[1] - x[0])
  assert bound == pytest.approx(1 / 8, rel=1e-3)
  kl = copy_protection.divergences(p, q, x[1] - x[0])
  assert kl.mean() == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("n", [2, 3])
def test_a_mixture_keeps_one_nth_of_a_memorised_point(n):
  """Whatever the sources are; a source alone keeps all of its own."""
  s, unmarked = (copy_protection.sources(n, 2.0, peak=peak) for peak in (0.1, 0.0))
  x = np.linspace(-12, 12, 24001)
  inside = copy_protection.within_peak(x, s)
  gained = (copy_protection.density(s, x) - copy_protection.density(unmarked, x))[:, inside]
  share = gained.sum(axis=1) * (x[1] - x[0])
  assert copy_protection.held(share[0], s) == pytest.approx(1, rel=1e-2)
  assert copy_protection.held(share.mean(), s) == pytest.approx(1 / n, rel=1e-2)


def test_the_committed_level_of_the_verdict_test_is_what_is_asked_for():
  """And its table has every case that the program has."""
  result = json.loads((ROOT / "results" / "verdict_level.json").read_text())
  assert [row["name"] for row in result["rows"]] == [case.name for case in verdict_level.CASES]
  low, high = verdict_level.ALLOWED
  for row in result["rows"]:
    assert not row["null"] or (row["draws"] == 1000 and low <= row["both"] <= high), row["name"]
  measured = verdict_level.measure(verdict_level.CASES[0], 2)
  assert measured["identity"].startswith("test=relative-f-divergence features=given n=100:100:100")


def test_a_sequence_of_requests_has_its_cost_and_its_evidence(tmp_path):
  """Two requests of one model, one of compartments; and what is done is not done again."""
  found = sequence.measure(tmp_path, 2, True, "all")
  siss, again = ([r for r in found["rows"] if r["request"] == n] for n in ("02", "again"))
  assert [(row["id"], row["steps"], row["passes"]) for row in siss] == [("mnist/00048", 1, 40)]
  assert [(row["id"], row["passes"]) for row in again] == [("tshirt/00000", 0)]
  (cdm,) = [row for row in found["rows"] if row["method"] == sequence.CDM]
  assert cdm["equal"] and cdm["passes"] == cdm["steps"] * 4 * 3
  for row in found["rows"]:
    assert {"p", "p_high", "fid"} <= row.keys(), row["method"]
  one, other = found["summaries"]
  assert found["anew"] == [1 * 8 * 3, 2 * 2 * 4 * 3]
  assert one["share"] == 40 / 24 and one["anew_from"] == 1 and one["seen"]
  assert other["share"] == cdm["passes"] / 48
  table = sequence.markdown(
    {"command": "c", "environment": {"machine": "m", "jax": "0", "load_before": 0}} | found
  )
  assert "| SISS λ=0.5 | 02 | mnist/00048 | 2 | 333.3% |" in table
  (tmp_path / "base" / "evals" / "after.json").unlink()  # nothing reads it again
  assert sequence.measure(tmp_path, 2, True, "all") == found


def test_a_sequence_says_from_where_training_anew_is_cheaper():
  row = lambda passes: {"request": "01", "passes": passes, "diverged": ""}
  of = lambda passes, whole: sequence.summary("m", [row(p) for p in passes], whole, {})
  assert (of([4, 4, 4], 10)["anew_from"], of([4, 4, 4], 10)["seen"]) == (3, True)
  assert (of([4, 4, 4], 40)["anew_from"], of([4, 4, 4], 40)["seen"]) == (11, False)
  assert of([0, 0], 40)["anew_from"] == 0
  names = [name.rpartition("_")[0] for name in sequence.sequence(10, False, "x").runs]
  assert {name: names.count(name) for name in sequence.METHODS} == dict.fromkeys(
    sequence.METHODS, 11
  )


def test_siss_is_timed_beside_a_plain_step():
  found = siss_over_plain.measure(siss_step.TINY, batch=2, rounds=1)
  plain, siss = (found["steps"][kind] for kind in siss_step.KINDS)
  assert found["ratio"] == siss["seconds"][0] / plain["seconds"][0]
  assert plain["passes"] == 3 <= siss["passes"] <= 5
  page = {"command": "c", "environment": {"machine": "m", "jax": "0", "load_before": 0}} | found
  assert f"| plain | 3.00 F | {plain['median_seconds']:.2f}" in siss_over_plain.markdown(page)


def test_a_pipeline_goes_in_and_out_and_is_timed(tmp_path):
  """The parts of benchmarks/stable_diffusion.py in one process, on tiny networks."""
  parts = {n: part(tmp_path, "tiny", 2) for n, part in stable_diffusion.PARTS.items()}
  assert parts["make"]["parameters"] == parts["read"]["parameters"] == parts["back"]["parameters"]
  assert parts["read"]["largest_difference"] < 1e-4 and parts["back"]["largest_difference"] < 1e-6
  run = {"seconds": 1.0, "peak_gib": 1.0}
  table = stable_diffusion.markdown(
    {
      "environment": {"machine": "one", "load_before": 0.0},
      "command": "python",
      "steps": 2,
      "parts": {name: run | part for name, part in parts.items()},
      "speed": {"forward": stable_diffusion.in_turn(lambda: sum(range(9)), lambda: None, 3)},
    }
  )
  assert all(f"| {title} | 1 |" in table for title in stable_diffusion.TITLES.values())


def test_quick_writes_every_step(tmp_path):
  # One thread: threads that wait for each other by spinning are slow beside other tests.
  ways = ["--devices", "2", "--micro_batches", "2", "--layouts", "channels_last"]
  quick = ["--quick", "--rounds=1", *ways]
  subprocess.run(
    [sys.executable, "-m", "benchmarks.siss_step", *quick, f"--out={tmp_path}"],
    cwd=ROOT,
    env=os.environ | {"OMP_NUM_THREADS": "1"},
    check=True,
  )
  result = json.loads((tmp_path / "benchmark_siss_step.json").read_text())
  steps = result["unets"]["tiny"]["steps"]
  assert set(steps) == {"ours plain", "torch plain", "ours siss", "torch siss"}
  assert {s["parameters"] for s in steps.values()} == {steps["ours plain"]["parameters"]}
  assert steps["torch plain"]["passes"] == steps["ours plain"]["passes"] == 3
  assert 3 <= steps["ours siss"]["passes"] <= steps["torch siss"]["passes"] == 5
  assert all(s["share_of_peak"] > 0 and s["peak_mib"] > 0 for s in steps.values())
  assert "| siss | torch (channels_last) |" in (tmp_path / "benchmark_siss_step.md").read_text()


def _both(seed=0):
  net = models.make("unet", **siss_step.TINY)
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda s: jnp.float32(rng.normal(0, 0.1, s.shape)), shapes)
  unet = UNet2DModel(**siss_step.TINY)
  state = pretrained.to_state_dict(params)
  unet.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
  return net, params, unet


def _check_equal(unet, theirs, ours):
  names = [name for name, _ in unet.named_parameters()]
  ours = pretrained.to_state_dict(ours)
  # The true gradient of to_k.bias is zero.
  theirs = {k: g.numpy() for k, g in zip(names, theirs, strict=True) if "to_k.bias" not in k}
  norm = np.sqrt(sum(float(np.sum(ours[k] ** 2)) for k in theirs))
  for name, g in theirs.items():
    np.testing.assert_allclose(g, ours[name], rtol=1e-4, atol=1e-5 * norm, err_msg=name)


def _nchw(image):
  return torch.from_numpy(np.array(image)).permute(0, 3, 1, 2)


def test_prompts_near_a_deleted_picture_and_what_became_of_them():
  near = neighbours.prompts_near("noto/whale", "limited edition whale poster")
  assert {kind: len(own) for kind, own in near.items()}["unrelated"] == 200
  assert "a fish emoji in noto style" in near["same subgroup"]
  assert "a spouting whale emoji in noto style" in near["a word in common"]
  assert not any(
    "whale" in text for kind, own in near.items() if "word" not in kind for text in own
  )
  rng = np.random.default_rng(0)
  before, again = (rng.uniform(-1, 1, (6, 64, 64, 3)).astype(np.float32) for _ in range(2))
  kinds = np.array(["same style"] * 3 + ["unrelated"] * 3)
  untouched, anew = (neighbours.measured(before, again, p, kinds) for p in (before, again))
  assert [row["prompts"] for row in untouched] == ["same style", "unrelated"]
  assert [row["change"] for row in untouched] == [0, 0]
  assert [row["change"] for row in anew] == pytest.approx([1, 1], rel=0.05)


def test_pictures_of_neighbours_are_drawn_once_and_by_one_launch(tmp_path):
  path, made = tmp_path / "some.npy", iter(np.arange(2))
  with pipeline.only_here(path.with_suffix(".lock")):
    assert neighbours.kept(path, lambda: next(made)) is None
  assert [neighbours.kept(path, lambda: next(made)) for _ in range(2)] == [0, 0]


def test_real_pictures_are_shown_as_often_as_they_are_recognised():
  texts, said = little_sd_quality.asked(2)
  assert len(texts) == len(said["group"]) == len(said["style"]) == 2 * 2 * 9
  images, are = little_sd_quality.real("group")
  rows = little_sd_quality.rows_of("group", images, are)
  assert {row["name"] for row in rows} == {*are, "all"}
  assert all(row["shown"] == row["real"] and row["n"] == row["n_real"] for row in rows)
  assert 0.6 < rows[-1]["real"] < 0.9
  assert "| group | all | " in little_sd_quality.markdown(rows, "command")


def test_the_gpu_benchmark_keeps_what_it_has_and_adds_to_it(tmp_path):
  run = lambda *parts: subprocess.run(
    [sys.executable, "-m", "benchmarks.gpu", "--quick", f"--out={tmp_path}", "--parts", *parts],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert run("matrix product").returncode == 0
  assert run("8 x U-ViT-S/2, top-1").returncode == 0
  (found,) = tmp_path.glob("gpu_*.json")
  parts = json.loads(found.read_text())["parts"]
  assert list(parts) == ["matrix product", "8 x U-ViT-S/2, top-1"]
  both = [row["framework"] for row in parts["matrix product"]]
  assert both == ["ours", "torch", "torch"] and parts["matrix product"][1]["ratio"] > 0
  assert all(row["tflops"] > 0 for rows in parts.values() for row in rows)
  page = found.with_suffix(".md").read_text()
  assert page.count("| matrix product |") == 3 and "8 x U-ViT-S/2, top-1" in page
  assert "'numbers'" in (wrong := run("number")).stderr and wrong.returncode == 2


def test_every_gpu_case_is_there_in_little():
  for name, case in gpu_cases.CASES.items():
    small = gpu_cases.SMALL[name]
    assert small.build == case.build and bool(small.torch_rows) == bool(case.torch_rows)
    assert gpu_cases.flops(small) < gpu_cases.flops(case)


def test_torch_siss_is_ours():
  net, params, unet = _both()
  process, method = Diffusion(), methods.make("siss", **siss_step.SISS)
  streams = siss_step.make_batch(siss_step.TINY, 4, 0)
  index = np.arange(4, dtype=np.int32)
  batch = {k: methods.Rows(jnp.asarray(v), None, index) for k, v in streams.items()}
  draws = method.draw(process, batch, jax.random.key(0), {}, 0)
  grads, _ = methods.term_grads(method, net.apply, params, process, draws, {}, (True, True))
  ours, _ = method.combine(grads, {})
  x, a, t = _nchw(draws["x"]), _nchw(draws["a"]), torch.from_numpy(np.array(draws["t"])).long()
  picked = torch.from_numpy(np.array(draws["from_a"]))[:, None, None, None]
  m_t = torch_reference.q_sample(torch.where(picked, a, x), t, _nchw(draws["eps"]))
  theirs = torch_reference.siss_direction(unet, x, a, t, m_t, **siss_step.SISS)
  _check_equal(unet, theirs, ours)


def test_torch_plain_is_ours():
  net, params, unet = _both()
  process, method = Diffusion(), methods.make("denoising")
  x = jnp.asarray(siss_step.make_batch(siss_step.TINY, 4, 0)["x"])
  batch = {"x": methods.Rows(x, None, np.arange(4, dtype=np.int32))}
  draws = method.draw(process, batch, jax.random.key(0), {}, 0)
  (ours,), _ = methods.term_grads(method, net.apply, params, process, draws, {}, (True,))
  t = torch.from_numpy(np.array(draws["t"])).long()
  theirs = torch_reference.plain_direction(unet, _nchw(draws["x"]), t, _nchw(draws["eps"]))
  _check_equal(unet, theirs, ours)


def test_what_is_timed_apart_has_a_process_of_its_own_and_rests_before_its_turn():
  asleep = turns.Apart(functools.partial, time.sleep)
  begin = time.perf_counter()
  took, kernel = asleep(0.05)
  assert 0.05 <= took <= time.perf_counter() - begin - turns.REST and 0 <= kernel < took
  with pytest.raises(EOFError):
    turns.Apart(functools.partial, os._exit)(3)
  asleep.stop()


def test_the_little_models_step_in_torch_has_our_loss():
  """On the same draws; and it moves both networks."""
  net = little_sd_step.network(quick=True)
  params, batch = little_sd_step.parameters(net), little_sd_step.batch_of(net, 8, 0)
  process = Diffusion(**little_sd_step.settings(8).process)
  t, eps = np.arange(8) * 120, batch["image"][::-1].copy()
  c = np.where(np.arange(8) == 3, little_sd_step.NULL, batch["c"])
  x, *rest = map(jnp.asarray, (batch["image"], c, t, eps))
  eps_fn = functools.partial(net.apply, jax.tree.map(jnp.asarray, params))
  ours = jax.jit(lambda: methods.denoising_loss(eps_fn, process, x, *rest))()
  model = little_sd_step.Theirs(net, params, 8)
  given = (_nchw(batch["image"]), torch.from_numpy(t), _nchw(eps), torch.from_numpy(c).long())
  np.testing.assert_allclose(model.loss(*given).item(), ours, rtol=1e-4)
  before = [leaf.detach().clone() for leaf in model.params]
  model(batch)
  assert all(torch.any(a != b) for a, b in zip(before, model.params, strict=True) if a.ndim > 1)


def test_what_waits_for_the_backward_pass_grows_with_the_rows():
  """And is less where blocks are recomputed; frozen weights are never counted in it."""

  def kept(micro_batches=1, **fields):
    net = dataclasses.replace(latent_models.NET, unet=dataclasses.replace(nets.TEXT_UNET, **fields))
    setup = latent_models.setup_of("siss", adapters.Trained("attn2"), net=net)
    config = setup.config.copy_and_resolve_references()
    config.train.update(batch=16, micro_batches=micro_batches)
    return sd_memory.kept(dataclasses.replace(setup, config=config))

  whole, halves, recomputed = kept(), kept(2), kept(remat=True)
  assert 0.45 < halves["temporaries"] / whole["temporaries"] < 0.55
  assert recomputed["temporaries"] < 0.6 * whole["temporaries"]
  assert halves["outputs"] == 2 * whole["outputs"]
  row = {**sd_memory.ROWS[0]._asdict(), "parameters": 12, "frozen": 3, "error": ""}
  cost = topology.Cost(**whole, resident=0, flops=0.0, collectives={})._asdict()
  table = sd_memory.markdown({sd_memory.ROWS[0].name: row | {"programs": {"gradients": cost}}})
  assert "| one GPU, traced | LoRA, rank 4 | 12 | bfloat16 | 16 | no | 24 GB and 80 GB |" in table


def test_photo_like_images_are_as_far_apart_as_photographs():
  x = siss_step.photo_like(np.random.default_rng(0), 256, 32)
  distance = np.linalg.norm((x[:128] - x[128:]).reshape(128, -1), axis=1)
  assert x.shape == (256, 32, 32, 3) and abs(x).max() <= 1
  np.testing.assert_allclose(distance.mean(), 38, atol=3)
