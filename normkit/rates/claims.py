"""All claims of the rates theme, by paper."""

CLAIMS = []
