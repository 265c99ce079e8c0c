"""A training run in which one category of step is sick: which layer, and when?

Two workers take turns at feeding digits to a small network. From step 400 on, in the steps of worker "b", the second
layer's output is 0.8 times what it was. The losses hardly tell; the recorder says where to look, and since when.

    python examples/sick_training.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from crosslens.tasks import Recorder

STEPS, SICK_FROM, SICK_LAYER = 800, 400, 2

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(digits)
model = nn.Sequential(
    nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
sick = False
model[SICK_LAYER].register_forward_hook(lambda module, args, output: output * 0.8 if sick else None)

with Recorder(model, "module:*:output", schedule=5) as recorder:
    for number in range(STEPS):
        worker = "ab"[torch.randint(2, ()).item()]
        sick = worker == "b" and number >= SICK_FROM
        batch = torch.randint(len(x), (32,))
        with recorder.step(worker) as step:
            optimizer.zero_grad()
            loss = criterion(model(x[batch]), y[batch])
            step.loss("cross entropy", loss)
            loss.backward()
            optimizer.step()

found = recorder.contrasts(windows=4)
found = found[found["kind"] == "activation"]
differ = found[found["p_maxt"] < 0.01]
print(f"{len(differ)} of {len(found)} figures of activations differ between the workers; by layer:\n")
strongest = differ.reindex(differ["g"].abs().sort_values(ascending=False).index).drop_duplicates("site")
columns = ["site", "kpi", "g", "g_low", "g_high", "p_maxt"]
print(strongest.sort_values("site")[columns].to_string(index=False, float_format="%.3g"))

first = strongest["site"].min()
table = recorder.table(["activation"])
table = table[(table["site"] == first) & (table["kpi"] == "sd")]
table = table.assign(steps=[f"{step // 100 * 100}-{step // 100 * 100 + 99}" for step in table["step"]])
print(f"\nsd of {first}, by worker and step:\n")
print(table.pivot_table(index="category", columns="steps", values="value", sort=False).to_string(float_format="%.2f"))
losses = recorder.table(["loss"])
losses = losses[losses["step"] >= SICK_FROM].groupby("category")["value"].mean()
print(f"\nmean loss from step {SICK_FROM} on: a {losses['a']:.2f}, b {losses['b']:.2f}")
