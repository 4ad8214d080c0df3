"""Entry point of `python -m florence2ner`; `accelerate launch -m florence2ner` runs it in every process."""

from florence2ner.cli import main

if __name__ == "__main__":
    main()
