"""The layout self-test fails when a field is not where it is read."""

from __future__ import annotations

import ctypes as ct

import pytest

from bitloss.engine import ggml as module
from bitloss.errors import EngineLayoutError


def test_the_installed_ggml_is_laid_out_as_expected() -> None:
    module.check_layout(module.Ggml())
    assert set(module.op_codes()) == {"MUL_MAT", "MUL_MAT_ID"}


@pytest.mark.parametrize("at", ["ne", "op", "src", "data", "name"])
def test_a_struct_with_an_inserted_field_is_refused(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ct.Structure):
        pass

    fields: list[tuple[str, object]] = []
    for name, kind in module.Tensor._fields_:  # type: ignore[misc]
        if name == at:
            fields.append(("inserted", ct.c_int64))
        if name == "src":
            kind = ct.POINTER(Shifted) * module.MAX_SRC  # noqa: PLW2901
        if name == "view_src":
            kind = ct.POINTER(Shifted)  # noqa: PLW2901
        fields.append((name, kind))
    Shifted._fields_ = fields  # type: ignore[assignment]
    pointer = ct.POINTER(Shifted)
    signatures = {
        library: {
            name: (
                pointer if result is module.TensorPointer else result,
                [pointer if argument is module.TensorPointer else argument for argument in arguments],
            )
            for name, (result, arguments) in functions.items()
        }
        for library, functions in module._SIGNATURES.items()
    }
    monkeypatch.setattr(module, "_SIGNATURES", signatures)
    with pytest.raises(EngineLayoutError, match="not laid out as expected at field"):
        module.check_layout(module.Ggml())


def test_a_missing_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SIGNATURES", {"ggml-base": {"ggml_no_such_function": (None, [])}})
    with pytest.raises(EngineLayoutError, match="ggml_no_such_function"):
        module.Ggml()
