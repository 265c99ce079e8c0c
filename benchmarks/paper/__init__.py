"""The paper's numbers, tables and figures, rendered from a run's folder, and what keeps its text honest.

`sources.py` reads a run. `macros.py` gives each number of the text a name, `tables.py` and `figures.py` render the
rest, and `generate.py` writes them to `paper/generated/`. `tex.py` and `scanner.py` read the text and find numbers that
are typed, macros that nobody uses and tables that are not shown; `check.py` compares what lies there with the results;
`proof.py` reads what LaTeX said of the pages. Importing this package imports no backend library.
"""
