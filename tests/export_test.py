"""Exporting a run: which parameters, which curve, and clear words where there is no run."""

import dataclasses
import json
import shutil

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from absl import flags
from absl.testing import flagsaver

from jaxunlearn import checkpoint, export
from jaxunlearn.diffusion import Diffusion
from jaxunlearn.mesh import sharding
from jaxunlearn.reports import lineage, model_card
from jaxunlearn.reports.writer import Writer
from jaxunlearn.weights import pretrained
from tests import tiny_config, tiny_unet

NET = dataclasses.replace(
  tiny_unet.NET,
  block_out_channels=(8,),
  down_block_types=("DownBlock2D",),
  up_block_types=("UpBlock2D",),
)
PROCESS = Diffusion("scaled_linear", 900, 0.00085, 0.012)
PARAMS = tiny_unet.random_params(NET, seed=1)
EMA = tiny_unet.random_params(NET, seed=2)
STEPS = 450


def make_config(**overrides):
  """What a run that deletes the 12 T-shirts writes into config.json."""
  config = tiny_config.get_config("siss")
  config.init_from = "hub:google/ddpm-tiny@v2"
  with config.unlocked():
    config.model = {"name": "unet", **dataclasses.asdict(NET)}
  config.process.update(dataclasses.asdict(PROCESS))
  config.update(overrides)
  return json.loads(config.to_json(sort_keys=True))


def make_run(directory, ema):
  """A run's working directory at step 450, killed at step 460, with and without an average."""
  older = checkpoint.State(jnp.int32(400), EMA, PARAMS if ema else {}, {}, {})
  newest = checkpoint.State(jnp.int32(STEPS), PARAMS, EMA if ema else {}, {}, {})
  where = sharding.replicated(sharding.make_mesh(data=1))
  saves = checkpoint.Checkpoints(directory / "checkpoints")
  saves.save(sharding.put(older, where))
  saves.save(sharding.put(newest, where))
  saves.wait()
  saves.close()
  config = make_config(ema=0.99 if ema else 0.0, train={"steps": 500})
  (directory / "config.json").write_text(json.dumps(config))
  with Writer(directory / "metrics.jsonl") as writer:
    for step in range(1, STEPS + 10):
      writer.write_scalars(step, {"loss_x": 1 / step, "loss_a": float(step), "grad_norm": 2.0})
      if step % 100 == 0:
        writer.write_scalars(step, {"target_rate": 0.5})
  return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("run"), ema=True)


@pytest.fixture(scope="module")
def run_without_ema(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("no_ema"), ema=False)


def assert_holds(folder, want):
  got = pretrained.load(folder, tiny_unet.shapes(NET))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_the_average_is_exported_with_its_loss_curve(run, tmp_path):
  line = export.export(run, tmp_path / "out")
  assert_holds(tmp_path / "out", EMA)
  count = sum(leaf.size for leaf in jax.tree.leaves(EMA))
  assert line == f"wrote ema of {run} at step 450 ({count:,} parameters) to {tmp_path / 'out'}"
  training = json.loads((tmp_path / "out" / "training.json").read_text())
  assert training["weights"] == "ema"
  assert training["final_step"] == STEPS
  assert training["train"] == make_config(train={"steps": 500})["train"]
  step = np.array(training["step"])
  assert (len(step), step[0], step[-1]) == (200, 1, STEPS)
  assert set(np.diff(step)) == {2, 3}
  np.testing.assert_array_equal(training["loss_x"], 1 / step)
  np.testing.assert_array_equal(training["loss_a"], step)


def test_raw_parameters_on_request_and_where_there_is_no_average(run, run_without_ema, tmp_path):
  old = tmp_path / "raw/model.sig"  # of another export
  old.parent.mkdir()
  old.touch()
  assert "params of" in export.export(run, tmp_path / "raw", raw=True)
  assert not old.exists()
  assert "params of" in export.export(run_without_ema, tmp_path / "no_ema")
  assert_holds(tmp_path / "raw", PARAMS)
  assert_holds(tmp_path / "no_ema", PARAMS)


def test_half_precision_on_request(run, tmp_path):
  sizes = {}
  for half in (False, True):
    export.export(run, tmp_path / f"{half}", half=half)
    sizes[half] = (tmp_path / f"{half}" / pretrained.WEIGHTS).stat().st_size
  assert sizes[True] < 0.6 * sizes[False]
  assert_holds(tmp_path / "True", jax.tree.map(lambda x: np.float32(np.float16(x)), EMA))


def test_the_run_is_left_as_it_was_but_for_its_lineage(run, tmp_path):
  files = lambda: {
    p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != lineage.FILE
  }
  before = files()
  export.export(run, tmp_path / "out")
  assert files() == before


def test_short_curves_are_whole():
  lines = [{"step": s, "loss_x": float(s)} for s in (1, 2, 3)]
  assert export.loss_curve(lines, 2) == {"step": [1, 2], "loss_x": [1.0, 2.0]}
  assert export.loss_curve([], 2) == {"step": []}


def test_the_folder_is_whole_and_diffusers_own(run, tmp_path):
  out = tmp_path / "out"
  export.export(run, out)
  made = [*("README.md", "config.json", "diffusion_pytorch_model.safetensors"), "lineage.json"]
  assert sorted(path.name for path in out.iterdir()) == [
    *made,
    "model_index.json",
    "scheduler_config.json",
    "training.json",
  ]
  pipeline = diffusers.DDPMPipeline.from_pretrained(out)
  alone = diffusers.UNet2DModel.from_pretrained(out)
  want = pretrained.to_state_dict(EMA)
  for unet in (pipeline.unet, alone):
    got = unet.state_dict()
    assert got.keys() == want.keys()
    for name, value in got.items():
      np.testing.assert_array_equal(value.numpy(), want[name], name)
  np.testing.assert_allclose(pipeline.scheduler.alphas_cumprod.numpy(), PROCESS.abar, rtol=1e-4)
  assert type(pipeline.scheduler) is diffusers.DDPMScheduler
  model, process = pretrained.read_config(out)
  assert Diffusion(**process) == PROCESS and model["patch_size"] == 1


SAMPLERS = [
  diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=False),
  diffusers.DDIMScheduler(set_alpha_to_one=False, timestep_spacing="trailing"),
  diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
  diffusers.DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True),
]


@pytest.mark.parametrize("theirs", SAMPLERS, ids=lambda kind: type(kind).__name__)
def test_the_sampler_of_an_export_is_that_of_its_base(theirs, run, tmp_path):
  theirs.save_pretrained(tmp_path / "base")
  found = pretrained.read_scheduler(tmp_path / "base")
  copy = shutil.copytree(run, tmp_path / "run")
  config = json.loads((copy / "config.json").read_text())
  config |= {"process": found.process, "sampler": found.sampler, "scheduler": found.rest}
  (copy / "config.json").write_text(json.dumps(config))
  export.export(copy, tmp_path / "out")
  again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out").scheduler
  meant = lambda kind: {k: v for k, v in kind.config.items() if not k.startswith("_")}
  assert type(again) is type(theirs) and meant(again) == meant(theirs)


def command(*argv):
  with flagsaver.flagsaver():
    export.main(flags.FLAGS(["export", *argv]))


def test_the_command_prints_one_line(run, tmp_path, capsys):
  command(f"--run={run}", f"--out={tmp_path / 'out'}", "--raw")
  out = capsys.readouterr().out
  assert out.startswith("wrote params of ") and out.count("\n") == 1
  assert_holds(tmp_path / "out", PARAMS)


def no_config(run):
  (run / "config.json").unlink()


def of_diffusers(run):
  (run / "config.json").write_text('{"_class_name": "UNet2DModel"}')


def cut_off(run):
  (run / "config.json").write_text('{"model"')


def of_another_model(run):
  config = json.loads((run / "config.json").read_text())
  config["model"]["block_out_channels"] = [16]
  (run / "config.json").write_text(json.dumps(config))


def no_checkpoint(run):
  shutil.rmtree(run / "checkpoints")


def no_data(run):
  config = make_config(ema=0.99)
  config["data"]["source"] = "mnist_shirt"
  (run / "config.json").write_text(json.dumps(config))


def out_is_a_file(run):
  (run / "out").write_text("")


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (no_config, "give a run's working directory"),
    (of_diffusers, "config.json is not a run's; give a run's working directory"),
    (cut_off, "give a run's working directory"),
    (of_another_model, "use the model and method it was saved with"),
    (no_checkpoint, "holds no checkpoint"),
    (out_is_a_file, "is a file; give --out another name"),
    (no_data, "no data source 'mnist_shirt' (did you mean 'mnist_tshirt'?)"),
  ],
)
def test_what_cannot_be_exported_is_one_line_and_exit_2(spoil, message, run, tmp_path, capsys):
  copy = shutil.copytree(run, tmp_path / "run")
  spoil(copy)
  with pytest.raises(SystemExit, match="2"):
    command(f"--run={copy}", f"--out={copy / 'out'}")
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  assert message in error
  assert not (copy / "out").is_dir()


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--deleted=names", "no way to tell what was deleted 'names'; there are: ids, sha256, count"),
    ("--license=MIT: no", "license 'MIT: no' is no licence id; give one like apache-2.0"),
  ],
)
def test_a_wrong_flag_is_one_line_and_exit_2(flag, message, run, tmp_path, capsys):
  with pytest.raises(SystemExit, match="2"):
    command(f"--run={run}", f"--out={tmp_path / 'out'}", flag)
  assert capsys.readouterr().err == f"error: {message}\n"
  assert not (tmp_path / "out").exists()


def test_a_missing_flag_is_one_line_and_exit_2(capsys):
  with pytest.raises(SystemExit, match="2"):
    command("--run=somewhere")
  assert capsys.readouterr().err == (
    "error: --run or --out is missing; try --run=runs/NAME --out=FOLDER\n"
  )


# The model card.

DIGEST = "9cf80d28fd40cb6b47fbe6cc085cbcbaf769565e1d9181a533d2540d5b3bb095"
MADE = "sampler=ddpm steps=25 n=512 guidance=none weights=ema seed=0"
IDENTITY = f"extractor=pixels target=tshirt:1:d3d5f5fe radius=10 {MADE}"
SPLITS = "extractor=digit_classifier:0571d996b6b1 removed=target"
BEFORE = {
  "tshirt_rate": {"value": 0.03125, "ci95": [0.0193, 0.0502], "identity": IDENTITY},
  "inception_score": {"value": 7.2114, "ci95": [6.942, 7.4807], "identity": f"{SPLITS} {MADE}"},
}
AFTER = {
  "tshirt_rate": {"value": 0.0, "ci95": [0.0, 0.00745], "identity": IDENTITY},
  "inception_score": {"value": float("nan"), "ci95": None, "identity": f"{SPLITS} {MADE}"},
}


def card(directory, config=None, phases=None, item="ema", **options):
  """(YAML header, the text under it) of a run that has only a config and evaluations."""
  (directory / "evals").mkdir(exist_ok=True)
  for phase, values in ({"before": BEFORE, "after": AFTER} if phases is None else phases).items():
    (directory / "evals" / f"{phase}.json").write_text(json.dumps(values))
  config = config or make_config()
  text = model_card.render(directory, config, item, 12, model_card.Options(**options))
  _, header, body = text.split("---\n", 2)
  return yaml.safe_load(header), body


def test_the_header_is_what_the_run_and_the_flags_say(tmp_path):
  header, _ = card(tmp_path, license="apache-2.0")
  assert header == {
    "license": "apache-2.0",
    "library_name": "diffusers",
    "base_model": "google/ddpm-tiny",
    "tags": ["diffusers", "unconditional-image-generation", "machine-unlearning"],
  }
  assert card(tmp_path)[0]["license"] == "unknown"
  assert card(tmp_path, base="me/mine")[0]["base_model"] == "me/mine"
  assert "base_model" not in card(tmp_path, make_config(init_from="runs/mine"))[0]
  assert "base_model" not in card(tmp_path, base="a model: of mine")[0]


def test_how_it_was_made_is_the_config(tmp_path):
  config = make_config(train={"micro_batches": 4})
  _, body = card(tmp_path, config)
  lines = body.splitlines()
  assert "# UNet2DModel, 12 records deleted by `siss`" in lines
  assert "- Started from: `hub:google/ddpm-tiny@v2`" in lines
  method = "forget_ratio=0.1, lam=0.5, skip_below=1e-08, stratified=True"
  assert f"- Method: `siss ({method})`" in lines
  assert "- Streams: `x=retain, a=forget`" in lines
  assert "- Steps: `12 of 12`" in lines
  assert "- Batch: `16 in 4 micro-batches`" in lines
  assert (
    "- Process: `T=900, beta_1=0.00085, beta_T=0.012, prediction=epsilon, schedule=scaled_linear`"
    in lines
  )
  assert "- Parameters: `averaged (EMA, largest decay 0.99)`" in lines
  for name, value in config["optimizer"].items():
    assert f"{name}={value}" in body
  assert "- Started from: `me/mine`" in card(tmp_path, base="me/mine")[1]
  assert "- Started from: `random parameters`" in card(tmp_path, make_config(init_from=""))[1]


def test_what_was_deleted_is_told_as_the_owner_chose(tmp_path):
  told = lambda how: card(tmp_path, deleted=how)[1]
  ids, digests, count = map(told, ("ids", "sha256", "count"))
  assert ids.count("- `tshirt/") == 12 and DIGEST not in ids
  assert f"- `{DIGEST}` (12 records)" in digests and "`tshirt/" not in digests
  for body in (ids, digests, count):
    assert "Deleted by this run: 12 records" in body
  assert DIGEST not in count and "`tshirt/" not in count and "d3d5f5fe" not in count
  assert "d3d5f5fe" in digests and "target=withheld" in count
  assert "Which ones is withheld." in count


def test_what_earlier_runs_deleted_is_told_too(tmp_path):
  config = make_config()
  config["forget"] = {"ids": ["mnist/00003"], "earlier": ["mnist/00001", "mnist/00002"]}
  _, body = card(tmp_path, config, deleted="ids")
  assert "# UNet2DModel, 1 record deleted by" in body
  assert "Deleted by this run: 1 record, by record id:\n\n- `mnist/00003`\n" in body
  assert (
    "Deleted by runs before it: 2 records, by record id:\n\n- `mnist/00001`\n- `mnist/00002`"
    in body
  )


@pytest.mark.parametrize(
  ("method", "streams", "does"),
  [
    ("denoising", {"x": "all", "a": "forget"}, False),  # reads x only
    ("denoising", {"x": "forget"}, False),  # a relearning attack
    ("denoising", {"x": "retain"}, True),
    ("neggrad", {"x": "all", "a": "forget"}, True),
    ("siss", {"x": "all", "a": "forget"}, True),
  ],
)
def test_only_a_run_that_deletes_is_said_to(method, streams, does, tmp_path):
  config = make_config()
  config["method"], config["streams"] = {"name": method}, streams
  header, body = card(tmp_path, config)
  assert ("machine-unlearning" in header["tags"]) == does == (DIGEST in body)
  assert (f"# UNet2DModel, trained by `{method}`" in body) == (not does)
  assert ("Nothing: no record was kept out" in body) == (not does)


def test_a_model_that_never_saw_them_had_nothing_deleted(tmp_path):
  config = make_config(init_from="")
  config["method"], config["streams"] = {"name": "denoising"}, {"x": "retain"}
  header, body = card(tmp_path, config)
  assert "machine-unlearning" not in header["tags"]
  assert "# UNet2DModel, 12 records left out by `denoising`" in body
  assert "Left out by this run: 12 records" in body


def test_every_metric_stands_with_its_interval_and_identity(tmp_path):
  _, body = card(tmp_path)
  assert "| metric | `before` | `after` |\n|---|---|---|\n" in body
  assert "| `tshirt_rate` | 0.03125 [0.0193, 0.0502] | 0 [0, 0.00745] |\n" in body
  assert "| `inception_score` | 7.211 [6.942, 7.481] | nan  |\n" in body
  assert f"- `tshirt_rate` (before, after): `{IDENTITY}`\n" in body
  assert f"- `inception_score` (before, after): `{SPLITS} {MADE}`\n" in body
  assert "comparable only if all of this is equal" in body


def test_the_limits_are_said(tmp_path):
  _, body = card(tmp_path)
  assert "A rate of 0 is no proof of forgetting" in body
  assert "A relearning attack was not run" in body
  assert "these are the raw ones" not in body
  _, raw = card(tmp_path, item="params")
  assert "- Parameters: `raw`" in raw and "averaged parameters; these are the raw ones" in raw
  _, attacked = card(tmp_path, phases={"attack": BEFORE})
  assert "A relearning attack was not run" not in attacked
  assert "The only attacks or later phases evaluated are: attack" in attacked


def test_a_run_without_evaluations_says_so(tmp_path):
  _, body = card(tmp_path, phases={})
  assert "This run was not evaluated." in body and "| metric |" not in body


def test_the_folded_images_are_explained_where_they_are(tmp_path):
  assert "unfolded" not in card(tmp_path)[1]
  _, body = card(tmp_path, make_config(model={"patch_size": 2}))
  assert 'images, "b (p q c) h w -> b c (h p) (w q)", p=2, q=2)' in body
  assert "4 times the channels" in body


def test_a_class_conditional_unet_of_diffusers_is_no_pipeline(tmp_path):
  _, body = card(tmp_path, make_config(model={"num_class_embeds": 3, "classes": (3,)}))
  assert "UNet2DModel.from_pretrained" in body and "DDPMPipeline" not in body


EVIL = 'a`b\n---\n| c: "d" <script>'


def test_no_text_of_the_run_breaks_the_card(tmp_path):
  config = make_config(init_from=EVIL)
  values = {EVIL: {"value": 1.0, "ci95": None, "identity": EVIL}}
  header, body = card(tmp_path, config, phases={"after": values})
  assert header.keys() == {"license", "library_name", "tags"}
  assert '- Started from: `` a`b --- | c: "d" <script> ``\n' in body
  assert '| `` a`b --- \\| c: "d" <script> `` | 1  |\n' in body
  outside = [line for line in body.splitlines() if "``" not in line]
  assert not any("<script>" in line or line == "---" for line in outside)
