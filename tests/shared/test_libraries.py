"""Other people's libraries in our process: what they would print and fetch, and how their threads wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import REPOSITORY

from lorafold.libraries.threads import SPINS, share_processor
from lorafold.machine import cores, cores_seen, quota

# As bitsandbytes does it on a processor with bfloat16 instructions, so that every processor has the fault.
LOOKS_FOR_KERNELS = """
import logging
try:
    from kernels import get_kernel
    get_kernel("kernels-community/quantization-bitsandbytes", version=1)
except Exception as error:
    logging.getLogger(__name__).warning("Failed to load CPU gemm_4bit_forward: %s", error)
"""
FETCHES = """
from pathlib import Path
def get_kernel(name, version):
    Path(__file__).with_name("fetched").touch()
"""


def python(program: str, *paths: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    path = os.pathsep.join(map(str, (*paths, REPOSITORY)))
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=kept | {"PYTHONPATH": path} | settings, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("installed", [True, False])
def test_bitsandbytes_says_and_fetches_nothing(tmp_path: Path, installed: bool) -> None:
    inner = tmp_path / "bitsandbytes" / "backends" / "cpu"
    inner.mkdir(parents=True)
    (inner / "ops.py").write_text(LOOKS_FOR_KERNELS)
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("from .backends.cpu import ops\n")
    if installed:
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels" / "__init__.py").write_text(FETCHES)
    fetched = tmp_path / "kernels" / "fetched"
    loud = python("import bitsandbytes", tmp_path)
    assert fetched.exists() if installed else "Failed to load" in loud.stderr
    fetched.unlink(missing_ok=True)
    after = "import kernels; print(kernels.get_kernel)" if installed else "import logging"
    quiet = python(
        "from lorafold.libraries.quiet import quiet_bitsandbytes as quiet; quiet(); import sys\n"
        f"assert 'bitsandbytes' in sys.modules; {after}\n"
        "assert not logging.getLogger('bitsandbytes.backends.cpu.ops').disabled"
        if not installed
        else f"from lorafold.libraries.quiet import quiet_bitsandbytes as quiet; quiet(); {after}",
        tmp_path,
    )
    assert quiet.stderr == "" and not fetched.exists()
    assert "get_kernel" in quiet.stdout or not installed


@pytest.mark.slow
def test_peft_is_quiet_on_this_processor() -> None:
    pytest.importorskip("peft")
    done = python("from lorafold.libraries.quiet import quiet_bitsandbytes as q; q(); import peft")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is the OpenMP of torch on Linux")
@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({}, f"GOMP_SPINCOUNT = '{SPINS}'"),
        ({"GOMP_SPINCOUNT": "70"}, "GOMP_SPINCOUNT = '70'"),
        ({"OMP_WAIT_POLICY": "passive"}, "GOMP_SPINCOUNT = '0'"),
    ],
)
def test_libgomp_waits_as_it_is_told(settings: dict[str, str], waits: str) -> None:
    """What it read of its settings, told by libgomp itself."""
    pytest.importorskip("torch")
    program = "from lorafold.libraries.threads import share_processor as s; s(); import torch"
    assert waits in python(program, OMP_DISPLAY_ENV="verbose", **settings).stderr


def test_a_setting_of_the_user_stays() -> None:
    for given in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}):
        environment = dict(given)
        share_processor(environment)
        assert {name: environment[name] for name in given} == given
        assert set(environment) - set(given) <= {"OMP_NUM_THREADS"}


GROUPS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "version 2": ("0::/a/b", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 2),
    "version 2, less above": ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "100000 100000"}, 1),
    "version 2, a container's own view": ("0::/../host/x", {"cpu.max": "300000 100000"}, 3),
    "version 2, half a core": ("0::/", {"cpu.max": "50000 100000"}, 1),
    "version 2, none": ("0::/a", {"a/cpu.max": "max 100000"}, None),
    "version 1": (
        "4:memory:/m\n3:cpu,cpuacct:/d",
        {
            "cpu,cpuacct/d/cpu.cfs_quota_us": "200000\n",
            "cpu,cpuacct/d/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "torn": ("0::/", {"cpu.max": "many"}, None),
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_quota_is_cores(tmp_path: Path, name: str) -> None:
    line, files, expected = GROUPS[name]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(line + "\n")
    for path, text in files.items():
        place = tmp_path / "sys/fs/cgroup" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert quota(tmp_path) == expected


def test_no_quota_where_nothing_says_so(tmp_path: Path) -> None:
    assert quota(tmp_path) is None
    assert 1 <= cores() <= cores_seen()


def test_transformers_fetches_no_kernels() -> None:
    pytest.importorskip("transformers")
    asked = "from transformers.integrations import hub_kernels; print(hub_kernels._kernels_enabled)"
    done = python(f"from lorafold.libraries.quiet import quiet_libraries as quiet; quiet(); {asked}")
    assert done.stdout.strip() == "False"
