"""The README is a promise: its files exist, its commands are real, its tables are the results'."""

import re

from tests.committed import PAGES, README, ROOT


def test_every_linked_file_exists():
  pages = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
  pattern = r"\]\((?!https?:)([^)#]+)[^)]*\)"
  links = [(p.name, p.parent / link) for p in pages for link in re.findall(pattern, p.read_text())]
  assert len(links) > 40
  assert [(page, link) for page, link in links if not link.exists()] == []


def test_every_config_in_a_command_exists():
  configs = re.findall(r"--config=(configs/\w+\.py)", README)
  assert configs
  assert [config for config in configs if not (ROOT / config).exists()] == []


def test_the_tables_are_the_committed_results():
  pages = README + "".join(PAGES.values())
  shown = re.findall(r"<!-- (?:\.\./)?(results/\S+\.md) -->\n(.*?)<!-- end -->", pages, re.DOTALL)
  assert {name for name, _ in shown} == {
    "results/siss_mnist.md",
    "results/siss_little_sd.md",
    "results/siss_emoji.md",
    "results/audit_emoji.md",
    "results/audit_fashion.md",
    "results/audit_little_sd_mosaic.md",
    "results/cdm_uniform.md",
    "results/cdm_class.md",
    "results/cdm_attribution.md",
    "results/cdm_little_styles_class.md",
    "results/cdm_folder.md",
    "results/cdm_copy_protection.md",
    "results/cdm_forget_source.md",
    "results/cdm_forget_record.md",
    "results/celeba_cpu.md",
    "results/benchmark_cdm_sampling.md",
    "results/benchmark_class_methods.md",
    "results/benchmark_sampling.md",
    "results/benchmark_siss_step.md",
    "results/check_tpu.md",
    "results/sd_memory.md",
    "results/sequence.md",
    "results/little_sd_quality.md",
    "results/memorised_little_sd.md",
    "results/reliability.md",
    "results/fuzz.md",
    "results/verdict_level.md",
  }
  for name, table in shown:
    whole = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("|")]
    lines = table.splitlines()
    assert lines == whole[: len(lines)] or cells(lines) == some(cells(whole), cells(lines)), name
    assert len(lines) > 5


def cells(lines):
  rows = [line for line in lines if "---" not in line]
  return [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in rows]


def some(whole, shown):
  """The rows of a table and the columns that are shown of it, by their names."""
  columns = [whole[0].index(title) for title in shown[0]]
  rows = {row[0]: row for row in whole}
  assert len(rows) == len(whole)
  return [[rows[row[0]][column] for column in columns] for row in shown]
