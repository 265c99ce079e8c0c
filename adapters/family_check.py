"""What of a `Family` does not hold on a model: a draft may name the wrong module, and would then be silently wrong.

    for finding in check_family(model, family):
        print(finding)

Everything is held to the model itself: to its own hidden states, to sums that must come out, to attention by its
definition, and to edits whose effect is known. No weight is read and none is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .edits import replace, zero
from .families import Family
from .inspector import Inspector
from .run import Run

_NOISE = {torch.float64: 1e-5, torch.float32: 2e-3}  # relative; float64 models have float32 islands
_COARSE = 5e-2


def check_family(model: nn.Module, family: Family, ids: Tensor | None = None) -> list[str]:
    """Findings, one line each; empty where all that can be told from outside holds.

    Some thirty forwards of a few tokens, through the `hooks` backend.

    Args:
        model: of the family, in eval mode.
        family: as `draft_family` drafts it.
        ids: (batch, pos) token ids to run on, at least two different rows of five; None for three rows of seven.

    Raises:
        InputError: `family` names a module that this model has not, or a size that its config has not.
    """
    from .hooks import HooksInspector  # not at the top: no backend is imported before it is used

    with HooksInspector(model, family=family) as lens:
        if ids is None:
            vocab = lens.architecture.sizes["d_vocab"]
            ids = torch.arange(21).reshape(3, 7) * 7 % (vocab - 5) + 5  # the first few are often special
        return list(_Check(lens, family, ids).findings())


class _Check:
    """One model and one input.

    Args:
        lens: on the model, with the family.
        family: that is checked.
        ids: (batch, pos).
    """

    def __init__(self, lens: Inspector, family: Family, ids: Tensor) -> None:
        self.lens, self.family = lens, family
        self.ids = ids.to(lens._device)
        self.model: Any = lens.model
        self.layer = min(1, lens.architecture.sizes["n_layers"] - 1)
        self.noise = _NOISE.get(lens._dtype, _COARSE)
        self.good: list[str] = []
        with torch.no_grad():  # first of all: what the model itself cannot run is no finding about the family
            self.output: Any = self.model(input_ids=self.ids, output_hidden_states=True)

    def findings(self) -> Iterator[str]:
        """All of them; a check is left out where a site that it needs is absent or unreadable."""
        yield from self._shapes()
        run = self.lens.run(self.ids, capture=self.good)
        for check in (self._outside, self._sums, self._attention, self._cuts):
            yield from check(run)
        yield from self._scores()
        yield from self._padding()

    def _at(self, local: str) -> str:
        return f"blocks.{self.layer}.{local}"

    def _has(self, *names: str) -> bool:
        return all(name in self.good for name in names)

    def _off(self, got: Tensor, want: Tensor) -> bool:
        """Whether two tensors differ by more than rounding."""
        if got.shape != want.shape:
            return True
        scale = want.abs().max().clamp(min=1e-30)
        return not bool((got - want).abs().max() <= self.noise * scale)  # NaN is off

    def _shapes(self) -> Iterator[str]:
        table = self.lens.architecture.sites.canonical
        for name, site in table.items():
            if site.layer not in (None, self.layer):
                continue
            want = self.lens._shape(site, self.lens._prepare(self.ids).geometry)
            try:
                found = tuple(self.lens.run(self.ids, capture=name)[name].shape)
            except Exception as error:  # whatever a wrong address leads to is a finding
                yield f"{name}: cannot be read: {error}"
                continue
            if found == want:
                self.good.append(name)
                continue
            turned = len(want) == 4 and found == (want[0], want[2], want[1], want[3])
            hint = "; layout 'head first' would read it so" if turned else ""
            yield f"{name}: has shape {found}, must be {want}{hint}"

    def _outside(self, run: Run) -> Iterator[str]:
        """The model's own outputs."""
        output = self.output
        states = getattr(output, "hidden_states", None) or ()
        layers = self.lens.architecture.sizes["n_layers"]
        wanted = {}
        if len(states) == layers + 1:
            wanted[self._at("resid_pre")] = states[self.layer]
            if self.layer + 1 < layers:  # the last may be given after the final norm
                wanted[self._at("resid_post")] = states[self.layer + 1]
        for name, state in wanted.items():
            if self._has(name) and self._off(run[name], state):
                yield f"{name}: is not the hidden state that the model itself returns there"
        if self._has("logits") and self._off(run["logits"], output.logits):
            yield "logits: are not what the model returns; perhaps it scales or caps them: Address('', 'output')"
        unembed = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None
        if self._has("final_norm", "logits") and unembed is not None:
            with torch.no_grad():
                made = unembed(run["final_norm"])
            if (cap := getattr(self.model.config, "final_logit_softcapping", None)) is not None:
                made = cap * torch.tanh(made / cap)
            factor = (made * output.logits).sum() / made.square().sum()  # some models scale their logits
            if self._off(factor * made, output.logits):
                yield "final_norm: the unembedding does not make the logits of it"

    def _sums(self, run: Run) -> Iterator[str]:
        pre, attn, mid, mlp, post = map(self._at, ("resid_pre", "attn.out", "resid_mid", "mlp.out", "resid_post"))
        parts: list[tuple[tuple[str, ...], str, str]] = [
            ((pre, attn), mid, "resid_mid"),
            ((mid, mlp), post, "resid_post"),
        ]
        if not self._has(mid) and not self.family.norms:  # both are added to what enters the block
            parts = [((pre, attn, mlp), post, "resid_post")]
        for terms, total, local in parts:
            if not self._has(*terms, total):
                continue
            found = torch.stack([run[term] for term in terms]).sum(0)
            path = self.family.norms.get(local, "").replace("{L}", str(self.layer))
            if path:
                with torch.no_grad():
                    found = self.model.get_submodule(path)(found)
            if self._off(found, run[total]):
                yield (
                    f"{total}: is not {'the norm of ' if path else ''}{' + '.join(terms)}; what is added may be scaled "
                    "or pass a norm of its own before (its output is then the address), or the sum after (norms=)"
                )

    def _attention(self, run: Run) -> Iterator[str]:
        name = self._at("attn.pattern")
        if not self._has(name):
            return
        pattern: Tensor = run[name]
        if self._off(pattern.sum(-1), torch.ones_like(pattern[..., 0])):
            yield f"{name}: its rows do not sum to 1"
        if bool((pattern.triu(1) == 0).all()) != self.family.causal:
            seen = "sees no" if self.family.causal is False else "sees"
            yield f"{name}: the family says causal={self.family.causal}, but a query {seen} later keys"
        v, z = self._at("attn.v"), self._at("attn.z")
        if self._has(v, z):
            values = run[v].transpose(1, 2).repeat_interleave(pattern.shape[1] // run[v].shape[2], dim=1)
            if self._off((pattern @ values).transpose(1, 2), run[z]):
                yield f"{z}: is not the pattern times {v}"

    def _cuts(self, run: Run) -> Iterator[str]:
        """All that follows a full cut depends on it alone."""
        if not hasattr(self.output, "logits"):
            return
        for local in ("resid_pre", "resid_mid", "resid_post"):
            name = self._at(local)
            if self._has(name):
                edit = replace(name, run[name].roll(1, 0).contiguous())
                if self._off(self.lens.run(self.ids, edits=[edit]).logits, self.output.logits.roll(1, 0)):
                    yield (
                        f"{name}: with its value from another input the model does not go on as from that input; it "
                        "is not all that is read later, or shared=True is missing"
                    )

    def _scores(self) -> Iterator[str]:
        """At one and the same position nothing is turned: scores there are q times k, up to one factor."""
        q, k, pattern = map(self._at, ("attn.q", "attn.k", "attn.pattern"))
        if not self._has(q, k, pattern) or getattr(self.model.config, "attn_logit_softcapping", None):
            return
        last = self.ids.shape[1] - 1
        others = zero(k, positions=list(range(last)))  # whose scores are then 0
        run = self.lens.run(self.ids, capture=[q, k, pattern], edits=[others])
        keys = run[k][:, last].repeat_interleave(run[q].shape[2] // run[k].shape[2], dim=1)  # (batch, head, d_head)
        product = (run[q][:, last] * keys).sum(-1).double()
        seen = run[pattern][:, :, last].double().clamp(min=1e-30).log()
        score = seen[..., last] - seen[..., last - 1]
        factor = (score * product).sum() / product.square().sum()
        if bool((score - factor * product).abs().max() > 20 * self.noise * score.abs().max()):
            yield (
                f"{q}, {k}: the scores of attention are no multiple of their product; a norm may follow the projection "
                "(its output is then the address), or attention has a bias by position"
            )

    def _padding(self) -> Iterator[str]:
        if not hasattr(self.output, "logits"):
            return
        for side in ("left", "right"):
            mask = torch.ones_like(self.ids)
            cut = slice(0, 2) if side == "left" else slice(-2, None)
            mask[0, cut] = 0
            real = mask[0].bool()
            with torch.no_grad():
                alone = self.model(input_ids=self.ids[:1, real]).logits[0]
            try:
                padded = self.lens.run({"input_ids": self.ids, "attention_mask": mask}).logits[0, real]
            except Exception as error:  # a model that takes no position_ids, for example
                yield f"padding: a {side}-padded batch cannot be run: {error}"
                continue
            if self._off(padded, alone):
                yield (
                    f"padding: a row of a {side}-padded batch does not get what it gets alone; positions are taken to "
                    "count from 0 and to be called position_ids. Run rows of one length only"
                )
