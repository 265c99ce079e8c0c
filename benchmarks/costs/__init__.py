"""What crosslens' own work costs beside what it stands in for: key figures, `compare`, the `Recorder` and `sweep`."""
