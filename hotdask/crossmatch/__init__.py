"""Other catalogs: matched on the sky, joined, compared."""
