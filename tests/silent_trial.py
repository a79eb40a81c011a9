"""A replacement of the process of trial compilations, which never replies."""

import sys

if __name__ == "__main__":
    sys.stdin.read()
