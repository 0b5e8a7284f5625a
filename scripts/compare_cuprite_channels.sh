#!/usr/bin/env bash
# All good bands against the three-band clay composite: the same tiles, questions and steps; both scores are printed.
# Flags go through to both trainings.
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
explain "$@"
find_python
: "${OUTPUT_DIR:=outputs/cuprite_compare}" "${EPOCHS:=4}"
export EPOCHS
if [[ ! -f data/prepared/cuprite_clay/metadata.json ]]; then
    step "$PYTHON" scripts/prepare_cuprite.py --composites clay --output data/prepared/cuprite_clay
fi
DATASETS=cuprite_clay_train EVAL_DATASETS=cuprite_clay_val OUTPUT_DIR="$OUTPUT_DIR/clay" \
    scripts/train_cuprite_single_gpu.sh "$@"
CHANNELS=all OUTPUT_DIR="$OUTPUT_DIR/all" scripts/train_cuprite_single_gpu.sh "$@"
for name in clay all; do step "$PYTHON" scripts/inference_cuprite.py --test --checkpoint "$OUTPUT_DIR/$name"; done
if [[ "$DRY_RUN" = 1 ]]; then exit 0; fi
"$PYTHON" - "$OUTPUT_DIR" <<'END'
import json, sys
from pathlib import Path

for name, words in (("clay", "clay composite, 3 bands"), ("all", "all good bands")):
    folder = Path(sys.argv[1]) / name
    steps = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    metrics = json.loads((folder / "test" / "metrics.json").read_text())
    print(f"{words:<26}mineral macro-F1 {metrics['mineral_macro_f1']:.3f} after {steps} steps")
END
