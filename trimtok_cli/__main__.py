"""The command `trimtok`, and `python -m trimtok_cli`: handles signals before slow imports."""

from trimtok_cli.interrupts import protected


def main() -> None:
    protected(_start)


def _start() -> None:
    from trimtok_cli.cli import app

    app()


if __name__ == "__main__":
    main()
