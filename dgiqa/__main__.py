"""`python -m dgiqa`: the same as `dgiqa-rt`."""

from dgiqa.cli import main

if __name__ == "__main__":
    main()
