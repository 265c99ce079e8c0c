"""Categorised-comparison workloads, the models that they run on, and their references."""

from .base import Result, Score, Task
from .models import load_model, models
from .registry import load_task, tasks

__all__ = ["Result", "Score", "Task", "load_model", "load_task", "models", "tasks"]
