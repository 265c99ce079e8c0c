"""What every test starts from: one thread (workers share the cores), no model hub, no deadlines."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("crosslens", deadline=None, print_blob=True)
settings.load_profile("crosslens")
