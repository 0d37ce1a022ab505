"""What is installed is what was locked, byte for byte; and what is built from the same source is the same."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def make_wheel(folder: Path, name: str, *, needs: str = "", content: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": f"IT = {content!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    record = "".join(f"{path},sha256={digest.decode().rstrip('=')},\n" for path, digest in digests.items())
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)
    return wheel


def lock_line(wheel: Path) -> str:
    return f"{wheel.name.split('-')[0]}==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def install(folder: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run the project's own way to install a lock, on a lock that names an index of this test."""
    (folder / "requirements").mkdir()
    (folder / "requirements" / "audit.txt").write_text(
        "\n".join(["--no-index", f"--find-links {folder / 'index'}", *lines]) + "\n"
    )
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "venv", folder / ".ci" / "venv")
    return subprocess.run(
        [folder / ".ci" / "venv", "env", "audit"],
        env={**os.environ, "PYTHON": sys.executable, "UV_NO_CACHE": "1", "PIP_NO_CACHE_DIR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def installed(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("env/lib/*/site-packages/thing*.py"))


def test_what_is_locked_is_installed(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "index", "thing")
    done = install(tmp_path, lock_line(wheel))
    assert (done.returncode, installed(tmp_path)) == (0, ["thing"]), done.stderr


@pytest.mark.security_case("Supply chain")
def test_a_wheel_that_was_tampered_with_is_not_installed(tmp_path: Path) -> None:
    """The index serves another wheel under a locked name and version.

    Refused: the installation fails, and names the package.
    Evidence: the exit status, and that nothing of the wheel is in the environment.
    """
    line = lock_line(make_wheel(tmp_path / "index", "thing"))
    make_wheel(tmp_path / "index", "thing", content="tampered")
    done = install(tmp_path, line)
    assert (done.returncode != 0, installed(tmp_path)) == (True, [])
    assert re.search("hash", done.stderr, re.IGNORECASE)


@pytest.mark.security_case("Supply chain")
def test_a_line_of_the_lock_without_a_hash_is_not_installed(tmp_path: Path) -> None:
    """A line without a hash gets into a lock.

    Refused: nothing of that lock is installed.
    Evidence: the exit status, and an empty environment.
    """
    wheel, other = (make_wheel(tmp_path / "index", name) for name in ("thing", "thing2"))
    done = install(tmp_path, lock_line(wheel), lock_line(other).split()[0])
    assert (done.returncode != 0, installed(tmp_path)) == (True, [])


@pytest.mark.security_case("Supply chain")
def test_a_package_that_no_lock_names_is_not_installed(tmp_path: Path) -> None:
    """A locked package comes to ask for one that no lock names, such as a misspelt one that somebody registered.

    Refused: the installation fails, and names it.
    Evidence: the exit status, and that it is not in the environment.
    """
    make_wheel(tmp_path / "index", "thingg")
    done = install(tmp_path, lock_line(make_wheel(tmp_path / "index", "thing", needs="thingg")))
    assert (done.returncode != 0, installed(tmp_path)) == (True, [])
    assert "thingg" in done.stderr


@pytest.mark.security_case("Supply chain")
@pytest.mark.parametrize("lock", LOCKS, ids=[lock.stem for lock in LOCKS])
def test_every_line_of_a_lock_has_hashes_and_no_lock_names_an_index(lock: Path) -> None:
    """A version that is not pinned, or an index of somebody else, gets into what is installed.

    Refused: a lock with either is not accepted.
    Evidence: every entry of every file in `requirements/`.
    """
    entries = [entry for entry in re.split(r"(?<!\\)\n", lock.read_text()) if entry and not entry.startswith("#")]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==[^ ]+ .*--hash=sha256:[0-9a-f]{64}", entry, re.DOTALL), entry[:80]
        assert "://" not in entry


@pytest.mark.security_case("Supply chain")
def test_two_builds_of_one_source_are_the_same_file(tmp_path: Path) -> None:
    """A published wheel holds something that its source does not.

    Refused: whoever builds the source anew sees the difference.
    Evidence: the digests of two wheels, built in two folders from files with other times and modes.
    """
    digests = {build(tmp_path / name, umask=umask) for name, umask in (("one", 0o022), ("two", 0o077))}
    assert len(digests) == 1


def build(folder: Path, *, umask: int) -> str:
    tracked = subprocess.run(
        ["git", "ls-files", "jobqueue", "workers", "producers", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in tracked:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"],
        cwd=folder,
        umask=umask,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        check=True,
    )
    (wheel,) = (folder / "out").iterdir()
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
