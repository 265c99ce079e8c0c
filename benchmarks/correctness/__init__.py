"""How right every backend is: site x operation x family x dtype x attention x padding x batch, against a reference.

`design` says which cells there are and which are run, `scene` on what, `oracle` and `own_forward` what comes out by
definition, `asking` what a backend gives, `judge` what a difference means, `worker` does it all in a process for one
backend, and `table` renders what was kept.
"""
