"""Entry point of `berth` and of `python -m cli`: hands over to the command tree and nothing else."""

from cli.commands import berth


def main() -> None:
    """Run the command named on the command line; never returns."""
    berth(prog_name="berth")


if __name__ == "__main__":
    main()
