"""Runs `florence2ner ARGS` with trackers that are waited for far shorter than usual."""

from florence2ner.engine import guarded

if __name__ == "__main__":
    guarded.START_LIMIT = guarded.FINISH_LIMIT = 8.0
    from florence2ner.cli import main  # whatever reads the limits comes later

    main()
