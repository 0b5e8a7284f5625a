"""How a mistake ends: one line and an exit status."""

import errno
import subprocess
import sys

import pytest

from overlays.errors import UserError, run


def ending(capsys, error):
    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        run(fail)
    return end.value.code, capsys.readouterr().err


def test_what_a_user_can_fix_is_one_line_and_status_2(capsys, tmp_path):
    assert ending(capsys, UserError("say what")) == (2, "error: say what\n")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as refused:
        (tmp_path / "file" / "below").mkdir()
    assert ending(capsys, refused.value) == (2, f"error: {tmp_path / 'file' / 'below'}: Not a directory\n")
    assert ending(capsys, OSError(errno.ENOSPC, "No space left on device")) == (2, "error: No space left on device\n")
    assert ending(capsys, RuntimeError("Symlink loop from 'a'")) == (2, "error: Symlink loop from 'a'\n")
    assert ending(capsys, KeyboardInterrupt())[0] == 130


def test_a_defect_of_the_program_keeps_its_traceback():
    for error in (ValueError("x"), OSError("a library's own words")):
        def fail(error=error):
            raise error

        with pytest.raises(type(error)):
            run(fail)


def test_a_reader_that_has_gone_is_no_traceback():
    words = "import sys\nfrom overlays.errors import run\nrun(lambda: [print('x' * 100) for _ in range(100000)])"
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141
