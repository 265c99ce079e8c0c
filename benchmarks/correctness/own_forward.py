"""What a cell gives by definition, in families that have no oracle: through the model's own forward, without any hook.

The model is asked for its hidden states and patterns, or given embeddings in the place of tokens; a part of it is run
by itself; or its weights are changed so that it does what the edit would: without the columns of the output projection
that read a head, that head has nothing to give. Each row is run alone, so that padding means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from crosslens.adapters import Edit
from crosslens.adapters.architectures import describe
from crosslens.adapters.conformance.families import rotary_frequencies
from crosslens.adapters.conformance.right import LAYER

from .design import EDITS
from .oracle import THROUGHOUT
from .scene import FACTOR, NEW, TARGET, TOKENS, Outputs, Scene, model_of


class _Throughout(TorchFunctionMode):
    """Steps that a model takes in float32 whatever its dtype are taken in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        known = {key: _wide(value) for key, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **known)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@cache
def model(family: str, dtype: str, attention: str) -> Any:
    """The model that is asked; no backend ever sees it."""
    return model_of(family, dtype, attention)[0]


@cache
def _exact_model(family: str, dtype: str) -> Any:
    """The same with the rotary frequencies that its config defines, which a model holds rounded to float32."""
    net = model_of(family, dtype, "eager")[0]
    for module in net.modules():
        held = getattr(module, "inv_freq", None)
        if isinstance(held, Tensor):
            module.inv_freq = rotary_frequencies(net.config.rope_parameters["rope_theta"], 2 * len(held))
            assert torch.allclose(module.inv_freq.float(), held, rtol=1e-6, atol=0), "other frequencies"
    return net


def drawn(scene: Scene, arithmetic: str) -> Tensor | None:
    """The value of the cell's edit, in float64: at a cut what another run has there, else random."""
    if scene.cell.operation not in ("replace", "add"):
        return None
    cut = scene.cell.site not in ("embed", "final_norm")
    net, mode = _asked(scene, "float64", arithmetic if cut else scene.cell.attention)
    with mode:
        ids = scene.other_ids if cut else scene.ids
        value = _laid_out(scene, [_value_of(scene.cell.local, net, row) for row in _rows(scene, ids)])
    return value[scene.selection.get("rows", slice(None))] if cut else scene.drawn(value)


def _asked(scene: Scene, dtype: str, arithmetic: str) -> tuple[Any, AbstractContextManager[Any]]:
    if arithmetic == THROUGHOUT:
        return _exact_model(scene.cell.family, dtype), _Throughout()
    return model(scene.cell.family, dtype, arithmetic), nullcontext()


def answer(scene: Scene, dtype: str, arithmetic: str) -> Outputs:
    """What the cell gives, in a dtype and one kind of arithmetic (`eager`, `sdpa`, or float64 throughout)."""
    net, mode = _asked(scene, dtype, arithmetic)
    with mode:
        rows = [_of_row(scene, net, row) for row in range(scene.cell.batch)]
    if scene.cell.operation == "generate":
        return {name: torch.stack([_left(row[name], name) for row in rows]) for name in rows[0]}
    pattern = scene.cell.local == "attn.pattern"
    return {name: _laid_out(scene, [row[name] for row in rows], pattern and name == "site") for name in rows[0]}


def _rows(scene: Scene, ids: Tensor) -> list[Tensor]:
    """(1, length) each."""
    return [ids[row : row + 1, own] for row, own in enumerate(scene.mask)]


def _laid_out(scene: Scene, rows: Sequence[Tensor], pattern: bool = False) -> Tensor:
    """Rows of their own lengths, without a batch axis, in the columns that they have in the batch; 0 at padding."""
    shape = (len(rows[0]), TOKENS, TOKENS) if pattern else (TOKENS, *rows[0].shape[1:])
    out = rows[0].new_zeros(len(rows), *shape)
    for row, own in enumerate(scene.mask):
        columns = own.nonzero()[:, 0]
        if pattern:
            out[row][:, columns[:, None], columns] = rows[row]
        else:
            out[row, columns] = rows[row]
    return out


def _left(row: Tensor, name: str) -> Tensor:
    """A row's site, padded on the left as a generation has it; what there is for new tokens alone, as it is."""
    missing = TOKENS + NEW - 1 - len(row) if name == "site" else 0
    return torch.cat([row.new_zeros(missing, *row.shape[1:]), row])


def _value_of(local: str, net: Any, ids: Tensor) -> Tensor:
    """(length, d_model) of a site that the model itself returns."""
    with torch.no_grad():
        if local == "embed":
            found: Tensor = net.get_input_embeddings()(ids)
            return found[0]
        states = net(input_ids=ids, output_hidden_states=True).hidden_states
    at = {"resid_pre": LAYER, "resid_post": LAYER + 1, "final_norm": -1}[local]
    state: Tensor = states[at][0]
    return state


def _of_row(scene: Scene, net: Any, row: int) -> Outputs:
    cell, own = scene.cell, scene.mask[row]
    ids = scene.ids[row : row + 1, own]
    if cell.operation == "capture":
        return _captured(cell.local, net, ids)
    if cell.operation == "generate":
        return _generated(cell.local, net, ids)
    if cell.operation == "gradients":
        return {"gradient": _slope(cell.local, net, ids, scene.weight[row, own])}
    if cell.operation in EDITS:
        return _edited(scene, net, row, ids)
    embeds = _value_of("embed", net, ids)[None].requires_grad_()
    logits = net(inputs_embeds=embeds).logits[0, TARGET["position"]]
    (grad,) = torch.autograd.grad(logits[TARGET["token"]] - logits[TARGET["minus"]], embeds)
    units = (embeds * grad).detach()[0]
    return {"units": units, "scores": units.sum(-1)}


def _captured(local: str, net: Any, ids: Tensor) -> Outputs:
    with torch.no_grad():
        out = net(input_ids=ids, output_attentions=local == "attn.pattern")
    if local == "attn.pattern":
        site = out.attentions[LAYER][0]
    else:
        site = out.logits[0] if local == "logits" else _value_of(local, net, ids)
    return {"site": site, "logits": out.logits[0], "captured logits": out.logits[0]}


def _generated(local: str, net: Any, ids: Tensor) -> Outputs:
    with torch.no_grad():
        tokens = ids
        for _ in range(NEW):  # each from a full forward, without a cache
            tokens = torch.cat([tokens, net(input_ids=tokens).logits[:, -1:].argmax(-1)], 1)
        logits = net(input_ids=tokens[:, :-1]).logits[0]
    site = logits if local == "logits" else _value_of(local, net, tokens[:, :-1])
    return {"tokens": tokens[0, -NEW:], "logits": logits[-NEW:], "site": site}


def _slope(local: str, net: Any, ids: Tensor, weight: Tensor) -> Tensor:
    leaf: Tensor
    if local == "logits":
        with torch.no_grad():
            leaf = net(input_ids=ids).logits.requires_grad_()
        logits = leaf * 1
    else:
        leaf = _value_of(local, net, ids)[None].requires_grad_()
        logits = net(inputs_embeds=leaf).logits if local == "embed" else _unembedded(net, leaf)
    (grad,) = torch.autograd.grad((logits[0] * weight.to(logits.dtype)).sum(), leaf)
    return grad[0]


def _unembedded(net: Any, states: Tensor) -> Tensor:
    """Logits of what enters the unembedding."""
    logits: Tensor = net.get_output_embeddings()(states)
    cap = getattr(net.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _edited(scene: Scene, net: Any, row: int, ids: Tensor) -> Outputs:
    local = scene.cell.local
    chosen = row in scene.selection.get("rows", [*range(scene.cell.batch)])
    with torch.no_grad():
        if local in ("attn.z", "mlp.post"):
            with _changed_weights(scene, net) if chosen else nullcontext():
                return {"logits": net(input_ids=ids).logits[0]}
        if local in ("embed", "final_norm"):
            site = _value_of(local, net, ids)
            if chosen:
                site = _changed(scene, row, site, drawn(scene, scene.cell.attention))
            logits = net(inputs_embeds=site[None]).logits if local == "embed" else _unembedded(net, site[None])
            return {"site": site, "logits": logits[0]}
        if chosen:  # everything after a cut depends on it alone: on the other run's value
            ids = scene.other_ids[row : row + 1, scene.mask[row]]
        return {"site": _value_of(local, net, ids), "logits": net(input_ids=ids).logits[0]}


def _changed(scene: Scene, row: int, site: Tensor, value: Tensor | None) -> Tensor:
    """(length, d_model), edited as the cell says: by plain indexing."""
    edit: Edit = scene.edit(scene.canonical, value)
    rows = scene.selection.get("rows", [*range(scene.cell.batch)])
    positions = scene.selection.get("positions", [*range(len(site))])
    units = scene.selection.get("units", [*range(site.shape[1])])
    at = (torch.tensor(positions)[:, None], torch.tensor(units))
    given = None if value is None else value[rows.index(row)].to(site.dtype)
    if given is not None and "positions" not in scene.selection:
        given = given[scene.mask[row]]
    old, out = site[at], site.clone()
    if edit.kind in ("replace", "add"):
        assert given is not None
        out[at] = given if edit.kind == "replace" else old + given
    elif edit.kind == "apply":
        assert callable(edit.value)
        out[at] = edit.value(old.clone())
    else:
        out[at] = old * (FACTOR if edit.kind == "scale" else 0)
    return out


@contextmanager
def _changed_weights(scene: Scene, net: Any) -> Iterator[None]:
    """The projection that reads the site, with its weights for the selected inputs changed as the edit says."""
    architecture = describe(net)
    address = architecture.address(architecture.sites.canonical[scene.canonical])
    weight: Tensor = net.get_submodule(address.module).weight.data
    width = architecture.sizes["d_head"] if scene.cell.local == "attn.z" else weight.shape[1]
    heads = scene.selection.get("heads", [*range(weight.shape[1] // width)])
    columns = [head * width + unit for head in heads for unit in scene.selection.get("units", [*range(width)])]
    before = weight.clone()
    weight[:, columns] *= FACTOR if scene.cell.operation == "scale" else 0
    try:
        yield
    finally:
        weight.copy_(before)
