#!/usr/bin/env bash
# Driving with the video alone against the video and the last second's motion: trains, scores and prints both beside
# the baselines. Flags go through to both trainings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-$(scripts/setup.sh)}"
export PYTHON
: "${OUTPUT_DIR:=outputs/driving_compare}"
if [[ ! -f data/prepared/driving_past/metadata.json ]]; then
    "$PYTHON" scripts/prepare_physical_ai.py --past-motion --output data/prepared/driving_past
fi
OUTPUT_DIR="$OUTPUT_DIR/video" scripts/train_physical_ai_lora.sh "$@"
DATASETS=driving_past_train EVAL_DATASETS=driving_past_val OUTPUT_DIR="$OUTPUT_DIR/past" \
    scripts/train_physical_ai_lora.sh "$@"
for name in video past; do "$PYTHON" scripts/evaluate_physical_ai.py --checkpoint "$OUTPUT_DIR/$name"; done
"$PYTHON" - "$OUTPUT_DIR" <<'END'
import json, sys
from pathlib import Path

found = {name: json.loads((Path(sys.argv[1]) / name / "test" / "metrics.json").read_text()) for name in ("video", "past")}
rows = {"video only": found["video"], "video and past motion": found["past"]} | found["past"]["baseline"]
keys = ("mae_v", "mae_k", "rmse_v", "rmse_k", "ade", "fde", "turn_sign_accuracy", "parse_rate")
print(f"{'':<24}" + "".join(f"{key.replace('turn_sign_accuracy', 'turn sign'):>12}" for key in keys))
for name, row in rows.items():
    print(f"{name.replace('_', ' '):<24}" + "".join(f"{row[key]:>12.5f}" for key in keys))
END
