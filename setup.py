"""The packages of the wheel: setup.cfg, which has all else, cannot say that configs/ goes along."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["jaxunlearn*"]), "jaxunlearn.configs"],
  package_dir={"jaxunlearn.configs": "configs"},
)
