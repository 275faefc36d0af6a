"""LoRA files: ours in diffusers by PEFT, theirs here, and what does not fit."""

import diffusers
import jax
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch

from jaxunlearn.adapters import Trained
from jaxunlearn.commands import sample
from jaxunlearn.commands.sample import Asked
from jaxunlearn.mesh import sharding
from jaxunlearn.weights import lora, pretrained, stable_diffusion
from tests import tiny_pipeline

KIND = Trained(r"attn[12]/to_|proj_in", rank=2, alpha=5.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(a pipeline's folder, the LoRA of it {"unet": ...}, a file of that, the model merged)."""
  folder, out = (tmp_path_factory.mktemp(name) for name in ("model", "lora"))
  tiny_pipeline.write(folder)
  model = stable_diffusion.load(folder)
  whole = {"unet": model.params["unet"]}
  params, frozen = KIND.split(jax.random.key(0), whole)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), params)
  lora.save(out, KIND, params)
  return folder, whole, out / lora.FILE, jax.device_get(KIND.whole(frozen, params))


def test_what_is_written_is_read_again(made):
  _, whole, file, merged = made
  got = lora.merge(whole, file)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, merged)


def test_diffusers_loads_it_by_peft(made):
  """The UNet with our file is the UNet with our merged weights."""
  folder, _, file, merged = made
  load = diffusers.StableDiffusionPipeline.from_pretrained
  pipe, want = load(folder), load(folder)
  pipe.load_lora_weights(str(file.parent), weight_name=file.name)
  state = {k: torch.tensor(v) for k, v in pretrained.to_state_dict(merged["unet"]).items()}
  want.unet.load_state_dict(state)
  x, c = torch.randn(1, 4, 8, 8), torch.randn(1, 12, 12)
  with torch.no_grad():
    one, other = (p.unet(x, torch.tensor([300]), c).sample for p in (pipe, want))
  np.testing.assert_allclose(one, other, atol=1e-5)
  with torch.no_grad():
    assert not np.allclose(one, load(folder).unet(x, torch.tensor([300]), c).sample, atol=1e-3)


def test_one_made_elsewhere_is_read(made, tmp_path):
  """As `save_lora_weights` of a PEFT adapter writes it, half precision too."""
  folder, whole, _, _ = made
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
  torch.manual_seed(0)
  config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_v"])
  pipe.unet.add_adapter(config)
  for name, leaf in pipe.unet.named_parameters():
    if "lora_B" in name:
      leaf.data = torch.randn_like(leaf)
  layers = peft.utils.get_peft_model_state_dict(pipe.unet)
  pipe.save_lora_weights(tmp_path, unet_lora_layers=layers)
  got = lora.merge(whole, tmp_path / lora.FILE)
  pipe.unet.merge_and_unload() if hasattr(pipe.unet, "merge_and_unload") else pipe.fuse_lora()
  theirs = {n.replace(".base_layer", ""): p for n, p in pipe.unet.named_parameters()}
  for name, leaf in pretrained.to_state_dict(got["unet"]).items():
    np.testing.assert_allclose(leaf, theirs[name].detach(), atol=1e-4)


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (
      lambda s: {k.replace("mid_block", "mad_block"): v for k, v in s.items()},
      "which this model la",
    ),
    (lambda s: {k: v for k, v in s.items() if "lora_B" not in k}, "is no LoRA of a UNet by PEFT's"),
    (lambda s: {"x": np.zeros(3, np.float32)}, "is no LoRA of a UNet by PEFT's names: its first"),
    (lambda s: {k: v[:, :1] if "lora_A" in k else v for k, v in s.items()}, "for a kernel of"),
  ],
)
def test_a_file_of_another_model_is_refused(made, tmp_path, change, error):
  _, whole, file, _ = made
  state = change(safetensors.numpy.load_file(file))
  state = {name: np.ascontiguousarray(value) for name, value in state.items()}
  safetensors.numpy.save_file(state, tmp_path / "other.safetensors")
  with pytest.raises(ValueError, match=error):
    lora.merge(whole, tmp_path / "other.safetensors")


def test_samples_are_of_the_model_with_the_file(made):
  folder, _, file, merged = made
  asked = Asked(str(folder), ("a whale",), lora=str(file))
  (params,) = sharding.unspread(sample.find(asked).eps_fn).args
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params["unet"], merged["unet"]
  )
  with pytest.raises(ValueError, match="is no text-to-image model and was given"):
    sample.find(Asked("assets:pretrain_mnist", lora=str(file)))
