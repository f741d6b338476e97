#!/usr/bin/env bash
# From nothing to the question this toolkit exists for: is training everything together worth it?
#
#   make quickstart        (installs first)      or, installed:   bash launch/quickstart.sh
#
# Draws films, packs them, trains each encoder alone, then both ways to combine them: frozen encoders under new heads,
# and end to end. Minutes on two CPU cores with a small poster encoder; ResNet152 where there is a GPU. No network.
# Run it again and it continues where it stopped; FILMS=5000 takes more films.
set -euo pipefail

films=${FILMS:-1300}
runs=runs/quickstart
train=(python -m genre_dist.train --config configs/quickstart.yaml)
warm=(--model.text.weights "$runs/text/model.safetensors" --model.poster.weights "$runs/poster/model.safetensors")
size=72

if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "a GPU: ResNet152 at 224 pixels"
    size=256
    train+=(--model.poster.arch resnet152 --data.image_size 224 --data.workers 4)
fi

say() { printf '\n== %s\n' "$*"; }

say "1/6 draw $films films"
[ -f catalogue/quickstart/movies.parquet ] || genre-dist sample --films "$films" --seed 0 --out catalogue/quickstart

say "2/6 pack them into tar shards"
genre-dist pack --catalogue catalogue/quickstart --out shards/quickstart --size "$size" --shard_size 250

say "3/6 the overview alone"
"${train[@]}" --run.dir "$runs/text" --model.poster.arch none --train.epochs 12

say "4/6 the poster alone"
"${train[@]}" --run.dir "$runs/poster" --model.text.arch none

say "5/6 both, encoders frozen: what the 2018 study could do"
"${train[@]}" --run.dir "$runs/combined_frozen" "${warm[@]}" --model.text.frozen true --model.poster.frozen true

say "6/6 both, end to end: the same start, nothing frozen"
"${train[@]}" --run.dir "$runs/end_to_end" "${warm[@]}" --optim.text_lr 1e-3 --optim.poster_lr 3e-4

say "was it worth it?"
genre-dist compare "$runs/combined_frozen" "$runs/end_to_end" "$runs/text" "$runs/poster" --out report/quickstart

cat <<NEXT

Open the report in a browser (it is one file and needs no network):
  file://$PWD/report/quickstart/index.html

Next:
  genre-dist predict runs/quickstart/end_to_end --poster catalogue/quickstart/posters/001/1.jpg --overview "A lone sheriff rides into a frontier town."
  genre-dist inspect shards/quickstart --verify
  python -m genre_dist.train --config configs/end_to_end.yaml --data.shards shards/quickstart --data.image_size 64 --dry_run
  your own films: README, "Real films"
NEXT
