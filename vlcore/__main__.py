"""``python -m vlcore`` is the ``vlcore`` command."""

from vlcore.cli import main

if __name__ == "__main__":
    main()
