"""The attention theme's claims."""

CLAIMS = ()
