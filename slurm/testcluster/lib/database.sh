# shellcheck shell=bash
# The accounting database: MariaDB with slurmdbd's tables, the cluster, its accounts and users. Sourced by init.
# Making it takes seconds, so the first cluster keeps a copy of the finished, empty database for the later ones.

MARIADB_SOCKET=/run/mysqld/mysqld.sock

# The copy's name changes whenever what it was made from does.
cached_database() {
  local made_from
  made_from=$({
    slurmdbd -V
    mariadbd --no-defaults --version
    cat "$TESTCLUSTER_SOURCE/lib/database.sh" "$TESTCLUSTER_SOURCE"/etc/slurm*.conf
  } | sha256sum)
  echo "$CLUSTERS_HOME/database-${made_from:0:16}"
}

prepare_database() {
  local cache temporary
  cache=$(cached_database)
  if [ -d "$cache" ]; then
    cp -a --sparse=always "$cache/." "$CLUSTER/database"
    return
  fi
  # A temporary folder of its own: two clusters that begin at once have the same pids, and with them the same names in /tmp.
  mariadb-install-db --no-defaults --datadir="$CLUSTER/database" --tmpdir="$CLUSTER/state" --user=root \
    --skip-test-db --innodb-log-file-size=4M --auth-root-authentication-method=socket
  start_mariadb
  start_slurmdbd
  create_accounts
  start_slurmctld # it adds the cluster's GPUs to what is accounted for
  stop_by_pid_file /run/slurmctld.pid
  rm -rf "$CLUSTER/state"/*
  stop_by_pid_file /run/slurmdbd.pid
  stop_by_pid_file /run/mysqld/mysqld.pid
  temporary=$(mktemp -d "$CLUSTERS_HOME/database-XXXXXX.new")
  cp -a --sparse=always "$CLUSTER/database/." "$temporary"
  # Another cluster may have been quicker: then ours is not needed.
  mv --no-target-directory "$temporary" "$cache" || rm -rf "$temporary"
}

start_mariadb() {
  mkdir -p "$(dirname "$MARIADB_SOCKET")"
  # slurmdbd does not work with snapshot isolation, which newer versions have as their default.
  # No TCP port, and no waiting for the disk: the data is thrown away with the cluster.
  mariadbd --no-defaults --datadir="$CLUSTER/database" --tmpdir="$CLUSTER/state" --socket="$MARIADB_SOCKET" --skip-networking \
    --pid-file=/run/mysqld/mysqld.pid --user=root --skip-log-bin --skip-name-resolve --performance-schema=OFF \
    --innodb-buffer-pool-size=64M --innodb-log-file-size=4M --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync \
    --innodb-lock-wait-timeout=900 --loose-innodb-snapshot-isolation=OFF </dev/null >>"$CLUSTER/log/mariadb.log" 2>&1 &
  wait_until "$DAEMON_SECONDS" test -S "$MARIADB_SOCKET"
}

start_slurmdbd() {
  slurmdbd
  wait_until "$DAEMON_SECONDS" sacctmgr --noheader list cluster
}

create_accounts() {
  sacctmgr --immediate add cluster testcluster
  sacctmgr --immediate add account ayse,mehmet,proj1
  sacctmgr --immediate add user ayse account=ayse defaultaccount=ayse
  sacctmgr --immediate add user ayse account=proj1
  sacctmgr --immediate add user mehmet account=mehmet defaultaccount=mehmet
  # TRUBA's limits of cores at once: 160 for a researcher, 4 for an undergraduate.
  sacctmgr --immediate modify account ayse set GrpTRES=cpu=160
  sacctmgr --immediate modify account mehmet set GrpTRES=cpu=4
}
