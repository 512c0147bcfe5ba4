#!/bin/sh
# One backup of everything, for cron or a CronJob: the store, both databases, MLflow's artifacts; old snapshots go.
# Flows may run meanwhile. Exit status 0 only when every digest of the new snapshot was read back and is right.
#
#   T2V_STORE                             the store
#   T2V_BACKUP                            where to, a folder or s3://bucket/prefix on another machine
#   MLFLOW_BACKEND_STORE_URI              MLflow's database; unset: not backed up
#   PREFECT_API_DATABASE_CONNECTION_URL   Prefect's database; unset: not backed up
#   MLFLOW_ARTIFACTS_DESTINATION          MLflow's artifacts, a folder or s3://bucket/prefix; unset: not backed up
#   T2V_BACKUP_KEEP                       how many snapshots stay (default 14)
#   T2V                                   the command (default t2v)
set -eu
: "${T2V_STORE:?the URL of the store}" "${T2V_BACKUP:?where the backup goes}"
set -- store backup "$T2V_BACKUP" --verify --keep "${T2V_BACKUP_KEEP:-14}"
# In single quotes: t2v reads the variables itself, so that no password is in the list of processes.
[ -z "${MLFLOW_BACKEND_STORE_URI:-}" ] || set -- "$@" --mlflow '$MLFLOW_BACKEND_STORE_URI'
[ -z "${PREFECT_API_DATABASE_CONNECTION_URL:-}" ] || set -- "$@" --prefect '$PREFECT_API_DATABASE_CONNECTION_URL'
[ -z "${MLFLOW_ARTIFACTS_DESTINATION:-}" ] || set -- "$@" --artifacts '$MLFLOW_ARTIFACTS_DESTINATION'
exec ${T2V:-t2v} "$@"
