"""`python -m hotdask` is the command `hotdask`."""

from hotdask.cli import main

if __name__ == "__main__":
    main(prog_name="hotdask")
