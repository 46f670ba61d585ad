"""Images as model inputs: what is asked for, how it is prepared for a model, and how files are decoded."""
