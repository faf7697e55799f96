"""python -m graft_lora: prints what is built and what runs here."""

from . import info

if __name__ == "__main__":
    print(info())
