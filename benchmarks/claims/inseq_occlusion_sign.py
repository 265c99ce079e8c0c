"""inseq 0.7.1: occlusion loses its sign: a token that lowers the target scores as one that raises it.

Claim: `attribute` with `occlusion` gives the absolute value of how much the target changes.
Documentation followed: "Quickstart" and the page of `OcclusionAttribution`.
Right: subtract by hand, or use captum's `Occlusion`, which keeps the sign. Through crosslens both backends do.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import inseq
import torch

from crosslens.adapters.conformance.models import tiny_model


def main() -> dict[str, Any]:
    """Attribute a logit, and occlude each token by hand; `holds` where a negative change has a positive score."""
    model, tokenizer = tiny_model("llama")
    text = "the cat sat on"
    tokenizer.unk_token = "<bos>"
    wrapped = inseq.load_model(model, "occlusion", tokenizer=tokenizer, device="cpu")
    found = wrapped.attribute(text, text + "!", attributed_fn="logit", show_progress=False)
    scores = found.sequence_attributions[0].target_attributions[:, 0]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    target = tokenizer(text + "!")["input_ids"][ids.shape[1]]
    embed = model.get_input_embeddings()
    with torch.no_grad():
        whole = embed(ids)
        plain = model(inputs_embeds=whole).logits[0, -1, target]
        change = []
        for position in range(ids.shape[1]):
            without = whole.clone()
            without[:, position] = embed(torch.tensor(tokenizer.unk_token_id))
            change.append(float(plain - model(inputs_embeds=without).logits[0, -1, target]))
    lowers = [i for i, value in enumerate(change) if value < -1e-3]
    wrong = sum(float(scores[i]) > 0 for i in lowers)
    return {
        "claim": "occlusion loses its sign",
        "library": "inseq",
        "version": version("inseq"),
        "upstream": "not found upstream",
        "observed": {"tokens that lower the target": len(lowers), "of them with a positive score": wrong},
        "expected": {"tokens that lower the target": len(lowers), "of them with a positive score": 0},
        "holds": bool(lowers) and wrong == len(lowers),
    }


if __name__ == "__main__":
    print(__doc__, json.dumps(main(), indent=1), sep="\n")
