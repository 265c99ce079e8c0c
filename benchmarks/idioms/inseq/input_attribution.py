"""Embedding times gradient, with inseq.

Documentation: https://inseq.org/en/latest/, examples/quickstart.html; main_classes/step_functions.html
Serves: llama, gpt2
"""

from __future__ import annotations

from typing import Any

import inseq
from torch import Tensor


def run(model: Any, tokenizer: Any, text: str, target: str) -> Any:
    wrapped = inseq.load_model(model, "input_x_gradient", tokenizer=tokenizer, device="cpu")
    # --- operation
    found = wrapped.attribute(text, text + target, attributed_fn="logit", show_progress=False)
    scores: Tensor = found.aggregate("sum", normalize=False).sequence_attributions[0].target_attributions
    return scores[:-1, 0]
