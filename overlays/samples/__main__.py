"""Entry: write a domain's sample data: python -m overlays.samples cuprite --output DIR --seed 0 --lines 400"""

import inspect
import sys
from importlib import import_module
from pathlib import Path

from overlays import errors, paths, samples
from overlays.flags import Parser


def main() -> None:
    first = Parser(prog="python -m overlays.samples", description=__doc__.split(":")[1])
    first.add_argument("domain", choices=samples.NAMES)
    domain = first.parse_args(sys.argv[1:2]).domain
    write = import_module(f"overlays.samples.{domain}").write
    parser = Parser(prog=f"python -m overlays.samples {domain}", description=write.__doc__)
    parser.add_argument("--output", type=Path, default=paths.RAW / domain / "sample")
    numbers = [item for item in inspect.signature(write).parameters.values() if isinstance(item.default, int | float)]
    for item in numbers:
        parser.add_argument(f"--{item.name}", type=type(item.default), default=item.default)
    flags = parser.parse_args(sys.argv[2:])
    print(f"sample data: {write(flags.output, **{item.name: getattr(flags, item.name) for item in numbers})}")


if __name__ == "__main__":
    errors.run(main)
