"""One experiment, one process at a time, steps found again by content."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from pydantic import JsonValue, ValidationError

from bitloss.errors import BitlossError, FileProblem, RecordError, RunFolderError
from bitloss.store import RunFolder, StepOutput, StepRecord, content_key, describe_difference

if TYPE_CHECKING:
    from pathlib import Path

KEY = content_key("experiment", {"n": 1})
OTHER = content_key("experiment", {"n": 2})
STEP = content_key("quantize", {"type": "Q8_0"})
SETTINGS: dict[str, JsonValue] = {"ctx": 512, "quants": ["Q8_0"], "engine": {"ngl": 0}}

HOLD = """
import sys, time
from pathlib import Path
from bitloss.store import RunFolder
with RunFolder.open(Path(sys.argv[1]), sys.argv[2], {}):
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), KEY, str(seconds)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    return child


def done(folder: RunFolder, name: str = "out.gguf", key: str = STEP) -> StepRecord:
    (folder.path / name).write_bytes(b"data")
    record = StepRecord(
        kind="quantize",
        key=key,
        outputs=folder.outputs([folder.path / name]),
        result={"type": "Q8_0", "n": [1, None]},
        seconds=1.5,
        started=datetime(2026, 1, 2, tzinfo=UTC),
    )
    folder.save(record)
    return record


def events(folder: RunFolder) -> list[dict[str, JsonValue]]:
    return [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------------------- whose folder


def test_make_close_take_up(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with RunFolder.open(path, KEY, SETTINGS) as folder:
        assert folder.path == path
    marker = json.loads((path / "run.json").read_text())
    assert marker == {"schema": "bitloss/run@1", "spec_key": KEY, "settings": SETTINGS}
    again = RunFolder.open(path, KEY, SETTINGS)
    again.close()
    again.close()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, SETTINGS):
        assert (tmp_path / "run.json").is_file()


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    before = os.stat(tmp_path).st_mtime_ns
    with pytest.raises(RunFolderError, match=r"no run of bitloss.*thesis\.tex.*--out"):
        RunFolder.open(tmp_path, KEY, SETTINGS)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert os.stat(tmp_path).st_mtime_ns == before


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(FileProblem):
        RunFolder.open(tmp_path / "run", KEY, SETTINGS)


def test_another_experiment_names_what_differs(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, SETTINGS) as folder:
        done(folder)
    other: dict[str, JsonValue] = {"ctx": 1024, "quants": ["Q8_0"], "engine": {"ngl": 35}, "chunks": 4}
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(tmp_path, OTHER, other)
    assert caught.value.found == "chunks unset (now 4), ctx 512 (now 1024), engine.ngl 0 (now 35)"
    assert "--out" in str(caught.value)
    RunFolder.open(tmp_path, KEY, SETTINGS).close()  # and the refusal let go of the lock


@pytest.mark.parametrize("kept", ["step", "results"])
def test_a_folder_binds_from_the_first_finished_step_on(tmp_path: Path, kept: str) -> None:
    other: dict[str, JsonValue] = {"ctx": 1024}
    with RunFolder.open(tmp_path, KEY, SETTINGS) as folder:
        folder.event("step-failed", step="base", error="text too short")
    with RunFolder.open(tmp_path, OTHER, other) as folder:
        assert json.loads((tmp_path / "run.json").read_text())["spec_key"] == OTHER
        if kept == "step":
            done(folder)
        else:
            (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunFolderError, match="holds a run of another experiment"):
        RunFolder.open(tmp_path, KEY, SETTINGS)
    RunFolder.open(tmp_path, OTHER, other).close()


def test_differences_are_cut_short() -> None:
    assert describe_difference({}, {}) == "the same settings on other content"
    text = describe_difference({}, {f"n{i}": i for i in range(9)})
    assert text.endswith("n5 unset (now 5), 3 more")


def test_differences_of_hashes_and_of_commands_are_words() -> None:
    text = describe_difference({"base": {"tokens": "a" * 64}, "x": 1}, {"base": {"tokens": "b" * 64}, "x": 1})
    assert text == "the base's tokens (its text, or how many chunks of it, or their length) of other content"
    assert (
        describe_difference({"base": {"kld": "a" * 64}}, {"from": ["f32"]}) == "settings of another command"
    )


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema":"bitloss/run@2"}', "\0", "{" * 5000])
def test_a_damaged_marker(tmp_path: Path, text: str) -> None:
    RunFolder.open(tmp_path, KEY, SETTINGS).close()
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RecordError, match=r"run\.json"):
        RunFolder.open(tmp_path, KEY, SETTINGS)
    assert (tmp_path / "run.json").read_text() == text


# ------------------------------------------------------------------------------------------- the lock


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    child = hold(tmp_path, 60)
    with pytest.raises(RunFolderError, match=rf"another process.*found process {child.pid} on "):
        RunFolder.open(tmp_path, KEY, {})
    child.send_signal(signal.SIGKILL)
    child.wait()
    RunFolder.open(tmp_path, KEY, {}).close()


def test_a_second_process_waits(tmp_path: Path) -> None:
    child = hold(tmp_path, 0.5)
    with RunFolder.open(tmp_path, KEY, {}, timeout=30) as folder:
        assert child.wait() == 0
        assert f"{os.getpid()} on " in (folder.path / ".bitloss.lock").read_text()


def test_the_same_process_twice_is_refused(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, {}), pytest.raises(RunFolderError, match=str(os.getpid())):
        RunFolder.open(tmp_path, KEY, {}, timeout=0.1)


def test_the_lock_is_no_way_to_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".bitloss.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(BitlossError):
        RunFolder.open(run, KEY, {})
    assert (tmp_path / "victim").read_text() == "precious"


# ------------------------------------------------------------------------------------------- the steps


def test_a_step_is_found_by_its_key_only(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, {}) as folder:
        assert folder.find(STEP) is None
        record = done(folder)
        assert folder.find(STEP) == record
        assert folder.find(STEP, verify=True) == record
        assert folder.find(OTHER) is None
        # The same first 16 digits, another key: the file name is no proof.
        assert folder.find(STEP[:16] + OTHER[16:]) is None
    assert sorted(os.listdir(tmp_path / "steps")) == [f"quantize-{STEP[:16]}.json"]


@pytest.mark.parametrize("change", ["missing", "shorter", "longer"])
def test_an_output_that_changed_size(tmp_path: Path, change: str) -> None:
    with RunFolder.open(tmp_path, KEY, {}) as folder:
        done(folder)
        file = tmp_path / "out.gguf"
        if change == "missing":
            file.unlink()
        else:
            file.write_bytes(b"dat" if change == "shorter" else b"data!")
        assert folder.find(STEP) is None
        assert events(folder)[-1]["event"] == "output-changed"
        assert events(folder)[-1]["outputs"] == ["out.gguf"]


def test_an_output_whose_bytes_changed_is_seen_by_verify(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, {}) as folder:
        done(folder)
        (tmp_path / "out.gguf").write_bytes(b"atad")
        assert folder.find(STEP) is not None
        assert folder.find(STEP, verify=True) is None


def test_a_record_cut_anywhere_is_no_record(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, {}) as folder:
        file = folder.save(done(folder))
        whole = file.read_bytes()
        body = len(whole.rstrip())
        for length in range(body):
            file.write_bytes(whole[:length])
            assert folder.find(STEP) is None
        file.write_bytes(whole[:body])
        assert folder.find(STEP) is not None


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_a_record_cannot_point_outside(path: str) -> None:
    with pytest.raises(ValidationError, match="inside the run folder"):
        StepOutput(path=path, bytes=0, sha256="0" * 64)


def test_outputs_of_a_folder_and_outside(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", KEY, {}) as folder:
        base = folder.path / "base"
        (base / "shards").mkdir(parents=True)
        (base / "header.json").write_bytes(b"{}")
        (base / "shards" / "0").write_bytes(b"x")
        assert [o.path for o in folder.outputs([base])] == ["base/header.json", "base/shards/0"]
        known = {base / "header.json": "0" * 64, base / "elsewhere": "1" * 64}
        told = {o.path: (o.bytes, o.sha256) for o in folder.outputs([base], known=known)}
        assert told["base/header.json"] == (2, "0" * 64)  # taken for what it is said to be
        assert told["base/shards/0"] == (1, hashlib.sha256(b"x").hexdigest())
        with pytest.raises(FileProblem, match="No such file"):
            folder.outputs([base / "elsewhere"], known=known)
        (tmp_path / "outside").write_bytes(b"")
        with pytest.raises(FileProblem, match="outside the run folder"):
            folder.outputs([tmp_path / "outside"])
        with pytest.raises(FileProblem, match="No such file"):
            folder.outputs([folder.path / "missing"])


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, KEY, {}) as folder:
        folder.event("start", step="a", n=1)
        with (tmp_path / "events.jsonl").open("ab") as file:
            file.write(b'{"time": "20')
        folder.event("end", text="line\nbreak")
    lines = (tmp_path / "events.jsonl").read_bytes().split(b"\n")
    assert [len(lines), lines[-1]] == [4, b""]
    first, last = json.loads(lines[0]), json.loads(lines[2])
    assert (first["event"], first["step"], first["n"]) == ("start", "a", 1)
    assert (last["event"], last["text"]) == ("end", "line\nbreak")
    assert datetime.fromisoformat(first["time"]).tzinfo is not None


def test_opening_clears_what_the_dead_left(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, KEY, {}).close()
    script = (
        "import os, sys; from pathlib import Path; from bitloss.store import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as p: p.write_bytes(b'x'); os._exit(9)"
    )
    gone = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "candidates" / "a.gguf")], check=False
    )
    assert gone.returncode == 9
    assert len(os.listdir(tmp_path / "candidates")) == 1
    RunFolder.open(tmp_path, KEY, {}).close()
    assert os.listdir(tmp_path / "candidates") == []


def test_a_file_has_one_record_the_latest(tmp_path: Path) -> None:
    """The file of an older step was replaced by one of the same size: its record would tell a wrong hash."""
    with RunFolder.open(tmp_path, KEY, SETTINGS) as folder:
        done(folder)
        newer = content_key("quantize", {"type": "Q4_0"})
        done(folder, key=newer)
        done(folder, name="other.gguf", key=OTHER)
        assert folder.find(STEP) is None
        assert folder.find(newer) is not None
        assert folder.find(OTHER) is not None


# ------------------------------------------------------------------------------------------- made in vain


def _refuse(path: Path, *left: str, error: type[BaseException] = FileProblem) -> None:
    """Open a folder, leave some files, end with an error."""
    with pytest.raises(error), RunFolder.open(path, KEY, SETTINGS) as folder:
        folder.event("step-failed", step="base", error="too short")
        for name in left:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                (path / name).write_text("")
            else:
                (path / name).mkdir(exist_ok=True)
        raise error("no")


def test_a_new_folder_is_gone_after_an_error(tmp_path: Path) -> None:
    _refuse(tmp_path / "deep" / "run", "spec.toml", "tokens/", "parts/more/")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("left", ["steps/base-0.json", "mine.txt", "parts/a.parquet", "tokens/run.json"])
def test_a_new_folder_with_anything_else_stays(tmp_path: Path, left: str) -> None:
    _refuse(tmp_path / "run", left)
    assert (tmp_path / "run" / left).is_file()
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_link_in_a_new_folder_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileProblem), RunFolder.open(tmp_path / "run", KEY, SETTINGS):
        (tmp_path / "run" / "tokens").symlink_to(tmp_path)
        raise FileProblem("no")
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_new_folder_stays_after_other_ends(tmp_path: Path, error: type[BaseException]) -> None:
    _refuse(tmp_path / "run", error=error)
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    _refuse(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").is_file()


def test_who_waited_for_a_folder_that_was_removed_makes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from bitloss.errors import FileProblem; from bitloss.store import RunFolder\n"
        "try:\n"
        "    with RunFolder.open(Path(sys.argv[1]), sys.argv[2], {}):\n"
        "        print('ready', flush=True); time.sleep(0.7)\n"
        "        raise FileProblem('no')\n"
        "except FileProblem: pass\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(path), KEY], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    with RunFolder.open(path, KEY, SETTINGS, timeout=30) as folder:
        assert child.wait() == 0
        assert (path / "run.json").is_file()
        with pytest.raises(RunFolderError, match=str(os.getpid())):
            RunFolder.open(path, KEY, SETTINGS)
        folder.event("still mine")
