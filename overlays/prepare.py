"""Entry: raw files of a domain -> annotation files, media and metadata.json.

    python -m overlays.prepare cuprite --cube scene.hdr --output data/prepared/mine
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from overlays import callable_module, domains
from overlays.domains.base import Domain, check_output
from overlays.errors import run
from overlays.files import lock_output
from overlays.flags import Parser, add_settings, make_settings, read_settings


def prepare(domain: str | Domain, **settings) -> dict:
    """Prepare a domain's data; `settings` are the fields of its `Settings`.

    Returns:
        what metadata.json holds.

    Raises:
        UserError: what the user can fix: no such input, a setting that cannot be, an output that holds something else.
    """
    domain = domains.get(domain) if isinstance(domain, str) else domain
    return _prepare(domain, make_settings(domain.Settings, settings))[0]


def _prepare(domain: Domain, settings) -> tuple[dict, Path]:
    output = Path(settings.output or domain.output(settings))
    check_output(output, domain.name)
    with lock_output(output):
        return domain.prepare(replace(settings, output=output)), output


def main(words: Sequence[str] | None = None, domain: str | None = None) -> None:
    """Command line of the module; with `domain`, that of the script which prepares it."""
    words = list(sys.argv[1:] if words is None else words)
    prog = None
    if domain is None:
        prog = "python -m overlays.prepare"
        parser = Parser(prog=prog, description=__doc__.split("\n")[0].removeprefix("Entry: "))
        parser.add_argument("domain", help=f"{', '.join(domains.DOMAINS)}, or module:object; --help after it lists its "
                                           "flags")
        domain, words = parser.parse_args(words[:1]).domain, words[1:]
        prog = f"{prog} {domain}"
    chosen = domains.get(domain)
    parser = Parser(prog=prog, description=(chosen.Settings.__doc__ or "").split("\n")[0])
    add_settings(parser, chosen.Settings)
    metadata, output = _prepare(chosen, read_settings(parser.parse_args(words), chosen.Settings))
    for line in chosen.summary(metadata, output):
        print(line)
    print(f"prepared data: {output}")


callable_module(__name__)

if __name__ == "__main__":
    run(main)
