#!/bin/sh
# A night of spark-rerank without a scheduler of its own: rerank a day, judge it, relabel, as in
# airflow_dag.py. From cron:
#   0 3 * * *  cd /opt/spark-rerank && flock -n /tmp/nightly.lock sh conf/schedule/nightly.sh
# usage: nightly.sh [YYYY-MM-DD]      without a day: yesterday (GNU date)
#
# Ends with the exit code of the command that ended the night: 2 refused, 3 too many rejects, 4 gate
# not passed; with others the same night may be started again, and goes on. 5: all is published, and
# MLflow was out of reach at every try, or refused. The environment replaces what follows.
set -u
day=${1:-$(date -d yesterday +%F)}
# On a cluster: spark-submit --properties-file conf/cluster/yarn.conf ... jobs/rerank.py
: "${RERANK:=python -m jobs.rerank --config conf/gpu.yaml}"
: "${EVALUATE:=python -m jobs.evaluate --config conf/gpu.yaml}"
: "${TRACK:=python -m jobs.output.tracking}"
: "${DATA:=/data}" # log/date=YYYY-MM-DD is there; nights, verdicts, labels and scores are made
: "${QRELS:=$DATA/qrels.txt}"
: "${EXPERIMENT:=nightly}"
: "${GATE:=nDCG@10 vs baseline >= -0.005 (significant)}"
: "${TRIES:=20}"  # of the logging alone
: "${PAUSE:=1800}" # s between them
tracked=0

# run FOLDER COMMAND...: a run into that folder. All codes but 0 and 5 end the night.
run() {
    out=$1
    shift
    code=0
    "$@" --output.path "$out" || code=$?
    case $code in
        0) ;;
        5) track "$out/run.json" || tracked=5 ;;
        *) exit "$code" ;;
    esac
}

# track RECORD: log a run again that is finished.
track() {
    left=$TRIES
    while [ "$left" -gt 0 ]; do
        code=0
        $TRACK "$1" || code=$?
        [ "$code" -eq 0 ] && return
        [ "$code" -eq 5 ] || return 1 # refused: it will be the next time, too
        left=$((left - 1))
        [ "$left" -eq 0 ] || sleep "$PAUSE"
    done
    return 1
}

rerank() {
    run "$DATA/$1/date=$day" $RERANK --input.path "$DATA/log/date=$day" --store.path "$DATA/scores"
}

rerank nights
run "$DATA/verdicts/date=$day" $EVALUATE --ranked.path "$DATA/nights/date=$day/ranked" \
    --evaluation.qrels "$QRELS" --evaluation.gate "$GATE" --mlflow.experiment "$EXPERIMENT" \
    --evaluation.baseline "mlflow:$EXPERIMENT"
# No pair is scored again, and a day whose gate failed never gets here.
rerank labels
exit $tracked
