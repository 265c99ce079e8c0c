"""inseq: attribution for language models, driven below its text interface.

inseq takes texts: it tokenises them again, pads on the left without position ids, changes the tokenizer and stores its
results in float32. So each of its methods is called at the lowest of its own levels that takes token ids,
`FeatureAttribution.filtered_attribute_step`: one step of its loop over generated tokens, on a `DecoderOnlyBatch` of
ids, embeddings and baseline. No text and no tokenizer of the caller's reaches it.

What inseq changes, it changes on a `Shadow`. Its set-up (evaluation mode, clearing of gradients, moving to a GPU) is
skipped, since it would reach the caller's own parameters. Importing it sets the level of the logger `urllib3`, which is
taken back here; the warning filters of scipy, sympy and torch, which come with it, stay.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .attention import eager_attention
from .attribution import AttributionInspector, Rows, attribution_only
from .capabilities import Support
from .errors import UnsupportedError
from .shadow import Shadow

_LEVEL = logging.getLogger("urllib3").level

from inseq.attr.feat import FeatureAttribution  # noqa: E402  the line above must see the process as it was
from inseq.attr.feat.ops.value_zeroing import ValueZeroing  # noqa: E402
from inseq.attr.step_functions import logit_fn, probability_fn  # noqa: E402
from inseq.data import BatchEmbedding, BatchEncoding, DecoderOnlyBatch, FeatureAttributionStepOutput  # noqa: E402
from inseq.models.huggingface_model import HuggingfaceDecoderOnlyModel  # noqa: E402
from inseq.models.model_config import ModelConfig  # noqa: E402
from inseq.utils.hooks import get_last_variable_assignment_position  # noqa: E402

logging.getLogger("urllib3").setLevel(_LEVEL)

_AT_ONCE = 32  # rows of one forward of integrated gradients, or as many as the batch has


class InseqInspector(AttributionInspector):
    """inseq on a weight-sharing shadow of the caller's model."""

    name: ClassVar[str] = "inseq"
    library: ClassVar[str | None] = "inseq"
    unsupported: ClassVar[dict[str, Support]] = attribution_only(
        "inseq attributes generated tokens to those before them; it shows no activations and has no edits"
    )

    @cached_property
    def _wrapped(self) -> _Model:
        if not isinstance(self.model, PreTrainedModel):
            raise UnsupportedError(f"inseq takes models of transformers; this one is {type(self.model).__name__}")
        self._shadow = Shadow(self.model)
        return _Model(self._shadow.module, "dummy", _no_tokenizer())

    def _release(self) -> None:
        vars(self).pop("_wrapped", None)
        vars(self).pop("_shadow", None)

    def _attribute(self, method: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        if rows.positions is not None:
            raise UnsupportedError("inseq passes no position ids; leave position_ids out of the inputs")
        options: dict[str, Any] = {}
        loading: dict[str, Any] = {}
        wrapped = self._wrapped
        if rows.location is not None:
            key: Any = rows.location.key
            loading["target_layer"] = wrapped.model.get_submodule(key.path)
            options["attribute_to_layer_input"] = key.side == "input"
        attribution = FeatureAttribution.load(method, wrapped, **loading)
        if method == "integrated_gradients":
            options["n_steps"] = rows.steps
            options["internal_batch_size"] = max(_AT_ONCE, len(rows.ids))
            options["return_convergence_delta"] = True
        if method == "occlusion":
            options["sliding_window_shapes"] = (1, rows.embeds.shape[-1])
            # Its own step takes the absolute value; that of its base class is the same but for this
            attribution.attribute_step = partial(FeatureAttribution.attribute_step, attribution)
        if method == "value_zeroing":
            attribution.method = _ValueZeroing(wrapped)
            wrapped.config = self._value_vectors()
        step = self._step(attribution, rows, options, eager=method == "attention")
        units = step.target_attributions
        if method == "occlusion":
            return units[..., 0], None  # the same at every unit of a token
        if method == "value_zeroing" and not units[:, :, -1].any():
            raise UnsupportedError(
                "value zeroing through inseq changed nothing: its trace function did not take effect"
            )
        if method in ("attention", "value_zeroing"):
            return units[:, :, -1], None  # of the last query
        if rows.location is not None:
            units = rows.location.view.read(units, len(units))
        return units, (step.step_scores or {}).get("deltas")

    def _value_vectors(self) -> ModelConfig:
        """Where value zeroing finds what it sets to zero: a local variable in the forward of each attention module."""
        path, name = self._attention_modules()[0], "value_states"
        if get_last_variable_assignment_position(self._wrapped.model.get_submodule(path), name) is None:
            raise UnsupportedError(f"value zeroing through inseq: the forward of {path!r} has no variable {name!r}")
        return ModelConfig(path.rpartition(".")[2], name)

    def _step(self, attribution: Any, rows: Rows, options: dict[str, Any], eager: bool) -> Any:
        self._shadow.sync()
        wrapped, given = self._wrapped, self.model.config
        wrapped.model.config._attn_implementation = given._attn_implementation  # type: ignore[union-attr]
        encoding = BatchEncoding(rows.ids, torch.ones_like(rows.ids))
        batch = DecoderOnlyBatch(encoding, BatchEmbedding(rows.embeds, rows.baseline))
        fn = probability_fn if rows.of == "probability" else logit_fn
        contrast = {} if rows.minus is None else {"minus": rows.minus[:, None]}
        try:
            with eager_attention(wrapped.model, eager), _no_tracing_left(), _own_dtype():
                return attribution.filtered_attribute_step(
                    batch, rows.token[:, None], partial(_target, fn), attribution_args=options,
                    attributed_fn_args=contrast,
                )  # fmt: skip
        except BaseException:
            self._release()  # it may have left its hooks on the shadow
            raise


def _target(fn: Callable[..., Tensor], args: Any, minus: Tensor | None = None) -> Tensor:
    """(rows,) value of the target, by inseq's own step functions, which read the last position."""
    value = fn(args)
    return value if minus is None else value - fn(replace(args, target_ids=minus))


class _Model(HuggingfaceDecoderOnlyModel):  # type: ignore[misc]
    """inseq's wrapper of a model, without what it does to tensors that are the caller's."""

    def setup(self, device: str | None = None, attribution_method: str | None = None, **kwargs: Any) -> None:
        self._device = str(self.model.device)
        self.is_distributed = False

    def _forward_with_output(
        self, batch: Any, target_ids: Any, attributed_fn: Any, use_embeddings: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """As inseq's, which takes `target_ids` for `use_embeddings`."""
        return self.get_forward_output(batch, use_embeddings, **kwargs)

    def get_forward_output(self, batch: Any, use_embeddings: bool = True, **kwargs: Any) -> Any:
        return super().get_forward_output(batch, use_embeddings, use_cache=False, **kwargs)


class _ValueZeroing(ValueZeroing):  # type: ignore[misc]
    """inseq's value zeroing for blocks that return a tensor, as they have since transformers 4.54."""

    def get_states_extract_and_patch_hook(self, block_idx: int, hidden_state_idx: int = 0) -> Any:
        of_tuple = super().get_states_extract_and_patch_hook(block_idx, hidden_state_idx)

        def hook(module: Any, args: Any, output: Any) -> Any:
            return of_tuple(module, args, output) if isinstance(output, tuple) else of_tuple(module, args, (output,))[0]

        return hook


@contextmanager
def _no_tracing_left() -> Iterator[None]:
    """Value zeroing changes a local variable of attention's forward by a trace function."""
    before = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _own_dtype() -> Iterator[None]:
    """What a step gives is cast to float32 as it is made; in a float64 model that would lose half of its digits."""

    def to(self: Any, device: Any) -> Any:
        return self if device is torch.float32 else super(FeatureAttributionStepOutput, self).to(device)

    FeatureAttributionStepOutput.to = to
    try:
        yield
    finally:
        del FeatureAttributionStepOutput.to


def _no_tokenizer() -> PreTrainedTokenizerFast:
    """inseq's wrapper wants one; nothing is ever tokenised."""
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>", bos_token="<unk>")
