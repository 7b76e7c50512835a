# shellcheck shell=bash
# The private view of the machine inside a cluster: nothing here is seen by, or changes, anything outside. Sourced by init.

CLUSTER_USERS=(ayse:60001 mehmet:60002)

make_private_view() {
  hostname arf-ui1
  mount -t proc proc /proc
  # Private /run: default sockets and pid files of munge, MariaDB and Slurm can't meet the machine's own; ip-netns works.
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/netns /run/lock
  ln -s "$CLUSTER" /run/truba-testcluster
  mount -t tmpfs -o mode=1777 tmpfs /dev/shm
  keep_records_in_memory
  create_users
  replace_etc_files
  expose_to_users
}

# What the daemons write goes with the cluster. They wait for the disk at each record, on a busy one for half a minute.
keep_records_in_memory() {
  local folder
  for folder in database state spool; do
    mount -t tmpfs -o mode=755 tmpfs "$CLUSTER/$folder"
  done
}

create_users() {
  local user uid entry
  grep -Ev '^(ayse|mehmet):' /etc/passwd >"$CLUSTER/etc/passwd"
  grep -Ev '^(ayse|mehmet):' /etc/group >"$CLUSTER/etc/group"
  for entry in "${CLUSTER_USERS[@]}"; do
    user=${entry%:*} uid=${entry#*:}
    echo "$user:x:$uid:$uid::$CLUSTER/home/$user:/bin/bash" >>"$CLUSTER/etc/passwd"
    echo "$user:x:$uid:" >>"$CLUSTER/etc/group"
    install -d -m 700 -o "$uid" -g "$uid" "$CLUSTER/home/$user" "$CLUSTER/scratch/$user"
  done
  install -d -m 700 "$CLUSTER/scratch/root"
}

replace_etc_files() {
  local file
  cp "$TESTCLUSTER_SOURCE/etc/hosts" "$CLUSTER/etc/hosts"
  # No name server: without one a lookup fails at once; an unreachable one would be waited for.
  : >"$CLUSTER/etc/resolv.conf"
  printf '%s: files\n' passwd group shadow hosts services protocols networks >"$CLUSTER/etc/nsswitch.conf"
  for file in passwd group hosts resolv.conf nsswitch.conf; do
    mount_over_file "$CLUSTER/etc/$file" "/etc/$file"
  done
  # Slurm's default folder too, so that its commands work in a job that has lost SLURM_CONF (sbatch --export=NONE).
  [ ! -d /etc/slurm ] || mount --bind "$CLUSTER/etc" /etc/slurm
  provide_modules
}

# As on TRUBA, a shell has the command `module` once it has read the site's profile; a batch script's has not. The
# profile knows the cluster's own folder of modules, which is empty at first.
provide_modules() {
  [ -e /etc/lmod/modulespath ] || return 0
  mkdir -p "$CLUSTER/modules"
  { echo "$CLUSTER/modules" && cat /etc/lmod/modulespath; } >"$CLUSTER/etc/modulespath"
  mount_over_file "$CLUSTER/etc/modulespath" /etc/lmod/modulespath
}

mount_over_file() { # SOURCE TARGET
  local target
  target=$(readlink -m "$2") # resolv.conf often is a link into /run, which is empty by now
  [ -e "$target" ] || { mkdir -p "$(dirname "$target")" && : >"$target"; }
  mount --bind "$1" "$target"
}

# The first folder above a path that ordinary users may not pass, such as root's home (0700); nothing if there is none.
closed_ancestor() { # PATH
  local folder='' part
  local -a parts
  IFS=/ read -r -a parts <<<"${1#/}"
  for part in "${parts[@]::${#parts[@]}-1}"; do
    folder=$folder/$part
    case $(stat -L -c %A "$folder") in
      *[xt]) ;;
      *) echo "$folder" && return ;;
    esac
  done
}

# Users must be able to run the checkout and its Python, though these may lie in a closed folder. Such a folder is
# covered by an empty one that can be passed, in which only the needed folders show.
expose_to_users() {
  local path closed
  local -a python needed=("$CLUSTER:rw" "$CHECKOUT:ro")
  local -A covered=()
  if [ -n "${TESTCLUSTER_PYTHON:-}" ]; then
    IFS=: read -r -a python <<<"$TESTCLUSTER_PYTHON"
    needed+=("${python[1]}:ro" "${python[2]}:ro")
  fi
  # Look at all of them before the first is covered.
  local -a todo=()
  for path in "${needed[@]}"; do
    closed=$(closed_ancestor "${path%:*}")
    [ -z "$closed" ] || todo+=("$closed|$path")
  done
  for path in "${todo[@]}"; do
    closed=${path%%|*} path=${path#*|}
    if [ -z "${covered[$closed]:-}" ]; then
      covered[$closed]=/run/covered/${#covered[@]}
      mkdir -p "${covered[$closed]}"
      chmod 700 /run/covered
      mount --rbind "$closed" "${covered[$closed]}"
      mount -t tmpfs -o mode=711 tmpfs "$closed"
    fi
    show_again "${covered[$closed]}" "$closed" "${path%:*}" "${path##*:}"
  done
  for path in "${covered[@]}"; do
    umount --lazy "$path"
  done
}

show_again() { # WHERE-THE-ORIGINAL-IS CLOSED-FOLDER PATH ro|rw
  mkdir -p "$3"
  mount --rbind "$1${3#"$2"}" "$3"
  [ "$4" = rw ] || mount -o remount,bind,ro "$3"
}
