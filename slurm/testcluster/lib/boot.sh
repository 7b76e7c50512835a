# shellcheck shell=bash
# Starting the daemons of a cluster, inside its namespaces. Sourced by init; CLUSTER is set.

# What a daemon may take to answer: a tenth of a second on a quiet machine, many on a crowded one.
DAEMON_SECONDS=120

boot() {
  export SLURM_CONF=$CLUSTER/etc/slurm.conf
  export TRUBA_SCRATCH=$CLUSTER/scratch # job_submit.lua, inside slurmctld, asks for it
  cd /
  write_configuration
  make_network
  start_munge
  start_nodes & # they wait for slurmctld by themselves
  prepare_database
  start_mariadb
  start_slurmdbd
  start_slurmctld
  wait_until "$DAEMON_SECONDS" all_nodes_idle
}

wait_until() { # SECONDS COMMAND… : run it until it succeeds
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= deadline)); then
      echo "timed out: $*"
      return 1
    fi
    sleep 0.02
  done
}

stop_by_pid_file() { # FILE
  local pid
  pid=$(<"$1")
  kill "$pid"
  wait_until "$DAEMON_SECONDS" test ! -e "/proc/$pid"
}

write_configuration() {
  local file gpu
  for file in slurm.conf nodes.conf partitions.conf gres.conf slurmdbd.conf; do
    sed -e "s|@CLUSTER@|$CLUSTER|g" \
      -e "s|@KILL_WAIT_SECONDS@|${TRUBA_TESTCLUSTER_KILL_WAIT:-2}|g" \
      -e "s|@CRED_EXPIRE_SECONDS@|${TRUBA_TESTCLUSTER_CRED_EXPIRE:-10}|g" \
      -e "s|@SCHED_INTERVAL_SECONDS@|${TRUBA_TESTCLUSTER_SCHED_INTERVAL:-2}|g" \
      -e "s|@SLURMD_TIMEOUT_SECONDS@|${TRUBA_TESTCLUSTER_SLURMD_TIMEOUT:-10}|g" \
      -e "s|@GRACE_TIME_SECONDS@|${TRUBA_TESTCLUSTER_GRACE_TIME:-20}|g" \
      "$TESTCLUSTER_SOURCE/etc/$file" >"$CLUSTER/etc/$file"
  done
  chmod 600 "$CLUSTER/etc/slurmdbd.conf"
  cp "$TESTCLUSTER_SOURCE/job_submit.lua" "$CLUSTER/etc/"
  for gpu in 0 1 2 3 4 5 6 7; do
    ln -sfn /dev/null "$CLUSTER/dev/nvidia$gpu"
  done
}

# One bridge that the nodes' cables are plugged into. No default route: what lies outside can't be reached, and fails at once.
make_network() {
  ip link set lo up
  # A hardware address of its own, else a bridge takes its lowest port's: the login node's address would change with every
  # node that comes or goes, and the others would talk to the old one for seconds.
  ip link add cluster0 address 02:00:0a:4d:00:fe type bridge
  ip address add 10.77.0.254/24 dev cluster0
  ip link set cluster0 up
}

start_munge() {
  mkdir -p /run/munge
  dd if=/dev/urandom of="$CLUSTER/munge/munge.key" bs=128 count=1 status=none
  chmod 400 "$CLUSTER/munge/munge.key"
  munged --key-file="$CLUSTER/munge/munge.key" --pid-file=/run/munge/munged.pid --log-file="$CLUSTER/munge/munged.log" \
    --seed-file="$CLUSTER/munge/munged.seed"
  wait_until "$DAEMON_SECONDS" munge --no-input
}

start_slurmctld() {
  slurmctld
  wait_until "$DAEMON_SECONDS" controller_answers
  touch "$CLUSTER/state/controller-is-up"
}

controller_answers() { scontrol ping | grep -q ' is UP'; }

start_nodes() {
  local name
  for name in $(node_names); do
    "$TESTCLUSTER_SOURCE/lib/node" up "$CLUSTER" "$name"
  done
}

# The compute nodes are all lines of hosts after the login node's.
node_names() { sed -e '1,/arf-ui1/d' -e '/^#/d' "$CLUSTER/etc/hosts" | while read -r _ name; do echo "$name"; done; }

all_nodes_idle() {
  local idle all
  idle=$(sinfo --noheader --Node --states=idle --format=%N | sort -u)
  all=$(node_names | sort -u)
  [ "$idle" = "$all" ]
}
