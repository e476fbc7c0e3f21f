"""TRL on these kernels: `ADaPTTrainer`, and `with fused_logprobs():` for TRL's own. Needs `pip install trl==1.16.0`.

.. include:: examples.md
"""

from adapt_kernels.trl.config import ADaPTConfig
from adapt_kernels.trl.fused_logprobs import KNOWN_VERSIONS, fused_logprobs
from adapt_kernels.trl.trainer import ADaPTTrainer

__all__ = ["KNOWN_VERSIONS", "ADaPTConfig", "ADaPTTrainer", "fused_logprobs"]
