"""The JobSet for GKE: the fields of its API, and parts that have to agree with each other."""

import functools
import pathlib

import jsonschema
import pytest
import yaml

from jaxunlearn.errors import PROCESS_LOST
from jaxunlearn.mesh import processes

ROOT = pathlib.Path(__file__).parent.parent


def exactly(required, **properties):
  """The schema of an object with those fields alone; `required` names some of them."""
  return {
    "type": "object",
    "required": required.split(),
    "properties": properties,
    "additionalProperties": False,
  }


def many(items, least=1):
  return {"type": "array", "items": items, "minItems": least}


STRING, BOOL = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
WORDS = {"type": "object", "additionalProperties": STRING}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
METADATA = exactly("", name=NAME, labels=WORDS, annotations=WORDS)
FIELD = exactly("fieldRef", fieldRef=exactly("fieldPath", fieldPath=STRING))
CONTAINER = exactly(
  "name image command env resources",
  name=NAME,
  image=STRING,
  command=many(STRING),
  env=many(
    exactly("name", name=STRING, value=STRING, valueFrom=FIELD)
    | {"oneOf": [{"required": ["value"]}, {"required": ["valueFrom"]}]}
  ),
  ports=many(exactly("containerPort", containerPort=PORT, name=NAME)),
  securityContext=exactly("", privileged=BOOL),
  resources=exactly("limits", limits={"type": "object", "required": ["google.com/tpu"]}),
  volumeMounts=many(exactly("name mountPath", name=NAME, mountPath=STRING)),
)
POD = exactly(
  "restartPolicy terminationGracePeriodSeconds nodeSelector containers",
  restartPolicy={"const": "Never"},  # what a podFailurePolicy takes
  terminationGracePeriodSeconds=COUNT,
  nodeSelector=WORDS,
  hostNetwork=BOOL,
  dnsPolicy={"enum": ["ClusterFirst", "ClusterFirstWithHostNet"]},
  containers=many(CONTAINER),
  volumes=many(
    exactly(
      "name persistentVolumeClaim",
      name=NAME,
      persistentVolumeClaim=exactly("claimName", claimName=NAME),
    )
  ),
)
EXIT_CODES = exactly(
  "operator values",
  containerName=NAME,
  operator={"enum": ["In", "NotIn"]},
  values=many({"type": "integer", "minimum": 1, "maximum": 255}),
)
JOB = exactly(
  "parallelism completions backoffLimit template",
  completionMode={"const": "Indexed"},
  parallelism=COUNT,
  completions=COUNT,
  backoffLimit={"const": 0},  # one pod's failure is the job's
  podFailurePolicy=exactly(
    "rules",
    rules=many(
      exactly(
        "action",
        action={"enum": ["FailJob", "Ignore", "Count", "FailIndex"]},
        onExitCodes=EXIT_CODES,
        onPodConditions=many({}, 0),
      )
    ),
  ),
  template=exactly("spec", metadata=METADATA, spec=POD),
)
JOBSET = exactly(
  "apiVersion kind metadata spec",
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=METADATA,
  spec=exactly(
    "replicatedJobs",
    ttlSecondsAfterFinished=COUNT,
    network=exactly("", enableDNSHostnames=BOOL, subdomain=NAME, publishNotReadyAddresses=BOOL),
    failurePolicy=exactly(
      "",
      maxRestarts=COUNT,
      rules=many(
        exactly(
          "name action", name=NAME, action={"enum": ACTIONS}, onJobFailureReasons=many(STRING)
        )
      ),
    ),
    replicatedJobs=many(
      exactly("name template", name=NAME, replicas=COUNT, template=exactly("spec", spec=JOB))
    ),
  ),
)
SERVICE = exactly(
  "apiVersion kind metadata spec",
  apiVersion={"const": "v1"},
  kind={"const": "Service"},
  metadata=METADATA,
  spec=exactly(
    "clusterIP selector ports",
    clusterIP={"const": "None"},
    publishNotReadyAddresses={"const": True},
    selector=WORDS,
    ports=many(exactly("port", name=NAME, port=PORT)),
  ),
)


@functools.cache
def manifests():
  """(the service, the JobSet)."""
  return tuple(yaml.safe_load_all((ROOT / "launch/gke_jobset.yaml").read_text()))


def parts():
  """Of the JobSet: (its only replicated job, the job's spec, its pod's, the only container)."""
  (replicated,) = manifests()[1]["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  return replicated, job, pod, container


def test_the_manifests_have_the_fields_of_their_api():
  for manifest, schema in zip(manifests(), (SERVICE, JOBSET), strict=True):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest, schema)


def test_the_schema_sees_a_field_that_does_not_exist():
  wrong = yaml.safe_load(yaml.safe_dump(manifests()[1]).replace("parallelism", "paralelism"))
  with pytest.raises(jsonschema.ValidationError, match="paralelism"):
    jsonschema.validate(wrong, JOBSET)


def test_the_processes_of_the_jobset_find_each_other():
  service, jobset = manifests()
  replicated, job, pod, container = parts()
  name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
  env = {entry["name"]: entry for entry in container["env"]}
  assert set(env) == set(processes.EXPLICIT)
  assert job["completions"] == job["parallelism"]
  found = processes.explicit({k: v.get("value", "0") for k, v in env.items()})
  host, _, port = found["coordinator_address"].partition(":")
  assert found["num_processes"] == job["completions"] * replicated["replicas"]
  assert replicated["replicas"] == 1  # the completion index counts within a slice
  index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
  assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert host == f"{name}-{replicated['name']}-0-0.{network['subdomain']}"
  assert network["enableDNSHostnames"] and network["subdomain"] == service["metadata"]["name"]
  assert service["spec"]["selector"] == {"jobset.sigs.k8s.io/jobset-name": name}
  ports = [service["spec"]["ports"][0]["port"], container["ports"][0]["containerPort"]]
  assert ports == [int(port)] * 2
  assert pod["dnsPolicy"] == "ClusterFirstWithHostNet" or not pod["hostNetwork"]


def test_the_hosts_of_the_jobset_are_those_of_its_topology():
  _, job, pod, container = parts()
  rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert job["parallelism"] * chips == rows * columns


def test_the_jobset_restarts_what_can_go_on_and_nothing_else():
  _, job, pod, container = parts()
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert rule["onExitCodes"]["values"] == [PROCESS_LOST, 134, 137, 143]
  policy = manifests()[1]["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  (rule,) = policy["rules"]
  assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_jobset_runs_a_config_that_exists_in_a_folder_that_all_see():
  _, _, pod, container = parts()
  flags = dict(word[2:].split("=", 1) for word in container["command"] if word.startswith("--"))
  (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
  assert (ROOT / flags["config"]).exists()
  assert flags["workdir"].startswith(mount["mountPath"] + "/")
  assert mount["name"] == volume["name"]
