"""Conversions that are killed or run out of room: what is there is whole, or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bitloss.convert.cast import SourceType
from bitloss.convert.convert import convert
from bitloss.model.random_checkpoint import CheckpointOptions, random_checkpoint
from bitloss.model.random_model import RandomShape

pytestmark = pytest.mark.e2e

# Killed after a third of the blocks: the files are open, some of their bytes written.
KILLED = """
import os, signal, sys
from pathlib import Path
import bitloss.convert.material as material
from bitloss.convert.convert import ConvertOptions, SourceType, convert
material.BLOCK = 1000
def die(step):
    if step.done > step.total // 3:
        os.kill(os.getpid(), signal.SIGKILL)
options = ConvertOptions(split_max_bytes=int(sys.argv[3]) or None)
convert(Path(sys.argv[1]), list(SourceType), Path(sys.argv[2]), options, progress=die)
"""
SHAPE = RandomShape(n_embd=256, n_ff=512, n_head=4, n_head_kv=2, head_dim=64, n_vocab=2000)


@pytest.mark.parametrize("most", [0, 10**6])
def test_a_conversion_that_is_killed_leaves_nothing_that_counts(tmp_path: Path, most: int) -> None:
    folder, out = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=SHAPE)), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, folder, out, str(most)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path.name for path in out.iterdir()]
    assert left
    assert all(name.startswith(".") and ".partial-" in name for name in left)
    convert(folder, [SourceType.F16], out)  # cleans up what is left of the dead process
    assert sorted(path.name for path in out.iterdir()) == ["conversion.json", "m-f16.gguf"]


def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    folder, out = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=SHAPE)), tmp_path / "out"
    slow = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "print(flush=True); signal.pause()")
    with subprocess.Popen(
        [sys.executable, "-c", slow, folder, out, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    assert child.returncode not in (0, None)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_told_to_stop_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    folder, out = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=SHAPE)), tmp_path / "out"
    code = (
        "import sys, time; import bitloss.convert.writing as w;"
        "from bitloss.cli import main; import bitloss.cli.verbs as v;"
        "from bitloss.run.executor import InlineExecutor; v.LocalExecutor = InlineExecutor;"
        "w._Lane.take = lambda *_: (print(flush=True), time.sleep(1)); sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "convert", folder, "--to", "f32", "-o", out, "-q"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert [path.name for path in out.iterdir() if ".partial-" in path.name]
        child.send_signal(number)
        told = child.communicate(timeout=100)[1]
    assert child.returncode == 130
    assert b"interrupted" in told
    assert list(out.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    """A real disk, in a mount namespace of its own: room for the header and half of the tensors."""
    folder = random_checkpoint(tmp_path / "m", CheckpointOptions(shape=SHAPE))
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import shutil, sys; from bitloss.cli import main;"
        "real = shutil.disk_usage; shutil.disk_usage = lambda p: real('/');"  # the check before writing says yes
        "from bitloss.run.executor import InlineExecutor; import bitloss.cli.verbs as v;"
        "v.LocalExecutor = InlineExecutor; sys.exit(main(sys.argv[1:]))"
    )
    command = f'"{sys.executable}" -c "$0" convert "{folder}" --to f32,f16 -o "{disk}/out" -q'
    script = f'mount -t tmpfs -o size=3m none "{disk}" || exit 99; {command}; r=$?; ls -A "{disk}/out"; '
    script += f'mount -o remount,ro "{disk}" || exit 99; {command}; exit $r'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, code], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.returncode == 1
    assert done.stdout == ""
    full, locked = done.stderr.splitlines()
    assert ": the disk is full. Free some space or choose a folder on another disk" in full
    assert "Read-only file system" in locked
