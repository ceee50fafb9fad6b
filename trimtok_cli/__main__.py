"""python -m trimtok_cli"""

from trimtok_cli.cli import main

if __name__ == "__main__":
    main()
