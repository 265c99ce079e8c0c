"""Encoder: the stories of `characters` on a sentence encoder, in which every token sees every other.

The same key figures at the same sites, and beside them what such a model is for: the embedding of a story, the mean of
its last residual stream over real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from crosslens.adapters import InputError

from .base import Known, Result, Score, Size
from .characters import Characters, Work
from .scoring import difference
from .workload import architecture_for

_FORM = MappingProxyType({"hidden_act": "gelu", "is_decoder": False, "add_cross_attention": False})


class Encoder(Characters):
    """Result: `kpis` as of `Characters`, and `embedding` (example, d_model)."""

    name: ClassVar[str] = "encoder"
    question: ClassVar[str] = "Where in a sentence encoder does it show which nationality, gender, age or job is meant?"
    source: ClassVar[str] = (
        "categorised recording of key figures, as in comgra; mean pooling: Reimers & Gurevych 2019, arXiv:1908.10084"
    )
    models: ClassVar[Mapping[Size, str]] = MappingProxyType(
        {"smoke": "tiny-bert", "default": "minilm-l6", "full": "minilm-l6"}
    )
    known_on: ClassVar[tuple[str, ...]] = ("minilm-l6",)
    causal: ClassVar[bool] = False

    def prepare(self, model: nn.Module, tokenizer: Any, *, size: Size) -> Work:
        """As `Characters.prepare`.

        Raises:
            InputError: no tokenizer, or no BERT encoder of the form that the reference states.
        """
        family = architecture_for(self.name, model, tokenizer, causal=False).family
        config: Any = model.config
        if family is None or family.name != "bert":
            raise InputError(f"task {self.name!r} needs a BERT encoder, not {type(model).__name__}")
        for name, value in _FORM.items():
            if getattr(config, name, value) != value:
                raise InputError(
                    f"task {self.name!r} needs a BERT with {name}={value!r}, not {getattr(config, name)!r}"
                )
        return super().prepare(model, tokenizer, size=size)

    def score(self, result: Result, reference: Result, work: Work, dtype: str) -> Score:
        """As of `Characters`; embeddings are held to their largest unit."""
        score = super().score(result, reference, work, dtype)
        error = float(difference(result["embedding"], reference["embedding"]).max())
        relative = error / float(np.abs(reference["embedding"]).max())
        return replace(
            score,
            max_abs_error=max(score.max_abs_error, error),
            max_rel_error=max(score.max_rel_error, relative),
            right=score.right and relative <= score.noise,
        )

    def known(self, reference: Result, work: Work) -> Known:
        """What a story is about makes its embedding, not who it is about."""
        near, far = likeness(reference["embedding"], work)
        share, within, across = np.mean(near > far), near.mean(), far.mean()
        return Known(
            "every story is nearer (cosine) to the same story of each other character than to any other story",
            f"for {share:.1%} of {len(near)} stories; mean {within:.2f} to the farthest telling of the same, "
            f"{across:.2f} to the nearest other",
            bool((near > far).all()),
        )

    def headline(self, result: Result, work: Work) -> str:
        near, far = likeness(result["embedding"], work)
        return f"{super().headline(result, work)}; cosine {near.mean():.2f} within a story, {far.mean():.2f} across"

    def _empty(self, work: Work) -> dict[str, NDArray[np.float64]]:
        return super()._empty(work) | {"embedding": np.empty((len(work.stories), 0))}

    def _take(
        self, out: dict[str, NDArray[np.float64]], rows: list[int], tensors: Mapping[str, Tensor], real: Tensor,
        work: Work,
    ) -> None:  # fmt: skip
        super()._take(out, rows, tensors, real, work)
        last = tensors[_last(work)].double()
        weights = real[:, :, None].to(last)
        _put(out, rows, (last * weights).sum(1) / weights.sum(1))

    def _truth(self, model: nn.Module) -> Callable[[Tensor], Mapping[str, Tensor]]:
        """BERT written out by hand on a float64 copy of its weights: there is no oracle of encoders."""
        weights = {name: value.detach().double() for name, value in model.state_dict().items()}
        prefix = next(name for name in weights if name.endswith("embeddings.word_embeddings.weight"))
        prefix = prefix.removesuffix("embeddings.word_embeddings.weight")
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return lambda ids: bert(own, model.config, ids)

    def _state(
        self, out: dict[str, NDArray[np.float64]], rows: list[int], tensors: Mapping[str, Tensor], work: Work
    ) -> None:  # fmt: skip
        super()._state(out, rows, tensors, work)
        _put(out, rows, tensors[_last(work)].mean(1))


def likeness(embedding: NDArray[np.float64], work: Work) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(example,) smallest cosine to another telling of the same story, and largest to any other story."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    cosine = unit @ unit.T
    template = work.stories["template"].to_numpy()
    same = template[:, None] == template[None]
    return np.where(same, cosine, np.inf).min(1), np.where(same, -np.inf, cosine).max(1)


def bert(weights: Mapping[str, Tensor], config: Any, ids: Tensor) -> dict[str, Tensor]:
    """Every site of an encoder's blocks, in float64; Devlin et al. 2018, arXiv:1810.04805.

    Args:
        weights: of the encoder, as `transformers` names them.
        config: its `BertConfig`.
        ids: (batch, pos) token ids, without padding, all of token type 0.
    """

    def linear(name: str, x: Tensor) -> Tensor:
        out: Tensor = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return out

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        out: Tensor = centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return out

    def heads(x: Tensor) -> Tensor:  # (batch, pos, d_model) -> (batch, head, pos, d_head)
        return x.reshape(*x.shape[:-1], config.num_attention_heads, -1).transpose(1, 2)

    word, position, kind = (
        weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
    )
    ids = ids.to(word.device)
    x = norm("embeddings.LayerNorm", word[ids] + position[: ids.shape[1]] + kind[0])
    sites: dict[str, Tensor] = {}
    for layer in range(config.num_hidden_layers):
        own, block = f"encoder.layer.{layer}", f"blocks.{layer}"
        q, k, v = (heads(linear(f"{own}.attention.self.{name}", x)) for name in ("query", "key", "value"))
        pattern = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        attention = linear(f"{own}.attention.output.dense", (pattern @ v).transpose(1, 2).flatten(2))
        middle = norm(f"{own}.attention.output.LayerNorm", x + attention)
        neurons = F.gelu(linear(f"{own}.intermediate.dense", middle))
        mlp = linear(f"{own}.output.dense", neurons)
        x = norm(f"{own}.output.LayerNorm", middle + mlp)
        parts = {"attn.pattern": pattern, "attn.out": attention, "mlp.post": neurons, "mlp.out": mlp, "resid_post": x}
        sites |= {f"{block}.{name}": tensor for name, tensor in parts.items()}
    return sites


def _last(work: Work) -> str:
    return [site for site in work.sites if site.endswith("resid_post")][-1]


def _put(out: dict[str, NDArray[np.float64]], rows: list[int], embedding: Tensor) -> None:
    if not out["embedding"].size:  # its width shows with the first batch
        out["embedding"] = np.full((len(out["kpis"]), embedding.shape[1]), np.nan)
    out["embedding"][rows] = embedding.detach().cpu().numpy()
