"""An experiment file says what it means, or the message says which key is at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitloss.errors import BitlossError, FileProblem, UsageError
from bitloss.spec import (
    EngineSpec,
    ExperimentSpec,
    TensorTypeSpec,
    dump_toml,
    known_keys,
    make_spec,
    make_stop,
    read_spec,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def spec_of(tmp_path: Path, text: str) -> ExperimentSpec:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    return read_spec(file)


def test_the_founding_experiment() -> None:
    spec = read_spec(EXAMPLES / "founding.toml")
    assert spec.model == "mistralai/Mistral-Nemo-Instruct-2407"
    assert spec.sources == ("f32", "f16")
    assert spec.quants == ("Q8_0", "Q4_K_M")
    assert spec.text == (EXAMPLES / "wiki.test.raw",)
    assert spec.ctx == 512
    assert spec.chunks is None
    assert spec.engine == EngineSpec(n_gpu_layers=35, flash_attn="on", split_mode="row")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.name)
def test_every_example_is_read(path: Path) -> None:
    assert read_spec(path).model


def test_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    monkeypatch.chdir("/")
    spec = spec_of(tmp_path, 'model="models/m"\ntext="a/b.txt"\ncalibration="/abs/c.txt"\nout="../run"')
    assert spec.model == str(tmp_path / "models" / "m")
    assert spec.text == (tmp_path / "a" / "b.txt",)
    assert spec.calibration == Path("/abs/c.txt")
    assert spec.out == tmp_path / ".." / "run"


@pytest.mark.parametrize(
    ("model", "is_path"),
    [("org/name", False), ("./name", True), ("../name", True), ("/name", True), ("name", False)],
)
def test_hub_ids_are_no_paths(tmp_path: Path, model: str, is_path: bool) -> None:
    spec = spec_of(tmp_path, f'model="{model}"\ntext="t"')
    assert (spec.model != model or model.startswith("/")) == is_path


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    spec = spec_of(tmp_path, 'model="~/m"\ntext="~/t.txt"')
    assert spec.model == str(tmp_path / "home" / "m")
    assert spec.text == (tmp_path / "home" / "t.txt",)


GOOD = 'model="m"\ntext="t"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "ctxx = 512", "unknown key 'ctxx'. Did you mean 'ctx'?"),
        (GOOD + 'quant = ["Q8_0"]', "unknown key 'quant'. Did you mean 'quants'?"),
        (GOOD + "ngl = 35", "unknown key 'ngl'. Did you mean 'engine.n_gpu_layers'?"),
        (GOOD + "threads = 4", "unknown key 'threads'. Did you mean 'engine.threads'?"),
        (GOOD + "[engine]\nub = 4", "unknown key 'engine.ub'. Did you mean 'engine.ubatch'?"),
        (
            GOOD + '[engine]\nflash-attn = "on"',
            "unknown key 'engine.flash-attn'. Did you mean 'engine.flash_attn'?",
        ),
        (GOOD + "[engine]\nxyzzy = 1", "unknown key 'engine.xyzzy'. Known keys of engine: n_gpu_layers, "),
        (GOOD + "xyzzy = 1", "unknown key 'xyzzy'. Known keys: model, from, quants, "),
        (GOOD + "[[tensor_types]]\npatern='x'\ntype='Q8_0'", "Did you mean 'tensor_types.pattern'?"),
        ('modle="m"\ntext="t"', "unknown key 'modle'. Did you mean 'model'?"),
        ('text="t"', "model: missing"),
        ('model="m"', "text: missing"),
        (GOOD + 'ctx = "512"', 'ctx: should be a whole number: found "512"'),
        (GOOD + "ctx = 512.5", "ctx: should be a whole number"),
        (GOOD + "ctx = true", "ctx: should be a whole number: found true"),
        (GOOD + "ctx = 1", "ctx: should be at least 8: found 1"),
        (GOOD + "ctx = 2026-01-01", "ctx: should be a whole number"),
        (GOOD + "chunks = 0", "chunks: should be at least 1"),
        (GOOD + 'from = "f32"', 'from: should be a list: found "f32"'),
        (GOOD + 'from = ["f64"]', "from.0: should be 'f32', 'f16' or 'bf16': found \"f64\""),
        (GOOD + "from = []", "from: list should have at least 1 item"),
        (GOOD + 'from = ["f32", "f32"]', "from: f32 is there twice"),
        (GOOD + 'quants = ["Q8 0"]', "quants.0: should be letters, digits and _"),
        (GOOD + "pure = 1", "pure: should be true or false"),
        (GOOD + '[engine]\nsplit_mode = "rows"', "engine.split_mode: should be 'none', 'layer' or 'row'"),
        (GOOD + "[engine]\ntensor_split = [1, nan]", "engine.tensor_split.1: should be a finite number"),
        (GOOD + "[engine]\ntensor_split = [inf]", "engine.tensor_split.0: should be a finite number"),
        (GOOD + "engine = 3", "engine: should be a table"),
        (
            GOOD + "[[tensor_types]]\npattern='('\ntype='Q8_0'",
            "tensor_types.0.pattern: no regular expression",
        ),
        ('model=""\ntext="t"', "model: string should have at least 1 character"),
        ('model="m"\ntext="a\\u0000b"', "text: must not hold a null character"),
        ("model = ", "no TOML: Invalid value"),
        ("model='m'\nmodel='m'", "no TOML: Cannot overwrite a value"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        spec_of(tmp_path, text)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'x.toml'}: ")
    assert message in line
    assert "\n" not in line
    assert "pydantic" not in line
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("data", [b"\xff", b"a = " + b"[" * 5000, b"#" * (1 << 20) + b"##", b"\x00"])
def test_files_that_are_no_toml(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(data)
    with pytest.raises(UsageError, match=r"x\.toml"):
        read_spec(tmp_path / "x.toml")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        FileProblem, match=r"x\.toml: no such experiment file\. Give a TOML file.*bitloss run MODEL"
    ):
        read_spec(tmp_path / "x.toml")
    with pytest.raises(FileProblem, match="a folder, not an experiment file"):
        read_spec(tmp_path)


def test_every_byte_of_an_experiment_may_be_missing(tmp_path: Path) -> None:
    whole = (EXAMPLES / "founding.toml").read_bytes()
    start = whole.index(b"model =")
    for length in range(start, len(whole)):
        (tmp_path / "x.toml").write_bytes(whole[start:length])
        try:
            read_spec(tmp_path / "x.toml")
        except BitlossError as error:
            kind = type(error)
            assert kind is UsageError  # or the cut left a whole experiment


def test_values_of_the_command_line() -> None:
    spec = make_spec({"model": Path("m"), "text": Path("t"), "from": ["bf16"]}, where="command line")
    assert (spec.model, spec.text, spec.sources) == ("m", (Path("t"),), ("bf16",))
    with pytest.raises(UsageError, match=r"^command line: ctx: "):
        make_spec({"model": "m", "text": "t", "ctx": -1}, where="command line")


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
types = st.from_regex(r"\A[A-Z0-9_]{1,12}\Z")


@st.composite
def specs(draw: st.DrawFn) -> ExperimentSpec:
    kwargs: dict[str, Any] = {
        "model": "/" + draw(names),
        "text": Path("/") / draw(names.filter(lambda n: "/" not in n and n != "..")),
        "sources": tuple(draw(st.lists(st.sampled_from(["f32", "f16", "bf16"]), unique=True, min_size=1))),
        "quants": tuple(draw(st.lists(types, unique=True, max_size=3))),
        "ctx": draw(st.integers(8, 1 << 20)),
        "chunks": draw(st.none() | st.integers(1, 1 << 40)),
        "tensor_types": tuple(
            TensorTypeSpec(pattern=p, type=t)
            for p, t in draw(st.dictionaries(types, types, max_size=2)).items()
        ),
        "output_tensor_type": draw(st.none() | types),
        "pure": draw(st.booleans()),
        "engine": EngineSpec(
            n_gpu_layers=draw(st.integers(-1, 99)),
            tensor_split=tuple(draw(st.lists(st.floats(0, 1e6), max_size=3))),
        ),
    }
    return ExperimentSpec(**kwargs)


@given(spec=specs())
def test_toml_round_trip(spec: ExperimentSpec, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.toml"
    path.write_bytes(dump_toml(spec).encode())
    assert read_spec(path) == spec


def test_the_key_knows_content_not_places() -> None:
    a = make_spec({"model": "/a/m", "text": "/a/t", "out": "/a/out"}, where="x")
    b = make_spec({"model": "/b/m", "text": "/b/t"}, where="x")
    contents = {"model": "1", "text": "2", "calibration": None}
    assert a.key(**contents) == b.key(**contents)
    assert a.key(**contents) != a.key(**{**contents, "text": "3"})
    other = a.model_copy(update={"ctx": 256})
    assert a.key(**contents) != other.key(**contents)
    assert "out" not in a.settings()
    assert a.key(**contents) == a.model_copy(update={"cross": True}).key(**contents)  # it only adds to a run


def test_known_keys() -> None:
    assert {"from", "engine.threads", "tensor_types.pattern"} <= set(known_keys())
    assert "sources" not in known_keys()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"from": ["f99"]}, "--from: should be 'f32', 'f16' or 'bf16': found \"f99\""),
        ({"quants": ["../x"]}, '--quants: should be letters, digits and _, at most 32: found "../x"'),
        ({"ctx": 1 << 30}, "--ctx: should be at most 1,048,576: found 1073741824"),
        ({"engine": {"ubatch": 1}}, "--ubatch-size: should be at least 2: found 1"),
        ({"imatrix_chunks": 0}, "--imatrix-chunks: should be at least 1: found 0"),
    ],
)
def test_values_of_the_command_line_are_named_as_options(values: dict[str, object], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_spec({"model": "m", "text": "t", **values}, where="bitloss run")
    assert str(caught.value) == line


def test_values_that_do_not_go_together_have_no_empty_name() -> None:
    with pytest.raises(UsageError, match=r"^somewhere: precise needs a precision$"):
        make_stop({"when": "precise"}, where="somewhere")
