"""The shortest honest program for each operation in each library, as the library's own documentation teaches it.

Each lies in `LIBRARY/OPERATION.py`, with `LIBRARY/OPERATION_gpt2.py` where another family of models needs another text;
`impossible.py` says why there is none. Each is run and held to a reference (`operations.py`), and measured
(`measure.py`). `python -m crosslens.benchmarks.idioms` does both. Importing this package imports no library.
"""
