"""Prepare the mineral data set: a hyperspectral cube -> labelled tiles with questions and answers, split by area."""

import argparse
import os
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.data import records


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prepare the mineral data set from a reflectance cube; without --cube, from the sample scene.")
    parser.add_argument("--cube", type=Path, help="ENVI header, GeoTIFF, EMIT L2A .nc or MATLAB cube "
                        "(default: the sample scene, made in data/raw/cuprite/sample)")
    parser.add_argument("--labels", default="mica", help="mica, or a classification raster: ENVI, GeoTIFF, .npy")
    parser.add_argument("--class-map", type=Path, help='JSON, raster value -> class: {"3": "alunite"}')
    parser.add_argument("--wavelengths", type=Path, help="file of band centres, for cubes that name none")
    parser.add_argument("--scale", type=float, help="reflectance = stored value / scale (default: the header's)")
    parser.add_argument("--output", type=Path, help="folder (default: data/prepared/cuprite of this project; "
                        "cuprite_all with --channels all)")
    parser.add_argument("--tile-size", type=int, help="pixels (default: 224; 32 for the sample)")
    parser.add_argument("--stride", type=int, help="pixels (default: half a tile)")
    parser.add_argument("--min-valid", type=float, default=0.8, help="least share of valid pixels in a tile")
    parser.add_argument("--alteration-threshold", type=float, default=0.10,
                        help="cover of copper-related minerals above which a tile is an alteration zone")
    parser.add_argument("--min-share", type=float, default=0.05, help="least cover of a mineral an answer names")
    parser.add_argument("--composites", default="clay,iron,natural", help="pictures of a tile, in this order")
    parser.add_argument("--channels", choices=("composites", "all"), default="composites",
                        help="what the model sees: the pictures, or one raster of all good bands")
    parser.add_argument("--language", choices=("en", "zh", "both"), default="en")
    parser.add_argument("--split-fractions", default="0.7,0.15,0.15", help="train,val,test")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    from overlays.domains.cuprite.prepare import OUTPUT, Settings, prepare

    values = vars(options)
    values["output"] = options.output or (OUTPUT if options.channels == "composites"
                                          else OUTPUT.with_name(f"{OUTPUT.name}_all"))
    values["composites"] = tuple(name.strip() for name in options.composites.split(",") if name.strip())
    values["split_fractions"] = records.parse_fractions(options.split_fractions)
    report(prepare(Settings(**values)), values["output"])


def report(metadata: dict, output: Path) -> None:
    counts, cube = metadata["counts"], metadata["cube"]
    faults = [band["fault"] for band in metadata["bands"]]
    reasons = ", ".join(f"{faults.count(name)} {name}" for name in ("header", "water", "constant", "overlap")
                        if name in faults)
    rows, cols, bands = cube["shape"]
    print(f"cube: {rows} x {cols} pixels, {faults.count('')} of {bands} bands used"
          f"{f' (left out: {reasons})' if reasons else ''}; reflectance = value / {cube['scale']:g} "
          f"({cube['scale_source']}); {metadata['valid_share']:.1%} of the pixels valid")
    print(f"tiles of {metadata['parameters']['tile_size']} px: {counts['tiles']} = {counts['train']} train + "
          f"{counts['val']} val + {counts['test']} test + {counts['dropped_buffer']} dropped (buffer between the "
          f"areas) + {counts['dropped_invalid']} dropped (too few valid pixels)")
    tile = metadata["parameters"]["tile_size"]
    for pair, pixels in metadata["buffer_px"].items():
        if pixels < tile:
            print(f"note: the scene leaves a buffer of only {pixels} px between {pair.replace('-', ' and ')}, less "
                  f"than a tile of {tile}; a smaller --tile-size gives a full one")
    splits = list(metadata["mineral_shares"])
    print(f"{'mineral':<16}" + "".join(f"{name:>9}" for name in splits))
    for mineral in metadata["mineral_shares"]["train"]:
        print(f"{mineral:<16}" + "".join(f"{metadata['mineral_shares'][name][mineral]:>9.1%}" for name in splits))
    if metadata["iron_share"] is not None:
        print(f"ferric iron (reported beside the minerals): {metadata['iron_share']:.1%} of the scene")
    print(f"prepared data: {output}")


if __name__ == "__main__":
    errors.run(main)
