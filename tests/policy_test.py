"""Who may use which source: what a policy gives, what it refuses, what is none."""

import json

import pytest

from jaxunlearn.cdm import policy
from jaxunlearn.cdm.export import parse
from jaxunlearn.commands import sample

RIGHTS = {"alice": ["a", "c"], "bob": "*"}


@pytest.fixture(params=["policy.yaml", "policy.json"])
def path(request, tmp_path):
  text = json.dumps(RIGHTS) if request.param.endswith("json") else "alice: [a, c]\nbob: '*'\n"
  (tmp_path / request.param).write_text(text)
  return tmp_path / request.param


def test_what_is_given(path):
  assert policy.allowed(path, "alice") == ("a", "c")
  assert policy.allowed(path, "alice", ("c",)) == ("c",)
  assert policy.allowed(path, "bob", ("x",)) == ("x",) and policy.allowed(path, "bob") == ()
  assert policy.allowed(None, "", ("x",)) == ("x",)
  assert policy.find(path.parent) == path and policy.find(path.parent / "none") is None
  assert policy.find(path.parent, "other.yaml").name == "other.yaml"


@pytest.mark.parametrize(
  ("who", "sources", "message"),
  [
    ("", (), "says who may use which source; say who you are with --as=NAME"),
    ("alise", (), r"no name in .* 'alise' \(did you mean 'alice'"),
    ("alice", ("a", "b"), r"gives alice a, c and not b; leave that out, or ask the owner"),
  ],
)
def test_what_is_refused(path, who, sources, message):
  with pytest.raises(ValueError, match=message):
    policy.allowed(path, who, sources)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[a, b]", "is no policy; give lines like 'alice"),
    ("alice: a", "gives 'alice' 'a'; give a list of sources"),
    ("alice: []", r"gives 'alice' \[\]; give a list of sources"),
    ("alice: [1]", r"gives 'alice' \[1\]; give a list"),
    ("alice: [a", "cannot read the policy"),
    ("!!python/object/apply:os.system ['true']", "cannot read the policy"),
  ],
)
def test_what_is_no_policy(tmp_path, text, message):
  (tmp_path / "p.yaml").write_text(text)
  with pytest.raises(ValueError, match=message):
    policy.allowed(tmp_path / "p.yaml", "alice")


def test_a_name_without_a_policy_is_refused():
  with pytest.raises(ValueError, match="--as is 'alice' and there is no policy"):
    policy.allowed(None, "alice")


def test_flags():
  words = ["--sources=a,b", "--as=alice", "--policy=p.yaml"]
  asked = sample.parse([*words, "--from=run", "--out=x.png"])
  assert (asked.sources, asked.who, asked.policy) == (("a", "b"), "alice", "p.yaml")
  assert parse([*words, "--run=run", "--out=x"]).who == "alice"
