"""Where inside the network do two kinds of prompts differ? Stories in which only the nationality of a person changes.

python examples/two_kinds.py
"""

from __future__ import annotations

from crosslens.adapters import open_inspector
from crosslens.tasks import compare, load_model
from crosslens.tasks.data import read_stories
from crosslens.tasks.statistics import ranking

SITES = ["blocks.*.resid_post", "blocks.*.attn.out", "blocks.*.mlp.out", "blocks.*.mlp.post"]

stories = read_stories()
stories = stories[stories["attribute"] == "nationality"]
model, tokenizer = load_model("smollm2-135m")
with open_inspector("hooks", model, tokenizer) as lens:
    result = compare(lens, stories, sites=SITES)
contrasts = result.contrasts()
found = ranking(contrasts).head(8)
columns = ["site", "kpi", "a", "b", "g", "g_low", "g_high", "p_maxt"]
print(found[columns].to_string(index=False, float_format="%.2g"))
