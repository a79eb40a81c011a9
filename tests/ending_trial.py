"""A replacement of the process of trial compilations, which ends while it compiles."""

import sys

if __name__ == "__main__":
    sys.stdin.readline()
    print("ready", flush=True)
    sys.stdin.readline()
