"""Why a library has no program for an operation: (library, operation, family) -> reason; "" stands for every other.

Where the nearest documented way ends in an error or in something else, there is a program that shows it, and its header
says so; here are the operations that the library has nothing near to.
"""

from __future__ import annotations

from collections.abc import Mapping

_CAPTUM = (
    "captum's ablations put in values that are known before the forward, and compare two outputs; nothing in it adds "
    "to what passes a layer, at each step of a generation (captum.ai/api/layer.html)"
)
_INSEQ = (
    "inseq scores the tokens of a text, one number or one embedding each; it gives no activations and takes no edits "
    "(inseq.org, main_classes/feature_attribution.html)"
)
_COMGRA = (
    "comgra records what a model computes that the caller runs: it edits nothing and stops nothing (README, Usage); a "
    "hook that did so would do it without comgra"
)
_PENZAI = "penzai has converters for gemma, gpt_neox, llama and mistral (penzai.models.transformer.variants)"

IMPOSSIBLE: Mapping[tuple[str, str, str], str] = {
    ("captum", "steer_generation", ""): _CAPTUM,
    ("penzai", "", "gpt2"): _PENZAI,
    ("penzai", "any_module", ""): "penzai has networks of its own layers in JAX; it takes no PyTorch module",
    **{
        ("inseq", operation, ""): _INSEQ
        for operation in (
            "capture_residuals", "head_outputs", "patch_position", "patch_head", "zero_neuron", "steer_generation",
            "capture_generating", "stop_early", "padded_batch", "any_module",
        )
    },
    ("inseq", "gradient_at_site", ""): (
        "its layer_gradient_x_activation gives the product of activation and gradient of one logit or probability, and "
        "no gradient (inseq.org, main_classes/gradient_attribution.html)"
    ),
    ("inseq", "record_steps", ""): "inseq runs a trained model; nothing in it looks at training steps",
    **{
        ("comgra", operation, ""): _COMGRA
        for operation in (
            "patch_position", "patch_head", "zero_neuron", "steer_generation", "stop_early",
        )
    },
}  # fmt: skip
