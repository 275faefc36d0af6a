"""A noise predictor against one in PyTorch: the output and every gradient leaf.

The reference is PyTorch in float64, so that a distance of 1e-5 is this implementation's own error:
at most 1e-5 per leaf, or PyTorch's own in float32 where that is larger. The bias of `to_k` adds the
same number to every logit of a softmax, so its true gradient is zero and has no relative error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

DDPM = {
  "in_channels": 3,
  "out_channels": 3,
  "layers_per_block": 2,
  "attention_head_dim": None,
  "downsample_padding": 0,
  "flip_sin_to_cos": False,
  "freq_shift": 1,
  "norm_eps": 1e-6,
}
CIFAR10 = DDPM | {  # google/ddpm-cifar10-32
  "sample_size": 32,
  "block_out_channels": (128, 256, 256, 256),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def nchw(x):
  return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def distance(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


def unlike_new(model):
  """The model with its random weights, and norms and biases moved off 1 and 0."""
  with torch.no_grad():
    for leaf in model.parameters():
      if leaf.ndim == 1:
        leaf.add_(0.1 * torch.randn_like(leaf))
  return model


def torch_output_and_grads(model, x, t, w):
  """The output [B, H, W, C], and the gradient of <w, output> by name."""
  dtype = next(model.parameters()).dtype
  model.zero_grad()
  y = model(torch.tensor(nchw(x), dtype=dtype), torch.tensor(t)).sample
  (y * torch.tensor(nchw(w), dtype=dtype)).sum().backward()
  grads = {name: leaf.grad.numpy().copy() for name, leaf in model.named_parameters()}
  return np.moveaxis(y.detach().numpy(), 1, -1), grads


def check(apply, params, to_state_dict, model, image_shape, t):
  """apply(params, x, t) is model(x, t), whose parameters to_state_dict(params) are.

  Returns the distance of the output and the largest of a leaf of the gradient.
  """
  x, w = np.random.default_rng(0).normal(size=(2, len(t), *image_shape)).astype(np.float32)
  t = np.array(t, np.int32)

  def loss(params, x, t, w):
    y = apply(params, x, t)
    return jnp.sum(w * y), y

  grads, y = jax.jit(jax.grad(loss, has_aux=True))(params, x, t, w)
  grads = to_state_dict(grads)
  y_32, grads_32 = torch_output_and_grads(model, x, t, w)
  y_64, grads_64 = torch_output_and_grads(model.double(), x, t, w)
  assert grads.keys() == grads_64.keys()
  assert distance(np.asarray(y), y_64) < 1e-5
  assert distance(np.asarray(y), y_32) < 1e-5
  worst = 0.0
  for name, want in grads_64.items():
    if name.endswith("to_k.bias"):
      scale = np.linalg.norm(grads_64[name.replace("to_k", "to_q")])
      assert np.linalg.norm(want) < 1e-12 * scale, name
      assert np.linalg.norm(grads[name]) < 1e-5 * scale, name
    else:
      limit = max(1e-5, distance(grads_32[name], want))
      far = distance(grads[name], want)
      assert far < limit, name
      worst = max(worst, float(far))
  return {"output": float(distance(np.asarray(y), y_64)), "gradient": worst}
