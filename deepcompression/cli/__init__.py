"""The command line ``dcz``."""
