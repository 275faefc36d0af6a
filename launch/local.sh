#!/usr/bin/env bash
# N processes of one run on this machine: launch/local.sh N COMMAND...
#
# Each process sees the variables that jaxunlearn/mesh/processes.py reads, and of several GPUs the one of
# its index; each line it prints begins with that index. SIGTERM and SIGINT reach every process as
# SIGTERM. Ends when all have ended, with the first exit code that was not 0 (143 is one).
# DRY_RUN=1 prints what would be started.
set -euo pipefail

if [[ ! ${1-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
  echo "usage: launch/local.sh N COMMAND..., N at least 1; got: $*" >&2
  exit 2
fi
n=$1
shift

port=$((RANDOM % 20000 + 10000)) # below the ports that Linux gives to outgoing connections
while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((RANDOM % 20000 + 10000)); done

# A launcher that is killed takes its processes with it, where the system can do that.
mourn=()
if setpriv --pdeathsig TERM true 2>/dev/null; then mourn=(setpriv --pdeathsig TERM); fi

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < n; i++)); do
  variables=("JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_NUM_PROCESSES=$n" "JAX_PROCESS_ID=$i"
    "JAX_LOCAL_DEVICE_IDS=$i" "PYTHONUNBUFFERED=1")
  if [[ ${DRY_RUN-} == 1 ]]; then
    echo "${variables[*]} ${*@Q}"
    continue
  fi
  # A signal to the whole group must not end the filter before the process that it prints.
  exec {out}> >(trap '' TERM INT && exec sed -u "s/^/[$i] /")
  filters+=($!)
  "${mourn[@]}" env "${variables[@]}" "$@" >&"$out" 2>&1 {out}>&- &
  pids+=($!)
  exec {out}>&-
  echo "[$i] pid ${pids[i]}" >&2
done
[[ ${DRY_RUN-} == 1 ]] && exit

code=0
while ((${#pids[@]})); do
  sleep 0.1 || true # a signal may end it
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    wait "${pids[i]}" && own=0 || own=$?
    ((code)) || code=$own
    unset "pids[i]"
  done
done
for filter in "${filters[@]}"; do wait "$filter" || true; done
exit "$code"
