"""Edits: plain records that turn the model of the user's code into the one that a state_dict belongs to."""
