"""What all steps have in common, and what of their settings can change a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from bitloss.engine.base import EngineOptions, FlashAttention, SplitMode
from bitloss.spec import EngineSpec

MEASUREMENT_VERSION = 1
"""Raised whenever a number bitloss computes changes; part of every key, so that old results are not taken for new."""


def engine_options(engine: EngineSpec) -> EngineOptions:
    """Engine settings of an experiment as options of the engine."""
    return EngineOptions(
        n_gpu_layers=engine.n_gpu_layers,
        flash_attn=FlashAttention(engine.flash_attn),
        split_mode=SplitMode(engine.split_mode),
        tensor_split=engine.tensor_split,
        threads=engine.threads,
        batch=engine.batch,
        ubatch=engine.ubatch,
    )


def rounding(engine: EngineSpec) -> dict[str, JsonValue]:
    """The engine settings that can change a bit of a result (threads cannot)."""
    return {
        "n_gpu_layers": engine.n_gpu_layers,
        "flash_attn": engine.flash_attn,
        "split_mode": engine.split_mode,
        "tensor_split": list(engine.tensor_split),
        "batch": engine.batch,
        "ubatch": min(engine.ubatch, engine.batch),
    }


class StepModel(BaseModel):
    """A step that leaves one file or folder, which appears whole or not at all."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    out: Path

    @property
    def outs(self) -> tuple[Path, ...]:
        """What it leaves."""
        return (self.out,)

    def hashes(self, _result: JsonValue) -> dict[Path, str]:
        """SHA-256 of files it left that were hashed while they were written, from its result."""
        return {}


def told_hashes(folder: Path, made: dict[str, Any]) -> dict[Path, str]:
    """SHA-256 of a model's file, or of its parts, as a step tells them."""
    if made.get("sha256"):
        return {folder / (made.get("file") or made["out"]): made["sha256"]}
    return {folder / (part.get("name") or part["path"]): part["sha256"] for part in made.get("parts", ())}
