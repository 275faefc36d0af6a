"""TPUs by name, without their compiler: what is read of HLO text, the least, and the errors.

The texts are compiled here for 8 CPU devices; what only TPUs write is quoted from libtpu 0.0.42.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks import check_tpu
from jaxunlearn import step
from jaxunlearn.compiled import collectives, dry_run, topology
from jaxunlearn.compiled.collectives import Total
from tests import meshes, tiny_config

ROOT = pathlib.Path(__file__).parents[1]
MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

# An asynchronous gather that runs beside other fusions, a fused reduce-scatter of two arrays, and a
# loop in which devices pass parts on, two a turn.
GATHER = (
  "all-gather(%p), channel_id=40, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, "
  'dimensions={0}, frontend_attributes={chain_id="1"}'
)
TPU = f"""\
HloModule jit__add, is_scheduled=true, num_partitions=8

%start (p: bf16[32,64]) -> (bf16[32,64], bf16[256,64], u32[]) {{
  %p = bf16[32,64]{{1,0:T(8,128)(2,1)}} parameter(0)
  %all-gather.1 = bf16[256,64]{{1,0:T(8,128)(2,1)}} {GATHER}
  ROOT %call.9 = (bf16[32,64]{{1,0:T(8,128)(2,1)S(1)}}, u32[]{{:S(2)}}) custom-call(%all-gather.1)
}}

%done (p: bf16[32,64]) -> bf16[256,64] {{
  %p = bf16[32,64]{{1,0}} parameter(0)
  %all-gather.2 = bf16[256,64]{{1,0:T(8,128)(2,1)}} {GATHER}
  ROOT %call.11 = bf16[256,64]{{1,0:T(8,128)(2,1)S(1)}} custom-call(%p, %all-gather.2)
}}

%all-reduce-scatter.38 (input_0: f32[16,64], input_1: f32[128]) -> (f32[4,64], f32[32]) {{
  %in_0 = f32[16,64]{{1,0}} parameter(0)
  %in_1 = f32[128]{{0}} parameter(1)
  %sum = (f32[16,64], f32[128]) all-reduce(%in_0, %in_1), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}
  ROOT %tuple = (f32[4,64]{{1,0}}, f32[32]{{0}}) tuple(%in_0, %in_1)
}}

%condition (state: (f32[4], u32[])) -> pred[] {{
  %end = u32[]{{:T(128)}} constant(7), metadata={{op_name="x"}}
  %state.1 = (f32[4]{{0}}, u32[]{{:T(128)}}) parameter(0)
  %turn.1 = u32[]{{:T(128)}} get-tuple-element(%state.1), index=1
  ROOT %more = pred[]{{:T(512)}} compare(%turn.1, %end), direction=LT
}}

%body (state: (f32[4], u32[])) -> (f32[4], u32[]) {{
  %by = u32[]{{:T(128)}} constant(2)
  %state.2 = (f32[4]{{0}}, u32[]{{:T(128)}}) parameter(0)
  %part = f32[4]{{0}} get-tuple-element(%state.2), index=0
  %turn.2 = u32[]{{:T(128)}} get-tuple-element(%state.2), index=1
  %ring-start = (f32[4]{{0}}, f32[4]{{0}}, u32[]{{:S(2)}}) collective-permute-start(%part)
  %ring-done = f32[4]{{0}} collective-permute-done(%ring-start)
  %turn.3 = u32[]{{:T(128)}} add(%turn.2, %by)
  ROOT %state.3 = (f32[4]{{0}}, u32[]{{:T(128)}}) tuple(%ring-done, %turn.3)
}}

ENTRY %main (a: bf16[32,64]) -> bf16[256,64] {{
  %a = bf16[32,64]{{1,0}} parameter(0)
  %begin = u32[]{{:T(128)}} constant(0)
  %turn.0 = u32[]{{:T(128)}} copy(%begin)
  %state.0 = (f32[4]{{0}}, u32[]{{:T(128)}}) tuple(%a, /*index=1*/%turn.0)
  %loop = (f32[4]{{0}}, u32[]{{:T(128)}}) while(%state.0), condition=%condition, body=%body
  %fusion.1 = (bf16[32,64]{{1,0}}, u32[]{{:S(2)}}) fusion(%a), kind=kCustom, calls=%start
  %fusion.2 = bf16[256,64]{{1,0}} fusion(%a), kind=kCustom, calls=%done, metadata={{op_name="x"}}
  %sum-start = f32[8]{{0}} all-reduce-start(%a), replica_groups=[2,4]<=[8], to_apply=%add
  %sum-done = f32[8]{{0}} all-reduce-done(%sum-start)
  %next-start = (f32[6]{{0}}, f32[6]{{0}}, u32[]{{:S(2)}}) collective-permute-start(%a)
  %next-done = f32[6]{{0}} collective-permute-done(%next-start)
  ROOT %f = (f32[4,64], /*index=1*/f32[32]{{0}}) fusion(%a), calls=%all-reduce-scatter.38
}}
"""


def found(f, *arguments, out=()):
  """What the compiled f sends, of float32 arguments (shape, spec) to a result laid out as `out`."""
  where = lambda spec: NamedSharding(MESH, PartitionSpec(*spec))
  structs = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=where(spec)) for s, spec in arguments]
  program = jax.jit(f, out_shardings=where(out)).lower(*structs).compile()
  return collectives.totals(program.as_text())


def test_a_gather_over_all_devices_and_over_an_axis():
  size = 64 * 8 * 4
  whole, part = (((64, 8), (axes,)) for axes in (("a", "b"), "b"))
  assert found(lambda x: x, whole) == {"all-gather": Total(1, size, size * 7 / 8)}
  assert found(lambda x: x, part) == {"all-gather": Total(1, size, size * 3 / 4)}


def test_sums_over_two_axes():
  add = lambda x, y: x.sum(0) + y.sum(0)
  sums = found(add, ((64, 24), ("a",)), ((64, 24), ("b",)))
  assert sums == {"all-reduce": Total(2, 2 * 96, 96 * (2 / 2 + 2 * 3 / 4))}


def test_an_exchange_has_a_tuple_for_its_result():
  exchanged = found(lambda x: x, ((8, 64), ("b",)), out=(None, "b"))
  assert exchanged == {"all-to-all": Total(1, 8 * 16 * 4, 8 * 16 * 4 * 3 / 4)}


def test_rows_passed_to_the_next_device():
  passed = found(lambda x: jnp.roll(x, 1, 0), ((64, 8), ("b",)), out=("b",))
  assert passed == {"collective-permute": Total(1, 32, 32)}


def test_a_scattered_sum():
  scatter = lambda x: jax.lax.psum_scatter(x, "b", scatter_dimension=0, tiled=True)
  spec = PartitionSpec("b")
  f = jax.shard_map(scatter, mesh=MESH, in_specs=spec, out_specs=spec)
  assert found(f, ((64, 8), ("b",)), out=("b",)) == {"reduce-scatter": Total(1, 128, 128 * 3)}


def test_what_a_loop_runs_counts_as_often():
  replicated = NamedSharding(MESH, PartitionSpec())

  def turns(w, x):
    turn = lambda x, _: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), replicated), None)
    return jax.lax.scan(turn, x, length=5)[0]

  size = 16 * 64 * 4
  gathered = found(turns, ((64, 64), (None, "b")), ((16, 64), ()))
  assert gathered == {"all-gather": Total(5, 5 * size, 5 * size * 3 / 4)}


def test_a_loop_of_unknown_length_is_said():
  text = jax.jit(lambda x: jax.lax.while_loop(jnp.isfinite, lambda x: x * x, x)).lower(2.0)
  assert collectives.open_loops(text.compile().as_text()) == 1
  assert collectives.open_loops(TPU) == 0
  assert collectives.uncounted_loops(TPU) == 1


def test_no_collective_on_one_device():
  assert collectives.totals(jax.jit(jnp.sin).lower(1.0).compile().as_text()) == {}


def test_what_only_tpus_write():
  assert collectives.totals(TPU) == {
    "all-gather": Total(1, 256 * 64 * 2, 256 * 64 * 2 * 7 / 8),
    "reduce-scatter": Total(1, 4 * (4 * 64 + 32), 4 * (4 * 64 + 32) * 3),
    "all-reduce": Total(1, 32, 2 * 32 * 3 / 4),
    "collective-permute": Total(5, 24 + 4 * 16, 24 + 4 * 16),  # four turns: 0, 2, 4 and 6
  }


def test_the_least_is_that_of_zero():
  psi = 1000
  # All on one axis: two gathers in bfloat16, and for each gradient a scatter.
  assert collectives.minimum(psi, 1, 4, fsdp=8, data=1) == 7 / 8 * psi * (2 + 2 + 4)
  assert collectives.minimum(psi, 2, 2, fsdp=8, data=1) == 7 / 8 * psi * (2 + 2 + 2 + 2)
  # Copies of everything: the all-reduce of plain data parallelism, 2 Psi.
  assert collectives.minimum(psi, 1, 4, fsdp=1, data=8) == 7 / 8 * 2 * psi * 4
  assert collectives.minimum(psi, 1, 4, fsdp=1, data=1) == 0
  frozen = collectives.minimum(psi, 2, 4, fsdp=8, data=1, trained=psi // 10)
  assert frozen == 7 / 8 * (psi * (2 + 2) + psi // 10 * (4 + 4))


def test_the_abstract_step_is_the_one_that_runs():
  """Shapes and layouts of the state and the batch, before the step and after it."""
  setup = meshes.setup_of("siss", 2, 4, 2, meshes.NET)
  state, batch = meshes.start(setup), setup.batch(0)
  layout = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), tree)
  assert layout(topology.state_of(setup)) == layout(state)
  assert layout(topology.batch_of(setup)) == layout(batch)
  on_one = lambda leaf: leaf.addressable_shards[0].data.nbytes
  assert topology.held(state) == sum(map(on_one, jax.tree.leaves(state)))
  after, _ = step.make_update(setup, state)(state, batch)
  assert layout(after) == layout(topology.state_of(setup))


def costs(setup):
  return dict(topology.step_costs(setup, topology.batch_of(setup)))


def test_micro_batches_cost_memory_for_their_sums():
  whole, parts = (meshes.setup_of("siss", 1, 8, n, meshes.NET) for n in (1, 2))
  one, two = costs(whole), costs(parts)
  assert list(one) == ["draw", "split", "gradients", "update"]
  assert (one["gradients"].runs, two["gradients"].runs) == (1, 2)
  sums = 2 * topology.held(topology.state_of(whole).params)
  rows = topology.held(topology.batch_of(whole))  # two micro-batches have half of each
  assert two["gradients"].arguments >= one["gradients"].arguments + sums - rows
  assert two["gradients"].moved > one["gradients"].moved >= topology.least(whole)


def test_weights_gathered_once_are_sent_once_and_held():
  setup = meshes.setup_of("siss", 1, 4, 4, meshes.NET)
  config = setup.config.copy_and_resolve_references()
  config.train.gather_once = True
  each, once = costs(setup), costs(dataclasses.replace(setup, config=config))
  assert list(once) == ["draw", "split", "gather", "gradients", "update"]
  kinds = once["gradients"].collectives.keys()
  assert "all-gather" in each["gradients"].collectives.keys() - kinds
  assert sum(c.moved for c in once.values()) < sum(c.moved for c in each.values())
  weights = topology.held(topology.state_of(setup).params)
  assert once["gradients"].memory > each["gradients"].memory + 2 * weights


def test_what_a_method_prepares_is_in_the_state():
  setup = meshes.setup_of("esd", net=meshes.NET)
  assert set(topology.state_of(setup).extras) == {"mask", "teacher"}


def test_a_topology_needs_the_compiler(monkeypatch):
  def absent(*_, **__):
    raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

  monkeypatch.setattr(topology.topologies, "get_topology_desc", absent)
  message = r'needs the TPU compiler, libtpu; run pip install -e "\.\[tpu\]"$'
  with pytest.raises(ValueError, match=message) as info:
    topology.devices("v5e:2x4")
  assert "\n" not in str(info.value)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e", r"no topology 'v5e'; use CHIP:SIDES like v5e:2x4"),
    ("v5e-8", r"no topology 'v5e-8'; use CHIP:SIDES"),
    ("v5x:2x4", r"no TPU 'v5x' \(did you mean 'v5p'\?\)"),
  ],
)
def test_a_name_that_is_no_topology(name, message):
  with pytest.raises(ValueError, match=message):
    dry_run.describe(tiny_config.get_config(), name)


def test_a_dry_run_for_a_topology_reports_its_memory(monkeypatch):
  """The CPU's devices in a TPU's place: the same way through, with CPU's programs."""
  monkeypatch.setattr(topology, "devices", lambda name: jax.devices())
  config = tiny_config.get_config("siss")
  config.mesh.update(data=2, fsdp=-1)
  text = dry_run.describe(config, "v5e:2x4")
  assert "mesh {'data': 2, 'fsdp': 4}" in text
  assert "fits: 0.0" in text and "of 16 GiB" in text
  assert "all-gather" in text and "ZeRO-3 needs" in text
  assert text.count("\nprogram ") == 4
  assert config.mesh.fsdp == -1


def test_what_does_not_fit_is_said():
  message = r"needs 23\.45G of 15\.75G .* micro_batches"
  with pytest.raises(topology.OutOfMemory, match=message), topology.fitting():
    raise jax.errors.JaxRuntimeError(
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
      "hbm. Used 23.45G of 15.75G hbm. Exceeded hbm capacity by 7.70G."
    )
  with pytest.raises(jax.errors.JaxRuntimeError, match="another"), topology.fitting():
    raise jax.errors.JaxRuntimeError("another")
  assert topology.fits(15.7 * 2**30, 16) and not topology.fits(15.8 * 2**30, 16)


def test_the_table_is_of_the_committed_measurements():
  found = json.loads((ROOT / "results" / "check_tpu.json").read_text())
  assert found.keys() <= {row.name for row in check_tpu.ROWS}
  assert (ROOT / "results" / "check_tpu.md").read_text() == check_tpu.markdown(found)
