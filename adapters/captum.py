"""captum: attribution by PyTorch's own library for it.

captum sees the caller's model as a function from embeddings, or from token ids, to the target. Its layer methods put
hooks on the caller's modules and take them off in a `finally`; parameters, modes and gradients are never touched.
Attention is `LayerActivation` of the attention modules, run with the eager implementation: the fused ones form none.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerGradientXActivation,
    Saliency,
)
from torch import Tensor

from .attention import eager_attention
from .attribution import AttributionInspector, Rows, attribution_only, measure
from .capabilities import Support
from .errors import UnsupportedError

_AT_ONCE = 32  # rows of one forward of integrated gradients, or as many as the batch has


class CaptumInspector(AttributionInspector):
    """captum on the caller's model."""

    name: ClassVar[str] = "captum"
    library: ClassVar[str | None] = "captum"
    unsupported: ClassVar[dict[str, Support]] = attribution_only(
        "captum attributes a model's output to its input; it has no edits, and what its layer methods read and "
        "differentiate serves that end"
    )
    lacking: ClassVar[dict[str, Support]] = {
        "value_zeroing": Support("never", "captum has no such method; it is inseq's"),
    }

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        extra = (rows.token, rows.minus, rows.positions)
        from_embeds: Any = partial(self._value, "inputs_embeds", rows.of)
        from_ids: Any = partial(self._value, "input_ids", rows.of)
        if method == "saliency":
            return Saliency(from_embeds).attribute(rows.embeds, additional_forward_args=extra), None
        if method == "input_x_gradient":
            return InputXGradient(from_embeds).attribute(rows.embeds, additional_forward_args=extra), None
        if method == "integrated_gradients":
            found: tuple[Tensor, Tensor] = IntegratedGradients(from_embeds).attribute(
                rows.embeds, rows.baseline, additional_forward_args=extra, n_steps=rows.steps,
                internal_batch_size=max(_AT_ONCE, len(rows.ids)), return_convergence_delta=True,
            )  # fmt: skip
            return found
        if method == "occlusion":
            # captum's Occlusion is this, rounded to float32
            token = torch.arange(rows.ids.shape[1], device=rows.ids.device)[None, :, None].expand(
                1, *rows.embeds.shape[1:]
            )
            change = FeatureAblation(from_embeds).attribute(
                rows.embeds, rows.baseline, additional_forward_args=extra, feature_mask=token
            )
            return change[..., 0], None  # the same at every unit of a token
        if method == "attention":
            return self._attention(from_ids, rows, extra), None
        assert rows.location is not None, "checked before"
        key: Any = rows.location.key
        layer = LayerGradientXActivation(from_ids, self.model.get_submodule(key.path))
        product = layer.attribute(rows.ids, additional_forward_args=extra, attribute_to_layer_input=key.side == "input")
        return rows.location.view.read(product[0] if isinstance(product, tuple) else product, len(rows.ids)), None

    def _attention(self, from_ids: Any, rows: Rows, extra: tuple[Any, ...]) -> Tensor:
        modules = [self.model.get_submodule(path) for path in self._attention_modules()]
        with eager_attention(self.model):
            outputs: Any = LayerActivation(from_ids, modules).attribute(rows.ids, additional_forward_args=extra)
        weights = [output[1] for output in outputs if len(output) > 1]
        if len(weights) != len(modules):
            raise UnsupportedError("attention through captum: this model's attention modules do not return it")
        return torch.stack([each[:, :, -1] for each in weights], dim=1).permute(0, 3, 1, 2)

    def _value(
        self, kind: str, of: Any, x: Tensor, token: Tensor, minus: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        given = {} if positions is None else {"position_ids": positions}
        output = self.model(**{kind: x}, **given, use_cache=False)
        return measure(output.logits[:, -1], token, minus, of)
