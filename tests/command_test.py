"""The command `jaxunlearn`: its sub-commands, its lists, and configs by name from any folder."""

import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import configs as of_the_clone
from jaxunlearn import __main__ as command
from jaxunlearn import __version__, data, evals, methods, models
from jaxunlearn.commands import configs, listing

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = {
  "run": "config workdir dry_run topology distributed",
  "export": "run out raw license deleted base sign_key",
  "verify-export": "key",
  "audit": "model before forget data out retrained template classifier minutes attacks small",
  "leaderboard": "out",
  "convert": "like file lora out",
  "sample": "from out prompt label style n batch steps sampler lora scale guidance seed sources "
  "mode policy as tifa",
  "answer": "run out ids files pictures confirm receipt execute prove purge runs workdir head",
  "memorised": "from prompts out n steps scale seed by references radius sscd vary few lora",
  "weights": "help",
  "cdm delete": "run ids file source resume plan prove receipt out",
  "cdm add": "run source",
  "cdm compare": "run out images draws probes model unlearned",
  "cdm ids": "run source",
  "cdm export": "run out sources policy as license",
  "cdm verify": "run head",
  "cdm sign-ledger": "run origin sign_key out",
  "cdm proof": "run checkpoint sign_key receipt commitment out",
  "cdm migrate-ledger": "run",
  "list": "help",
}


@pytest.fixture
def call(monkeypatch, capsys):
  """(exit code, standard output, standard error) of `jaxunlearn WORDS`, in this process."""

  def run(words):
    monkeypatch.setattr(sys, "argv", ["jaxunlearn", *words.split()])
    code = 0
    try:
      command.main()
    except SystemExit as left:
      code = left.code or 0
    return code, *capsys.readouterr()

  return run


def test_help_names_every_command_and_imports_no_jax():
  code = (
    "import sys; from jaxunlearn import __main__ as m; m.main(); assert 'jax' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
  )
  lines = done.stdout.splitlines()
  for name, (_, says) in command.COMMANDS.items():
    assert f"  {name:<18} {says}" in lines
  assert max(map(len, lines)) <= 100 and len(lines) < 30


@pytest.mark.parametrize("words", ["", "-h", "help", "cdm", "cdm --help"])
def test_help_is_what_an_unfinished_command_gets(call, words):
  assert call(words) == (0, command.usage() + "\n", "")


def test_the_version(call):
  assert call("--version") == (0, f"jaxunlearn {__version__}\n", "")


@pytest.mark.parametrize(
  ("words", "name", "near"),
  [
    ("rnu --config=x", "rnu", "run"),
    ("cdm delte", "cdm delte", "cdm delete"),
    ("lst", "lst", "list"),
  ],
)
def test_a_wrong_command_is_one_line_with_the_nearest(call, words, name, near):
  code, out, says = call(words)
  assert (code, out, says.count("\n")) == (2, "", 1)
  assert says.startswith(f"error: no command {name!r} (did you mean {near!r}?); there are: run, ")


@pytest.mark.parametrize("name", command.COMMANDS)
def test_the_help_of_each_is_short_and_has_its_flags(call, name):
  code, out, says = call(f"{name} --help")
  assert (code, says) == (0, "")
  assert len(out.splitlines()) < 40 and max(map(len, out.splitlines())) <= 100
  assert f"jaxunlearn {name}" in out
  for flag in FLAGS[name].split():
    assert f"--{flag}" in out


@pytest.mark.parametrize("kind", listing.KINDS)
def test_a_list_has_every_name_and_a_sentence_of_each(call, kind):
  code, out, _ = call(f"list {kind}")
  rows = [line.split(maxsplit=1) for line in out.splitlines()]
  group = {"methods": methods, "metrics": evals, "data": data, "models": models}.get(kind, configs)
  assert code == 0 and [name.partition(":")[0] for name, _ in rows] == group.names()
  assert all(len(says) > 20 and says[-1] in ".?:" for _, says in rows), rows


def test_a_list_of_all_has_titles_and_a_wrong_kind_the_choices(call):
  _, out, _ = call("list")
  assert [line[:-1] for line in out.splitlines() if line[0] != " "] == list(listing.KINDS)
  assert "\n  siss_mnist:siss " in out and "\n  siss " in out
  code, _, says = call("list modells")
  assert code == 2 and "invalid choice: 'modells'" in says


# Configs by name.


def test_every_config_has_its_name_and_its_default_variant():
  assert len(configs.names()) > 25
  for name in configs.names():
    made = importlib.import_module(f"configs.{name}").get_config
    defaults = [p.default for p in inspect.signature(made).parameters.values()]
    assert configs.variant(name) == next(iter(defaults), ""), name


def test_a_name_is_the_projects_file_and_a_path_stays(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  file = str(ROOT / "configs" / "siss_mnist.py")
  assert configs.locate("siss_mnist") == file
  assert configs.locate("siss_mnist:siss_lam0") == f"{file}:siss_lam0"
  for path in ("mine.py", "mine.py:a:b", "some/where", "/x/y.py:a", file):
    assert configs.locate(path) == path
  argv = [
    "main",
    "--config=siss_mnist:a",
    "--config",
    "siss_mnist",
    "--workdir=siss_mnist",
    "config",
  ]
  want = ["main", f"--config={file}:a", "--config", file, "--workdir=siss_mnist", "config"]
  assert configs.spelt_out(argv) == want
  fields = ["main", "--config.method.name=siss_mnist", "--config"]
  assert configs.spelt_out(fields) == fields


@pytest.mark.parametrize(
  ("config", "says"),
  [
    (
      "siss_mnst:siss",
      r"^no config 'siss_mnst' \(did you mean 'siss_mnist'\?\); `jaxunlearn list ",
    ),
    ("common", r"^no config 'common'"),
    ("../siss_mnist.py", r"^\.\./siss_mnist\.py is not here; write --config=siss_mnist for the "),
  ],
)
def test_a_wrong_name_says_the_nearest(config, says, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=says) as error:
    configs.locate(config)
  assert "\n" not in str(error.value)


def test_a_config_of_your_own_imports_the_projects_and_then_its_neighbours(tmp_path, monkeypatch):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "common.py").write_text("raise AssertionError('not this one')\n")
  (tmp_path / "configs" / "neighbour.py").write_text("from configs import common\n")
  for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.chdir(tmp_path)
  configs.expose()
  neighbour = importlib.import_module("configs.neighbour")
  assert neighbour.common.__file__ == str(ROOT / "configs" / "common.py")
  assert neighbour.__file__ == str(tmp_path / "configs" / "neighbour.py")
  for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
    del sys.modules[name]


def test_where_configs_are_imported_already_they_stay():
  configs.expose()
  assert sys.modules["configs"] is of_the_clone
