"""Names of quantization types."""

from __future__ import annotations

import pytest

from bitloss.errors import UsageError
from bitloss.quantize.types import parse_quant_type, parse_tensor_type


@pytest.mark.parametrize(
    ("given", "name", "ftype"),
    [
        ("Q8_0", "Q8_0", 7),
        (" q4_k_m ", "Q4_K_M", 15),
        ("Q4_K", "Q4_K_M", 15),
        ("q3_k", "Q3_K_M", 12),
        ("F32", "F32", 0),
    ],
)
def test_names_in_any_case_and_aliases(given: str, name: str, ftype: int) -> None:
    kind = parse_quant_type(given)
    assert (kind.name, kind.ftype) == (name, ftype)


@pytest.mark.parametrize(("given", "close"), [("Q4_KM", "Q4_K_M"), ("q80", "Q8_0"), ("IQ4XS", "IQ4_XS")])
def test_a_close_name_is_offered(given: str, close: str) -> None:
    with pytest.raises(UsageError, match=f"^{given}: unknown quantization type. Did you mean {close}\\?$"):
        parse_quant_type(given)


@pytest.mark.parametrize("given", ["", "7", "COPY", "zzzzzzzz"])
def test_without_a_close_name_all_are_listed(given: str) -> None:
    with pytest.raises(UsageError, match="Q4_K_M"):
        parse_quant_type(given)


def test_tensor_types() -> None:
    assert parse_tensor_type("q4_K").name == "Q4_K"
    # ggml has them, but cannot quantize to them: it would end the process.
    for name in ("Q8_K", "Q8_1", "I32", "F64"):
        with pytest.raises(UsageError, match="unknown tensor type"):
            parse_tensor_type(name)
    with pytest.raises(UsageError, match="unknown tensor type"):
        parse_tensor_type("Q4_K_M")
