"""`python -m dgiqa`, and `dgiqa-rt`: Ctrl-C ends it without a traceback from the start."""

import signal


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from dgiqa.cli import main as run

    run()


if __name__ == "__main__":
    main()
