"""What bitloss writes down and reads again: the results of a run."""

from bitloss.records.audit import Audit
from bitloss.records.diff import Diff
from bitloss.records.files import RESULTS_NAME, json_schema, read_results, write_results
from bitloss.records.parts import Confidence, Figure, Metrics, Outcome, Record, Verdict
from bitloss.records.results import (
    SCHEMA,
    Base,
    Candidate,
    Comparison,
    Cost,
    Finding,
    Known,
    LlamaCpp,
    Machine,
    Model,
    NoiseFloor,
    Results,
    Settled,
    Source,
    Stopping,
)
from bitloss.records.texts import Calibration, Documents, Overlap, Text, TextPart

__all__ = [
    "RESULTS_NAME",
    "SCHEMA",
    "Audit",
    "Base",
    "Calibration",
    "Candidate",
    "Comparison",
    "Confidence",
    "Cost",
    "Diff",
    "Documents",
    "Figure",
    "Finding",
    "Known",
    "LlamaCpp",
    "Machine",
    "Metrics",
    "Model",
    "NoiseFloor",
    "Outcome",
    "Overlap",
    "Record",
    "Results",
    "Settled",
    "Source",
    "Stopping",
    "Text",
    "TextPart",
    "Verdict",
    "json_schema",
    "read_results",
    "write_results",
]
