"""How what a backend costs grows: with sites, edits, depth, width, tokens and batch; and with every call."""
