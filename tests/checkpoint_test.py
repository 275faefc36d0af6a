"""Checkpoints: bit-exact on any mesh, bounded in number, and never silently damaged."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import checkpoint
from jaxunlearn.checkpoint import Checkpoints, State
from jaxunlearn.mesh import sharding


def make_state(step=0, data=4, fsdp=2, width=64, ema=True, seed=None):
  """A state whose every leaf depends on `step`, of every type that a run may hold."""
  rng = np.random.default_rng(step if seed is None else seed)
  params = {
    "conv": {"kernel": rng.normal(size=(3, 3, 16, width)).astype(np.float32)},
    "scale": rng.normal(size=(width,)).astype(np.float32),
  }
  state = State(
    step=np.int32(step),
    params=params,
    ema=jax.tree.map(lambda p: p / 2, params) if ema else {},
    opt=(jax.tree.map(lambda p: p * 3, params), np.int32(step)),
    extras={"mask": rng.random(50) < 0.5, "half": jnp.asarray(rng.random(8), jnp.bfloat16)},
  )
  mesh = sharding.make_mesh(data, fsdp)
  return sharding.put(state, sharding.state_sharding(mesh, state))


@pytest.fixture
def open_saves(tmp_path):
  """Opens tmp_path/checkpoints; closed when the test ends."""
  opened = []

  def open_(keep=2):
    opened.append(Checkpoints(tmp_path / "checkpoints", keep))
    return opened[-1]

  yield open_
  for saves in opened:
    saves.close()


def save_all(saves, states):
  for state in states:
    saves.save(state)
  saves.wait()


def assert_equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert g.dtype == w.dtype
    np.testing.assert_array_equal(np.asarray(g), np.asarray(w))


def test_nothing_to_restore(open_saves, tmp_path):
  assert open_saves().restore(make_state()) is None
  assert checkpoint.latest_step(tmp_path) is None
  assert checkpoint.latest_step(tmp_path / "nowhere") is None


def test_what_is_frozen_is_told_by_its_bytes_once(open_saves, tmp_path, monkeypatch):
  """At each save, of the same number; other bytes are refused."""
  read = []
  real = checkpoint.fingerprint
  monkeypatch.setattr(checkpoint, "fingerprint", lambda tree: read.append(tree) or real(tree))
  frozen = {"table": jnp.arange(6.0)}
  states = [make_state(step)._replace(frozen=frozen) for step in (3, 4, 5)]
  save_all(open_saves(3), states)
  assert sum(tree.keys() == frozen.keys() for tree in read if isinstance(tree, dict)) == 1
  assert_equal(open_saves(3).restore(states[0]), states[2])
  target = states[0]._replace(frozen={"table": frozen["table"].at[2].set(0)})
  with pytest.raises(checkpoint.WrongShape, match="trained a part of other weights than"):
    open_saves(3).restore(target)


@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (1, 8), (2, 1), (1, 2), (1, 1)])
def test_restores_bit_for_bit_onto_another_mesh(open_saves, data, fsdp):
  save_all(open_saves(), [make_state(7)])
  target = make_state(0, data, fsdp)
  restored = open_saves().restore(target)
  assert_equal(restored, make_state(7))
  for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
    assert got.sharding == want.sharding


def test_replicas_that_share_the_writing_give_the_same(open_saves, monkeypatch):
  monkeypatch.setattr(checkpoint, "SHARE_BYTES", 1)
  save_all(open_saves(), [make_state(7)])
  assert_equal(open_saves().restore(make_state(0, 2, 1)), make_state(7))


def test_a_save_is_not_touched_by_the_steps_that_follow(open_saves):
  """The state is donated to the next step while its bytes are still being written."""
  saves, state = open_saves(), make_state(1, width=2048)
  step = jax.jit(lambda s: jax.tree.map(lambda a: a + jnp.ones((), a.dtype), s), donate_argnums=0)
  saves.save(state)
  for _ in range(20):
    state = step(state)
  jax.block_until_ready(state)
  saves.wait()
  assert_equal(saves.restore(make_state(0, width=2048)), make_state(1, width=2048))


def test_keeps_a_bounded_number(open_saves, tmp_path):
  save_all(open_saves(keep=2), [make_state(step) for step in (1, 2, 3, 4)])
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"3", "4"}
  assert checkpoint.latest_step(tmp_path) == 4


def test_a_step_that_is_saved_is_not_saved_again(open_saves):
  saves = open_saves()
  save_all(saves, [make_state(3), make_state(3, seed=99)])
  assert_equal(saves.restore(make_state()), make_state(3))


def test_a_run_without_ema_or_extras(open_saves):
  without = lambda step: make_state(step, ema=False)._replace(extras={})
  save_all(open_saves(), [without(5)])
  assert_equal(open_saves().restore(without(0)), without(5))


def test_parameters_alone_on_another_mesh(open_saves, tmp_path):
  save_all(open_saves(), [make_state(1), make_state(2)])
  target = make_state(0, 2, 1)
  assert_equal(checkpoint.read_params(tmp_path, target.params), make_state(2).params)
  assert_equal(checkpoint.read_params(tmp_path, target.params, "ema"), make_state(2).ema)


def test_parameters_that_are_not_there(open_saves, tmp_path):
  with pytest.raises(ValueError, match="holds no checkpoint"):
    checkpoint.read_params(tmp_path, make_state().params)
  save_all(open_saves(), [make_state(1, ema=False)])
  with pytest.raises(ValueError, match="ema has conv/kernel nowhere"):
    checkpoint.read_params(tmp_path, make_state().params, "ema")
  with pytest.raises(ValueError, match=r"params has conv/kernel float32\[3, 3, 16, 64\]"):
    checkpoint.read_params(tmp_path, make_state(width=32).params)


@pytest.mark.parametrize("target", [make_state(width=32), make_state()._replace(opt={"m": 1.0})])
def test_another_architecture_is_one_line_and_loses_nothing(open_saves, tmp_path, target):
  target = target._replace(opt=jax.tree.map(jnp.asarray, target.opt))
  save_all(open_saves(), [make_state(1), make_state(2)])
  with pytest.raises(ValueError, match="use the model and method it was saved with") as error:
    open_saves().restore(target)
  assert "\n" not in str(error.value)
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}
  assert_equal(open_saves().restore(make_state()), make_state(2))


def truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(content)


def test_any_damage_to_the_newest_is_seen(open_saves, tmp_path, caplog):
  """Each file in turn is cut, changed or removed: the newest is exact or the one before is used."""
  states = {step: make_state(step) for step in (1, 2)}
  save_all(open_saves(), states.values())
  root, backup = tmp_path / "checkpoints", tmp_path / "backup"
  shutil.copytree(root, backup)
  folders = [root / "2" / name for name in ("params", "meta")]  # the other items are as params
  paths = [*(root / "2").iterdir(), *(p for folder in folders for p in folder.rglob("*"))]
  files = [path.relative_to(root) for path in paths if path.is_file() and path.stat().st_size]
  damages, harmful = {truncate, flip, pathlib.Path.unlink}, set()
  for file in files:
    for damage in damages:
      shutil.rmtree(root)
      shutil.copytree(backup, root)
      damage(root / file)
      caplog.clear()
      restored = open_saves().restore(states[2])
      step = int(restored.step)
      assert_equal(restored, states[step])
      assert ("checkpoints/2 is damaged" in caplog.text) == (step == 1), (file, damage)
      harmful |= {damage} if step == 1 else set()
  assert harmful == damages


def test_a_damaged_newest_is_set_aside_and_replaced(open_saves, tmp_path):
  save_all(open_saves(), [make_state(1), make_state(2)])
  shutil.rmtree(tmp_path / "checkpoints" / "2" / "params")
  saves = open_saves()
  assert int(saves.restore(make_state()).step) == 1
  assert (tmp_path / "damaged" / "2").is_dir()
  save_all(saves, [make_state(2)])
  assert_equal(open_saves().restore(make_state()), make_state(2))


def test_all_damaged_is_an_error(open_saves, tmp_path):
  save_all(open_saves(), [make_state(1), make_state(2)])
  for step in ("1", "2"):
    shutil.rmtree(tmp_path / "checkpoints" / step / "opt")
  with pytest.raises(checkpoint.Damaged, match=r"every checkpoint under .* was damaged"):
    open_saves().restore(make_state())
  assert {p.name for p in (tmp_path / "damaged").iterdir()} == {"1", "2"}
  assert open_saves().restore(make_state()) is None


def test_another_run_that_is_damaged(open_saves, tmp_path):
  save_all(open_saves(), [make_state(1)])
  shutil.rmtree(tmp_path / "checkpoints" / "1" / "params")
  with pytest.raises(checkpoint.Damaged, match="checkpoints/1 is damaged"):
    checkpoint.read_params(tmp_path, make_state().params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "uint8"])
def test_the_fingerprint_sees_one_bit_and_the_order(dtype):
  host = np.arange(1, 9) % 2 if dtype == "bool" else np.arange(1, 9)
  leaf = jnp.asarray(host, dtype)
  changed = leaf.at[3].set(leaf[4])
  swapped = jnp.roll(leaf, 1)
  moved = {"a": leaf[:4], "b": leaf[4:]}, {"a": leaf[4:], "b": leaf[:4]}
  prints = [checkpoint.fingerprint(tree) for tree in (leaf, changed, swapped)]
  assert len(set(prints)) == 3
  if dtype != "bool":  # the halves of the bools are equal
    assert checkpoint.fingerprint(moved[0]) != checkpoint.fingerprint(moved[1])


def test_the_fingerprint_is_the_same_on_every_mesh():
  prints = {checkpoint.fingerprint(make_state(1, *mesh)) for mesh in [(1, 1), (4, 2), (1, 8)]}
  assert len(prints) == 1


def test_the_fingerprint_is_the_same_in_one_process_and_in_several(monkeypatch):
  alone = checkpoint.fingerprint(make_state(1))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert checkpoint.fingerprint(make_state(1)) == alone
