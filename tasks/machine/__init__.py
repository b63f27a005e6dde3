"""This machine: its processes, its network, deadlines for what others do."""
