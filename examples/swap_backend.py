"""One experiment on every backend that reads and edits: a name's trace is patched into another prompt.

Clean and corrupt prompts differ in who gives the drink, and so in who gets it. The residual stream at the last token is
taken from the clean run, late in the network, and put into the corrupt one, which then answers as the clean one does.

    python examples/swap_backend.py
"""

from __future__ import annotations

from crosslens.adapters import open_inspector, replace
from crosslens.tasks import load_model

BACKENDS = ("hooks", "transformer_lens", "nnsight", "pyvene", "torchlens", "tdhook", "penzai")

model, tokenizer = load_model("smollm2-135m")
text = "When Mary and John went to the store, {} gave a drink to"
clean, corrupt = text.format("John"), text.format("Mary")
mary, john = (tokenizer.encode(name)[0] for name in (" Mary", " John"))
site = "blocks.27.resid_post"
found: dict[str, list[tuple[str, float]]] = {}
for backend in BACKENDS:
    with open_inspector(backend, model, tokenizer) as lens:
        run = lens.run(clean, capture=[site])
        value = run[site][:, -1:]
        edit = replace(site, value, positions=[-1])
        runs = lens.run(corrupt), lens.run(corrupt, edits=[edit])
        last = [run.logits[0, -1] for run in runs]
    found[backend] = [(tokenizer.decode(x.argmax()), float(x[mary] - x[john])) for x in last]
    print(f"{backend:17}", *(f"{name:6}{d:+.4f}" for name, d in found[backend]))
