"""Record the attention of every block, with inseq.

Documentation: https://inseq.org/en/latest/, main_classes/feature_attribution.html, "AttentionWeightsAttribution";
examples/quickstart.html
Serves: llama, gpt2
Note: It gives the last query's row at each step of a generation: of a text that is forced from its first token, and
one more, all rows.
"""

from __future__ import annotations

from typing import Any

import inseq
import torch


def run(model: Any, tokenizer: Any, text: str) -> Any:
    model.set_attn_implementation("eager")
    wrapped = inseq.load_model(model, "attention", tokenizer=tokenizer, device="cpu")
    # --- operation
    first = tokenizer.decode(tokenizer(text)["input_ids"][:1])
    found = wrapped.attribute(first, text + "!", show_progress=False)
    rows = found.sequence_attributions[0].target_attributions[:-1]
    return torch.nan_to_num(rows).permute(2, 3, 1, 0)[:, None]
