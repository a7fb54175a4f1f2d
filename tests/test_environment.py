"""Making and checking the backend's environment, with the real pip and packages of a few bytes; no network."""

from __future__ import annotations

import os
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest

from blender_addon import environment, install_packages, protocol
from blender_addon.backend_process import clean_environment
from blender_addon.child import Child
from blender_addon.environment import SetupError, begin_setup, check_environment, python_of
from blender_addon.install_packages import Installer, InstallError, fingerprint, kind_of

DEADLINE = 90.0
REQUIREMENTS = environment.REQUIREMENTS


def make_wheel(folder: Path, name: str, content: str = "") -> None:
    """A wheel of one empty module."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(file, text)


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """A folder that is pip's only source, with requirements for two packages of it."""
    folder = tmp_path / "shop"
    folder.mkdir()
    for name in ("tiny_one", "tiny_two"):
        make_wheel(folder, name)
    (folder / "base.txt").write_text("# a comment\ntiny-one==1.0\n")
    (folder / "all.txt").write_text("-r base.txt\ntiny-two==1.0\n")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "1")
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """An environment with pip and nothing else, as an interrupted setup leaves it; made where a broken one was."""
    folder = tmp_path_factory.mktemp("bare") / "environment"
    python_of(folder).parent.mkdir(parents=True)
    python_of(folder).write_text("no program")
    (folder / install_packages.MARKER).write_text('{"requirements": "", "python": "3.0"}')
    Installer(folder, REQUIREMENTS / "common.txt")._make_environment("{}.{}".format(*sys.version_info[:2]))
    return folder


@pytest.fixture
def folder(bare, tmp_path) -> Path:
    """An environment like `bare`, for one test alone."""
    return Path(shutil.copytree(bare, tmp_path / "environment", symlinks=True))


def test_an_environment_is_completed_and_then_left_alone(folder, shop, capsys):
    """As after an interruption: what is there is not made again."""
    born = python_of(folder).lstat().st_mtime_ns
    installer = Installer(folder, shop / "all.txt", imports="import tiny_one, tiny_two")
    installer.install()
    assert python_of(folder).lstat().st_mtime_ns == born
    assert '"stage": "Installing"' in capsys.readouterr().out
    marker = install_packages.read_marker(folder)
    assert marker is not None and marker["requirements"] == fingerprint(shop / "all.txt")
    installer.install()
    assert capsys.readouterr().out == "", "nothing is left to do"


@pytest.mark.parametrize("works", [True, False])
def test_what_the_first_job_needs_compiled_is_compiled_at_once(folder, shop, capsys, works):
    """With the finished environment's Python, from the folder that holds the backend; a failure leaves it usable."""
    trace = folder / "trace"
    code = f"import os, tiny_one; open({str(trace)!r}, 'w').write(os.getcwd()); assert {works}"
    Installer(folder, shop / "base.txt", imports="import tiny_one", warm_up=("-c", code)).install()
    assert Path(trace.read_text()) == install_packages.SOURCE and (install_packages.SOURCE / "backend").is_dir()
    assert "Compiling for this processor" in capsys.readouterr().out
    marker = install_packages.read_marker(folder)
    assert marker is not None and marker["requirements"] == fingerprint(shop / "base.txt")


def test_new_requirements_are_installed_on_top(folder, shop, capsys):
    Installer(folder, shop / "base.txt", imports="import tiny_one").install()
    capsys.readouterr()
    Installer(folder, shop / "all.txt", imports="import tiny_two").install()
    assert "Installing" in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_not_touched(tmp_path, shop):
    (tmp_path / "photo.jpg").write_text("dear")
    with pytest.raises(InstallError) as error:
        Installer(tmp_path, shop / "base.txt").install()
    assert error.value.kind == "not_ours" and (tmp_path / "photo.jpg").read_text() == "dear"


def test_offline_is_told_as_such(bare, shop, monkeypatch):
    """A package index where nobody listens."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    (shop / "all.txt").write_text("tiny-four==1.0\n")
    with pytest.raises(InstallError) as error:
        Installer(bare, shop / "all.txt").install()
    assert error.value.kind == "offline" and "127.0.0.1" in str(error.value)


def test_a_package_that_does_not_exist(bare, shop):
    (shop / "all.txt").write_text("tiny-five==1.0\n")
    with pytest.raises(InstallError) as error:
        Installer(bare, shop / "all.txt").install()
    assert error.value.kind == "no_package"


def test_packages_that_do_not_load(bare, shop):
    with pytest.raises(InstallError) as error:
        Installer(bare, shop / "base.txt", imports="import no_such_module").install()
    assert error.value.kind == "failed" and "no_such_module" in str(error.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk_full"),
        ("connection broken by 'NewConnectionError('<...>: Failed to establish", "offline"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no_package"),
        ("ERROR: something else", "failed"),
    ],
)
def test_what_pip_says(text, kind):
    assert kind_of(text) == kind and kind in install_packages.FAILURES


def finish(setup: Child) -> list[str]:
    """The stages that were shown until the end."""
    stages, deadline = [], time.monotonic() + DEADLINE
    while not setup.pump():
        assert time.monotonic() < deadline
        stages += [setup.stage] if stages[-1:] != [setup.stage] else []
        time.sleep(0.05)
    return stages


def test_a_setup_in_a_child_process(folder, shop, monkeypatch):
    """As the preferences run it; only the list of packages is another."""
    monkeypatch.setattr(environment, "REQUIREMENTS", shop)
    monkeypatch.setattr(environment, "_kit", lambda wanted: ("all.txt", 0.1, 0.1))
    setup = begin_setup(folder, online=True, python=Path(sys.executable))
    stages = finish(setup)
    assert "Creating the environment" in stages and "Installing" in stages
    assert setup.failure is not None and "named 'torch'" in setup.failure.detail, "our packages are not torch"
    assert setup.fraction > 0.8 and setup.pump()


def test_a_setup_can_be_cancelled(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(environment, "REQUIREMENTS", shop)
    monkeypatch.setattr(environment, "_kit", lambda wanted: ("all.txt", 0.1, 0.1))
    setup = begin_setup(tmp_path / "environment", online=True)
    while setup.stage == "Starting":
        assert not setup.pump()
    start = time.monotonic()
    setup.cancel()
    setup.cancel()
    assert time.monotonic() - start < 4 and setup.failure is not None and setup.failure.kind == "cancelled"
    assert install_packages.read_marker(tmp_path / "environment") is not None


def test_a_setup_compiles_into_the_folder_that_the_backend_uses(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_kit", lambda wanted: ("common.txt", 0.0, 0.0))
    python = tmp_path / "python"
    says = "import json, os; print(json.dumps({'done': True, 'cache': os.environ['NUMBA_CACHE_DIR']}))"
    python.write_text(f"#!{sys.executable}\n{says}\n")
    python.chmod(0o755)
    setup = begin_setup(tmp_path / "environment", online=True, python=python, cache=tmp_path / "cache")
    finish(setup)
    assert setup.told["cache"] == clean_environment({}, tmp_path / "cache")["NUMBA_CACHE_DIR"]


def test_why_a_setup_does_not_begin(tmp_path, monkeypatch):
    with pytest.raises(SetupError, match="Allow online access"):
        begin_setup(tmp_path / "new", online=False)
    monkeypatch.setattr(environment, "_kit", lambda wanted: ("common.txt", 1.0, 1e9))
    with pytest.raises(SetupError, match=r"needs about 1e\+09 GB in .*new, and \d+\.\d GB are free"):
        begin_setup(tmp_path / "new", online=True)
    monkeypatch.setattr(environment, "_kit", lambda wanted: ("common.txt", 1.0, 0.0))
    with pytest.raises(SetupError, match="cannot be started"):
        begin_setup(tmp_path / "new", online=True, python=tmp_path / "no python")
    assert not (tmp_path / "new").exists()


def test_every_kit_is_there_and_locked():
    for name, download, disk in environment.KITS.values():
        lines = [line for line in install_packages._lines(REQUIREMENTS / name)]
        assert all("==" in line for line in lines) and "torch==2.13.0" in lines
        assert len(lines) == len({line.split("==")[0].lower() for line in lines}) and 0 < download < disk


def test_fingerprints_follow_what_is_included(shop):
    before = fingerprint(shop / "all.txt")
    (shop / "all.txt").write_text("-r base.txt\n# only a comment\ntiny-two==1.0\n")
    assert fingerprint(shop / "all.txt") == before
    (shop / "base.txt").write_text("tiny-one==1.1\n")
    assert fingerprint(shop / "all.txt") != before


@pytest.mark.parametrize(
    ("platform", "wanted", "nvidia", "chosen"),
    [
        ("linux", "auto", True, "cuda"),
        ("linux", "auto", False, "cpu"),
        ("win32", "auto", False, "cpu"),
        ("darwin", "auto", True, "apple"),
        ("linux", "cpu", True, "cpu"),
    ],
)
def test_the_accelerator(monkeypatch, platform, wanted, nvidia, chosen):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(environment, "has_nvidia_driver", lambda: nvidia)
    assert environment.choose_accelerator(wanted) == chosen


def test_needs_are_a_sentence(monkeypatch):
    assert "GB" in environment.describe_needs("cpu" if sys.platform != "darwin" else "apple")
    monkeypatch.setattr(environment.platform, "system", lambda: "Plan9")
    assert "no packages for cpu on Plan9" in environment.describe_needs("cpu")


def test_this_environment_is_usable():
    report = check_environment(Path(sys.executable))
    assert report.usable and report.versions["torch"].startswith("2.") and report.protocol == protocol.VERSION


def test_environments_that_are_not(tmp_path, bare):
    lacking = check_environment(python_of(bare))
    assert not lacking.usable and "lacks torch, numpy" in lacking.problem
    assert "cannot be started" in check_environment(tmp_path / "none").problem
    liar = tmp_path / "liar"
    liar.write_text("#!/bin/sh\necho hello\n")
    liar.chmod(0o755)
    assert "is not a Python" in check_environment(liar).problem
    old = {"python": [3, 10], "versions": {}, "protocol": 1}
    assert "needs 3.11" in environment._problem(liar, old)


def test_a_python_is_found(monkeypatch):
    assert environment.find_python() == Path(sys.executable)
    monkeypatch.setattr(environment, "PYTHONS", ((3, 7),))
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match="No Python is found"):
        environment.find_python()
