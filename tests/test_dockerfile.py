"""The Dockerfile cannot be built by the test suite, so what it names is checked against the project."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order; comments dropped, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (head.upper(), rest.strip()) for head, _, rest in (x.partition(" ") for x in joined.splitlines() if x.strip())
    ]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, its FROM included."""
    found: list[list[tuple[str, str]]] = []
    for head, rest in instructions():
        if head == "FROM":
            found.append([])
        found[-1].append((head, rest))
    return found


def arguments(name: str, stage: int) -> list[str]:
    return [rest for head, rest in stages()[stage] if head == name]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in arguments("ENV", -1) for pair in shlex.split(rest))


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_only_known_instructions():
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "STOPSIGNAL", "CMD"}
    assert {head for head, _ in instructions()} <= known


def test_both_stages_use_one_supported_python(project):
    bases = [stage[0][1].split()[0] for stage in stages()]
    assert len(bases) == 2
    assert len(set(bases)) == 1  # a virtual environment works with the very interpreter that made it
    image, _, tag = bases[0].partition(":")
    assert image == "python"
    version = tuple(int(n) for n in tag.split("-")[0].split("."))
    least = tuple(int(n) for n in re.fullmatch(r">=(\d+)\.(\d+)", project["requires-python"]).groups())
    assert version[:2] >= least


def test_copied_files_exist_and_are_in_the_build_context():
    ignore = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and not x.startswith("#")]
    for source in [s for rest in arguments("COPY", 0) for s in rest.split()[:-1]]:
        assert (ROOT / source).exists(), f"the Dockerfile copies {source}, which does not exist"
        kept = True
        for pattern in ignore:  # the last match decides
            if fnmatch.fnmatch(source, pattern.removeprefix("!")):
                kept = pattern.startswith("!")
        assert kept, f".dockerignore hides {source}"


def test_everything_the_package_is_built_from_is_copied(project):
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {s for rest in arguments("COPY", 0) for s in rest.split()[:-1]}
    wheel = config["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert copied == needed


def test_second_stage_takes_the_environment_that_the_first_made():
    (made,) = (re.search(r"-m venv (\S+)", rest)[1] for rest in arguments("RUN", 0) if "venv" in rest)
    name = re.search(r" AS (\w+)$", stages()[0][0][1])[1]
    assert arguments("COPY", -1) == [f"--from={name} {made} {made}"]
    assert environment()["PATH"].split(":")[0] == f"{made}/bin"


def test_install_names_existing_extras_and_one_cupy(project):
    (command,) = (rest for rest in arguments("RUN", 0) if "pip install" in rest)
    assert "--no-cache-dir" in command
    extras = re.search(r'"\.\[([\w,]+)\]"', command)[1].split(",")
    available = project["optional-dependencies"]
    assert set(extras) <= set(available)
    assert "train" in extras
    wanted = [re.match(r"[\w-]+", r)[0] for e in extras for r in available[e]]
    assert [w for w in wanted if w.startswith("cupy")] == ["cupy-cuda12x"]
    assert {"nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12"} <= set(wanted)
    assert not any("[ctk]" in r for e in extras for r in available[e])  # a whole toolkit is twice the image


def test_runs_unprivileged_with_writable_volumes():
    (user,) = arguments("USER", -1)
    (setup,) = arguments("RUN", -1)
    assert user != "root"
    assert f"useradd --create-home {user}" in setup
    volumes = json.loads(arguments("VOLUME", -1)[0])
    owned = shlex.split(setup.split(f"install -d -o {user} -g {user} ")[1])
    assert set(volumes) == set(owned)
    assert environment()["CUPY_CACHE_DIR"] in volumes
    (home,) = arguments("WORKDIR", -1)
    assert f"{home}/runs" in volumes  # where `gpugrad train` puts its runs


def test_asks_the_container_toolkit_for_compute():
    env = environment()
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(env["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}


def test_default_command_is_an_installed_script(project):
    (command,) = (json.loads(rest) for rest in arguments("CMD", -1))
    assert command == ["gpugrad", "train"]
    assert command[0] in project["scripts"]
