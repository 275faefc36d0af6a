#!/usr/bin/env bash
# One Cloud TPU slice, with gcloud: launch/tpu_pod.sh STEP, where STEP is
#
#   create            the slice                  install   this commit and JAX for TPU, on every worker
#   run FLAGS...      jaxunlearn.main, everywhere, in the background; the same command resumes a run
#   logs              follow one worker's output (WORKER=0), which ends with the exit code
#   stop              SIGTERM to one worker: all save the same step and exit with 143
#   on_all COMMAND    anything else, on every worker: to mount the folder of --workdir, for one
#   delete            the slice
#
# Variables: NAME, ZONE, TYPE and VERSION (its runtime), SPOT=1 to create it preemptible, PYTHON (3.11
# or newer, a package of the workers' Ubuntu). DRY_RUN=1 prints the commands.
set -euo pipefail

name=${NAME:-jaxunlearn}
zone=${ZONE:-us-central1-a}
type=${TYPE:-v5litepod-8}
version=${VERSION:-v2-alpha-tpuv5-lite}
python=${PYTHON:-python3.11}
home=jaxunlearn # on the workers, under the user's home

do_() {
  if [[ ${DRY_RUN-} == 1 ]]; then echo "${*@Q}"; else "$@"; fi
}

tpu() { do_ gcloud compute tpus tpu-vm "$@" --zone="$zone"; }

on() { tpu ssh "$name" --worker="$1" --command="$2"; }

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  trap 'rm -f "$archive"' RETURN
  do_ git archive --output="$archive" HEAD
  tpu scp "$archive" "$name:$home.tar.gz" --worker=all
  on all "set -e; mkdir -p $home; tar -xzf $home.tar.gz -C $home; cd $home; \
sudo apt-get -q update; sudo apt-get -qy install $python-venv; $python -m venv .venv; \
.venv/bin/pip install --quiet -c requirements.txt 'jax[tpu]' -e ."
}

run() {
  local main=".venv/bin/python -m jaxunlearn.main --distributed=on ${*@Q}"
  local both="cd $home; $main; echo \"exit code \$?\""
  on all "nohup bash -c ${both@Q} >$home.log 2>&1 </dev/null &"
}

step=${1-}
shift || true
case $step in
  create) tpu create "$name" --accelerator-type="$type" --version="$version" ${SPOT:+--spot} ;;
  install) install ;;
  run) run "$@" ;;
  logs) on "${WORKER:-0}" "tail -n 100 -f $home.log" ;;
  stop) on 0 "pkill -TERM -f '^\\S*python -m jaxunlearn.main'" ;;
  on_all) on all "$*" ;;
  delete) tpu delete "$name" --quiet ;;
  *)
    echo "usage: launch/tpu_pod.sh create|install|run|logs|stop|on_all|delete; got: $step" >&2
    exit 2
    ;;
esac
