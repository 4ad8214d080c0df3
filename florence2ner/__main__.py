"""`python -m florence2ner`, and what `accelerate launch -m florence2ner` starts on every process."""

from florence2ner.cli import main

if __name__ == "__main__":
    main()
