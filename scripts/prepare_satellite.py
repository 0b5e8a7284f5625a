"""Prepare the satellite data set: GeoTIFFs of embeddings and a table of labels -> arrays and records, split by city."""

import argparse
from pathlib import Path

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors
from overlays.data import records
from overlays.errors import UserError


def parse() -> tuple[argparse.Namespace, list[str]]:
    """(options, names of those that were given another value than their default)."""
    parser = argparse.ArgumentParser(
        description="Prepare satellite embeddings and city labels; without --tiles, from the sample cities.")
    parser.add_argument("--tiles", type=Path, help="folder of GeoTIFFs named after their cities "
                        "(default: the sample, made in data/raw/satellite/sample)")
    parser.add_argument("--labels", type=Path, help="table, .xlsx or .csv (default: the one in or beside --tiles)")
    parser.add_argument("--city-column", help="column of the table that names the city (default: found)")
    parser.add_argument("--label-column", help="column that holds the number (default: found)")
    parser.add_argument("--output", type=Path, help="folder (default: data/prepared/satellite of this project)")
    parser.add_argument("--rgb-pca", action="store_true", help="also a folder <output>_rgb of pictures by PCA; "
                        "arrays that are prepared are taken as they are unless --tiles is given")
    parser.add_argument("--min-valid", type=float, default=0.5, help="least share of pixels with data in a tile")
    parser.add_argument("--decimals", type=int, default=2, help="of the number in an answer")
    parser.add_argument("--split-fractions", default="0.7,0.15,0.15", help="train,val,test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return options, [name for name, value in vars(options).items() if value != parser.get_default(name)]


def main() -> None:
    options, given = parse()
    from overlays.domains.satellite.prepare import OUTPUT, Settings, prepare

    values = vars(options)
    values["output"] = options.output or OUTPUT
    values["split_fractions"] = records.parse_fractions(options.split_fractions)
    pictures, output = values.pop("rgb_pca"), values["output"]
    if not pictures or options.tiles or not (output / "metadata.json").is_file():
        report(prepare(Settings(**values)), output)
    elif idle := [f"--{name.replace('_', '-')}" for name in given if name not in ("output", "rgb_pca")]:
        raise UserError(f"{', '.join(idle)} would change nothing: the arrays in {output} are taken as they are; "
                        "prepare them again without --rgb-pca first, or give --tiles")
    if pictures:
        from overlays.domains.satellite.pca import prepare_rgb

        rgb = output.with_name(f"{output.name}_rgb")
        parts = prepare_rgb(output, rgb)["pca"]["explained_variance"]
        print(f"RGB pictures of three components ({', '.join(f'{part:.1%}' for part in parts)} of the variance): {rgb}")


def report(metadata: dict, output: Path) -> None:
    counts, target, size = metadata["counts"], metadata["target"], metadata["size_px"]
    print(f"{counts['tiles']} tiles of {counts['cities']} cities, {metadata['channels']} channels, "
          f"{size['min']} to {size['max']} px: {counts['train']} train + {counts['val']} val + {counts['test']} test")
    print(f"{target['name']}: mean {target['train_mean']:.3f}, standard deviation {target['train_std']:.3f} over the "
          "training cities")
    if counts["partly_empty"]:
        print(f"{counts['partly_empty']} tiles lack data in some pixels (valid_share in their records)")
    for row in metadata["dropped"]:
        print(f"dropped: {row['what']} {row['name']}: {row['reason']}")
    if metadata["ceiling"]:
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metadata["ceiling"].items())
        print(f"R2 that the sample's noise leaves within reach: {shown}")
    print(f"prepared data: {output}")


if __name__ == "__main__":
    errors.run(main)
