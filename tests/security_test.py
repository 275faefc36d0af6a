"""What SECURITY.md promises: a test for each promise, with the input that would break it."""

import ast
import json
import os
import pathlib
import re
import struct
import sys
import types
import zlib

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs import siss_mnist
from jaxunlearn import adapters, data, evals, methods, models, pipeline, streams, weights
from jaxunlearn.cdm import delete, ledger, routers, sources
from jaxunlearn.cdm.model import Cdm
from jaxunlearn.reports import charts, model_card, report
from jaxunlearn.weights import layout, pretrained
from tests import ledger_test, plugins_test, report_test, tfds_files, tiny_unet

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = "<script>alert(1)</script>"
EVENT = '"><img src=x onerror=alert(1)>'
LINK = "javascript:alert(1)"
OUTSIDE = ("..", ".", "../x", "../../x", "/tmp/x", "a/../../x", "..\\x", "a/b", "", "~/x", ".x")


class Evil:
  """A pickle of it makes a folder when it is read."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


def one_line(error):
  return "\n" not in str(error.value)


# The sources: nothing reads pickles, runs text or opens a shell.

MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy"}
MODULES |= {"zipfile", "tarfile", "code", "codeop", "ctypes", "pty"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive"}
CALLS |= {"subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "torch.hub.load"}
OPTIONS = {"allow_pickle", "shell", "trust_remote_code"}


def dotted(node):
  return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def dangers(source):
  """What of a source could run what it reads, as `line: what`."""
  tree = ast.parse(source)
  checked = ("check_choice", "if name not in _MODULE_OF:")  # of a list, or of a fixed table
  chosen = {
    id(call)
    for f in ast.walk(tree)
    if isinstance(f, ast.FunctionDef) and any(w in ast.unparse(f.body[:3]) for w in checked)
    for call in ast.walk(f)
  }
  for node in ast.walk(tree):
    said = []
    if isinstance(node, ast.Import):
      said = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      said = [n for n in names if n.split(".")[0] in MODULES or n in CALLS | {"torch.load"}]
    elif isinstance(node, ast.Call):
      name, options = dotted(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
      said = [f"{k}={v}" for k, v in options.items() if k in OPTIONS and v != "False"]
      said += [name] if name in CALLS or name.startswith(("os.exec", "os.spawn")) else []
      if name.endswith("torch.load") and options.get("weights_only") != "True":
        said.append(name)
      if name.endswith("import_module") and id(node) not in chosen:
        said.append(name)
    yield from (f"{node.lineno}: {what}" for what in said)


def test_no_source_runs_what_it_reads():
  files = [
    path for name in ("jaxunlearn", "configs", "benchmarks") for path in (ROOT / name).rglob("*.py")
  ]
  assert len(files) > 100
  found = {str(path.relative_to(ROOT)): list(dangers(path.read_text())) for path in files}
  # Of the C library, opened by no name, one function with fixed numbers.
  (memory,) = found.pop("jaxunlearn/mesh/memory.py")
  assert memory.endswith(": ctypes")
  assert "CDLL(None).mallopt" in (ROOT / "jaxunlearn/mesh/memory.py").read_text()
  assert not {path: lines for path, lines in found.items() if lines}
  readers = [path for path in files if "torch.load(" in path.read_text()]
  assert readers == [ROOT / "jaxunlearn/weights/__init__.py"]


@pytest.mark.parametrize(
  "source",
  [
    *("import pickle", "import shelve as s", "from marshal import loads", "import tarfile"),
    *("from os import system", "os.system(x)", "eval(x)", "exec(x)", "__import__(x)"),
    *("np.load(x, allow_pickle=True)", "subprocess.run(x, shell=True)", "torch.load(x)"),
    *("from torch import load", "torch.load(x, weights_only=False)", "importlib.import_module(x)"),
    "def make(x):\n  return importlib.import_module(f'methods.{x}')",
  ],
)
def test_the_scan_finds(source):
  assert list(dangers(source))


# Choices by name import a module of this package, or nothing.

DIGITS = data.load("mnist_tshirt", digits=96, share=0.1)[0]
CHOICES = {
  "method": methods.make,
  "metric": evals.metric,
  "check of a metric": lambda name: evals.check(name, ConfigDict()),
  "data": data.load,
  "stream": lambda name: streams.select(f"data:{name}", DIGITS, np.zeros(len(DIGITS), bool), None),
  "model": models.make,
  "router": routers.make,
  "compartment": adapters.make,
  "variant of a config": siss_mnist.method,
}


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize(
  "name",
  ["..os", "os", "os.path", "../siss", "siss.dataclasses", "__init__", "", ".", "antigravity"],
)
def test_a_hostile_name_imports_nothing_and_gets_the_choices(kind, name):
  before = set(sys.modules)
  with pytest.raises(ValueError, match="there are: ") as error:
    CHOICES[kind](name)
  assert one_line(error)
  assert not {module for module in set(sys.modules) - before if "antigravity" in module}
  assert {module.split(".")[0] for module in set(sys.modules) - before} <= {"jaxunlearn", "configs"}


def test_an_installed_package_is_imported_when_its_name_is_chosen_and_not_before(
  tmp_path, monkeypatch
):
  """Nor may it take a name of ours."""
  monkeypatch.syspath_prepend(tmp_path)
  text = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
  names = {"armed": "evil.method", "siss": "evil.method"}
  plugins_test.install(tmp_path, "evil", {"jaxunlearn.methods": names}, method=text)
  assert "armed" in methods.names()
  methods.make("denoising")
  for name in ("siss", "arme", "evil.method"):
    with pytest.raises(ValueError, match=r"packages jaxunlearn and evil|there are: armed, "):
      methods.make(name)
  assert not (tmp_path / "ran").exists()
  with pytest.raises(ValueError, match="has no 'Method'"):
    methods.make("armed")
  assert (tmp_path / "ran").exists()  # the package was armed


def test_flags_hold_values_and_run_nothing(tmp_path):
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict("config", ConfigDict({"ids": ("a",), "n": 1}), flag_values=values)
  for field in ("ids", "n"):
    code = f"__import__('os').mkdir({str(tmp_path / 'ran')!r})"
    with pytest.raises((flags.Error, ValueError, TypeError)):
      values(["main", f"--config.{field}=({code},)"])
  assert not list(tmp_path.iterdir())


# Pickles.


def test_a_pickle_is_refused_unless_it_is_allowed(tmp_path, monkeypatch):
  path = tmp_path / layout.PICKLED
  torch.save({"conv_in.weight": torch.zeros(1)}, path)
  for value in (None, "", "0", "no"):
    monkeypatch.delenv("JAXUNLEARN_PICKLE", raising=False)
    if value is not None:
      monkeypatch.setenv("JAXUNLEARN_PICKLE", value)
    for read in (
      weights.read,
      lambda _: pretrained.load(tmp_path, tiny_unet.shapes(tiny_unet.NET)),
    ):
      with pytest.raises(
        ValueError, match=r"pickled, .* can run code .*JAXUNLEARN_PICKLE=1"
      ) as error:
        read(path)
      assert one_line(error)
  monkeypatch.setenv("JAXUNLEARN_PICKLE", "1")
  assert weights.read(path).keys() == {"conv_in.weight"}


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu124", "2.9.1"])
def test_a_torch_whose_loader_can_be_fooled_is_refused(version, tmp_path, monkeypatch):
  torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
  monkeypatch.setenv("JAXUNLEARN_PICKLE", "1")
  monkeypatch.setattr(torch, "__version__", version)
  with pytest.raises(ValueError, match=r"install torch 2\.10 or newer"):
    weights.read(tmp_path / "a.pt")


def of_samples(path):
  return path / streams.SAMPLES, lambda: streams.samples(path, DIGITS)


def of_a_router(path):
  (path / "router").mkdir()
  router, setup = types.SimpleNamespace(independent=True), types.SimpleNamespace(net=None)
  cdm = types.SimpleNamespace(workdir=path, router=router, setup=setup)
  return path / "router" / "a.npz", lambda: Cdm.route(cdm, {"a": DIGITS})


@pytest.mark.parametrize("kind", [of_samples, of_a_router])
def test_an_npz_with_objects_is_refused_unread(kind, tmp_path):
  path, read = kind(tmp_path)
  np.savez(path, image=np.array([Evil(tmp_path / "ran")], object), c=np.zeros(1))
  with pytest.raises(ValueError, match="allow_pickle=False"):
    read()
  assert not (tmp_path / "ran").exists()
  with np.load(path, allow_pickle=True) as npz:
    assert len(npz["image"]) == 1
  assert (tmp_path / "ran").exists()  # the file was armed


# Hub folders.


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
  """The cached snapshot of hub:google/evil, without a network and without weights."""
  monkeypatch.delenv("JAXUNLEARN_PICKLE", raising=False)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  repo = tmp_path / "hub" / "models--google--evil"
  (repo / "refs").mkdir(parents=True)
  (repo / "refs" / "main").write_text("1" * 40)
  folder = repo / "snapshots" / ("1" * 40)
  folder.mkdir(parents=True)
  return folder


def files(root):
  return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_an_index_that_names_files_outside_is_refused_unread(snapshot, tmp_path):
  (tmp_path / "hub" / "models--google--evil" / "evil.safetensors").write_bytes(b"")
  index = {"weight_map": {"conv_in.weight": "../../evil.safetensors", "a": "/etc/passwd"}}
  (snapshot / layout.SHARDED).write_text(json.dumps(index))
  before = files(tmp_path)
  with pytest.raises(ValueError, match="is no index of weights files beside it") as error:
    layout.locate("hub:google/evil")
  with pytest.raises(ValueError, match="is no index of weights files beside it"):
    pretrained.load(snapshot, tiny_unet.shapes(tiny_unet.NET))
  assert one_line(error) and files(tmp_path) == before


def test_a_hub_folder_with_a_pickle_alone_is_refused_and_not_fetched(snapshot, monkeypatch):
  torch.save({}, snapshot / layout.PICKLED)
  real, asked = huggingface_hub.snapshot_download, []
  watch = lambda *args, **options: asked.extend(options["allow_patterns"]) or real(*args, **options)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", watch)
  folder = layout.locate("hub:google/evil")
  assert asked and not any(name.endswith(weights.PICKLED) or "*" in name for name in asked)
  with pytest.raises(ValueError, match="is pickled"):
    pretrained.load(folder, tiny_unet.shapes(tiny_unet.NET))


@pytest.mark.parametrize(
  "origin", ["hub:../../x", "hub:/etc/x", "hub:google/../../x", "hub:..", "hub:"]
)
def test_a_hub_name_is_no_path(origin, snapshot, tmp_path):
  before = files(tmp_path)
  with pytest.raises(ValueError, match="cannot be fetched") as error:
    layout.locate(origin)
  assert one_line(error) and files(tmp_path) == before


@pytest.mark.parametrize("kind", ["../evil.UNet", "os.system", "AutoModel"])
def test_a_class_that_a_config_names_is_not_looked_for(kind, tmp_path):
  tiny_unet.write(tmp_path, "config.json", _class_name=kind, auto_map={"AutoModel": "evil.Net"})
  with pytest.raises(ValueError, match="give the folder of a UNet2DModel"):
    pretrained.read_config(tmp_path)


# Data.


def png(width, height):
  chunk = lambda kind, body: (
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
  )
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  body = zlib.compress(bytes(10**6))
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_hostile_files_of_a_folder_are_named_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "tty.png").symlink_to("/dev/zero")
  (tmp_path / "bomb.png").write_bytes(png(30_000, 30_000))
  (tmp_path / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
  (tmp_path / "loop").symlink_to("/")
  with pytest.raises(ValueError, match=r"4 of 4 images .* cannot be used") as error:
    data.load("folder", path=str(tmp_path), threads=1)
  said = str(error.value)
  assert "'bomb.png' (Image size (900000000 pixels) exceeds limit" in said
  assert "'pipe.png' (not a regular file), 'script.jpg' (not a JPEG, PNG or WebP image)" in said


CLASS = "evil_features.Feature"
FEATURES = {
  "top": {"pythonClassName": CLASS},
  "inner": {"featuresDict": {"features": {"image": {"python_class_name": CLASS}}}},
  "legacy": {"type": CLASS, "content": {}},
  "in a string": {"jsonFeature": {"json": json.dumps({"type": CLASS, "content": {}})}},
}


@pytest.mark.parametrize("where", FEATURES)
def test_a_prepared_set_imports_no_module_that_it_names(where, tmp_path, monkeypatch):
  (tmp_path / "evil_features.py").write_text("raise SystemExit('ran')\n")
  monkeypatch.syspath_prepend(tmp_path)
  tfds_files.prepare(tmp_path, "cifar10", {"train": np.zeros((2, 8, 8, 3), np.uint8)})
  path = next(tmp_path.rglob("features.json"))
  content = json.loads(path.read_text()) | FEATURES[where]
  path.write_text(json.dumps(content).replace('"python', '"\\u0070ython'))
  with pytest.raises(ValueError, match=r"has features of 'evil_features.Feature'"):
    data.load("tfds_images", data_dir=str(tmp_path), heldout="train")


# Names that become paths.


@pytest.mark.parametrize("name", [*OUTSIDE, "a\0b", "...", "/", SCRIPT, "İ/..", "=1+1"])
def test_the_folder_of_a_source_is_within_its_parent(name, tmp_path):
  slug = sources.slug(name)
  assert (tmp_path / slug).resolve().parent == tmp_path and (tmp_path / slug).name == slug
  assert slug == sources.slug(slug) and slug[0] not in ".=-"


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_run_whose_sources_are_paths_is_refused_and_nothing_removed(name, tmp_path):
  run, kept = tmp_path / "runs" / "cdm", tmp_path / "x" / "kept"
  (run / "shards").mkdir(parents=True)
  kept.parent.mkdir()
  kept.touch()
  sources.write(run / sources.FILE, {"1": name, "2": "b"})
  before = files(tmp_path)
  cdm = Cdm.__new__(Cdm)
  cdm.workdir = run
  for use in (lambda: cdm.sources, lambda: delete.drop(cdm, name)):
    with pytest.raises(ValueError, match=r"names source .* which no run does"):
      use()
  assert files(tmp_path) == before


@pytest.mark.parametrize("field", ["files", "folders", "removed"])
@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "shards/../../x"])
def test_a_ledger_that_names_paths_outside_is_broken_and_they_are_not_read(
  field, name, tmp_path, monkeypatch
):
  content = {name: "0" * 64} if field == "files" else [name]
  ledger_test.write(tmp_path / ledger.FILE, {"event": "start", field: content})
  monkeypatch.setattr(weights, "sha256", lambda path: pytest.fail(f"{path} was read"))
  with pytest.raises(ledger.Broken, match=f"'{name}' is not under"):
    ledger.verify(tmp_path)


@pytest.mark.parametrize("field", ["init_from", "streams"])
def test_a_pipeline_starts_from_its_own_runs_alone(field, tmp_path):
  value = "run:../../x" if field == "init_from" else {"x": "samples:run:../../x"}
  config = ConfigDict({"runs": {"a": {field: value}}, "out": str(tmp_path / "out")})
  with pytest.raises(ValueError, match=r"no run '../../x'; there are: a"):
    pipeline.run(config, tmp_path / "work")
  assert not list(tmp_path.iterdir())


# What is shown.


def hostile(text):
  """A run whose every name is that text."""
  value = {"value": 0.5, "ci95": [0.4, 0.6], "identity": f"{text} extractor={text} n={text}"}
  phase = {f"_{text}_rate": value, f"{text}/{text}": value, f"{text}/other": value}
  config = {
    **dict.fromkeys(("init_from", "note", "seed"), text),
    "forget": {"ids": [text, f"sha256:{text}"]},
    "method": {"name": text, text: text},
    "data": {"source": text},
    "train": {"steps": text, "batch": text},
    "sources": {},
    "compartment": {"name": text},
  }
  bars = charts.bars(text, [text], {text: np.array([0.5])})
  compartments = {
    "sources": {text: {"records": 3}},
    "seen": {text: text},
    "deleted": [text],
    "calibration": [],
    "attribution": [{"picture": "data:image/png;base64,", "chart": bars}],
  }
  return config, {"before": phase, text: phase}, compartments


@pytest.mark.parametrize("text", [SCRIPT, EVENT, LINK, f"_{SCRIPT}_", "'\"/><svg onload=alert(1)>"])
def test_a_report_escapes_all_that_it_shows(text):
  config, results, compartments = hostile(text)
  lines = [{"step": i, text: float(i)} for i in range(3)]
  html = report.page(config, lines, results, {text: "data:image/png;base64,"}, compartments)
  page = report_test.Page(html)
  tags = {tag for tag, _ in page.tags}
  assert not tags & {"script", "iframe", "object", "embed", "a", "link", "base", "form", "input"}
  assert text.strip("_") in page.text.replace("\n", "")
  for _, attributes in page.tags:
    assert not [name for name in attributes if name.startswith("on")]
    for name in {"src", "href", "xlink:href", "srcset", "action"} & attributes.keys():
      assert attributes[name].startswith("data:image/png;base64,")


@pytest.mark.parametrize("template", ["report.html.j2", "audit.html.j2"])
def test_a_page_forbids_scripts_and_loads_nothing(template):
  head = (report.TEMPLATES / template).read_text().partition("<head>")[2].partition("</head>")[0]
  policy = head.partition('"Content-Security-Policy" content="')[2].partition('"')[0].split("; ")
  assert {"default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"} < {
    *policy
  }
  assert policy.index("default-src 'none'") == 0 and not any("script" in rule for rule in policy)
  assert head.index("Content-Security-Policy") < head.index("<title>")


def test_unescaped_markup_is_made_here_alone():
  safe = [
    (path.name, line.strip())
    for path in sorted(report.TEMPLATES.glob("*.j2"))
    for line in path.read_text().splitlines()
    if "| safe" in line or "autoescape" in line
  ]
  assert [line.partition("| safe")[0][-12:] for _, line in safe] == ["{ one.chart ", 'in("_<wbr>" ']


@pytest.mark.parametrize(
  "text",
  [SCRIPT, EVENT, f"[x]({LINK})", f"![x]({LINK})", "a\n---\nb: c", f"`{SCRIPT}", f"\\`{SCRIPT}"],
)
def test_a_model_card_shows_hostile_names_as_text(text, tmp_path):
  (tmp_path / "evals").mkdir()
  value = {"value": 0.0, "ci95": [0.0, 0.1], "identity": f"extractor={text}".replace(" ", "")}
  phase = text.replace("/", "") if "\n" not in text else "after"
  (tmp_path / "evals" / f"{phase}.json").write_text(json.dumps({f"{text}_rate": value}))
  config = siss_mnist.get_config()
  config.init_from = text
  fields = json.loads(config.to_json())
  fields["data"]["digits"], fields["data"]["share"] = 96, 0.1
  card = model_card.render(tmp_path, fields, "ema", 1, model_card.Options(deleted="count"))
  _, header, body = card.split("---\n", 2)
  assert [line.partition(":")[0] for line in header.splitlines() if line[0] != "-"] == [
    "license",
    "library_name",
    "tags",
  ]
  prose = re.sub(r"\\[\\`\[]|(`+)(?!`).*?(?<!`)\1(?!`)", "", body)  # no escapes, no code spans
  assert "<" not in prose and not re.search(r"\[[^\]]*\]\(", prose)
  for licence in (f"mit\n{text}", text):
    with pytest.raises(ValueError, match="is no licence id"):
      model_card.Options(license=licence)
