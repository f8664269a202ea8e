"""The commands: `python tools/NAME.py`, `ssl-vit NAME` and `python -m ssl_vit NAME` are one thing."""
