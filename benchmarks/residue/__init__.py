"""What is different about a user's model, tokenizer, process and machine after a library was used once.

`snapshot.py`, `process.py` and `behaviour.py` look, before and after, and know no library; `uses.py` uses each library
as its documentation teaches; `worker.py` does both in a process of its own; `table.py` renders what was kept of them.
"""
