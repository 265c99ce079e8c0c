"""The example that the README tells comes out as it says there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_sick_layer_and_its_steps_are_found(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "sick_training.py")],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert "of 80 figures of activations differ" in lines[0]
    layers = [line.split()[0] for line in lines[3:9]]
    assert layers == [*(f"module:{i}:output" for i in range(2, 7)), "module::output"], "nothing before layer 2"
    sd = {row.split()[0]: [float(cell) for cell in row.split()[1:]] for row in lines if row[:2] in ("a ", "b ")}
    assert all(abs(b / a - 1) < 0.15 for a, b in zip(sd["a"][:4], sd["b"][:4], strict=True))
    assert all(b / a < 0.87 for a, b in zip(sd["a"][4:], sd["b"][4:], strict=True))
