"""Weight files of others: found by path or cache, checked by hash, read without running code."""

import hashlib
import sys
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxunlearn import weights
from jaxunlearn.weights import arrays, pretrained

BYTES = b"these are weights"
SHA256 = hashlib.sha256(BYTES).hexdigest()
STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.count": np.array(7)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("JAXUNLEARN_PICKLE", "1")  # security_test.py has what is without it
  return tmp_path / "cache"


@pytest.fixture
def published(tmp_path):
  """A file that its authors publish at a file:// URL."""
  source = tmp_path / "there" / "net.bin"
  source.parent.mkdir()
  source.write_bytes(BYTES)
  return weights.Published("the tests' net", source.as_uri(), "config.eval.net", SHA256)


def test_a_file_is_fetched_once_into_the_cache_and_found_there(published, cache):
  assert published.fetch() == published.cached == cache / "net.bin"
  assert published.cached.read_bytes() == BYTES
  assert published.find() == published.cached
  assert [path.name for path in cache.iterdir()] == ["net.bin"]


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(published, monkeypatch):
  monkeypatch.delenv("JAXUNLEARN_CACHE")
  monkeypatch.setenv("HOME", "/home/someone")
  assert str(published.cached) == "/home/someone/.cache/jaxunlearn/net.bin"


def test_a_path_goes_before_the_cache(published, tmp_path):
  published.fetch()
  own = tmp_path / "own.bin"
  own.write_bytes(BYTES)
  assert published.find(str(own)) == own


def test_another_file_than_the_published_one_is_not_kept(published, cache):
  wrong = weights.Published("the tests' net", published.url, "config.eval.net", "00ff")
  with pytest.raises(ValueError, match=rf"sent another file \(SHA-256 {SHA256}\)"):
    wrong.fetch()
  assert not wrong.cached.exists()


def test_another_file_than_the_published_one_is_not_taken(published, tmp_path):
  other = tmp_path / "other.bin"
  other.write_bytes(b"other")
  digest = weights.sha256(other)
  with pytest.raises(ValueError) as error:
    published.find(str(other))
  assert str(error.value) == (
    f"{other} is not the tests' net: its SHA-256 is {digest[:16]}... and should begin with "
    f"{SHA256}; fetch {published.url} again"
  )


@pytest.mark.parametrize("sha256", [SHA256[:8], ""], ids=["its first digits", "none"])
def test_a_hash_that_is_published_in_part_is_checked_as_far_as_it_goes(sha256, published):
  part = weights.Published("the tests' net", published.url, "config.eval.net", sha256)
  assert part.find(str(part.fetch())) == part.cached


def test_a_missing_file_is_one_line_with_all_that_it_takes(published, cache):
  with pytest.raises(ValueError) as error:
    published.find()
  line = str(error.value)
  assert "\n" not in line
  for fact in ("the tests' net", str(cache / "net.bin"), published.url, SHA256, published.field):
    assert fact in line
  with pytest.raises(ValueError, match=r"needs /nowhere/net.bin, which is not there: fetch file:"):
    published.find("/nowhere/net.bin")


# Reading.


def assert_state(got):
  assert got.keys() == STATE.keys()
  for name, value in STATE.items():
    np.testing.assert_array_equal(got[name], value)
    assert isinstance(got[name], np.ndarray)


def test_safetensors_are_read_without_torch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  safetensors.numpy.save_file(STATE, tmp_path / "net.safetensors")
  assert_state(weights.read(tmp_path / "net.safetensors"))


@pytest.mark.parametrize("suffix", weights.PICKLED)
def test_pickles_are_read_through_torch(suffix, tmp_path):
  path = tmp_path / f"net{suffix}"
  torch.save({name: torch.from_numpy(value) for name, value in STATE.items()}, path)
  assert_state(weights.read(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pickled_floats_become_float32(dtype, tmp_path):
  torch.save({"a": torch.tensor([0.5, 3.0], dtype=dtype)}, tmp_path / "net.pt")
  got = weights.read(tmp_path / "net.pt")["a"]
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, [0.5, 3.0])


@pytest.mark.parametrize("keep", [0.5, 0.02, 0])
def test_damaged_safetensors(keep, tmp_path):
  path = tmp_path / "net.safetensors"
  safetensors.numpy.save_file(STATE, path)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(keep * len(whole))])
  with pytest.raises(ValueError, match=r"net.safetensors is damaged \(.*\); fetch or make it"):
    weights.read(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x04garbage"])
def test_damaged_pickles(content, tmp_path):
  path = tmp_path / "net.pth"
  path.write_bytes(content)
  with pytest.raises(ValueError, match="cannot be read as weights alone") as error:
    weights.read(path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "content",
  [{"state_dict": {"a": torch.zeros(1)}}, {"a": torch.zeros(1), "step": 3}, [torch.zeros(1)]],
  ids=["nested", "with a number", "a list"],
)
def test_more_than_a_flat_state_dict_is_refused(content, tmp_path):
  torch.save(content, tmp_path / "net.pt")
  with pytest.raises(ValueError, match="is not a flat state dict; save the module's state_dict"):
    weights.read(tmp_path / "net.pt")


def test_other_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"net.npz is no weights file; give .safetensors, .bin"):
    weights.read(tmp_path / "net.npz")


# Array by array.


@pytest.fixture
def large(tmp_path):
  """(a tree of 16 kernels of 1 MiB, its file)."""
  rng = np.random.default_rng(0)
  draw = lambda: rng.standard_normal((256, 1024)).astype(np.float32)
  params = {"layers": {f"linear{i}": {"kernel": draw()} for i in range(16)}}
  path = tmp_path / "large.safetensors"
  arrays.write(path, pretrained.views(params))
  return params, path


def test_a_file_is_written_as_the_library_writes_it(large, tmp_path):
  params, path = large
  state = pretrained.to_state_dict(params)
  assert path.read_bytes() == safetensors.numpy.save(state, metadata={"format": "pt"})
  odd = {"b": np.float32([[1, 2]]).T, "\u00e9": np.zeros((0, 3), np.float32), "a": np.float32(5)}
  odd["half"] = np.float16([[1, 2], [3, 4]]).T
  arrays.write(tmp_path / "odd.safetensors", odd)
  for name, value in weights.read(tmp_path / "odd.safetensors").items():
    np.testing.assert_array_equal(value, odd[name])


def test_reading_and_writing_hold_every_array_once(large, tmp_path):
  """Beside the tree itself two arrays at most, of sixteen."""
  params, path = large
  tracemalloc.start()
  read = pretrained.from_state_dict(weights.open_(path), params)
  (kept, peak), _ = tracemalloc.get_traced_memory(), tracemalloc.reset_peak()
  assert 16 * 2**20 <= kept <= peak < 18.5 * 2**20
  arrays.write(tmp_path / "again.safetensors", pretrained.views(read))
  assert tracemalloc.get_traced_memory()[1] < kept + 2.5 * 2**20
  tracemalloc.stop()
  kernel = lambda tree: tree["layers"]["linear3"]["kernel"]
  np.testing.assert_array_equal(kernel(read), kernel(params))
  assert kernel(read).ctypes.data % arrays.ALIGNED == 0
