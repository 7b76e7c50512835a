# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by those who source it
# What every command of the test cluster shares: names, messages, and how to find and enter a cluster. Sourced, never run.

TESTCLUSTER_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CHECKOUT=$(cd "$TESTCLUSTER_SOURCE/../.." && pwd -P)

# Everything that belongs to this user's test clusters: one folder a cluster, and the cached empty database.
CLUSTERS_HOME=${TRUBA_TESTCLUSTER:-/tmp/truba-testcluster-$UID}
LASTING_CLUSTER=$CLUSTERS_HOME/lasting

# Exit statuses of our own; any other is that of the command that was run.
EXIT_USAGE=64
EXIT_UNAVAILABLE=77
EXIT_DOWN=69
EXIT_CLUSTER_FAILED=125

say() { printf '%s\n' "$*" >&2; }

die() { # STATUS MESSAGE…
  local status=$1
  shift
  say "testcluster: $*"
  exit "$status"
}

# Debian installs daemons in sbin, which is not on every PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

require_root_and_packages() {
  local program plugin missing=()
  [ "$UID" = 0 ] || die "$EXIT_UNAVAILABLE" "root is needed: the cluster lives in namespaces that only root may make."
  for program in slurmctld slurmd slurmdbd sbatch sacctmgr munged mariadbd mariadb-install-db ip unshare nsenter setpriv flock; do
    type -P "$program" >/dev/null || missing+=("$program")
  done
  for plugin in job_submit_lua accounting_storage_mysql; do
    compgen -G "/usr/lib*/slurm*/$plugin.so" >/dev/null || compgen -G "/usr/lib*/*/slurm*/$plugin.so" >/dev/null ||
      missing+=("Slurm's plugin $plugin")
  done
  [ ${#missing[@]} = 0 ] || die "$EXIT_UNAVAILABLE" "not installed: $(printf '%s, ' "${missing[@]}")(run $TESTCLUSTER_SOURCE/install)."
}

# The machine's own Slurm, as 22.05.
machines_slurm() { slurmctld -V | sed 's/.* \([0-9]*\.[0-9]*\)\..*/\1/'; }

# Have a cluster that starts run another Slurm than the machine's: TESTCLUSTER_ROOT is the folder that has it, or empty.
use_slurm() { # VERSION
  TESTCLUSTER_ROOT=''
  [ -z "$1" ] || TESTCLUSTER_ROOT=$("$TESTCLUSTER_SOURCE/release" "$1") || exit
  export TESTCLUSTER_ROOT
}

# A cluster is alive as long as its first process is, and that holds a lock on the folder's file "lock".
is_alive() { # CLUSTER
  [ -e "$1/lock" ] && ! flock --nonblock --shared "$1/lock" true
}

is_ready() { is_alive "$1" && [ -e "$1/ready" ]; }

# True in a process that already is inside the given cluster.
is_inside() { [ "${TRUBA_TESTCLUSTER_INSIDE:-}" = "$1" ] && [ -e /run/truba-testcluster ]; }

make_clusters_home() {
  mkdir -p "$CLUSTERS_HOME"
  # In /tmp anyone could have made it before us.
  if [ ! -O "$CLUSTERS_HOME" ] || [ -L "$CLUSTERS_HOME" ]; then
    die "$EXIT_CLUSTER_FAILED" "$CLUSTERS_HOME belongs to somebody else."
  fi
  chmod 755 "$CLUSTERS_HOME"
}

# A "run" that was killed outright leaves its folder behind (never a process). The next one sweeps it up.
sweep_dead_runs() {
  local folder
  for folder in "$CLUSTERS_HOME"/run-*; do
    [ ! -e "$folder/keep" ] || continue
    is_alive "$folder" || rm -rf --one-file-system "$folder"
  done
}

# Take the lock that says "alive" and leave it open: every process started from here on inherits and so holds it.
hold_lock() { # CLUSTER
  exec {LOCK_FD}>"$1/lock"
  flock --timeout 2 "$LOCK_FD" || die "$EXIT_CLUSTER_FAILED" "$1 is in use by another cluster."
}

# The Python that users shall be able to run, as "EXECUTABLE:PREFIX:BASE_PREFIX"; empty if there is none.
describe_python() {
  local python=${TRUBA_PYTHON:-$CHECKOUT/.venv/bin/python}
  [ -x "$python" ] || { [ -z "${TRUBA_PYTHON:-}" ] || die "$EXIT_USAGE" "TRUBA_PYTHON=$python can't be executed."; return 0; }
  "$python" -I -S -c 'import sys; print(sys.executable, sys.prefix, sys.base_prefix, sep=":")'
}

# Wait for a background process, through any number of signals that this shell handles meanwhile; sets STATUS.
wait_for_process() { # PID
  while :; do
    STATUS=0
    { wait "$1" || STATUS=$?; } 2>/dev/null # without the remark "Killed"
    kill -0 "$1" 2>/dev/null || return 0
  done
}

# Whether a Ctrl-C that this process got was typed at its terminal: then all processes in the foreground have got it.
in_terminal_foreground() {
  local group foreground
  read -r _ _ _ _ group _ _ foreground _ <"/proc/$$/stat"
  [ "$group" = "$foreground" ]
}

# For the commands about one cluster: sets CLUSTER (inside one: that one), SLURM_VERSION and ARGUMENTS, what else was given.
parse_cluster_option() { # COMMAND ARGUMENTS…
  local command=$1 usage="usage: $1 [--cluster FOLDER]"
  [ "$command" != up ] || usage+=' [--slurm VERSION]'
  shift
  CLUSTER=${TRUBA_TESTCLUSTER_INSIDE:-$LASTING_CLUSTER}
  SLURM_VERSION=${TRUBA_TESTCLUSTER_SLURM:-}
  ARGUMENTS=()
  while [ $# -gt 0 ]; do
    case $1 in
      --cluster) CLUSTER=$(realpath -m "${2:?}") && shift 2 ;;
      --slurm)
        [ "$command" = up ] && [ $# -gt 1 ] || die "$EXIT_USAGE" "$usage"
        SLURM_VERSION=$2 && shift 2
        ;;
      -*) die "$EXIT_USAGE" "$usage" ;;
      *) ARGUMENTS+=("$1") && shift ;;
    esac
  done
}

# Run a command as root inside a cluster, from outside or from within.
inside() { # CLUSTER COMMAND…
  local cluster=$1
  shift
  export SLURM_CONF=$cluster/etc/slurm.conf
  if is_inside "$cluster"; then
    "$@"
  else
    nsenter --target "$(<"$cluster/pid")" --net --mount --uts --ipc --pid "$@"
  fi
}

# Remove a dead cluster's folder; never one that isn't a cluster's.
remove_cluster_folder() { # CLUSTER
  [ -d "$1" ] || return 0
  [ -z "$(ls -A "$1")" ] || [ -e "$1/lock" ] || die "$EXIT_USAGE" "$1 is not a test cluster's folder."
  rm -rf --one-file-system "$1"
}
