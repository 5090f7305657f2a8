#!/bin/sh
# Reproduces everything in this folder, in about three hours on two cores. After an interruption, run it again: it resumes.
#   sh docs/results/reproduce.sh [PROCESSES]
# Run it at the root of the project, with `sdpo` on the path; it writes to runs/results.
set -e
here=docs/results out=runs/results processes=${1:-2}
common="sample.num_steps=4 prompts.unseen=null checkpoint.every=3 train.kl_weight=0"

# keep FROM TO FILE… copies files; keep_runs FROM TO copies the settings, metrics and evaluations of each run.
keep() {
  from=$1 to=$2
  shift 2
  mkdir -p "$to"
  for file in "$@"; do cp "$from/$file" "$to/"; done
}
keep_runs() {
  for run in "$1"/runs/*; do
    keep "$run" "$2/$(basename "$run")" config.yaml metrics.jsonl
    keep "$run/evaluation" "$2/$(basename "$run")/evaluation" $(cd "$run/evaluation" && ls *.json)
  done
}

# 1. A learning rate for each algorithm, on a seed that the comparison does not use.
rates=""
for name in sdpo ddpo d3po rebel prdp grpo sdpo-12 ddpo-12 d3po-12 rebel-12 prdp-12; do
  for rate in 5e-4 1e-3 2e-3; do rates="$rates,$name-$rate"; done
done
sdpo compare emoji --algorithms "${rates#,}" --seeds 1 --first-seed 41 --variants $here/learning-rates.yaml --processes "$processes" \
  --output-dir $out/learning-rates "rewards={colorfulness: 1.0}" $common evaluate.eta=1.0 evaluate.every=0 evaluate.images_per_prompt=1
keep $out/learning-rates $here/learning-rates comparison.md comparison.csv
keep_runs $out/learning-rates $here/learning-rates/runs

# 2. The comparisons. All share one directory, so that no run is trained twice.
compare() {
  to=$1 names=$2
  shift 2
  sdpo compare emoji --algorithms "$names" --seeds 3 --variants $here/settings.yaml --processes "$processes" --output-dir $out \
    "rewards={colorfulness: 1.0}" $common evaluate.eta=1.0 evaluate.every=2 evaluate.images_per_prompt=2 evaluate.images_per_prompt_between=1 "$@"
  keep $out $here/"$to" compare.png comparison.md comparison.csv
}
compare algorithms sdpo,ddpo,d3po,rebel,prdp,grpo
keep $out $here/algorithms compare_queries.png compare_evaluations.png comparison.html
compare groups-of-12 sdpo-12,ddpo-12,d3po-12,rebel-12,prdp-12,grpo --reach sdpo-12
compare ablations sdpo-12,final-reward,exact-dense-rewards,no-temporal-weights,no-step-shuffle,prompt-normalizer,no-shared-noise --reach sdpo-12
compare beyond sdpo,fresh-pairs,fresh-pairs-large-batches --reach sdpo
keep_runs $out $here/runs
