"""`python -m bpt`: the command `bpt`, where the folder of commands is not on the PATH."""

from cli.bpt import main

if __name__ == "__main__":
    main()
