"""The list of mistakes: what the user does, what was meant, and the words by which an error names what is wrong.

What was meant is computed by the float64 oracle of the conformance kit, which depends on no library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosslens.adapters import add, replace, zero

from .scene import LAYERS, NEW, ROWS, Scene

OUT, RESID, Z, POST = "blocks.1.mlp.out", "blocks.1.resid_post", "blocks.1.attn.z", "blocks.1.mlp.post"
LAST = "blocks.2.mlp.out"
MPL = r"(?<![a-z])mpl(?![a-z])"


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Args:
        name: with underscores; programs that make it bear this name.
        does: what the user does.
        meant: what the user wants.
        result: what was meant, in float64; None where no result could be right.
        culprit: a regular expression, without regard to case: an error that matches it names what is wrong.
    """

    name: str
    does: str
    meant: str
    result: Callable[[Scene], Tensor] | None
    culprit: str


def _reads(*sites: str) -> Callable[[Scene], Tensor]:
    return lambda scene: scene.at(*sites)


def _every_block(scene: Scene) -> Tensor:
    return scene.at(*(f"blocks.{layer}.mlp.out" for layer in range(LAYERS)))


def _zero_out(scene: Scene) -> Tensor:
    return scene.after(zero(OUT))


def _zero_last(scene: Scene) -> Tensor:
    return scene.after(zero(LAST))


def _last_head(scene: Scene) -> Tensor:
    return scene.after(zero(Z, heads=[3]))


def _value_head(scene: Scene) -> Tensor:
    return scene.after(zero("blocks.1.attn.v", heads=[1]))


def _last_position(scene: Scene) -> Tensor:
    return scene.after(replace(RESID, scene.vector.double(), positions=[6]))


def _one_position(scene: Scene) -> Tensor:
    return scene.after(replace(OUT, scene.vector.double(), positions=[6]))


def _steered(scene: Scene) -> Tensor:
    return scene.after(add(RESID, scene.vector.double().expand(1, 7, -1)))


def _other(scene: Scene) -> Tensor:
    return scene.truth.run(scene.other).logits


def _evaluated(scene: Scene) -> Tensor:
    return scene.truth_gpt2.run(scene.ids).logits


def _generated(edit: str, position: int) -> Callable[[Scene], Tensor]:
    def result(scene: Scene) -> Tensor:
        edits = [replace(edit, scene.vector.double(), positions=[position])]
        return scene.truth.generate(scene.ids, NEW, edits=edits)[0][:, -NEW:]

    return result


def _net(scene: Scene) -> Tensor:
    net, x = scene.net()
    with torch.no_grad():
        hidden: Tensor = net.double().second(torch.relu(net.first(x.double())))
    return hidden


def _gradient(scene: Scene) -> Tensor:
    return scene.truth.gradients(scene.ids, [RESID], lambda logits: logits[:, -1, 5] - logits[:, -1, 9])[RESID]


def _last_of_each(scene: Scene) -> Tensor:
    """(2, vocabulary): logits at each row's last token, patched there."""
    edit = replace(RESID, scene.vector.double(), positions=[-1])
    runs = [scene.truth.run(torch.tensor([row]), edits=[edit]) for row in ROWS]
    return torch.stack([run.logits[0, -1] for run in runs])


def _whole_batch(scene: Scene) -> Tensor:
    ids = torch.cat([scene.ids, scene.other])
    return scene.truth.run(ids, edits=[add(RESID, scene.vector.double().expand(2, 7, -1))]).logits


def _longest(scene: Scene) -> Tensor:
    return scene.truth.generate(scene.ids, NEW)[1].sites[RESID]


def _unattended(scene: Scene) -> Tensor:
    return scene.truth_gpt2.run(scene.ids, edits=[zero("blocks.1.attn.pattern", heads=[1])]).logits


def _unit(scene: Scene) -> Tensor:
    return scene.after(replace(POST, torch.full((1, 7, 1), 20.0, dtype=torch.float64), units=[79]))


MISTAKES: tuple[Mistake, ...] = (
    # ---- names
    Mistake("misspelled_site", "edits at a site whose name is misspelled (mpl)", "zero mlp.out of block 1", _zero_out, MPL),
    Mistake("misspelled_capture", "captures two sites, one misspelled (mpl), and takes all that was captured", "mlp.out of blocks 0 and 1", _reads("blocks.0.mlp.out", OUT), MPL),
    Mistake("pattern_without_match", "captures by a pattern or rule that matches nothing (mpl)", "mlp.out of every block", _every_block, MPL + r"|match"),
    Mistake("layer_out_of_range", "counts layers from 1: edits at layer 3 of 0 to 2", "zero mlp.out of the last block", _zero_last, r"(layers?|blocks)\W{0,2}3\b|index 3\b|'3'"),
    Mistake("layer_slice_out_of_range", "the same by a slice or pattern of layers, 3:4", "zero mlp.out of the last block", _zero_last, r"\bslice\b|\{3"),
    Mistake("negative_layer", "edits at layer -1", "zero mlp.out of the last block", _zero_last, r"-1\b|negative"),
    Mistake("wrong_keyword", "misspells a keyword of the call that edits", "zero mlp.out of block 1", _zero_out, r"keyword"),
    Mistake("wrong_input_keyword", "writes attention_masks= for a left-padded batch", "each row as if alone", Scene.rows_alone, r"attention_masks"),
    # ---- indices
    Mistake("head_out_of_range", "counts heads from 1: zeroes head 4 of 0 to 3", "zero the last head of block 1", _last_head, r"\b(head|index) (4|32)\b"),
    Mistake("head_slice_out_of_range", "the same by a slice, 4:5, of heads or of their units", "zero the last head of block 1", _last_head, r"\bslice\b"),
    Mistake("kv_head_out_of_range", "zeroes the values of query head 3, where there are 2 value heads", "zero the value head that query head 3 reads", _value_head, r"\b(head|index) (3|24)\b"),
    Mistake("negative_head", "zeroes head -1", "zero the last head of block 1", _last_head, r"-1\b|negative"),
    Mistake("position_out_of_range", "counts positions from 1: patches position 7 of 0 to 6", "patch the last position at block 1", _last_position, r"\b(position|index) 7\b"),
    Mistake("position_slice_out_of_range", "the same by a slice, 7:8", "patch the last position at block 1", _last_position, r"\bslice\b"),
    Mistake("negative_position", "patches position -1", "patch the last position at block 1", _last_position, r"-1\b|negative"),
    Mistake("unit_out_of_range", "counts neurons from 1: sets neuron 80 of 0 to 79", "set the last neuron of block 1 to 20", _unit, r"\b(unit|neuron|index) 80\b"),
    Mistake("unit_slice_out_of_range", "the same by a slice, 80:81", "set the last neuron of block 1 to 20", _unit, r"\bslice\b"),
    # ---- values
    Mistake("wrong_shape", "patches a position with a value of 31 units", "patch the last position at block 1", _last_position, r"\b31\b"),
    Mistake("broadcastable", "puts the value for one position in place of the whole output", "replace mlp.out of block 1 at the last position", _one_position, r"shape|broadcast|size|axis|axes"),
    Mistake("wrong_dtype", "steers a float32 model with a float64 vector", "add the vector at block 1", _steered, r"float64|double"),
    Mistake("edit_returns_tuple", "an edit function returns (new,)", "add the vector at block 1", _steered, r"tuple"),
    Mistake("edit_returns_none", "an edit function computes a new tensor and forgets to return it", "add the vector at block 1", _steered, r"None"),
    Mistake("tuple_idiom", "writes output[0] for a block's output, as older transformers wanted", "add the vector at block 1, in both rows", _whole_batch, r"tuple|shape|size"),
    # ---- order and reading
    Mistake("read_too_early", "reads a capture before the model has run", "mlp.out of block 1", _reads(OUT), r"mlp|captur|trace|run\b|ran\b|forward"),
    Mistake("read_not_captured", "reads resid_post of block 2 where block 1 was captured", "resid_post of block 2", _reads("blocks.2.resid_post"), r"(layers?|blocks)\W{0,2}2\b|KeyError: 2|was not (captured|saved|cached)"),
    Mistake("read_after_stop", "stops at block 1 and reads block 2", "resid_post of block 2", _reads("blocks.2.resid_post"), r"(layers?|blocks)\W{0,2}2\b|stop|halt"),
    Mistake("out_of_order", "asks for block 2 before block 0", "resid_post of blocks 2 and 0", _reads("blocks.2.resid_post", "blocks.0.resid_post"), r"(layers?|blocks)\W{0,2}[02]\b"),
    Mistake("forgotten_save", "leaves out the step that keeps a value", "resid_post of block 1", _reads(RESID), r"save|keep|kept"),
    Mistake("stale_name", "the same, where an earlier run has bound the name", "resid_post of block 1", _reads(RESID), r"save|keep|kept"),
    Mistake("in_place", "captures block 0, and edits the input of block 1 in place", "resid_post of block 0, unedited", _reads("blocks.0.resid_post"), r"in.?place"),
    # ---- batches and generation
    Mistake("padded_without_mask", "gives a left-padded batch without its mask", "each row as if alone", Scene.rows_alone, r"mask|pad"),
    Mistake("left_padding", "gives a left-padded batch with its mask, on learned positions", "each row as if alone", Scene.rows_alone, r"position|left|mask|padd"),
    Mistake("last_position_right_padded", "patches position -1 of a right-padded batch", "patch each row's last token at block 1", _last_of_each, r"pad|mask|-1\b"),
    Mistake("position_while_generating", "patches position 4 of the prompt while generating", "generate with position 4 patched at block 1", _generated(RESID, 4), r"\b4\b"),
    Mistake("first_position_while_generating", "patches position 0 of the prompt while generating", "generate with position 0 patched at block 1", _generated(RESID, 0), r"\b0\b|position|cache"),
    Mistake("cache_on", "captures while generating, with the cache on, as if it were one forward", "resid_post of block 1 at all positions that were read", _longest, r"cache|step|call|pass"),
    Mistake("token_outside_vocabulary", "gives a token id of another tokenizer, 400 of 0 to 310", "nothing: there is no such token", None, r"\b400\b|vocab|token"),
    # ---- the model
    Mistake("unsupported_module", "opens a module that is no language model", "the output of its second layer", _net, r"\bNet\b|architecture|support|config\b"),
    Mistake("never_read", "zeroes head 1 of the attention weights that block 1 returns, which the model does not use", "zero the attention of head 1 of block 1", _unattended, r"attention|attn|weight|pattern|replac|output"),
    Mistake("two_wrappers", "wraps one model twice, edits through the second, then runs the first", "logits of the plain model", Scene.after, r"wrap|twice|already"),
    Mistake("own_hook", "keeps a hook of their own on the attention of block 1 and uses the library", "what the hook saw: attn.out of block 1", _reads("blocks.1.attn.out"), r"hook"),
    Mistake("exception_inside_edit", "an edit raises on one prompt; the user catches it and runs the model on another", "logits of the plain model", _other, r"hook|edit"),
    Mistake("training_left_on", "leaves a model with dropout in training mode", "logits of the model in evaluation mode", _evaluated, r"train|dropout|eval"),
    Mistake("frozen_parameters", "asks for a gradient at a site of a model with frozen parameters", "the gradient at resid_post of block 1", _gradient, r"requires_grad|frozen|parameter"),
)  # fmt: skip
"""In the order in which tables show them."""

BY_NAME = {mistake.name: mistake for mistake in MISTAKES}
