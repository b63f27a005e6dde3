"""``python -m deepcompression.cli``."""

from deepcompression.cli.main import main

if __name__ == "__main__":
    main()
