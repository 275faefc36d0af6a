"""benchmarks/sd_cpu.py in miniature and in one process: find, delete, measure, PyTorch, export."""

import diffusers
import pytest

from benchmarks import sd_cpu, stable_diffusion
from jaxunlearn import export, train
from jaxunlearn.commands import memorised


@pytest.mark.parametrize("trained", ["attn2"])
def test_what_is_found_is_deleted_as_in_pytorch_and_goes_back(tmp_path, monkeypatch, trained):
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
  stable_diffusion.make("tiny", tmp_path / "base")
  sd_cpu.save_prompts(tmp_path)
  memorised.find(memorised.asked_of(memorised.parse(sd_cpu.find_flags(tmp_path))))
  config = sd_cpu.config_of(tmp_path, "tiny", trained)
  config.mesh.data = 1
  results = train.run(config, tmp_path / "run")
  assert {"memorised_kmeans_rate", "text_noise", "one_step_original"} <= results["after"].keys()
  step = sd_cpu.step_in_torch(tmp_path, config)
  assert step["arrays"] > 5 and 0 < step["apart_over_step"] < 0.05
  export.export(tmp_path / "run", tmp_path / "out")
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
  assert pipe(sd_cpu.PROMPT, num_inference_steps=2, output_type="np").images.shape[-1] == 3
  names = sd_cpu.commands(tmp_path, trained)
  result = {
    "command": "python",
    "environment": {"machine": "one", "load_before": 0.0},
    "trained": trained,
    "stages": {name: {"seconds": 1, "peak_gib": 1.0} for name in names},
    "step": step,
  }
  assert sd_cpu.markdown(result).count("| 1 | 1.0 |") == 5
