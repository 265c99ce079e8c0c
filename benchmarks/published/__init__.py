"""Figures that others published about these libraries, each measured again: what was claimed, what comes out here, why.

`claim.py` says what a row is and how it is judged; a module for each source (`torchlens_table.py`, `nnsight_costs.py`,
`tdhook_bench.py`, `noise_floors.py`, `nnbench.py`, `vllm_lens.py`) holds its claims and measures them; `catalogue.py`
names them all. `worker.py` measures one group of rows in a process of its own, `study.py` starts the processes,
`page.py` renders what was kept.

    python -m crosslens.benchmarks.published --out published.md
"""
