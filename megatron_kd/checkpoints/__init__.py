"""How a checkpoint folder is written, verified and read. Nothing here knows a model or a run."""
