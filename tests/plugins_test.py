"""A stranger's package adds a method, a metric, data and a model: docs/plugins.md, as printed."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from jaxunlearn import data, evals, export, methods, models, pipeline
from jaxunlearn.commands import listing

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text()
FILES = dict(
  re.findall(r"`([\w/]+\.(?:toml|py))`(?:, for .*)?:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
)
ADDED = {methods: "mild_ascent", evals: "brightness", data: "bars", models: "one_layer"}


def install(folder, package, entry_points, **files):
  """What pip leaves of a package in a folder of modules."""
  info = folder / f"{package}-1.0.dist-info"
  info.mkdir(parents=True)
  (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
  lines = [
    f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in names.items())
    for group, names in entry_points.items()
  ]
  (info / "entry_points.txt").write_text("\n".join(lines))
  for name, text in files.items():
    path = folder / package / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
  """The package of the page, installed."""
  folder = tmp_path_factory.mktemp("site")
  project = tomllib.loads(FILES["pyproject.toml"])["project"]
  modules = {pathlib.Path(f).stem: text for f, text in FILES.items() if f.startswith("stranger/")}
  install(folder, project["name"], project["entry-points"], **modules)
  (folder / "bars.py").write_text(FILES["bars.py"])
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield folder
  for name in [name for name in sys.modules if name.split(".")[0] in ("stranger", "bars")]:
    del sys.modules[name]


@pytest.fixture
def site(tmp_path, monkeypatch):
  """An empty folder of installed modules."""
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


def test_its_four_names_are_among_ours(stranger):
  for group, name in ADDED.items():
    assert name in group.names()
  method = methods.make("mild_ascent", share=0.5)
  assert method.share == 0.5 and type(method).__module__ == "stranger.mild_ascent"
  with pytest.raises(ValueError, match=r"no method 'mild_ascnt' \(did you mean 'mild_ascent'\?\)"):
    methods.make("mild_ascnt")
  with pytest.raises(ValueError, match=r"^share is 2; use 0 to 1$"):
    methods.make("mild_ascent", share=2)


def test_a_run_of_all_four(stranger, tmp_path):
  config = importlib.import_module("bars").get_config()
  pipeline.run_single(config, tmp_path)
  assert '"brightness"' in (tmp_path / "results.json").read_text()
  assert json.loads((tmp_path / "config.json").read_text())["method"]["share"] == 0.1
  with pytest.raises(ValueError, match=r"^model one_layer has no layout of files"):
    export.export(tmp_path, tmp_path / "out")


def test_the_contract_tests_run_on_it_as_the_page_says(stranger):
  """In a process of its own: pytest finds the names when it collects."""
  words = shlex.split(re.search(r"\npython (-m pytest tests/.*)\n", PAGE)[1])
  done = subprocess.run(
    [sys.executable, *words, "-p", "no:cacheprovider"],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(stranger)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
  for name in ADDED.values():
    assert name in words[-1]
  assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40


MINE = '"""Mine: a method."""\n\nfrom jaxunlearn.methods.denoising import Method\n'


def test_a_name_of_two_packages_is_refused_and_the_others_go_on(site):
  install(site, "one", {"jaxunlearn.methods": {"siss": "one.mine", "ok": "one.mine"}}, mine=MINE)
  install(site, "two", {"jaxunlearn.methods": {"ok": "two.mine", "fine": "two.mine"}}, mine=MINE)
  says = r"^method 'siss' comes from the packages jaxunlearn and one; uninstall one, or ask [^\n]*$"
  with pytest.raises(ValueError, match=says):
    methods.make("siss")
  with pytest.raises(ValueError, match=r"^method 'ok' comes from the packages one and two; "):
    methods.make("ok")
  assert methods.make("fine") == methods.make("denoising")


BROKEN = {
  "does not import": ("import not_there", r"\(ModuleNotFoundError: No module named 'not_there'\)"),
  "raises": ("raise RuntimeError('a\\nb')", r"\(RuntimeError: a\)"),
  "is not there": (None, r"\(ModuleNotFoundError: No module named 'broken.*'\)"),
  "lacks its part": ("x = 1", r"broken.mine has no 'Method'; docs/plugins.md"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_package_is_named_in_one_line(how, site, monkeypatch, capsys):
  text, says = BROKEN[how]
  modules = {} if text is None else {"mine": text}
  install(site, "broken", {"jaxunlearn.methods": {"mine": "broken.mine"}}, **modules)
  with pytest.raises(ValueError, match=rf"^method 'mine' of package broken[^\n]*{says}[^\n]*$"):
    methods.make("mine")
  monkeypatch.setattr(sys, "argv", ["jaxunlearn list", "methods"])
  listing.start()
  assert re.search(r"\n  mine +error: method 'mine' of package broken", capsys.readouterr().out)
  assert methods.make("siss")
  for name in [name for name in sys.modules if name.split(".")[0] == "broken"]:
    del sys.modules[name]
