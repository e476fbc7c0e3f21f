"""The Hugging Face adapter: the only part that imports transformers."""

from adapt_kernels.hf.calibration import Calibration, calibrate
from adapt_kernels.hf.call.patch import last_stats, patch, patched, unpatch
from adapt_kernels.hf.mode_bias import ModeBias
from adapt_kernels.hf.outputs import GenerateStats, ModeGenerateOutput
from adapt_kernels.hf.row_hooks import row_independent
from adapt_kernels.hf.scorers.prefix_scorer import PrefixScorer
from adapt_kernels.hf.scorers.token_scorer import TokenScorer

__all__ = [
    "Calibration",
    "GenerateStats",
    "ModeBias",
    "ModeGenerateOutput",
    "PrefixScorer",
    "TokenScorer",
    "calibrate",
    "last_stats",
    "patch",
    "patched",
    "row_independent",
    "unpatch",
]
