"""One tracked Prefect task a stage, around the functions of ``deepcompression``."""
