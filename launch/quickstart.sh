#!/usr/bin/env bash
# From nothing to the question this toolkit exists for: is training everything together worth it?
#
#   make quickstart        (installs first)      or, installed:   bash launch/quickstart.sh
#
# Draws films, packs them, trains each encoder alone, then both ways to combine them: frozen encoders under new heads,
# and end to end. Under two minutes on two CPU cores with a small poster encoder; ResNet152 where there is a GPU. No
# network.
# Run it again and it continues where it stopped. FILMS=5000 takes more films, SEED=1 other films and other weights.
set -euo pipefail

films=${FILMS:-1300}
seed=${SEED:-0}
runs=runs/quickstart
config=$(dirname "${BASH_SOURCE[0]}")/../configs/quickstart.yaml
train=(python -m genre_dist.train --config "$config" --run.seed "$seed")
warm=(--model.text.weights "$runs/text/model.safetensors" --model.poster.weights "$runs/poster/model.safetensors")
size=56
end_to_end_lr=1e-3 # of the poster's encoder, a third of what it was trained with alone
at_once=yes

if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "a GPU: ResNet152 at 224 pixels"
    size=256
    at_once=no
    train+=(--model.poster.arch resnet152 --data.image_size 224 --data.workers 4)
    train+=(--data.global_batch 32 --optim.poster_lr 1e-3)
    end_to_end_lr=3e-4
else
    export OMP_NUM_THREADS=1 # networks this small lose more by waiting for a second thread than they gain
fi

say() { printf '\n== %s\n' "$*"; }

# A training whose output goes to $runs/NAME.log: on a CPU it runs beside the next one. `joined` waits for it.
beside=
log=
trap '[ -z "$beside" ] || kill "$beside" 2>/dev/null || true' EXIT
train_beside() {
    log=$runs/$1.log
    shift
    mkdir -p "$runs"
    "${train[@]}" "$@" >"$log" 2>&1 &
    beside=$!
    [ "$at_once" = yes ] || joined
}
joined() {
    if [ -n "$beside" ] && ! wait "$beside"; then
        tail -n 5 "$log" >&2
        echo "$log has all of it" >&2
        exit 1
    fi
    beside=
}

say "1/4 draw $films films"
[ -f catalogue/quickstart/movies.parquet ] ||
    genre-dist sample --films "$films" --seed "$seed" --out catalogue/quickstart

say "2/4 pack them into tar shards"
genre-dist pack --catalogue catalogue/quickstart --out shards/quickstart --size "$size" --shard_size 250

say "3/4 each encoder alone: the overview (log: $runs/text.log) and the poster"
train_beside text --run.dir "$runs/text" --model.poster.arch none
"${train[@]}" --run.dir "$runs/poster" --model.text.arch none --data.global_batch 32
joined

say "4/4 both from there: frozen, what the 2018 study could do (log: $runs/combined_frozen.log), and end to end"
train_beside combined_frozen --run.dir "$runs/combined_frozen" "${warm[@]}" \
    --model.text.frozen true --model.poster.frozen true
"${train[@]}" --run.dir "$runs/end_to_end" "${warm[@]}" --optim.text_lr 5e-3 --optim.poster_lr "$end_to_end_lr"
joined

say "was it worth it?"
genre-dist compare "$runs/combined_frozen" "$runs/end_to_end" "$runs/text" "$runs/poster" --out report/quickstart

say "a film of the test split"
python - "$seed" <<'PY'
import json, shlex, sys
from pathlib import Path

import numpy as np

from genre_dist.catalogue.catalogue import poster_file, read_rows
from genre_dist.metrics.choosing import named_labels, probabilities
from genre_dist.metrics.evaluation_files import read_evaluation
from genre_dist.metrics.thresholds import load_thresholds

run, catalogue = Path("runs/quickstart/end_to_end"), Path("catalogue/quickstart")
predictions, metrics = read_evaluation(run, "test")
genres = np.array(list(metrics["per_genre"]))
named = named_labels(predictions.logits, "many", load_thresholds(run, list(genres)))
right = (named == predictions.labels).all(axis=1)
two = predictions.labels.sum(axis=1) == 2
print(f"The model trained end to end names exactly the genres of {right.sum()} of {len(right)} test films,")
print(f"and of {(right & two).sum()} of the {two.sum()} that have two genres. The first of these by its id:\n")
for at in np.flatnonzero(right & two)[:1]:  # none if it names none of them exactly
    film = int(predictions.ids[at])
    row = next(row for row in read_rows(catalogue) if row["tmdb_id"] == film)
    poster = poster_file(catalogue, film)
    likely = probabilities(predictions.logits[at], "many")
    print(f"  {row['title']}   {poster}")
    print(f"  {row['overview'][:200]}{'...' if len(row['overview']) > 200 else ''}")
    print("  named: " + ", ".join(f"{genres[g]} {likely[g]:.0%}" for g in np.flatnonzero(named[at])))
    print("  truth: " + ", ".join(genres[predictions.labels[at]]))
    print("\nThe same from the poster and the text:")
    print(f"  genre-dist predict {run} --poster {poster} --overview {shlex.quote(row['overview'])}")

headline = json.loads(Path("report/quickstart/comparison.json").read_text())["headline"]
print(f"\n{headline['question']} {headline['answer']}")
rests = f"It rests on one seed ({sys.argv[1]}) and {headline['films']} procedural test films"
print(f"{rests}: another seed may give another answer, and so may real films.")
PY

cat <<NEXT

Open the report in a browser (it is one file and needs no network):
  file://$PWD/report/quickstart/index.html

Next:
  genre-dist inspect shards/quickstart --verify
  python -m genre_dist.train --config configs/end_to_end.yaml --data.shards shards/quickstart --data.image_size 48 --dry_run
  your own films: README, "Real films"
NEXT
