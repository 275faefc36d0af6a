"""U-ViT in PyTorch as the paper and its released configurations describe it, for parity tests."""

import types

import numpy as np
import torch
from torch import nn

from jaxunlearn.diffusion import NULL


class Attention(nn.Module):
  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width, bias=False)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    b, tokens, width = x.shape
    q, k, v = (
      y.view(b, tokens, self.heads, -1).transpose(1, 2) for y in self.qkv(x).split(width, dim=-1)
    )
    weights = (q @ k.transpose(2, 3) / (width / self.heads) ** 0.5).softmax(-1)
    return self.proj((weights @ v).transpose(1, 2).reshape(b, tokens, width))


class MLP(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

  def forward(self, x):
    return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
  """Prompts join the sequence behind the long skip and leave it at the end, transformed."""

  def __init__(self, width, heads, skip):
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.attn, self.mlp = Attention(width, heads), MLP(width)
    if skip:
      self.skip_linear = nn.Linear(2 * width, width)

  def forward(self, x, prompts, skip=None):
    if skip is not None:
      x = self.skip_linear(torch.cat([x, skip], dim=-1))
    length = x.shape[1]
    x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
    x = x + self.attn(self.norm1(x))
    x = x + self.mlp(self.norm2(x))
    return x[:, :length]


class PatchEmbed(nn.Module):
  def __init__(self, net):
    super().__init__()
    self.proj = nn.Conv2d(net.in_channels, net.width, net.patch_size, stride=net.patch_size)

  def forward(self, x):
    return self.proj(x).flatten(2).transpose(1, 2)


class UViT(nn.Module):
  """Of a `uvit.Net`'s sizes, at the conditions `c` [B, n] and with P prompts for each block."""

  def __init__(self, net, c=None, prompts=0):
    super().__init__()
    self.net, self.c = net, c
    width, p, channels = net.width, net.patch_size, net.in_channels
    self.side = net.sample_size // p
    self.extra = len(net.classes) + 1
    self.tables = [nn.Embedding(count + 1, width) for count in net.classes]  # named here:
    if self.tables:
      self.label_emb = self.tables[0]
    if self.tables[1:]:
      self.class_embedding = nn.ModuleDict({"1": self.tables[1]})
    block = lambda skip: Block(width, net.heads, skip)
    self.patch_embed = PatchEmbed(net)
    self.pos_embed = nn.Parameter(torch.zeros(1, self.extra + self.side**2, width))
    self.in_blocks = nn.ModuleList(block(False) for _ in range(net.depth // 2))
    self.mid_block = block(False)
    self.out_blocks = nn.ModuleList(block(True) for _ in range(net.depth // 2))
    self.norm = nn.LayerNorm(width)
    self.decoder_pred = nn.Linear(width, p * p * channels)
    self.final_layer = nn.Conv2d(channels, channels, 3, padding=1) if net.head_conv else None
    self.prompts = nn.Parameter(torch.zeros(net.depth + 1, prompts, width)) if prompts else None

  def time_token(self, t):
    n = t.to(self.pos_embed.dtype) + 1
    time = n if self.net.time == "discrete" else n / 1000 * 999
    half = self.net.width // 2
    freqs = torch.exp(-np.log(10000) * torch.arange(half, dtype=time.dtype, device=t.device) / half)
    return torch.cat([torch.cos(time[:, None] * freqs), torch.sin(time[:, None] * freqs)], dim=-1)

  def forward(self, x, t):
    tokens = []
    for i, count in enumerate(self.net.classes):
      rows = torch.tensor([count if c == NULL else c for c in self.c[:, i]])
      tokens.append(self.tables[i](rows))
    tokens.append(self.time_token(t))
    x = torch.cat([*(token[:, None] for token in tokens), self.patch_embed(x)], dim=1)
    x, skips = x + self.pos_embed, []
    prompts = x.new_zeros(self.net.depth + 1, 0, x.shape[-1])
    prompts = iter(prompts if self.prompts is None else self.prompts)
    for block in self.in_blocks:
      x = block(x, next(prompts))
      skips.append(x)
    x = self.middle = self.mid_block(x, next(prompts))
    for block in self.out_blocks:
      x = block(x, next(prompts), skips.pop())
    x = self.decoder_pred(self.norm(x))[:, self.extra :]
    p, b, s = self.net.patch_size, len(x), self.side
    x = x.view(b, s, s, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, s * p, s * p)
    return types.SimpleNamespace(sample=x if self.final_layer is None else self.final_layer(x))
