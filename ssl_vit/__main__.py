"""`python -m ssl_vit NAME [key=value ...]`: the same as `ssl-vit NAME`."""

from ssl_vit.cli.main import main

if __name__ == "__main__":
    main()
