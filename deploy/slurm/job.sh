#!/usr/bin/env bash
# Scheduler, workers and launcher in one job, from the project's folder: sbatch deploy/slurm/job.sh SETTINGS.toml
#SBATCH --job-name=hotdask
#SBATCH --ntasks=65
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=hotdask-%j.log
# One task is for scheduler and launcher, the others are workers. Ten minutes before the time is up the run stops where
# it is and the job goes back into the queue; so it does when it is preempted.
set -euo pipefail

settings=${1:?usage: sbatch deploy/slurm/job.sh SETTINGS.toml}
network=() # (--interface ib0) where the default route is not the fast network
cd "$SLURM_SUBMIT_DIR"
[ -n "${VIRTUAL_ENV:-}" ] || . .venv/bin/activate
export OMP_NUM_THREADS=1

# Certificates of this job alone, on the file system that all nodes see; gone when it ends.
private=$PWD/.hotdask-$SLURM_JOB_ID
scratch=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}
rm -rf "$private"
hotdask certificates "$private" >/dev/null
export DASK_CONFIG=$private/distributed.yaml

started=()
finish() {
    kill "${started[@]}" 2>/dev/null || true
    wait
    rm -rf "$private"
}
trap finish EXIT

dask scheduler "${network[@]}" --port 0 --dashboard-address 127.0.0.1:8787 \
    --scheduler-file "$private/scheduler.json" &
scheduler=$!
started+=("$scheduler")
until [ -s "$private/scheduler.json" ]; do
    kill -0 "$scheduler" || exit 1
    sleep 1
done
address=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$private/scheduler.json")

srun --ntasks=$((SLURM_NTASKS - 1)) --kill-on-bad-exit=0 \
    dask worker "$address" "${network[@]}" --nthreads 1 --nworkers 1 --death-timeout 600 \
    --memory-limit "$((${SLURM_MEM_PER_CPU:-4096} * 9 / 10))MiB" \
    --local-directory "$scratch" --dashboard-address 127.0.0.1:0 &
started+=("$!")

python scripts/launch.py "$settings" --scheduler "$address" &
launcher=$!
started+=("$launcher")

again=false
trap 'again=true; kill -TERM "$launcher" 2>/dev/null || true' USR1
# Preempted or canceled: SLURM knows itself whether the job shall come back.
trap 'kill -TERM "$launcher" 2>/dev/null || true' TERM
status=0
# A signal ends the waiting, not the launcher.
while kill -0 "$launcher" 2>/dev/null; do
    status=0
    wait "$launcher" || status=$?
done
if $again && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
