"""Categorised-comparison workloads, the models that they run on, and their references."""

from .base import Known, Result, Score, Task
from .compare import compare
from .compare_shards import compare_on_ray
from .comparison import Comparison
from .models import known_models, load_model
from .recorder import Recorder
from .recording import Recording
from .registry import load_task, tasks
from .sweeping import sweep

__all__ = [
    "Comparison",
    "Known",
    "Recorder",
    "Recording",
    "Result",
    "Score",
    "Task",
    "compare",
    "compare_on_ray",
    "known_models",
    "load_model",
    "load_task",
    "sweep",
    "tasks",
]
