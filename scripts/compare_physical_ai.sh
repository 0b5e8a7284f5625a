#!/usr/bin/env bash
# Driving with the video alone against the video and the last second's motion: trains, scores and prints both beside
# the baselines. Flags go through to both trainings.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
explain "$@"
find_python
: "${OUTPUT_DIR:=outputs/driving_compare}"
step "$PYTHON" -m overlays.domains.driving.compare prepare  # the clips and settings of data/prepared/driving
OUTPUT_DIR="$OUTPUT_DIR/video" scripts/train_physical_ai_lora.sh "$@"
DATASETS=driving_past_train EVAL_DATASETS=driving_past_val OUTPUT_DIR="$OUTPUT_DIR/past" \
    scripts/train_physical_ai_lora.sh "$@"
for name in video past; do step "$PYTHON" scripts/evaluate_physical_ai.py --checkpoint "$OUTPUT_DIR/$name"; done
step "$PYTHON" -m overlays.domains.driving.compare table "$OUTPUT_DIR"
