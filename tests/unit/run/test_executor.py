"""The executor: results, errors and progress come back from the child; a child's death is an error of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from bitloss import errors
from bitloss.errors import BitlossError, DiskFull, EngineCrash, FileProblem
from bitloss.progress import Progress, silent
from bitloss.run import starting
from bitloss.run.child import _Reporter
from bitloss.run.executor import InlineExecutor, LocalExecutor
from bitloss.run.steps import ConvertStep, QuantizeStep

CHECKPOINT = Path(__file__).parents[2] / "data" / "checkpoints" / "mistral-odd"


def _every_error(kind: type[BitlossError] = BitlossError) -> list[type[BitlossError]]:
    return [kind, *(each for sub in kind.__subclasses__() for each in _every_error(sub))]


def _step(out: Path, model: Path = CHECKPOINT) -> ConvertStep:
    return ConvertStep(model=model, model_sha256="0" * 64, types=("f16",), out=out)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Let another program stand in for the child process: `child(source)`."""

    def stand_in(source: str) -> None:
        script = tmp_path / "stand_in.py"
        script.write_text("import os, signal, sys, json\n" + textwrap.dedent(source))
        start = subprocess.Popen

        def popen(_: list[str], **how: Any) -> subprocess.Popen[bytes]:
            return start([sys.executable, str(script)], **how)

        monkeypatch.setattr("bitloss.run.executor.subprocess.Popen", popen)

    return stand_in


def test_a_step_gives_the_same_in_a_child_and_in_this_process(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with LocalExecutor() as executor:
        local = executor.run(_step(tmp_path / "a"), seen.append)
    inline = InlineExecutor().run(_step(tmp_path / "b"), silent)
    assert isinstance(local.value, dict)
    assert isinstance(inline.value, dict)
    assert local.value["outputs"] == inline.value["outputs"]
    assert local.seconds > 0
    assert local.peak_bytes is not None
    assert local.peak_bytes > 10 << 20
    assert inline.peak_bytes is None
    assert seen
    assert seen[-1].done == seen[-1].total
    assert all(progress.done <= (progress.total or 0) for progress in seen)
    name = "mistral-odd-f16.gguf"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_error_of_the_step_keeps_type_and_fields(tmp_path: Path) -> None:
    with pytest.raises(BitlossError) as local, LocalExecutor() as executor:
        executor.run(_step(tmp_path / "out", tmp_path / "nothing"), silent)
    with pytest.raises(BitlossError) as inline:
        InlineExecutor().run(_step(tmp_path / "out", tmp_path / "nothing"), silent)
    assert type(local.value) is type(inline.value) is FileProblem
    assert str(local.value) == str(inline.value)
    for field in ("what", "where", "expected", "found", "mend"):
        assert getattr(local.value, field) == getattr(inline.value, field)


def test_what_the_system_says_in_a_child_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system that no step explained."""
    code = "import os; raise OSError(28, os.strerror(28), 'place')"
    (tmp_path / "bitloss_site.pth").write_text(
        f"import bitloss.run.steps.making as m; m.ConvertStep.execute = lambda *_: exec({code!r})\n"
    )
    program = (
        f"import site, sys; site.addsitedir({str(tmp_path)!r});"
        "from bitloss.run import child; sys.exit(child.main())"
    )
    start = subprocess.Popen
    monkeypatch.setattr(
        "bitloss.run.executor.subprocess.Popen",
        lambda _, **how: start([sys.executable, "-c", program], **how),
    )
    with pytest.raises(DiskFull, match=r"place: the disk is full\."), LocalExecutor() as executor:
        executor.run(_step(tmp_path / "out"), silent)


@pytest.mark.parametrize("kind", _every_error(), ids=lambda kind: kind.__name__)
def test_every_error_type_survives_the_trip(kind: type[BitlossError], child: Any, tmp_path: Path) -> None:
    fields = {"what": "w", "where": "x\n", "expected": "e", "found": None, "mend": "m"}
    child(
        f"""
        sys.stdin.buffer.readline()
        print(json.dumps({{"error": {{"type": {kind.__name__!r}, **{fields!r}}}}}))
        sys.exit(1)
        """
    )
    with pytest.raises(BitlossError) as caught, LocalExecutor() as executor:
        executor.run(_step(tmp_path), silent)
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in fields} == fields
    assert getattr(errors, kind.__name__) is kind


@pytest.mark.parametrize(
    ("death", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL; out of memory?"),
        ("os.abort()", "signal SIGABRT"),
        ("os._exit(3)", "exit code 3"),
        ("print('{\"result\": 1', flush=True); os.abort()", "signal SIGABRT"),
        ("raise ValueError('a bug')", "exit code 1"),
    ],
)
def test_a_death_is_an_engine_crash_with_the_last_words(
    death: str, said: str, child: Any, tmp_path: Path
) -> None:
    child(
        f"""
        sys.stdin.buffer.readline()
        for n in range(9):
            print("line", n, file=sys.stderr, flush=True)
        print(json.dumps({{"progress": {{"stage": "s", "done": 1, "total": 2, "unit": "u"}}}}), flush=True)
        {death}
        """
    )
    seen: list[Progress] = []
    with pytest.raises(EngineCrash) as caught, LocalExecutor() as executor:
        executor.run(_step(tmp_path), seen.append)
    assert said in caught.value.what
    assert "step convert" in caught.value.what
    assert caught.value.found is not None
    assert "a bug" in caught.value.found if "bug" in death else "line 8" in caught.value.found
    assert "line 4" not in caught.value.found
    assert seen == [Progress("s", 1, 2, "u")]


def test_a_child_that_dies_before_it_listens(child: Any, tmp_path: Path) -> None:
    child("sys.stdin.close(); os._exit(9)")
    step = QuantizeStep(
        source=tmp_path,
        source_sha256="",
        type="Q8_0",
        imatrix=None,
        imatrix_sha256=None,
        tensor_types=tuple((f"{n}" * 40, "F16") for n in range(5000)),
        out=tmp_path / "x",
    )
    with pytest.raises(EngineCrash, match="exit code 9"), LocalExecutor() as executor:
        executor.run(step, silent)


def test_what_a_dead_child_left_half_written_is_removed(child: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child(
        f"""
        import pathlib
        from bitloss.store import atomic_path
        sys.stdin.buffer.readline()
        with atomic_path(pathlib.Path({str(out / "a.gguf")!r})) as partial:
            partial.write_bytes(b"half")
            print(partial.name, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with pytest.raises(EngineCrash, match=r"\.a\.gguf\.partial-"), LocalExecutor() as executor:
        executor.run(_step(out), silent)
    assert list(out.iterdir()) == []


def test_a_caller_that_stops_stops_the_child_too(child: Any, tmp_path: Path) -> None:
    """As Ctrl-C does: the exception leaves through the progress callback."""
    out, pid = tmp_path / "out", tmp_path / "pid"
    child(
        f"""
        import pathlib, time
        from bitloss.store import atomic_path
        sys.stdin.buffer.readline()
        pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))
        with atomic_path(pathlib.Path({str(out / "a.gguf")!r})) as partial:
            partial.write_bytes(b"half")
            print(json.dumps({{"progress": {{"stage": "s", "done": 1, "total": 2, "unit": "u"}}}}), flush=True)
            time.sleep(60)
        """
    )

    def interrupt(_: Progress) -> None:
        assert any(out.iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), LocalExecutor() as executor:
        executor.run(_step(out), interrupt)
    assert list(out.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), signal.SIG_DFL)


def test_the_child_is_kept_and_started_again_after_a_failure(tmp_path: Path) -> None:
    children = []
    with LocalExecutor() as executor:
        for n, model in enumerate((CHECKPOINT, CHECKPOINT, tmp_path / "nothing", CHECKPOINT)):
            if model == CHECKPOINT:
                executor.run(_step(tmp_path / str(n), model), silent)
                assert executor._child is not None
                children.append(executor._child)
            else:
                with pytest.raises(FileProblem):
                    executor.run(_step(tmp_path / str(n), model), silent)
                assert executor._child is None
    assert children[0] is children[1]
    assert children[2] is not children[0]
    assert [child.poll() for child in children] == [1, 1, 0]


def test_a_child_that_was_given_nothing_is_not_waited_for(child: Any) -> None:
    child("import time; time.sleep(60)")
    began = time.monotonic()
    with LocalExecutor():
        pass
    assert time.monotonic() - began < 20


def test_a_child_that_was_started_ahead_is_taken_once(tmp_path: Path) -> None:
    starting.start_ahead()
    ahead = starting._ahead[0].process
    with LocalExecutor() as executor, LocalExecutor() as another:
        assert executor._child is ahead
        assert another._child is not ahead
        executor.run(_step(tmp_path / "o"), silent)
        assert executor._child is ahead
    assert ahead.poll() == 0
    assert starting.take() is None


def test_a_child_that_was_started_ahead_in_vain_ends_with_its_parent() -> None:
    script = "from bitloss.run import starting as s; s.start_ahead(); print(s._ahead[0].process.pid)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("given", [None, "7"])
def test_threads_that_wait_sleep_soon_unless_the_caller_says_otherwise(
    given: str | None, child: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    child(
        """
        sys.stdin.buffer.readline()
        print(json.dumps({"result": os.environ["GOMP_SPINCOUNT"]}), flush=True)
        """
    )
    with LocalExecutor() as executor:
        assert executor.run(_step(tmp_path), silent).value == (given or "10000")


def test_a_child_that_died_idle_is_replaced(tmp_path: Path) -> None:
    with LocalExecutor() as executor:
        executor.run(_step(tmp_path / "a"), silent)
        first = executor._child
        assert first is not None
        first.kill()
        first.wait()
        executor.run(_step(tmp_path / "b"), silent)
        assert executor._child is not first
    assert (tmp_path / "b" / "mistral-odd-f16.gguf").is_file()


def test_last_words_are_of_the_step_that_failed(child: Any, tmp_path: Path) -> None:
    child(
        """
        sys.stdin.buffer.readline()
        print("words of the first", file=sys.stderr, flush=True)
        print(json.dumps({"result": 1}), flush=True)
        sys.stdin.buffer.readline()
        print("words of the second", file=sys.stderr, flush=True)
        os.abort()
        """
    )
    with LocalExecutor() as executor:
        assert executor.run(_step(tmp_path), silent).value == 1
        with pytest.raises(EngineCrash) as caught:
            executor.run(_step(tmp_path), silent)
    assert caught.value.found == "words of the second"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_child_goes_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
from pathlib import Path
from bitloss.run import starting
from bitloss.run.executor import LocalExecutor
from bitloss.run.steps import ConvertStep
executor, out = LocalExecutor(), Path({str(tmp_path / "o")!r})
model = Path({str(CHECKPOINT)!r})
executor.run(ConvertStep(model=model, model_sha256="0" * 64, types=("f16",), out=out), lambda _: None)
print(executor._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child is still there")


def test_a_caller_that_is_gone_is_an_interrupt_and_no_fault_of_the_step() -> None:
    """An error would remove what the next pass goes on with."""
    read, write = os.pipe()
    os.close(read)
    channel = os.fdopen(write, "w", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        _Reporter(channel)(Progress("base", 1, 9, "chunks"))
    with contextlib.suppress(BrokenPipeError):
        channel.close()
