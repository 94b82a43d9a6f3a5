"""How right labels are: held against real stars whose labels are known from elsewhere."""
