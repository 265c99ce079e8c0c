"""What happens when a library is used wrongly: a fixed list of mistakes, each written as a user of that library would.

`python -m crosslens.benchmarks.mistakes` makes every mistake with every library, each in a process of its own, and
holds what the user gets to what was meant. `catalogue.py` is the list, `judge.py` the classes; the other modules, named
after the libraries, hold one short program a mistake. Importing this package imports no library.
"""
