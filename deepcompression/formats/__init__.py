"""Other files and states: safetensors, torch's checkpoints, state_dicts."""
