"""`python -m gradscale` is `gradscale`."""

from gradscale.cli.main import main

if __name__ == "__main__":
    main()
