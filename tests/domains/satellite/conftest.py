"""A small sample of cities and its prepared data, made once a session."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def cities(tmp_path_factory):
    """Folder of 24 sample cities."""
    from overlays.samples.satellite import write

    return write(tmp_path_factory.mktemp("satellite") / "sample", cities=24)


@pytest.fixture(scope="session")
def prepared(cities, tmp_path_factory):
    """(folder, metadata) of those cities."""
    from overlays.domains.satellite.prepare import Settings, prepare

    folder = tmp_path_factory.mktemp("prepared") / "satellite"
    return folder, prepare(Settings(tiles=cities, output=folder))


@pytest.fixture
def write_tile():
    """Function: write (bands, h, w) int8 codes, or values, as a GeoTIFF in UTM."""
    import rasterio
    from rasterio.transform import Affine

    def write(path, values, bottom_up=False, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        bands, height, width = values.shape
        place = Affine(10, 0, 500000, 0, 10 if bottom_up else -10, 4600000)
        options = {"nodata": -128 if values.dtype == np.int8 else None, "crs": "EPSG:32615", "transform": place,
                   **options}
        with rasterio.open(path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype,
                           **options) as file:
            file.write(values[:, ::-1] if bottom_up else values)
        return path

    return write


@pytest.fixture
def codes():
    """Function: seed -> (8, 6, 5) int8 codes of vectors of unit length."""
    from overlays.samples.satellite import quantise

    def make(seed=0, bands=8):
        vectors = np.random.default_rng(seed).standard_normal((bands, 6, 5))
        return quantise(vectors / np.linalg.norm(vectors, axis=0))

    return make
