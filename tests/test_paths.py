"""Tests of the project's folders: in the repository and for an installed wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

from overlays import paths

REPOSITORY = Path(__file__).resolve().parents[1]


def test_in_the_repository_its_folders_count_whatever_the_working_directory(tmp_path):
    code = "from overlays import paths, registry, runs; print(paths.ROOT, registry.ROOT, runs.ROOT, paths.CACHE)"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, text=True,
                          capture_output=True, check=True).stdout.split()
    assert said == [str(REPOSITORY)] * 3 + [str(REPOSITORY / "data" / "cache")]


def test_of_an_installed_wheel_the_working_directory_counts(tmp_path):
    site, work = tmp_path / "site-packages", tmp_path / "work"
    work.mkdir()
    shutil.copytree(REPOSITORY / "overlays", site / "overlays", ignore=shutil.ignore_patterns("__pycache__"))
    code = "from overlays import paths, registry, runs; print(paths.ROOT, registry.ROOT, runs.ROOT, paths.OUTPUTS)"
    said = subprocess.run([sys.executable, "-c", code], cwd=work, env={"PYTHONPATH": str(site)}, text=True,
                          capture_output=True, check=True).stdout.split()
    assert said == [str(work)] * 3 + [str(work / "outputs")]


def test_the_cache_moves_to_the_temporary_folder_where_the_project_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(paths, "CACHE", tmp_path / "file" / "cache")
    monkeypatch.setattr(paths.tempfile, "gettempdir", lambda: str(tmp_path))
    assert paths.cache_folder() == tmp_path / "qwen-vl-overlays"


def test_a_path_is_written_from_the_project_where_it_lies_inside(tmp_path):
    assert paths.relative(paths.PREPARED / "gui") == "data/prepared/gui"
    assert paths.relative(tmp_path) == str(tmp_path.resolve())
