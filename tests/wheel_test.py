"""The wheel has all that a run needs, and runs from any folder."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The project built offline, with nothing written into its folder."""
  out = tmp_path_factory.mktemp("wheel")
  build = ["egg_info", f"--egg-base={out}", "build", f"--build-base={out / 'build'}"]
  pack = ["bdist_wheel", f"--dist-dir={out}", f"--bdist-dir={out / 'bdist'}"]
  subprocess.run(
    [sys.executable, "setup.py", "-q", *build, *pack], cwd=ROOT, capture_output=True, check=True
  )
  with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
    archive.extractall(out / "site")
  return out / "site"


def files(folder, below=""):
  return {
    below + path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }


def test_it_holds_the_package_its_assets_templates_and_configs_and_nothing_else(wheel):
  want = files(ROOT / "jaxunlearn", "jaxunlearn/") | files(ROOT / "configs", "jaxunlearn/configs/")
  info = next(wheel.glob("*.dist-info"))
  assert files(wheel) - files(info, f"{info.name}/") == want
  kinds = {pathlib.Path(name).suffix for name in want}
  assert kinds == {".py", ".json", ".j2", ".md", ".npz", ".safetensors", ".txt"}
  says = (info / "entry_points.txt").read_text().split()
  assert says == ["[console_scripts]", "jaxunlearn", "=", "jaxunlearn.__main__:main"]


def launch(wheel, folder, *words):
  return subprocess.run(
    [sys.executable, "-m", "jaxunlearn", *words],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(wheel)},
    capture_output=True,
    text=True,
    check=False,
  )


def test_it_finds_its_configs_from_an_empty_folder(wheel, tmp_path):
  """One that only the wheel has: from get_config comes what it says of a wrong variant."""
  shipped = wheel / "jaxunlearn" / "configs"
  (shipped / "only_here.py").write_bytes((shipped / "siss_mnist.py").read_bytes())
  assert "\n  only_here:siss " in launch(wheel, tmp_path, "list", "configs").stdout
  done = launch(wheel, tmp_path, "run", "--config=only_here:sis", "--workdir=x")
  assert done.returncode == 2
  assert "no method 'sis' (did you mean 'siss'?)" in done.stderr and "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())
