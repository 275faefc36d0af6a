"""The README is a promise: its files exist, its commands are real, its numbers are the results'."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("audit", "cdm", "celeba", "reliability", "scaling")
README = (ROOT / "README.md").read_text()


def test_every_linked_file_exists():
  links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
  assert links
  assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_config_in_a_command_exists():
  configs = re.findall(r"--config=(configs/\w+\.py)", README)
  assert configs
  assert [config for config in configs if not (ROOT / config).exists()] == []


def test_the_tables_are_the_committed_results():
  pages = README + "".join((ROOT / "docs" / f"{name}.md").read_text() for name in PAGES)
  shown = re.findall(r"<!-- (?:\.\./)?(results/\S+\.md) -->\n(.*?)<!-- end -->", pages, re.DOTALL)
  assert {name for name, _ in shown} == {
    "results/siss_mnist.md",
    "results/siss_emoji.md",
    "results/audit_emoji.md",
    "results/audit_fashion.md",
    "results/cdm_uniform.md",
    "results/cdm_class.md",
    "results/cdm_folder.md",
    "results/cdm_forget_source.md",
    "results/cdm_forget_record.md",
    "results/celeba_cpu.md",
    "results/benchmark_cdm_sampling.md",
    "results/benchmark_class_methods.md",
    "results/benchmark_siss_step.md",
    "results/check_tpu.md",
    "results/reliability.md",
  }
  for name, table in shown:
    rows = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("|")]
    assert table.splitlines() == rows[: len(table.splitlines())], name
    assert len(table.splitlines()) > 5
