"""Prepare the satellite data set: GeoTIFFs of embeddings and a table of labels -> arrays and records, split by city."""

import _bootstrap  # noqa: F401  (re-runs in .venv, puts the repository on the path)

from overlays import errors, prepare

if __name__ == "__main__":
    errors.run(lambda: prepare.main(domain="satellite"))
