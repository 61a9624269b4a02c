"""`python -m burst`: the command `burst`, where the folder of commands is not on the PATH."""

from cli.burst import main

if __name__ == "__main__":
    main()
