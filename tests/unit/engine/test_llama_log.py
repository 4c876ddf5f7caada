"""The one log callback of the process: silent, nested captures, errors of listeners."""

from __future__ import annotations

import llama_cpp
import pytest

from bitloss.engine.llama_log import captured_log, last_lines, silence_log


def provoke() -> None:
    """Make libllama log an error."""
    llama_cpp.llama_model_load_from_file(b"no-such-file.gguf", llama_cpp.llama_model_default_params())


def test_a_capture_receives_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_log() as log:
        provoke()
    assert "no-such-file.gguf" in "".join(log)
    assert capfd.readouterr().err == ""


def test_outside_a_capture_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    silence_log()
    provoke()
    assert capfd.readouterr().err == ""


def test_captures_nest() -> None:
    with captured_log() as outer:
        with captured_log() as inner:
            provoke()
        seen = len(outer)
        provoke()
    assert outer[:seen] == inner
    assert len(outer) > seen > 0


def test_a_listener_is_told_and_its_error_comes_out() -> None:
    told: list[str] = []

    def stop(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), captured_log(stop) as log:
        provoke()
    assert told == log[:1]
    assert len(log) > 1


def test_last_lines() -> None:
    assert last_lines(["a\nb", "c\n", "\n====\n"]) == "bc"
    assert last_lines(["a\nb\nc\n"], 2) == "b | c"
    assert last_lines([]) == "nothing in llama.cpp's log"
