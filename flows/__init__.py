"""The DAGs (Prefect flows) and the one workflow command line, ``python -m flows``."""
