"""What a compiled program sends between devices, read from its HLO text, and the least it could.

A collective of n devices whose result on each has r bytes makes each of them send, by a ring,

    all-gather, all-to-all  r (n - 1) / n        reduce-scatter      r (n - 1)
    all-reduce            2 r (n - 1) / n        collective-permute  r

ZeRO-3 moves 3 Psi a step for Psi parameters (ZeRO, Rajbhandari et al., 2020, section 7.2.2): they
are gathered for the forward pass and once more for the backward pass, and the gradient is
reduce-scattered. A method of K gradients scatters K. TPUs gather what their matrix units read, 2
bytes a parameter, and sum gradients as the network computes them: s bytes, 2 of a bfloat16 network
and 4 of a float32 one. With f devices that split the parameters and d that repeat them, whose
gradients are then all-reduced, each device sends in a step at least

    (2 x 2 + s K) Psi (f - 1) / f  +  2 s K Psi / f (d - 1) / d   bytes
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)
GATHERED = 2  # bytes of a parameter
FUSED = "all-reduce-scatter"  # TPUs' reduce-scatter: a fusion of an all-reduce and a slice
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)\w*\[([\d,]*)\]")
_HEAD = re.compile(r"(?:(ENTRY) )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
_CALLS = re.compile(r"(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BLOCKS_OF_A_LOOP = re.compile(r"(?:condition|body)=%?([\w.\-]+)")  # in that order
_CHAIN = re.compile(r'chain_id="(\d+)"')


class Collective(NamedTuple):
  """One collective of a program's text."""

  kind: str
  size: int  # bytes of the result on each device, without padding
  devices: int  # that take part together

  @property
  def moved(self) -> float:
    """Bytes that each device sends, by a ring."""
    part = (self.devices - 1) / self.devices
    times = {"all-reduce": 2 * part, "reduce-scatter": self.devices - 1}
    times |= {"collective-permute": 1, "collective-broadcast": 1}
    return float(self.size * times.get(self.kind, part))


@dataclasses.dataclass(frozen=True)
class Total:
  """All collectives of a kind."""

  count: int = 0
  size: int = 0  # bytes of results, on each device
  moved: float | int = 0  # bytes that each device sends

  def plus(self, other: "Total", times: int = 1) -> "Total":
    """The sum of this, and of the other as often as it runs."""
    return Total(
      self.count + times * other.count,
      self.size + times * other.size,
      self.moved + times * other.moved,
    )


class Instruction(NamedTuple):
  """One line of HLO text."""

  name: str
  shape: str
  opcode: str
  rest: str  # operands and attributes


Block = dict[str, Instruction]  # a computation: its instructions by name, in order


def totals(text: str) -> dict[str, Total]:
  """kind -> its total in one run of the program of that (compiled, partitioned) HLO text.

  What is cut into a start and a done, or on TPUs into fusions of one chain, counts once; what a
  loop of known length calls counts as often as it runs, of another (`open_loops`) once.
  """
  blocks = dict(_blocks(text))
  partitions = re.search(r"num_partitions=(\d+)", text)
  devices = int(partitions[1]) if partitions else 1
  out: dict[str, Total] = {}
  seen: set[str] = set()

  def walk(name: str, times: int) -> None:
    for one in blocks[name].values():
      chain = _CHAIN.search(one.rest)
      again = chain is not None and chain[1] in seen
      if (found := _collective(one, blocks[name], blocks, devices)) and not again:
        seen.update([chain[1]] if chain else [])
        total = Total(1, found.size, found.moved)
        out[found.kind] = out.get(found.kind, Total()).plus(total, times)
      trips = _trips(one, blocks[name], blocks) if one.opcode == "while" else 1
      for callee in _callees(one):
        walk(callee, times * (trips or 1))

  walk("ENTRY", 1)
  return out


def open_loops(text: str) -> int:
  """How many loops of unknown length a program has: its collectives are then at least these."""
  return _loops(text, _trips)


def uncounted_loops(text: str) -> int:
  """How many loops XLA's own count of FLOPs takes once: it is then at least that."""
  return _loops(text, lambda one, *_: _KNOWN.search(one.rest))


def _loops(text: str, known: Callable[..., Any]) -> int:
  blocks = dict(_blocks(text))
  loops = ((one, block) for block in blocks.values() for one in block.values())
  return sum(one.opcode == "while" and not known(one, block, blocks) for one, block in loops)


def minimum(
  parameters: int,
  gradients: int,
  summed: int,
  fsdp: int,
  data: int,
  trained: int | None = None,
) -> float:
  """Bytes that each device sends at least in a step, as the formula above says; s is `summed`.

  Only those that are `trained` (None: all) have gradients.
  """
  scattered = gradients * summed * (parameters if trained is None else trained)
  split = (2 * GATHERED * parameters + scattered) * (fsdp - 1) / fsdp
  return split + 2 * scattered / fsdp * (data - 1) / data


def _blocks(text: str) -> Iterator[tuple[str, Block]]:
  """The computations of a module by name, ENTRY for the main one."""
  name, block = "", {}
  for line in text.splitlines():
    if found := _INSTRUCTION.match(line):
      block[found[1]] = Instruction(*found.groups())
    elif head := _HEAD.match(line):
      name, block = head[1] or head[2], {}
    elif line == "}":
      yield name, block


def _callees(one: Instruction) -> list[str]:
  """The computations that an instruction runs, less those that are one collective of its own."""
  branches = _BRANCHES.search(one.rest)
  names = _CALLS.findall(one.rest)
  names += re.findall(r"[\w.\-]+", branches[1]) if branches else []
  return [name for name in names if not name.startswith(FUSED)]


def _trips(loop: Instruction, around: Block, blocks: dict[str, Block]) -> int | None:
  """How often a loop runs: as XLA says, or as it counts by constants; None where neither is there.

  Of the loops in which TPUs pass weights round a ring of devices only the constants tell: an entry
  of the state starts at one, the body adds another to it, the condition compares it with a third.
  """
  if known := _KNOWN.search(loop.rest):
    return int(known[1])
  condition, body = (blocks[name] for name in _BLOCKS_OF_A_LOOP.findall(loop.rest))
  *_, test = condition.values()
  *_, turn = body.values()
  if test.opcode != "compare" or "direction=LT" not in test.rest:
    return None
  counter, last = (condition[name] for name in _operands(test))
  index = re.search(r"index=(\d+)", counter.rest)
  if not index:
    return None
  at = int(index[1])
  entry = lambda block, state: block.get("".join(_operands(state)[at : at + 1]))
  start = _constant(entry(around, around[_operands(loop)[0]]), around)
  add, limit = entry(body, turn), _constant(last, condition)
  if start is None or limit is None or add is None or add.opcode != "add":
    return None
  by = next(filter(None, (_constant(body.get(name), body) for name in _operands(add))), None)
  return None if by is None else max(-(-(limit - start) // by), 0)


def _operands(one: Instruction) -> list[str]:
  return re.findall(r"%([\w.\-]+)", one.rest.split(")")[0])


def _constant(one: Instruction | None, block: Block) -> int | None:
  """The integer that it is, or a copy of; None for anything else."""
  while one is not None and one.opcode == "copy":
    one = block.get(_operands(one)[0])
  number = re.match(r"(\d+)\)", one.rest) if one and one.opcode == "constant" else None
  return int(number[1]) if number else None


def _collective(
  one: Instruction, around: Block, blocks: dict[str, Block], devices: int
) -> Collective | None:
  """The collective that an instruction is; of an asynchronous pair, what its start is."""
  callee = _CALLS.search(one.rest)
  if one.opcode == "fusion" and callee and callee[1].startswith(FUSED):
    inner = next(line for line in blocks[callee[1]].values() if line.opcode == "all-reduce")
    return Collective("reduce-scatter", _size(one.shape), _devices(inner, devices))
  kind = one.opcode.removesuffix("-start")
  if kind not in KINDS:
    return None
  shape = one.shape
  if kind != one.opcode and shape.startswith("("):
    done = (other for other in around.values() if other.opcode == f"{kind}-done")
    shape = next(other.shape for other in done if _operands(other) == [one.name])
  return Collective(kind, _size(shape), _devices(one, devices))


def _size(shape: str) -> int:
  """The bytes of an HLO shape's arrays; a tuple has several."""
  width = lambda kind: 1 if kind == "pred" else max(int(re.sub(r"\D", "", kind)) // 8, 1)
  count = lambda sides: math.prod(int(side) for side in sides.split(",") if side)
  return sum(width(kind) * count(sides) for kind, sides in _ARRAY.findall(shape))


def _devices(one: Instruction, every: int) -> int:
  """How many devices take part together: replica_groups by lists, as iota or by a mesh's axes."""
  if lists := re.search(r"replica_groups=\{\{([\d,]+)\}", one.rest):
    return lists[1].count(",") + 1
  if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", one.rest):
    return int(iota[1])
  if mesh := re.search(r"replica_groups=\w*\[([^\]]*)\][^{]*\{([^}]*)\}", one.rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  return every
